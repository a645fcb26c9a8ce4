"""The simulation: what it leaves in its folder, what it refuses, and who drops out when."""

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from support.study.tiny_models import save_tiny_model
from support.written_notes import cp1252, fhir, mimic, omop_sqlite, parquet
from transformers import AutoModelForCausalLM

from grandrounds.common.crypto.identity import sha256
from grandrounds.common.errors import DataError, GrandRoundsError, StorageError, StudyError
from grandrounds.common.ledger.replay import VerifiedLedger
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.model.lora import Lora
from grandrounds.common.schema import validated
from grandrounds.common.study.manifest import MANIFEST_LABEL, Manifest
from grandrounds.common.study.study import Study
from grandrounds.deploy.simulation.outages import Dropout
from grandrounds.deploy.simulation.simulate import Result, simulate
from grandrounds.server.report.utility import published
from grandrounds.server.rounds.checkpoint import Checkpoint
from grandrounds.server.rounds.training import ExchangeClosed, RoundOutcome
from grandrounds.server.run.progress import Event, PhaseEnded, PhaseStarted, StudyReady, Told
from grandrounds.server.run.study_folder import StudyFolder

SITES = ("north", "south", "east", "west", "coast")
ROUNDS = 3


def records(site: str, count: int) -> list[dict[str, str]]:
    """Two notes each of ``count`` patients."""
    return [
        {"patient_id": f"{site}-{i}", "text": f"{site} {i} slept {j} hours"} for i in range(count) for j in range(2)
    ]


COHORTS = {site: records(site, 3) for site in SITES}
EVALUATION = records("elsewhere", 2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("llama"))


def study(base: Path, **sections: Any) -> Study:
    """Without noise, everyone sampled, so that training is quick and its steps are large."""
    fields: dict[str, Any] = {
        "model": {"name": str(base), "target_modules": ["q_proj", "v_proj"], "rank": 2},
        "data": {"max_tokens": 24, "records_per_unit": 2, "evaluation": "synthetic"},
        "privacy": {"noise": False, "sampling_probability": 1},
        "training": {"rounds": ROUNDS},
        "sites": [{"name": site, "nominal_units": 3} for site in SITES],
    }
    for name, section in sections.items():
        fields[name] = section if name == "sites" else {**fields[name], **section}
    return validated(Study, fields)


def run(base: Path, *, sections: dict[str, Any] | None = None, **options: Any) -> tuple[Result, list[Any]]:
    events: list[Any] = []
    result = simulate(study(base, **(sections or {})), COHORTS, evaluation=EVALUATION, observe=events.append, **options)
    return result, events


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, list[Any]]:
    folder = tmp_path_factory.mktemp("results") / "study"
    return run(base, output=folder, dropouts=[Dropout(site="south", round=2)])


def test_the_adapter_loads_with_peft_on_the_base_model_and_is_exactly_the_trained_one(
    base: Path, finished: tuple[Result, list[Any]]
) -> None:
    result, _ = finished
    assert result.folder is not None
    plain = AutoModelForCausalLM.from_pretrained(base)
    tokens = torch.arange(20)[None]
    before = plain(tokens).logits
    loaded = peft.PeftModel.from_pretrained(plain, result.folder / "adapter").eval()
    assert exported(result.folder, base) == result.adapter.tobytes()
    assert result.adapter.any()
    assert not torch.allclose(loaded(tokens).logits, before)
    assert (result.folder / "adapter" / "README.md").read_text(encoding="utf-8")


def test_the_manifest_in_the_folder_is_the_one_that_every_message_named(finished: tuple[Result, list[Any]]) -> None:
    result, events = finished
    assert result.folder is not None
    written = (result.folder / "study.json").read_bytes()
    assert sha256(MANIFEST_LABEL + written) == result.manifest.sha256
    assert validated(Manifest, json.loads(written)) == result.manifest
    assert result.report["manifest_sha256"] == result.manifest.sha256
    assert [event.manifest for event in events if isinstance(event, StudyReady)] == [result.manifest]


