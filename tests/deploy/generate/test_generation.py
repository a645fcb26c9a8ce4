"""Synthetic notes: the same wherever one goes on, with the claim of the study whose adapter wrote them."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import Result
from support.study.tiny_models import TARGETS, load_tiny, save_tiny_model
from support.study.verified_study import SmallStudy, ran
from typer.testing import CliRunner

from grandrounds.common.data.tokenisation import load_tokenizer
from grandrounds.common.errors import GrandRoundsError, ModelError, StorageError, StudyError
from grandrounds.common.ledger import entries
from grandrounds.common.ledger.chain import Entry
from grandrounds.common.model.adapter import vector_sha256
from grandrounds.common.model.lora import Lora
from grandrounds.common.study.artefacts import RESULTS
from grandrounds.deploy.adapter.continuation import continued
from grandrounds.deploy.adapter.finished import FinishedAdapter
from grandrounds.deploy.cli.main import app
from grandrounds.deploy.generate.generation import Generation
from grandrounds.deploy.generate.notes_file import about_path
from grandrounds.deploy.generate.prompts import Prompts
from grandrounds.deploy.generate.provenance import about, claimed, in_short
from grandrounds.deploy.generate.sampling import Sampling, _Draw, batches
from grandrounds.deploy.verify.claims import verify
from grandrounds.deploy.verify.verdict import Outcome

SAMPLING = Sampling(count=5, max_new_tokens=6, temperature=1.0, top_p=0.9, seed=3, batch=2)


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with no study beside it."""
    folder = tmp_path_factory.mktemp("adapters") / "alone"
    lora = Lora(target_modules=TARGETS["llama"], kind="lora", rank=2, alpha=4.0)
    load_tiny(base, kind="lora").export(folder, lora=lora, base_model=str(base))
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text('{"prompt": "Age 4:", "age": 4}\n{"prompt": "A patient of age 40:", "age": 40}\n')
    return path


@pytest.fixture
def generation(base: Path, folder: Path, prompts: Path) -> Generation:
    return Generation(adapter=FinishedAdapter.read(folder), base=base, prompts=Prompts.read(prompts), sampling=SAMPLING)


def command(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["generate", *map(str, words)])


def refused(*words: str | Path) -> str:
    error = command(*words).exception
    assert isinstance(error, GrandRoundsError), error
    return error.diagnostics()


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("stop", [0, 2, 4])
def test_whoever_was_stopped_goes_on_to_the_same_notes(generation: Generation, tmp_path: Path, stop: int) -> None:
    generation.run(tmp_path / "whole.jsonl")

    def stopping(done: int) -> None:
        if done == stop:
            raise StoppedError

    output = tmp_path / "new" / "notes.jsonl"
    with pytest.raises(StoppedError):
        generation.run(output, stopping)
    assert not output.exists()
    with (output.parent / ".notes.jsonl.partial").open("ab") as file:  # a row that was cut short, and one of no batch
        file.write(b'{"id": 0}\n{"text": "')
    done: list[int] = []
    generation.run(output, done.append)
    assert done[0] == stop and done[-1] == 5
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert {path.name for path in output.parent.iterdir()} == {"notes.jsonl", "notes.jsonl.about.json"}


