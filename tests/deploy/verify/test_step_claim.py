"""Every step again from ``sums/``; and where they are not at hand, whose signatures the adapter rests on."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.study.verification import END, FOLLOWS, STEPS, found, refused
from support.study.verified_study import SmallStudy, ran, write_ledger

from grandrounds.common.ledger import entries
from grandrounds.common.model.adapter import vector_bytes
from grandrounds.common.study.artefacts import FIRST_ADAPTER, PAGE, SUMS, sum_path
from grandrounds.common.study.manifest import Manifest
from grandrounds.common.study.step import LastStep, Trained
from grandrounds.deploy.verify.claims import verify
from grandrounds.deploy.verify.verdict import Status
from grandrounds.deploy.views.summary import next_commands
from grandrounds.server.run import study_folder
from grandrounds.server.run.study_folder import StudyFolder


def write_sums(study: SmallStudy, folder: Path) -> None:
    """What the study's server keeps of its rounds."""
    kept = StudyFolder(folder)
    kept.save_sum(study.manifest, 0, LastStep(after=Trained(adapter=study.adapter)))
    for checkpoint in study.checkpoints:
        kept.save_sum(study.manifest, checkpoint.round, checkpoint.last_step)


CORRECTED = {"optimizer": "adam", "noise_correction": "tensor", "weight_decay": 0.1}
AVERAGED = {"optimizer": "momentum", "averaging": "ema", "averaged_rounds": 2, "rate_decay": "cosine"}
FILTERED = {"optimizer": "disk"}
STAGES = [[2, 0.5], [4, 2.0]]


@pytest.fixture(
    scope="module", params=[({"optimizer": "sgd"}, []), (AVERAGED, []), (FILTERED, []), (CORRECTED, STAGES)]
)
def closed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallStudy, Path]:
    folder = tmp_path_factory.mktemp("finished")
    training, stages = request.param
    study = ran(training=training, noise_stages=stages)
    study.close(folder)
    write_sums(study, folder)
    return study, folder


def test_every_step_is_taken_again_where_the_sums_are_at_hand(study: SmallStudy, folder: Path) -> None:
    finding = found(folder, STEPS)
    assert finding.status is Status.AGREES
    assert finding.detail == "two rounds taken again from sums/, each to the same bits"


def test_a_study_whose_noise_has_stages_is_verified_and_says_of_each_sum_what_was_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = ran(training=CORRECTED, noise_stages=STAGES)
    study.close(tmp_path)
    write_sums(study, tmp_path)
    assert verify(tmp_path, study.manifest.sha256).holds
    report = study.report()
    rounds = [said for row in report["utility"]["rounds"] for said in row["noise_in_sums"]]
    assert [said["noise_multiplier"] / said["over_claimed"] for said in rounds] == pytest.approx([1.5, 0.75])
    assert [said["over_claimed"] for said in rounds] == pytest.approx([(5 / 4) ** 0.5, (4 / 3) ** 0.5], rel=0.01)
    assert report["epsilon"] > ran().report()["epsilon"], "three attempts of half the noise, of four"
    assert "1.5; from attempt 2 on 0.75; from attempt 4 on 3" in (tmp_path / PAGE).read_text(encoding="utf-8")
    assert " --noise-stage 2:0.5 --noise-stage 4:2 " in next_commands(report, tmp_path)[1]
    real = Manifest.variance_in_sum
    monkeypatch.setattr(
        Manifest,
        "variance_in_sum",
        lambda self, survivors, shown, attempt: real(self, survivors, shown=shown, attempt=1),
    )
    assert "after round 2 the adapter" in refused(tmp_path, STEPS, FOLLOWS), (
        "it was freed of the noise of its own attempt"
    )


@pytest.mark.parametrize("missing", [FIRST_ADAPTER, sum_path(1), sum_path(2), SUMS])
def test_without_a_sum_it_rests_on_signatures_and_says_so(study: SmallStudy, folder: Path, missing: str) -> None:
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    finding = found(folder, STEPS)
    assert finding.status is Status.AGREES
    assert "rests on signatures of at least 4 sites" in finding.detail
    write_ledger(folder, study.lines[:-2])
    finding = found(folder, STEPS)
    assert finding.status is Status.OPEN and "3 sites of at least 4 have signed what came of round 2" in finding.detail
    assert found(folder, END).status is Status.OPEN


@pytest.mark.parametrize("path", [FIRST_ADAPTER, sum_path(1), sum_path(2)])
@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: bytes([data[0] ^ 1]) + data[1:], lambda data: b""]
)
def test_a_sum_that_the_ledger_does_not_name_is_refused(folder: Path, path: str, change: object) -> None:
    (folder / path).write_bytes(change((folder / path).read_bytes()))  # type: ignore[operator]
    refused(folder, STEPS)


def test_a_sum_that_is_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    elsewhere = (folder / sum_path(1)).rename(tmp_path / "elsewhere")
    (folder / sum_path(1)).symlink_to(elsewhere)
    assert "symbolic link" in refused(folder, STEPS)


def forged(tmp_path: Path) -> SmallStudy:
    """All its parties together signed an adapter that has nothing to do with its sums."""
    study = ran()
    closed = study.ledger.verified.rounds[-1]
    study.adapters[-1] = study.adapters[-1] + np.float32(1)
    body = entries.RoundClosed(
        round=closed.round,
        attempt=closed.attempt,
        sum_sha256=closed.sum_sha256,
        optimizer_sha256=closed.optimizer_sha256,
        adapter_sha256=Trained(adapter=study.adapters[-1]).adapter_sha256,
    )
    study.rewrite_last(body)
    study.close(tmp_path)
    return study


def test_an_adapter_that_the_sums_did_not_make_is_refused_though_everybody_signed_it(tmp_path: Path) -> None:
    study = forged(tmp_path)
    assert verify(tmp_path, study.manifest.sha256).holds, "nobody can tell without the sums, if all are corrupt"
    write_sums(study, tmp_path)
    assert "after round 2 the adapter" in refused(tmp_path, STEPS)


def test_sums_are_kept_where_all_of_them_have_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    study = ran()
    all_of_them = 2 * 4 * study.dimension
    for largest, expected in (
        (all_of_them, {"first-adapter", "round-000001", "round-000002"}),
        (all_of_them - 1, set()),
    ):
        monkeypatch.setattr(study_folder, "LARGEST_SUMS_BYTES", largest)
        folder = tmp_path / str(largest)
        folder.mkdir()
        write_sums(study, folder)
        assert {path.name for path in (folder / SUMS).glob("*")} == expected
    assert (tmp_path / str(all_of_them) / FIRST_ADAPTER).read_bytes() == vector_bytes(study.adapter)