def test_the_folder_holds_the_results_and_nothing_half_written(finished: tuple[Result, list[Any]]) -> None:
    result, _ = finished
    folder = result.folder
    assert folder is not None
    assert {path.name for path in folder.iterdir()} == {
        "adapter",
        "checkpoints",
        "ledger",
        "report.html",
        "report.json",
        "server",
        "sites",
        "study.json",
        "sums",
    }
    assert json.loads((folder / "report.json").read_bytes()) == result.report
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    checkpoint = Checkpoint.load(newest, result.manifest.study_id)
    assert checkpoint.round == ROUNDS
    assert checkpoint.adapter.tobytes() == result.adapter.tobytes()


def test_the_reported_perplexities_are_the_base_model_s_and_the_last_round_s(
    finished: tuple[Result, list[Any]],
) -> None:
    result, events = finished
    rounds = [event for event in events if isinstance(event, RoundOutcome)]
    ready = next(event for event in events if isinstance(event, StudyReady))
    assert result.report["perplexity_before"] == published(ready.perplexity_before)
    assert result.report["perplexity_after"] == published(rounds[-1].perplexity)
    assert rounds[-1].perplexity != ready.perplexity_before
    assert all(len(f"{row['after']:g}".replace(".", "")) <= 3 for row in result.report["utility"]["by_position"])


SHARED = {
    "a patient": ({"patient_id": "south-1", "text": "no complaints"}, "a patient"),
    "a text": ({"patient_id": "nobody", "text": "south 1 slept 0 hours"}, "a text"),
}


def noisy(base: Path) -> Study:
    """With something to claim."""
    return study(base, privacy={"noise": True, "noise_multiplier": 8.0, "sampling_probability": 0.5})


@pytest.mark.parametrize("shared", SHARED)
def test_evaluation_records_that_share_anything_with_a_cohort_are_refused_without_a_quote(
    base: Path, shared: str, tmp_path: Path
) -> None:
    record, named = SHARED[shared]
    with pytest.raises(DataError, match=f"evaluation, row 5: it has {named} of the sites' records") as refusal:
        simulate(noisy(base), COHORTS, evaluation=[*EVALUATION, record], output=tmp_path / "study")
    assert "south" not in refusal.value.diagnostics()


def test_a_study_that_does_not_say_what_its_evaluation_records_are_is_refused(base: Path) -> None:
    with pytest.raises(StudyError, match="public or synthetic"):
        simulate(study(base, data={"evaluation": None}), COHORTS, evaluation=EVALUATION)


def test_a_dropout_is_away_for_the_late_exchanges_of_its_round_and_back_in_the_next(
    finished: tuple[Result, list[Any]],
) -> None:
    result, events = finished
    away = {
        (event.round, event.exchange): set(SITES) - event.answered
        for event in events
        if isinstance(event, ExchangeClosed)
    }
    late = ("masked-input", "consistency", "unmask")
    assert {place for place, sites in away.items() if sites} == {(2, exchange) for exchange in late}
    assert all(away[2, exchange] == {"south"} for exchange in late)
    assert [closed.survivors for closed in events if isinstance(closed, RoundOutcome)] == [
        SITES,
        tuple(site for site in SITES if site != "south"),
        SITES,
    ]
    (dropout,) = result.report["dropouts"]
    assert (dropout["round"], dropout["site"]) == (2, "south")


def test_two_dropouts_at_once_fail_the_attempt_and_are_back_for_its_retry(base: Path) -> None:
    dropouts = [Dropout(site="south", round=1), Dropout(site="coast", round=1)]
    result, events = run(base, dropouts=dropouts, sections={"training": {"rounds": 1}})
    (closed,) = [event for event in events if isinstance(event, RoundOutcome)]
    assert [(outcome.attempt, outcome.survivors) for outcome in closed.outcomes] == [(1, ()), (2, SITES)]
    assert (result.report["rounds"], result.report["attempts"]) == (1, 2)
    assert result.folder is None


