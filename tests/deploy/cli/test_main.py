"""The command as its user meets it: what it writes, and what it says about wrong input."""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.network.loopback import until
from support.process.forked import Forked, commanded
from support.study.tiny_models import save_tiny_model

from grandrounds.common.audit.membership import FEWEST
from grandrounds.deploy.cli.main import main

SITES = ("north", "south", "west")
PATIENT_TEXT = "Wilhelmina Featherstone"  # no message may contain it


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def records(tmp_path: Path) -> Callable[[str, list[str]], Path]:
    def write(name: str, lines: list[str]) -> Path:
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def arguments(model: Path, records: Callable[[str, list[str]], Path], tmp_path: Path) -> list[str]:
    """Options of a small study that runs in seconds."""
    lines = [json.dumps({"patient_id": str(patient), "text": f"{PATIENT_TEXT} is well"}) for patient in range(12)]
    files = {site: records(f"{site}.jsonl", lines) for site in SITES}
    nobody = [json.dumps({"patient_id": f"nobody {patient}", "text": "well rested"}) for patient in range(FEWEST)]
    files["evaluation"] = records("evaluation.jsonl", nobody)
    data = [f"--{what}" for site in SITES for what in (f"data={site}={files[site]}", f"nominal-units={site}=10")]
    shape = ["--target-modules=v_proj", "--rank=2", "--max-tokens=16", "--rounds=2", "--target-epsilon=1"]
    output = f"--output={tmp_path / 'study'}"
    return [
        "simulate",
        f"--model={model}",
        f"--evaluation={files['evaluation']}",
        "--evaluation-kind=synthetic",
        output,
        "--no-audit",
        *data,
        *shape,
    ]


