"""What the benchmark of utility runs, and what it takes as done: levers beside settings, and rows of earlier calls."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.utility_rows import row

from grandrounds.common.crypto.identity import sha256
from grandrounds.common.errors import StudyError
from grandrounds.common.schema import read_toml
from grandrounds.common.study.builtin import TUNED
from grandrounds.common.study.first_adapter import FirstAdapter, Made
from grandrounds.deploy.bench.utility import bench as bench_of_utility
from grandrounds.deploy.bench.utility.bench import UtilityBench
from grandrounds.deploy.bench.utility.levers import Levers
from grandrounds.deploy.bench.utility.row import Row, RowFile, Subject, stated_of
from grandrounds.deploy.bench.utility.table import markdown
from grandrounds.deploy.bench.utility.ways import Case, Run, Way

CASE = Case(sites=3, patients=9, split="iid", seed=5)


def test_every_lever_is_tried_with_each_run_in_the_place_of_what_the_configuration_says(tmp_path: Path) -> None:
    file, given = tmp_path / "levers.toml", {"model": {"rank": 2}, "training": {"learning_rate": 1.0}}
    file.write_text("[wider]\nmodel.rank = 4\n[clipped]\nprivacy.clipping = 'auto'\n")
    runs = [Run(way="distributed", epsilon=4.0, case=replace(CASE, seed=seed)) for seed in (1, 2)]
    jobs = Levers.read(file, given).jobs(runs)
    names = [None, "wider", "clipped"]
    assert [(job.run.case.seed, job.lever) for job in jobs] == [(seed, name) for seed in (1, 2) for name in names]
    studies = [job.read()[0] for job in jobs[:3]]
    assert [study.model.rank for study in studies] == [2, 4, 2]
    assert {study.training.learning_rate for study in studies} == {1.0}
    assert [study.privacy.clipping for study in studies] == ["norm", "norm", "auto"]
    assert len({job.subject for job in jobs}) == 6


def test_a_lever_changes_nothing_that_it_does_not_name(tmp_path: Path) -> None:
    """Of the built-in model neither: what is tuned there is one choice, which stating a part of it would undo."""
    file = tmp_path / "levers.toml"
    file.write_text("[adam]\ntraining = { optimizer = 'adam', learning_rate = 0.004 }\n[wider]\nmodel = { rank = 4 }")
    runs = [Run(way="distributed", epsilon=4.0, case=CASE)]
    tuned, adam, wider = (
        {name: dict(table) for name, table in job.read()[0].model_dump().items() if name in TUNED}
        for job in Levers.read(file, {}).jobs(runs)
    )
    adam["training"].update({name: tuned["training"][name] for name in ("optimizer", "learning_rate")})
    wider["model"]["rank"] = tuned["model"]["rank"]
    assert adam == wider == tuned


def test_runs_at_several_epsilons_are_of_one_study_s_settings_and_train_each_at_its_rate(tmp_path: Path) -> None:
    file = tmp_path / "levers.toml"
    file.write_text("[wider]\nmodel.rank = 4\n[rated]\ntraining.learning_rate = 1.0\n")
    given = {"privacy": {"sampling_probability": 0.25}}
    at = {4.0: 0.8, 1.0: 0.35, None: 2.4}
    settings: dict[str | None, set[str]] = defaultdict(set)
    for epsilon in at:
        way: Way = "noise-off" if epsilon is None else "distributed"
        run = Run(way=way, epsilon=epsilon, case=replace(CASE, patients=39))
        for job in Levers.read(file, given).jobs([run]):
            settings[job.lever].add(job.subject.settings)
            rate = job.run.study(job.read()[0]).training.learning_rate
            assert rate == pytest.approx(1.0 if job.lever == "rated" else at[epsilon], rel=0.1), job
    assert {lever: len(found) for lever, found in settings.items()} == {None: 1, "wider": 1, "rated": 1}
    assert len(set().union(*settings.values())) == 3, "a stated rate is a setting"


def test_a_lever_of_rounds_or_attempts_has_the_noise_of_its_own_spare_attempts(tmp_path: Path) -> None:
    """Where the configuration states no stages of noise; and what a lever does not name is as it is without it."""
    file = tmp_path / "levers.toml"
    file.write_text("[longer]\ntraining.rounds = 8\n[more-tries]\ntraining.max_attempts = 6\n")
    runs = [Run(way="distributed", epsilon=4.0, case=CASE)]

    def stages(tables: dict[str, Any]) -> list[Any]:
        return [job.read()[0].privacy.noise_stages for job in Levers.read(file, tables).jobs(runs)]

    assert stages({}) == [((5, 2.0),), ((9, 2.0),), ((5, 2.0),)]
    assert stages({"privacy": {"noise_stages": []}}) == [()] * 3
    assert stages({"privacy": {"noise_stages": [[3, 0.5]]}}) == [((3, 0.5),)] * 3
    assert stages({"training": {"max_attempts": 9}}) == [()] * 3


def first_adapter(path: Path, *, text: str = "terms", value: float = 0.5) -> None:
    """One that the bench can read, and no model bear."""
    tensors = {"x": np.full((1, 1), value, np.float32)}
    path.write_bytes(FirstAdapter.of(tensors, Made(base_sha256="ab" * 32, text=text, text_sha256="cd" * 32)).data)


def test_a_row_is_of_the_bytes_of_its_first_adapter_wherever_they_lie(tmp_path: Path) -> None:
    file, moved = tmp_path / "public.safetensors", tmp_path / "moved.safetensors"
    first_adapter(file)
    first_adapter(moved)
    run = Run(way="distributed", epsilon=4.0, case=CASE)

    def subject(path: Path) -> Subject:
        return Subject.of(run, CASE.read({"model": {"first_adapter": str(path)}})[0])

    before = subject(file)
    assert subject(moved) == before
    stated = stated_of(CASE.read({"model": {"first_adapter": str(file)}})[0])["model"]
    assert stated["first_adapter"] == f"sha256:{sha256(file.read_bytes())}" and stated["first_text"] == "terms"
    first_adapter(file, value=0.25)
    assert subject(file) != before
    file.unlink()
    with pytest.raises(StudyError, match="cannot be read"):
        subject(file)


def test_a_row_is_of_the_bytes_of_its_public_records(tmp_path: Path) -> None:
    file = tmp_path / "public.jsonl"
    run = Run(way="distributed", epsilon=4.0, case=CASE)

    def subject(text: str) -> Subject:
        file.write_text(text)
        return Subject.of(run, CASE.read({"data": {"public": str(file), "public_units": 1}})[0])

    assert subject("a\n") != subject("b\n") and subject("a\n") == subject("a\n")


def test_the_levers_that_are_written_down_are_each_another_training_with_a_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Path(__file__).parents[3] / "tests" / "results"
    monkeypatch.chdir(tmp_path)
    for name in ("public-a", "public-warm", "public-core"):
        first_adapter(Path(f"{name}.safetensors"), text=name)
    runs = [Run(way="distributed", epsilon=4.0, case=replace(CASE, patients=120))]
    jobs = Levers.read(results / "levers.toml", read_toml(results / "levers-base.toml")).jobs(runs)
    assert len({job.subject for job in jobs}) == len(jobs) > 10
    for job in jobs:
        study = job.run.study(job.read()[0])
        assert study.privacy.noise and study.privacy.target_epsilon == 4.0, job
    settings = {job.lever: job.subject.settings for job in jobs if not (job.lever or "").startswith("public")}
    settings |= {
        job.lever: job.subject.settings
        for job in Levers.read(results / "rate.toml", read_toml(results / "levers-base.toml")).jobs(runs)
    }
    ran = {
        each.settings for each in RowFile(results / "levers.jsonl").read() if "first_adapter" not in str(each.stated)
    }
    assert ran <= set(settings.values()), "what was run is still of the same settings"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("rank = 4", "rank is no table"),
        ("[wider]\nrank = 4", "wider is no table"),
        ("[wider]\nsites = { number = 4 }", "wider has sites"),
        ("[private]\nprivacy = { target_epsilon = 8, noise = false }", "privacy.target_epsilon, privacy.noise"),
    ],
)
def test_a_lever_that_would_be_left_out_of_account_is_refused(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "levers.toml").write_text(text)
    with pytest.raises(StudyError, match=named):
        Levers.read(tmp_path / "levers.toml", {})


def test_a_lever_that_changes_nothing_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "levers.toml").write_text("[same]\nmodel = { rank = 2 }\ntraining = { averaging = 'none' }")
    runs = [Run(way="distributed", epsilon=4.0, case=CASE)]
    jobs = Levers.read(tmp_path / "levers.toml", {"model": {"rank": 2}}).jobs(runs)
    with pytest.raises(StudyError, match="the same"):
        UtilityBench(output=tmp_path / "out", jobs=jobs).run(print)
    assert not (tmp_path / "out").exists()


def test_levers_stand_beside_the_settings_that_were_given_whichever_run_is_over_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "levers.toml").write_text("[wider]\nmodel = { rank = 4 }")
    jobs = Levers.read(tmp_path / "levers.toml", {}).jobs([Run(way="distributed", epsilon=4.0, case=CASE)])

    def attempts(bench: UtilityBench, missing: Any) -> Any:
        for job, subject in reversed(list(missing.items())):
            stated = {"model": {"rank": 1 if job.lever is None else 4}}
            yield job, row("distributed", 9.0).model_copy(update={**subject.model_dump(), "stated": stated})

    read: list[Case] = []
    read_case = Case.read
    monkeypatch.setattr(Case, "read", lambda case, tables: read.append(case) or read_case(case, tables))  # type: ignore[func-returns-value]
    monkeypatch.setattr(UtilityBench, "_attempts", attempts)
    rows = UtilityBench(output=tmp_path / "out", jobs=jobs).run(lambda line: None)
    assert [each.settings for each in rows] == [job.subject.settings for job in jobs]
    assert len(read) == len(jobs), "a study is read once, however many rows are written"
    assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8") == markdown(rows)


def benched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **given: Any) -> tuple[list[Row], list[str], int]:
    """The rows of two runs, what was told, and how many were run: each comes to a row with F1 where it is asked."""
    jobs = Levers.read(None, {}).jobs([Run(way=way, epsilon=4.0, case=CASE) for way in ("distributed", "local")])
    ran: list[Any] = []

    def attempts(bench: UtilityBench, missing: Any) -> Any:
        for job, subject in list(missing.items()):
            ran.append(job)
            f1 = {"f1_before": 0.5, "f1_after": 0.75} if bench.asks else {"f1_before": None, "f1_after": None}
            yield job, row("distributed", 9.0).model_copy(update={**subject.model_dump(), "program": PROGRAM, **f1})

    told: list[str] = []
    monkeypatch.setattr(UtilityBench, "_attempts", attempts)
    rows = UtilityBench(output=tmp_path / "out", jobs=jobs, **given).run(told.append)
    return rows, told, len(ran)


PROGRAM = "ab" * 32


def test_a_row_without_f1_is_replaced_where_f1_is_asked_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _, ran = benched(tmp_path, monkeypatch, asks=False)
    assert ran == 2 and {each.f1_after for each in rows} == {None}
    rows, told, ran = benched(tmp_path, monkeypatch)
    assert ran == 2 and {each.f1_after for each in rows} == {0.75}
    assert "0 are done; 2 have a row without F1 and are run again" in told[0]
    assert RowFile(tmp_path / "out" / "rows.jsonl").read() == rows, "and no row is of a run that another is of"
    assert "| – | – |" not in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    for asks in (True, False):
        assert benched(tmp_path, monkeypatch, asks=asks)[2] == 0


def test_rows_of_another_program_are_kept_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benched(tmp_path, monkeypatch)
    _, told, ran = benched(tmp_path, monkeypatch)
    assert ran == 0 and told[0] == "2 runs, of which 2 are done; 2 are of another program, abababab"
    monkeypatch.setattr(bench_of_utility, "running_sha256", lambda: PROGRAM)
    assert benched(tmp_path, monkeypatch)[1][0] == "2 runs, of which 2 are done"