def exported(folder: Path, base: Path) -> bytes:
    """The trained vector of a folder, as peft loads it."""
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder / "adapter")
    named = {name.replace(".default", ""): tensor for name, tensor in loaded.named_parameters() if "lora_B" in name}
    return np.concatenate([named[name].detach().numpy().ravel() for name in sorted(named)]).tobytes()


def test_where_the_schedule_ends_in_a_failed_attempt_the_last_round_s_adapter_is_written(
    base: Path, tmp_path: Path
) -> None:
    """In that attempt sites took local steps: what they left in the model is no release."""
    sections = {
        "privacy": {"trust": "local"},
        "training": {"rounds": 2, "max_attempts": 2, "local_steps": 2},
    }
    dropouts = [Dropout(site="south", round=2), Dropout(site="coast", round=2)]
    result, events = run(base, output=tmp_path / "study", sections=sections, dropouts=dropouts)
    assert result.report["exhausted"]
    closed = [event for event in events if isinstance(event, RoundOutcome)]
    assert [(event.round, event.committed) for event in closed] == [(1, True), (2, False)]
    assert {row["site"] for row in result.report["dropouts"]} == {"south", "coast"}
    assert exported(tmp_path / "study", base) == result.adapter.tobytes()


def test_phases_are_told_as_they_begin_and_end(finished: tuple[Result, list[Any]]) -> None:
    _, events = finished
    names = [event.name for event in events if isinstance(event, PhaseStarted)]
    assert names == [
        "records",
        "calibration",
        "model",
        "independence",
        "signing",
        "evaluation",
        "training",
        "report",
        "closing",
    ]
    assert [event.name for event in events if isinstance(event, PhaseEnded)] == names