def unstated(arguments: list[str]) -> list[str]:
    """Without the sites' nominal units."""
    return [option for option in arguments if not option.startswith("--nominal-units")]


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["grandrounds", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


def test_a_study_on_own_records_leaves_what_the_readme_promises(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    audited = [argument for argument in arguments if argument != "--no-audit"]
    assert run([*audited, "--rank=16"], monkeypatch) == 0  # numbers enough to plant canaries in
    folder = tmp_path / "study"
    assert {path.name for path in folder.iterdir()} == {
        "adapter",
        "audit.json",
        "checkpoints",
        "ledger",
        "report.html",
        "report.json",
        "server",
        "sites",
        "study.json",
        "sums",
    }
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["epsilon"] <= 1
    assert report["rounds"] == 2
    output = capsys.readouterr()
    assert report["audit"]["found"]["claimed"] == 1 and "planted gradient canaries" in output.out
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert PATIENT_TEXT not in output.out + output.err
    assert PATIENT_TEXT.encode() not in written


def test_json_prints_the_report_alone(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--json"], monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["sites"] == 3


def test_stated_units_are_the_manifest_s(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stated = {"north": 30, "south": 11, "west": 10}
    options = [f"--nominal-units={site}={units}" for site, units in stated.items()]
    assert run([*unstated(arguments), *options, "--rounds=1", "--json"], monkeypatch) == 0
    manifest = json.loads((tmp_path / "study" / "study.json").read_text(encoding="utf-8"))
    assert {site["name"]: site["nominal_units"] for site in manifest["study"]["sites"]} == stated


def test_without_noise_nothing_is_claimed_and_that_is_loud(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = [argument for argument in arguments if not argument.startswith("--target-epsilon")]
    assert run([*plain, "--no-privacy"], monkeypatch) == 0
    assert "NO PRIVACY" in capsys.readouterr().out.upper()
    report = json.loads((tmp_path / "study" / "report.json").read_text(encoding="utf-8"))
    assert report["claim"] is None
    assert report["epsilon"] is None


WRONG: dict[str, tuple[list[str], str]] = {
    "a threshold above the sites": (["--threshold=4"], "threshold"),
    "a threshold too low for the corrupt sites": (["--threshold=2"], "threshold"),
    "h below 2 under distributed trust": (["--corrupt-sites=2"], "corrupt"),
    "a delta above one over all units": (["--delta=0.05"], "privacy.delta"),
    "a target that cannot be reached": (["--target-epsilon=0.01", "--max-attempts=200000"], "0.01"),
    "a target out of range": (["--target-epsilon=-1"], "privacy.target_epsilon"),
    "a model without the target modules": (["--target-modules=w_qkv"], "w_qkv"),
    "a model that does not exist": (["--model=no-such-folder/model"], "no-such-folder/model"),
    "attempts below rounds": (["--max-attempts=1"], "max_attempts"),
    "a rank out of range": (["--rank=0"], "model.rank"),
    "more units a step than there are": (["--batch=1000"], "1000"),
    "more tokens than the model has positions": (["--max-tokens=100"], "positions"),
    "a dropout that is none": (["--dropout=north"], "SITE@ROUND"),
    "a dropout of nobody": (["--dropout=nobody@1"], "nobody"),
    "a dropout after the end": (["--dropout=north@3"], "round 3"),
    "data without a name": (["--data=north.jsonl"], "SITE=FILE"),
    "units that are no number": (["--nominal-units=north=many"], "SITE=N"),
    "units of nobody": (["--nominal-units=20"], "SITE=N"),
    "units stated twice": (["--nominal-units=north=20", "--nominal-units=north=30"], "SITE=N"),
    "units of some sites alone": (["--nominal-units=north=20"], "not stated for south"),
    "units of a site without data": (
        [f"--nominal-units={site}=20" for site in ("north", "south", "west", "east")],
        "stated for east, of which there is no data",
    ),
    "no units at a site": (
        [f"--nominal-units={site}" for site in ("north=0", "south=20", "west=20")],
        "nominal_units.north = 0",
    ),
    "a file that is not there": (["--data=east=missing.jsonl", "--nominal-units=east=9"], "missing.jsonl"),
    "a study file that is not there": (["--config=missing.toml"], "missing.toml"),
    "noise and no privacy": (["--no-privacy"], "privacy.noise"),
    "a GPU that no machine has": (["--device=cuda:999"], "GPU"),
    "a device that is none": (["--device=gpu"], 'devices.0 = "gpu"'),
    "local steps under distributed trust": (["--local-steps=2"], "training.local_steps"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_option_is_refused_with_a_diagnosis(
    wrong: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options, named = WRONG[wrong]
    if any(option.startswith("--nominal-units=n") for option in options):
        arguments = unstated(arguments)
    assert run([*arguments, *options], monkeypatch) == 1
    message = capsys.readouterr().err
    assert named in message
    assert "Why it matters: " in message
    assert "What to do: " in message
    assert PATIENT_TEXT not in message
    assert not (tmp_path / "study" / "report.json").exists()


BROKEN_RECORDS: dict[str, tuple[list[str], str]] = {
    "no patients": ([], "north.jsonl"),
    "a missing id": ([f'{{"text": "{PATIENT_TEXT}"}}'], "line 1"),
    "an empty id": ([f'{{"patient_id": " ", "text": "{PATIENT_TEXT}"}}'], "line 1"),
    "nothing but an empty text": (['{"patient_id": 1, "text": " "}'], "line 1"),
    "nothing but broken lines": ([f'{{"patient_id": 1, "text": "{PATIENT_TEXT}', PATIENT_TEXT], "line 1"),
    "a word for a missing id": (['{"patient_id": 1, "text": "ok"}', '{"patient_id": "NaN", "text": "ok"}'], "line 2"),
    "an unknown column": ([f'{{"patient_id": 1, "note": "{PATIENT_TEXT}"}}'], "line 1"),
}


@pytest.mark.parametrize("broken", BROKEN_RECORDS)
def test_broken_records_are_refused_by_line_and_never_quoted(
    broken: str,
    arguments: list[str],
    records: Callable[[str, list[str]], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines, named = BROKEN_RECORDS[broken]
    records("north.jsonl", lines)
    assert run(arguments, monkeypatch) == 1
    message = capsys.readouterr().err
    assert named in message
    assert PATIENT_TEXT not in message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[privacy]\ntarget_epslion = 4\n", "privacy.target_epslion"),
        ("[privcay]\ndelta = 4\n", "privcay"),
        ("[privacy\n", "line 1"),
        ("privacy = 4\n", "privacy"),
        ("[simulation]\ndropout = []\n", "dropout"),
        ('[privacy]\nnoise = "no"\n', 'privacy.noise = "no"'),
        ("[simulation.nominal_units]\nnorth = true\n", "nominal_units.north = true"),
    ],
)
def test_a_wrong_study_file_is_refused_by_name(
    text: str,
    named: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = tmp_path / "study.toml"
    study.write_text(text, encoding="utf-8")
    if "nominal_units" in text:
        arguments = unstated(arguments)
    assert run([*arguments, f"--config={study}"], monkeypatch) == 1
    assert named in capsys.readouterr().err


def test_evaluation_records_of_an_undeclared_kind_are_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    undeclared = [argument for argument in arguments if not argument.startswith("--evaluation-kind")]
    assert run(undeclared, monkeypatch) == 1
    assert "public or synthetic" in capsys.readouterr().err


def test_a_folder_with_content_is_left_alone(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "study" / "thesis.tex"
    kept.parent.mkdir()
    kept.write_text("years of work", encoding="utf-8")
    assert run(arguments, monkeypatch) == 1
    assert "is not empty" in capsys.readouterr().err
    assert [path.read_text(encoding="utf-8") for path in kept.parent.iterdir()] == ["years of work"]


def test_a_folder_that_cannot_be_made_is_named(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert run([*arguments, f"--output={tmp_path / 'file' / 'study'}"], monkeypatch) == 1
    assert "cannot be used" in capsys.readouterr().err


def test_a_full_disk_is_told_and_leaves_nothing_half_written(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real_fsync = os.fsync

    def full_after_the_manifest(descriptor: int) -> None:
        if (tmp_path / "study" / "study.json").exists():
            raise OSError(28, "No space left on device")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_after_the_manifest)
    assert run(arguments, monkeypatch) == 1
    assert "No space left on device" in capsys.readouterr().err
    left = [path for path in (tmp_path / "study").rglob("*") if path.is_file() and "prepared" not in path.parts]
    assert {path.name for path in left} == {"study.json", "private.json"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_study_is_shown_again_and_attacked_from_any_folder_and_stays_as_it_is(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its data files were given by paths that only meant something where it was begun."""
    monkeypatch.chdir(tmp_path)
    relative = [argument.replace(f"{tmp_path}/", "") for argument in arguments]
    assert run([*relative, "--rounds=1", "--attack"], monkeypatch) == 1
    assert "the records of north, south, west are not said to be synthetic or public" in capsys.readouterr().err
    sites = (f'[[sites]]\nname = "{site}"\nnominal_units = 10\nsensitivity = "synthetic"\n' for site in SITES)
    Path("sites.toml").write_text("".join(sites), encoding="utf-8")
    described = [*unstated(relative), "--config=sites.toml", "--rounds=1"]
    assert run([*described, "--attack"], monkeypatch) == 0
    report = json.loads(Path("study/report.json").read_bytes())
    assert report["attacks"]["found"]["sha256"] == hashlib.sha256(Path("study/attacks.json").read_bytes()).hexdigest()
    before, summary = contents(tmp_path / "study"), capsys.readouterr().out
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run(["simulate", "--resume", "--output=../study"], monkeypatch) == 0
    assert contents(tmp_path / "study") == before
    epsilon = json.loads(before["report.json"])["epsilon"]
    for shown in (summary, capsys.readouterr().out):
        assert f"{epsilon:.1f}" in shown
    assert run(["simulate", "--resume", "--output=../study", "--json"], monkeypatch) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(before["report.json"])
    assert run(["adapter", "attack", "../study"], monkeypatch) == 0
    said = capsys.readouterr().out
    assert f"{12 * len(SITES)} patients who were trained on, and {FEWEST} who were not" in said
    assert "VERDICT" in said
    assert contents(tmp_path / "study") == before
    assert run(["adapter", "attack", "../study", "--attach"], monkeypatch) == 1
    assert "evidence is never overwritten" in capsys.readouterr().err
    assert run(["verify", "../study", "--require=attacks", "--require=report", "--require=page"], monkeypatch) == 0
    Path("../study/attacks.json").rename("attacks.json")
    assert run(["adapter", "attack", "../study", "--attach"], monkeypatch) == 0
    assert Path("../study/attacks.json").read_bytes() == Path("attacks.json").read_bytes()
    known = f"--manifest-hash={report['manifest_sha256']}"
    for command in (["init", "reg"], ["add", "reg", "../study", "--name=x", known]):
        assert run(["registry", *command], monkeypatch) == 0
    members = (json.dumps({"patient_id": f"member {patient}", "text": "is well"}) for patient in range(FEWEST))
    Path("members.jsonl").write_text("\n".join(members), encoding="utf-8")
    drift = ["registry", "drift", "reg", "x", "../evaluation.jsonl", "--members"]
    capsys.readouterr()
    assert run([*drift, "members.jsonl", "--json"], monkeypatch) in (0, 3)
    figures = json.loads(capsys.readouterr().out)
    assert figures["attacks_at_release"] == report["attacks"]["found"]["findings"]
    assert figures["attacks_now"]["members"] == FEWEST
    assert run([*drift, "members.jsonl", "--against=../evaluation.jsonl"], monkeypatch) in (0, 3)
    assert "area under the ROC curve, by" in capsys.readouterr().out
    assert run([*drift, "../evaluation.jsonl"], monkeypatch) == 1
    assert "have records in the training data" in capsys.readouterr().err
    private = json.loads(before["server/private.json"])
    Path("../study/server/private.json").write_text(json.dumps({**private, "settings": {}}))
    assert run(["adapter", "attack", "../study"], monkeypatch) == 1
    assert "does not say what its sites' records were read from" in capsys.readouterr().err
    Path("../study/adapter/adapter_config.json").write_bytes(b"{}")
    assert run(["adapter", "attack", "../study"], monkeypatch) == 1
    assert "is not shown to be its study's" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["--rounds=3", "--model=tiny", "--config=study.toml", "--no-privacy", "--dropout=none"]
)
def test_a_study_that_was_begun_takes_no_other_settings(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study.toml").write_text("[training]\nrounds = 3\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert run(["simulate", "--resume", "--output=study", option], monkeypatch) == 1
    message = capsys.readouterr().err
    assert "--resume, and settings of" in message
    assert "give --resume and --output alone" in message


def test_where_no_study_was_begun_there_is_nothing_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simulate", "--resume", f"--output={tmp_path}"], monkeypatch) == 1
    assert "holds no study that was begun" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_before_a_study_was_begun_sends_nobody_to_resume_it(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(study: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("grandrounds.deploy.simulation.simulate.complete_study", interrupted)
    assert run(arguments, monkeypatch) == 1
    message = capsys.readouterr().err
    assert "stopped before the study was begun" in message
    assert "--resume" not in message


def test_ctrl_c_ends_it_and_what_is_written_is_whole(arguments: list[str], tmp_path: Path) -> None:
    long = [argument for argument in arguments if not argument.startswith("--rounds")]
    program = Forked(commanded(*long, "--rounds=2000", "--max-attempts=2000"))
    until(lambda: "\nround" in program.out.read_text(), "a round is closed")
    os.kill(program.pid, signal.SIGINT)
    assert program.wait() == 1
    message = program.err.read_text()
    assert "stopped" in message.lower()
    assert "Traceback" not in message
    assert f"grandrounds simulate --resume --output {tmp_path / 'study'}" in message
    names = {path.name for path in (tmp_path / "study").iterdir()}
    assert names == {"study.json", "checkpoints", "ledger", "server", "sites", "sums"}