def test_each_note_is_its_prompt_and_what_was_written_behind_it(generation: Generation, tmp_path: Path) -> None:
    output = tmp_path / "notes.jsonl"
    generation.run(output)
    found = rows(output)
    assert [row["control_age"] for row in found] == ["4", "40", "4", "40", "4"]
    assert [row["text"][: row["prompt_characters"]] for row in found[:2]] == ["Age 4:", "A patient of age 40:"]
    assert len({row["id"] for row in found}) == 5 and len({row["text"] for row in found}) == 5
    assert {row["privacy"] for row in found} == {"no claim"}
    about = json.loads(about_path(output).read_bytes())
    assert about["notes_sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert about["adapter_sha256"] == generation.adapter.weights_sha256 and about["study"] is None
    assert about["sampling"]["seed"] == 3 and "no claim of privacy" in about["privacy"]


def test_another_seed_and_no_adapter_write_other_notes(generation: Generation, tmp_path: Path) -> None:
    others = {
        "own": generation,
        "seed": replace(generation, sampling=replace(SAMPLING, seed=4)),
        "base": replace(generation, with_adapter=False),
    }
    for name, other in others.items():
        other.run(tmp_path / f"{name}.jsonl")
    assert len({(tmp_path / f"{name}.jsonl").read_bytes() for name in others}) == 3
    assert json.loads(about_path(tmp_path / "base.jsonl").read_bytes())["adapter_sha256"] is None


def test_what_the_model_computes_in_is_said_and_no_weights_of_four_bits_are_widened(
    generation: Generation, tmp_path: Path
) -> None:
    halved = replace(generation, sampling=replace(SAMPLING, precision="bfloat16"))
    halved.run(tmp_path / "notes.jsonl")
    about = json.loads(about_path(tmp_path / "notes.jsonl").read_bytes())
    assert about["sampling"]["precision"] == "bfloat16" and about["precision"] == "float32"
    with pytest.raises(ModelError, match="4 bits is not computed in bfloat16"):
        replace(halved, adapter=replace(generation.adapter, precision="nf4")).run(tmp_path / "other.jsonl")
    assert not (tmp_path / "other.jsonl.about.json").exists()


def test_parquet_has_the_same_rows_and_says_what_they_are(generation: Generation, tmp_path: Path) -> None:
    for name in ("notes.jsonl", "notes.parquet"):
        generation.run(tmp_path / name)
    table = pq.read_table(tmp_path / "notes.parquet")
    assert table.to_pylist() == rows(tmp_path / "notes.jsonl")
    said, beside = json.loads(table.schema.metadata[b"grandrounds"]), about_path(tmp_path / "notes.parquet")
    assert said == {name: each for name, each in json.loads(beside.read_bytes()).items() if name != "notes_sha256"}


def test_nothing_is_written_over_and_no_two_origins_meet_in_a_file(generation: Generation, tmp_path: Path) -> None:
    output = tmp_path / "notes.jsonl"
    generation.run(output)
    before = output.read_bytes()
    with pytest.raises(StorageError, match="exists"):
        generation.run(output)
    output.rename(tmp_path / "kept")
    with pytest.raises(StorageError, match="is of other notes"):
        replace(generation, sampling=replace(SAMPLING, temperature=2.0)).run(output)
    (tmp_path / ".notes.jsonl.partial").write_bytes(before)
    about_path(output).write_text("[]")
    with pytest.raises(StorageError, match="is of other notes"):
        generation.run(output)

    def another(done: int) -> None:
        generation.run(tmp_path / "new.jsonl")

    with pytest.raises(StorageError, match="is being written by another process"):
        generation.run(tmp_path / "new.jsonl", another)
    with pytest.raises(StorageError, match="neither"):
        generation.run(tmp_path / "notes.csv")


def test_guidance_draws_by_what_the_prompt_changes_beside_another_notes_prompt() -> None:
    told, other = torch.tensor([0.5, 0.2, 0.3]), torch.tensor([0.25, 0.25, 0.5])
    guided = replace(SAMPLING, top_p=1.0, guidance=2.0)
    draw = _Draw(sampling=guided, generator=torch.Generator().manual_seed(1))
    scores = torch.stack([told, other]).log().repeat_interleave(40_000, 0)
    scores = scores + torch.linspace(-3, 3, len(scores))[:, None]  # what all tokens have alike says nothing
    drawn = draw(torch.empty(0), scores).argmax(-1)
    assert torch.equal(drawn[:40_000], drawn[40_000:]), "both prompts are continued by one note"
    often = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(often, told**2 / other / (told**2 / other).sum(), atol=0.02, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_prompt_is_continued_as_it_is_alone_whatever_longer_one_lies_beside_it(
    base: Path, generation: Generation, guidance: float
) -> None:
    model, tokenizer = generation.adapter.on(base), load_tokenizer(str(base))
    likeliest = replace(SAMPLING, top_p=0.01, count=2, guidance=guidance)
    (both,) = batches(model, tokenizer, generation.prompts, likeliest)
    alone = [made[0] for made in batches(model, tokenizer, generation.prompts, replace(likeliest, batch=1))]
    assert both == alone and [note.prompt.controls["age"] for note in both] == ["4", "40"]


def test_what_is_forbidden_behind_both_prompts_stays_so_under_guidance() -> None:
    guided = replace(SAMPLING, top_p=1.0, guidance=2.0)
    draw = _Draw(sampling=guided, generator=torch.Generator().manual_seed(1))
    scores = torch.tensor([[0.0, 1.0, -torch.inf], [1.0, 0.0, -torch.inf]]).repeat_interleave(1_000, 0)
    assert set(draw(torch.empty(0), scores).argmax(-1).tolist()) == {0, 1}


def test_guidance_is_by_another_prompt_where_the_next_is_the_same_and_refused_where_all_are(
    generation: Generation, base: Path, tmp_path: Path
) -> None:
    def texts(prompts: str, guidance: float) -> list[str]:
        path = tmp_path / "prompts.jsonl"
        path.write_text(prompts)
        likeliest = replace(SAMPLING, top_p=0.01, count=1, guidance=guidance)
        model, tokenizer = generation.adapter.on(base), load_tokenizer(str(base))
        return [note.written for made in batches(model, tokenizer, Prompts.read(path), likeliest) for note in made]

    same, other = '{"prompt": "Age 4:"}\n', '{"prompt": "A patient of age 40:"}\n'
    assert texts(same * 3 + other, 4.0) == texts(same + other, 4.0) != texts(same + other, 1.0)
    with pytest.raises(ModelError, match=r"the prompts of prompts\.jsonl do not differ"):
        texts(same * 3, 4.0)
    assert texts(same * 3, 1.0)


def test_guidance_changes_notes_and_is_recorded(generation: Generation, tmp_path: Path) -> None:
    for name, guidance in {"own": 1.0, "guided": 4.0}.items():
        sampling = replace(SAMPLING, guidance=guidance)
        described = replace(generation, sampling=sampling).run(tmp_path / f"{name}.jsonl")
        assert described["sampling"]["guidance"] == guidance
    own, guided = (rows(tmp_path / f"{name}.jsonl") for name in ("own", "guided"))
    assert [row["control_age"] for row in own] == [row["control_age"] for row in guided]
    assert [row["text"] for row in own] != [row["text"] for row in guided]


def test_the_weights_of_the_last_layer_are_copied_for_no_note(base: Path, prompts: Path) -> None:
    model, whole = load_tiny(base, kind="lora"), []
    head = model.module.get_output_embeddings()
    head.register_forward_hook(lambda _, states, logits: whole.append(states[0].is_contiguous()))
    list(batches(model, load_tokenizer(str(base)), Prompts.read(prompts), SAMPLING))
    assert whole and all(whole)
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_note_has_the_form_that_its_prompts_give_and_each_of_a_batch_its_own_way_there(
    generation: Generation, tmp_path: Path, guidance: float
) -> None:
    path = tmp_path / "prompts.toml"
    path.write_text(
        'prompt = "{a}:"\nvalues = { a = [1, 2] }\n'
        'sections = [{ heading = "", tokens = 3 }, { heading = "# P\\n", tokens = 9 }]'
    )
    sampling = replace(SAMPLING, max_new_tokens=40, guidance=guidance)
    formed = replace(generation, prompts=Prompts.read(path), sampling=sampling)
    formed.run(tmp_path / "notes.jsonl")
    texts = [row["text"] for row in rows(tmp_path / "notes.jsonl")]
    assert all(text.count("\n\n# P\n") == 1 and len(text.split("# P\n")[1]) <= 9 for text in texts), texts
    assert len(set(texts)) == 5 and all(row["ended"] for row in rows(tmp_path / "notes.jsonl"))


def test_a_token_is_drawn_as_often_as_it_is_likely_among_the_likeliest() -> None:
    chances = torch.tensor([0.5, 0.2, 0.25, 0.05])
    draw = _Draw(sampling=replace(SAMPLING, top_p=0.9), generator=torch.Generator().manual_seed(1))
    scores = chances.log().repeat(40_000, 1)
    left = draw(torch.empty(0), scores)
    assert (left.isfinite().sum(-1) == 1).all(), "one token is left"
    often = torch.bincount(left.argmax(-1), minlength=4) / len(scores)
    torch.testing.assert_close(often, torch.tensor([0.5, 0.2, 0.25, 0.0]) / 0.95, atol=0.02, rtol=0)
    cold = _Draw(sampling=replace(SAMPLING, top_p=1.0, temperature=0.5), generator=torch.Generator().manual_seed(1))
    often = torch.bincount(cold(torch.empty(0), scores).argmax(-1), minlength=4) / len(scores)
    torch.testing.assert_close(often, chances**2 / (chances**2).sum(), atol=0.02, rtol=0)


def test_a_prompt_that_leaves_no_room_is_refused_without_a_word_of_it(generation: Generation, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "' + "secret " * 10 + '"}')
    with pytest.raises(ModelError, match="69 tokens, and the model reads 64") as error:
        replace(generation, prompts=Prompts.read(path)).run(tmp_path / "notes.jsonl")
    assert "secret" not in error.value.diagnostics()


def test_notes_carry_the_claim_of_the_study_as_it_was_recomputed(study: SmallStudy, closed: Any) -> None:
    claim = claimed(FinishedAdapter.read(closed[1], manifest_hash=study.manifest.sha256))
    with pytest.raises(StudyError, match="It is the manifest that you know"):
        FinishedAdapter.read(closed[1], manifest_hash="ab" * 32)
    assert claim is not None
    report = json.loads((closed[1] / "report.json").read_bytes())
    assert (claim["epsilon"], claim["delta"]) == (report["epsilon"], report["delta"])
    assert claim["manifest_sha256"] == study.manifest.sha256 and claim["claim"] == report["claim"]
    assert in_short(claim).endswith("post-processing, ε + 0")
    assert "-DP for each patient, at one site at most, by study" in in_short(claim)
    assert "for each patient, at three sites at most, by" in in_short({**claim, "sites_per_patient": 3})
    assert "for each record, by" in in_short({**claim, "privacy_unit": "record"})


def test_no_claim_goes_with_notes_whose_study_promised_nothing_or_less_than_its_report_says(
    closed: Any, tmp_path: Path
) -> None:
    ran(noise_multiplier=None).close(tmp_path / "open")
    assert in_short(claimed(FinishedAdapter.read(tmp_path / "open"))).startswith("NO PRIVACY; study ")
    adapter = FinishedAdapter.read(closed[1])
    assert adapter.case is not None
    evidence = adapter.case.evidence
    report = json.loads(evidence.files["report.json"])
    forged = {**evidence.files, "report.json": json.dumps({**report, "epsilon": report["epsilon"] / 2}).encode()}
    case = replace(adapter.case, evidence=replace(evidence, files=forged))
    with pytest.raises(StudyError, match="the claim of the adapter's study is not shown"):
        claimed(replace(adapter, case=case))


def test_until_sites_sign_the_end_the_last_adapter_is_the_server_s_word_and_no_claim_is_handed_on(
    base: Path, prompts: Path, tmp_path: Path
) -> None:
    """With the server's key alone: another adapter in the last round's entry, and an end that no site signed."""
    forged = ran()
    forged.adapters[-1] = np.full_like(forged.adapters[-1], 7.0)
    closed_round = entries.RoundClosed.of(Entry.parse(forged.lines[-1]))
    forged.rewrite_last(closed_round.model_copy(update={"adapter_sha256": vector_sha256(forged.adapters[-1])}))
    forged.write_results(tmp_path)
    files = {path: hashlib.sha256((tmp_path / path).read_bytes()).hexdigest() for path in RESULTS}
    forged.ledger.append(entries.StudyClosed(charges=forged.ledger.verified.charges, files=files))
    forged.write_ledger(tmp_path)
    assert verify(tmp_path, forged.manifest.sha256).outcome is Outcome.UNFINISHED
    adapter = FinishedAdapter.read(tmp_path, manifest_hash=forged.manifest.sha256)
    generation = Generation(adapter=adapter, base=base, prompts=Prompts.read(prompts), sampling=SAMPLING)
    for handed_on in (lambda: generation.run(tmp_path / "notes.jsonl"), lambda: continued(forged.study, adapter)):
        with pytest.raises(StudyError, match=r"is not shown\. .* 0 sites of at least 4 have signed"):
            handed_on()
    assert not (tmp_path / "notes.jsonl").exists()


def test_notes_say_in_every_row_and_beside_them_that_nobody_vouched_for_the_study(
    study: SmallStudy, closed: Any, prompts: Path
) -> None:
    known, unknown = (FinishedAdapter.read(closed[1], manifest_hash=each) for each in (study.manifest.sha256, None))
    for adapter, unvouched in ((known, False), (unknown, True)):
        claim = claimed(adapter)
        said = about(adapter, claim, Prompts.read(prompts), SAMPLING)["privacy"]
        assert ("Nobody vouched for the study’s manifest" in said) is unvouched
        assert in_short(claim).endswith("; nobody vouched for that study") is unvouched


def test_the_command_says_what_the_notes_are(folder: Path, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "notes.parquet"
    words = ("--prompts", prompts, "--count", "3", "--max-new-tokens", "4", "--batch", "2")
    said = command(folder, "--output", output, *words).output
    assert "no claim of privacy goes with the notes" in said and f"{output} has 3 notes" in said
    assert "3 of 3 notes" in said and "\x1b" not in said
    assert f"{output} exists" in refused(folder, "--output", output, *words)
    assert "is no folder" in refused(tmp_path / "none", "--output", tmp_path / "new.jsonl")
    assert "no study is in" in refused(folder, "--output", tmp_path / "new.jsonl", "--manifest-hash", "ab")