@pytest.mark.parametrize("trust", ["distributed", "local"])
def test_a_private_study_of_sources_of_every_kind_runs_within_its_target(
    base: Path, tmp_path: Path, trust: str
) -> None:
    private = study(
        base,
        privacy={"noise": True, "noise_multiplier": 8, "sampling_probability": 1, "trust": trust},
        training={"rounds": 1, "max_attempts": 1},
    )
    cohorts = {}
    for site, form in zip(SITES, (fhir, omop_sqlite, mimic, cp1252, parquet), strict=True):
        (tmp_path / site).mkdir()
        notes = [(1 + number // 2, row["text"]) for number, row in enumerate(COHORTS[site])]
        cohorts[site] = form(tmp_path / site, (notes[:3], notes[3:]))
    (tmp_path / "elsewhere.jsonl").write_text("".join(json.dumps(row) + "\n" for row in EVALUATION), encoding="utf-8")
    result = simulate(private, cohorts, evaluation=tmp_path / "elsewhere.jsonl", output=tmp_path / "out")
    assert result.manifest.study.privacy.target_epsilon is not None
    assert 0 < result.report["epsilon"] <= result.manifest.study.privacy.target_epsilon
    assert result.report["trust"] == trust
    assert result.adapter.any()


def test_whoever_opted_out_takes_no_part(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise and with everyone sampled, the adapter is that of cohorts in which they never were."""
    # The same frozen A in both studies, so that they can be compared.
    monkeypatch.setattr("grandrounds.deploy.simulation.simulate.secrets.randbits", lambda bits: 7)
    (tmp_path / "south.txt").write_text("south-0\nsouth-2\n", encoding="utf-8")
    never_there = {**COHORTS, "south": [row for row in COHORTS["south"] if row["patient_id"] == "south-1"]}
    small = study(base, training={"rounds": 1})
    with_opt_outs, without_them, everybody = (
        simulate(small, cohorts, evaluation=EVALUATION, opted_out=opted_out).adapter.tobytes()
        for cohorts, opted_out in (
            (COHORTS, {"south": tmp_path / "south.txt"}),
            (never_there, {}),
            (COHORTS, {}),
        )
    )
    assert with_opt_outs == without_them != everybody


def test_what_is_wrong_with_a_site_s_records_or_opt_outs_is_told_and_stops_nothing(base: Path, tmp_path: Path) -> None:
    """A record that counts as zero in its place, and an opt-out in another spelling beside one of nobody."""
    (tmp_path / "south.txt").write_text("SOUTH\u201100 # on 3 May\nnobody\n", encoding="utf-8")
    cohorts = {**COHORTS, "south": [*COHORTS["south"], {"patient_id": "south-1", "text": " "}]}
    events: list[Event] = []
    small = study(base, training={"rounds": 1})
    simulate(small, cohorts, evaluation=EVALUATION, opted_out={"south": tmp_path / "south.txt"}, observe=events.append)
    told = "\n".join(event.text for event in events if isinstance(event, Told))
    assert f"south, row {len(cohorts['south'])}: its text is empty" in told
    assert "1 of the opt-outs' 2 lines match no patient of the records (line 2)" in told


def test_patients_of_several_spellings_are_refused_until_it_is_said_whose_they_are(base: Path) -> None:
    cohorts = {**COHORTS, "south": [*COHORTS["south"], {"patient_id": "South-01", "text": "south 1 slept well"}]}
    small = study(base, training={"rounds": 1})
    with pytest.raises(DataError, match="in spelling alone"):
        simulate(small, cohorts, evaluation=EVALUATION)
    simulate(small, cohorts, evaluation=EVALUATION, similar_identifiers="same")


def test_a_study_without_noise_runs_on_records_that_are_said_to_be_identifiable_and_claims_nothing(base: Path) -> None:
    """The simulation is for comparison; at a site of its own, a policy would refuse it."""
    sites = [{"name": site, "nominal_units": 3, "sensitivity": "identifiable"} for site in SITES]
    result, _ = run(base, sections={"sites": sites, "training": {"rounds": 1}})
    assert result.report["epsilon"] is None


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_content_is_refused_before_anything_runs(base: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not lose me")
    events: list[Any] = []
    with pytest.raises(StorageError, match="is not empty"):
        simulate(study(base), COHORTS, evaluation=EVALUATION, output=tmp_path, observe=events.append)
    assert events == []
    assert contents(tmp_path) == {"thesis.txt": b"do not lose me"}


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_is_no_folder_is_refused_before_anything_runs(base: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("do not lose me")
    with pytest.raises(StorageError, match="cannot be used"):
        simulate(study(base), COHORTS, evaluation=EVALUATION, output=tmp_path / place)
    assert contents(tmp_path) == {"file": b"do not lose me"}


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"cohorts": {site: COHORTS[site] for site in SITES[1:]}}, StudyError, "data for"),
        ({"cohorts": {**COHORTS, "moon": []}}, StudyError, "data for"),
        ({"cohorts": {**COHORTS, "south": []}}, DataError, "no records"),
        ({"opted_out": {"moon": Path("moon.txt")}}, StudyError, "opt-outs for .'moon'."),
        ({"dropouts": [Dropout(site="moon", round=1)]}, StudyError, "there is no moon in round 1"),
        ({"dropouts": [Dropout(site="south", round=0)]}, StudyError, "there is no south in round 0"),
        ({"dropouts": [Dropout(site="south", round=ROUNDS + 1)]}, StudyError, "there is no south in round 4"),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    base: Path, changes: dict[str, Any], error: type[GrandRoundsError], complaint: str
) -> None:
    options = {"cohorts": COHORTS, "evaluation": EVALUATION, **changes}
    with pytest.raises(error, match=complaint):
        simulate(study(base), options.pop("cohorts"), **options)


def test_a_study_whose_sum_could_wrap_is_refused_and_its_folder_can_be_given_again(base: Path, tmp_path: Path) -> None:
    vast = study(base, sites=[{"name": site, "nominal_units": 10**9} for site in SITES])
    with pytest.raises(StudyError, match="a sum could reach"):
        simulate(vast, COHORTS, evaluation=EVALUATION, output=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_whoever_stops_it_finds_whole_what_was_written(base: Path, tmp_path: Path) -> None:
    def stop_in_round_two(event: Any) -> None:
        if isinstance(event, ExchangeClosed) and (event.round, event.exchange) == (2, "masked-input"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(study(base), COHORTS, evaluation=EVALUATION, output=tmp_path, observe=stop_in_round_two)
    assert {path.name for path in tmp_path.iterdir()} == {
        "study.json",
        "checkpoints",
        "ledger",
        "server",
        "sites",
        "sums",
    }
    manifest = validated(Manifest, json.loads((tmp_path / "study.json").read_bytes()))
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    assert Checkpoint.load(newest, manifest.study_id).round == 1
    assert [closed.round for closed in VerifiedLedger.of(StudyFolder(tmp_path).ledger_lines()).rounds] == [1]


def test_all_that_was_written_is_on_disk_before_the_study_ends(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was fsynced has not been changed since: the same inode, last modified when it was fsynced."""

    def state(status: os.stat_result) -> tuple[int, int]:
        return status.st_ino, status.st_mtime_ns

    on_disk = set()
    fsync = os.fsync

    def recording(descriptor: int) -> None:
        fsync(descriptor)
        on_disk.add(state(os.fstat(descriptor)))

    monkeypatch.setattr(os, "fsync", recording)
    folder = tmp_path / "studies" / "first"
    run(base, output=folder, sections={"training": {"rounds": 1}})
    # What sites keep is theirs, and SQLite's to bring to disk.
    written = [folder.parent, folder, *(path for path in folder.rglob("*") if "sites" not in path.parts)]
    assert {path.name for path in written} >= {"adapter_model.safetensors", "checkpoints", "report.json", "study.json"}
    # What the sites' databases write, SQLite brings to the disk itself.
    written = [path for path in written if "sites" not in path.relative_to(tmp_path).parts]
    assert [path for path in written if state(path.stat()) not in on_disk] == []


@contextmanager
def disk_of(size_bytes: int) -> Iterator[None]:
    """No file may grow beyond ``size_bytes``, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_at_the_end_leaves_the_checkpoints_and_nothing_half_written(
    base: Path, tmp_path: Path, finished: tuple[Result, list[Any]]
) -> None:
    result, _ = finished
    model = LanguageModel.load(base, Lora(target_modules=("q_proj", "v_proj"), rank=2), seed=1)
    folder = StudyFolder.create(tmp_path / "study")
    (folder.path / "study.json").write_bytes(b"{}")
    for size_bytes in (0, 200, 1000):
        with disk_of(size_bytes), pytest.raises(StorageError, match="cannot be written"):
            folder.save_results(result.report, model, described=result.manifest.study.model)
        assert [path.name for path in (tmp_path / "study").iterdir()] == ["study.json"]
    folder.save_results(result.report, model, described=result.manifest.study.model)


def test_an_adapter_s_base_model_is_found_from_every_folder(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    model = {"name": f"./{base.name}", "target_modules": ["v_proj"]}
    small = study(base, model=model, training={"rounds": 1})
    result = simulate(small, COHORTS, evaluation=EVALUATION, output=tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == result.manifest.study.model.name == str(base.resolve())


def test_files_that_are_not_declared_synthetic_are_said_to_have_no_budget_each_time(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(cohorts: Any) -> str:
        with pytest.raises(DataError):
            simulate(study(base, sites=sites), cohorts, evaluation=tmp_path / "none.jsonl")
        return capsys.readouterr().err

    kinds = {"north": "synthetic", "south": "identifiable", "west": "deidentified"}
    sites = [{"name": name, "nominal_units": 20, "sensitivity": kind} for name, kind in kinds.items()]
    for _ in range(2):
        assert "keeps no budget. The records of south, west are not declared" in told(
            dict.fromkeys(kinds, tmp_path / "none.jsonl")
        )
    assert told({site: COHORTS[site] for site in kinds}) == "", "of rows there is no file that a hospital could have"
