"""The benchmark of utility: its ways of training, its rows that outlast a kill, and its table."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.study.tiny_models import save_tiny_model
from support.utility_rows import row

from grandrounds.common.data.tokenisation import load_tokenizer
from grandrounds.common.errors import StorageError, StudyError
from grandrounds.common.model.adapter import vector_sha256
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.model.lora import Lora
from grandrounds.common.schema import known, read_toml
from grandrounds.deploy.bench.utility.central import Central
from grandrounds.deploy.bench.utility.extraction import FACTS, Extraction, log_likelihoods, macro_f1
from grandrounds.deploy.bench.utility.grid import Grid
from grandrounds.deploy.bench.utility.paired import together
from grandrounds.deploy.bench.utility.perform import Workplace, measured
from grandrounds.deploy.bench.utility.row import RowFile, Subject
from grandrounds.deploy.bench.utility.table import as_csv, lines_of, markdown, share_kept
from grandrounds.deploy.bench.utility.ways import WAYS, Case, Run, Way
from grandrounds.deploy.plan.first_adapter import prepare
from grandrounds.deploy.simulation.config import RecordFiles
from grandrounds.deploy.simulation.simulate import simulate

CASE = Case(sites=3, patients=9, split="iid", seed=5)
NOTE = "A 30 year-old white female. Patient is single."


def test_the_share_of_the_gain_is_a_ratio_of_logarithms_and_none_where_there_was_no_gain() -> None:
    assert share_kept(row("distributed", 10.0), 5.0) == pytest.approx(0.5)
    assert share_kept(row("distributed", 40.0), 5.0) == pytest.approx(-0.5)
    assert share_kept(row("distributed", 10.0), 20.0) is None
    assert share_kept(row("distributed", None), 5.0) is None
    assert share_kept(row("distributed", 10.0), None) is None


def test_each_seed_is_compared_with_its_own_run_without_noise() -> None:
    rows = [
        row("noise-off", 5.0),
        row("distributed", 10.0),
        row("noise-off", 10.0, seed=2),
        row("distributed", 10.0, seed=2),
    ]
    line = next(line for line in lines_of(rows) if line.rows[0].way == "distributed")
    assert line.share.mean == pytest.approx(0.75)
    assert line.share.standard_error == pytest.approx(0.25)
    assert "| 75 ± 25 % |" in markdown(rows)


def test_a_run_that_came_to_no_figure_is_left_out_of_no_mean() -> None:
    line = lines_of([row("distributed", 10.0), row("distributed", None, seed=2)])[0]
    assert line.after.mean is None and line.after.shown(".1f") == "–"


def test_runs_with_another_noise_or_other_settings_share_no_line() -> None:
    rows = [
        row("distributed", 10.0, noise_over_claimed=1.29),
        row("distributed", 9.0, noise_over_claimed=1.12),
        row("distributed", 8.0, seed=2, settings="ef" * 32),
    ]
    assert [len(line.rows) for line in lines_of(rows[:2])] == [1, 1]
    text = markdown(rows)
    assert text.count("Settings") == 2 and "1.29" in text and "1.12" in text


def test_the_difference_from_pooled_training_has_the_t_interval_of_paired_seeds() -> None:
    rows = [row("pooled", 10.0, seed=seed) for seed in range(3)]
    rows += [row("distributed", after, seed=seed) for seed, after in enumerate((11.0, 12.0, 10.0))]
    differences = [math.log(1.1), math.log(1.2), 0.0]
    mean, error = np.mean(differences), np.std(differences, ddof=1) / math.sqrt(3)
    low, high = mean - 4.302653 * error, mean + 4.302653 * error  # Student's t with 2 degrees of freedom, 97.5 %
    assert f"{mean:+.3f}, 95 % t-interval {low:+.3f} to {high:+.3f} (3 seeds)" in markdown(rows)
    rows += [row("pooled-noisier", 11.0, seed=seed, noise_over_claimed=1.12) for seed in range(2)]
    assert "against pooled-noisier" in markdown(rows) and "noise 1 and 1.12 × claimed" in markdown(rows)


def test_of_pairs_that_are_not_all_whole_no_mean_is_given() -> None:
    rows = [row("pooled", 10.0, seed=seed) for seed in range(6)]
    rows += [row("distributed", 11.0 if seed < 3 else None, seed=seed) for seed in range(6)]
    text = markdown(rows)
    assert "no mean, since 3 of 6 seeds have a run without a figure." in text and "t-interval" not in text


def test_settings_tried_beside_the_first_are_lines_of_one_table_with_paired_intervals() -> None:
    rows = [row("distributed", 10.0, seed=seed) for seed in range(3)]
    rank: dict[str, Any] = {"settings": "ef" * 32, "stated": {"training": {"learning_rate": 2.4}, "model": {"rank": 4}}}
    rows += [row("distributed", after, seed=seed, **rank) for seed, after in enumerate((11.0, 12.0, 10.0))]
    rate: dict[str, Any] = {"settings": "fe" * 32, "stated": {"training": {"learning_rate": 1.2}}}
    rows += [row("distributed", 9.0, **rate, seed=1)]
    text = markdown(rows)
    assert text.count("Settings ") == 1 and text.index("learning_rate = 1.2") < text.index("| model.rank = 4")
    differences = [math.log(1.1), math.log(1.2), 0.0]
    mean, error = np.mean(differences), np.std(differences, ddof=1) / math.sqrt(3)
    low, high = mean - 4.302653 * error, mean + 4.302653 * error
    assert f"| 3 | 10.97 | 10.00 | {mean:+.3f} | {low:+.3f} to {high:+.3f} |" in text
    assert f"| 1 | 9.00 | 10.00 | {math.log(0.9):+.3f} | – |" in text


def test_the_levers_name_every_program_that_their_rows_came_from() -> None:
    rows = [row("distributed", 10.0, seed=seed) for seed in range(2)]
    beside: dict[str, Any] = {"settings": "ef" * 32, "stated": {}}
    rows += [row("distributed", 9.0, seed=seed, program=name * 32, **beside) for seed, name in enumerate(("12", "ab"))]
    own, levers = markdown(rows).split("Levers: ")
    assert "Program 0.1.0 (cdcdcdcd)." in own and "12121212" not in own
    assert levers.splitlines()[0].endswith("Program 0.1.0 (12121212), 0.1.0 (abababab).")


def test_settings_without_a_run_of_the_first_beside_each_have_a_table_of_their_own() -> None:
    first = row("distributed", 10.0)
    other: dict[str, Any] = {"settings": "ef" * 32, "stated": {}}
    for beside in ([row("distributed", 9.0, seed=2, **other)], [row("noise-off", 9.0, **other)]):
        text = markdown([first, *beside])
        assert text.count("Settings ") == 2 and "Levers" not in text
    assert "Levers" in markdown([first, row("distributed", 9.0, **other)])
    unfinished = markdown([first, row("distributed", None, **other)])
    assert "Levers" not in unfinished and "| – |" in unfinished


def test_the_csv_has_means_beside_their_standard_errors() -> None:
    found = list(csv.DictReader(io.StringIO(as_csv([row("noise-off", 5.0), row("noise-off", 7.0, seed=2)]))))
    assert [(line["after"], line["after_standard_error"], line["epsilon"]) for line in found] == [("6.0", "1.0", "")]


def test_what_a_killed_process_left_of_a_row_is_dropped_and_any_other_damage_is_refused(tmp_path: Path) -> None:
    file = RowFile.create(tmp_path / "new" / "rows.jsonl")
    assert file.read() == []
    file.add(row("noise-off", 5.0))
    whole = file.path.read_text()
    file.path.write_text(whole + whole[:40])
    assert file.read() == [row("noise-off", 5.0)]
    file.add(row("noise-off", 6.0, seed=2))
    assert [each.perplexity_after for each in file.read()] == [5.0, 6.0]
    file.path.write_text("{}\n" + whole)
    with pytest.raises(StorageError, match="cannot be read as rows"):
        file.read()
    with pytest.raises(StorageError, match="No such file"):
        RowFile(tmp_path / "elsewhere").read()
    with pytest.raises(StorageError, match="cannot be written"):
        RowFile.create(file.path / "rows.jsonl")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"ways": "pooled,magic"}, "ways"),
        ({"epsilon": "many"}, "epsilon"),
        ({"sites": "2"}, "sites"),
        ({"split": ""}, "split"),
        ({"device": ["cpu", ""]}, "device"),
        ({"device": ["cpu", "cuda"]}, "device"),
    ],
)
def test_a_list_with_what_is_none_of_it_is_refused_by_its_name(given: dict[str, str], named: str) -> None:
    good = {
        "ways": "all",
        "epsilon": "4",
        "sites": "5",
        "patients": "20",
        "split": "iid,age",
        "seeds": 1,
        "first_seed": 1,
    }
    assert len(list(Grid.read(**good).runs())) == 2 * 7
    with pytest.raises(StudyError, match=named):
        Grid.read(**{**good, **given})


def test_sites_of_unequal_size_are_refused() -> None:
    with pytest.raises(StudyError, match="120 patients at 7 sites"):
        Case(sites=7, patients=120, split="iid", seed=1)


def test_all_ways_have_one_schedule_and_differ_in_what_they_compare_alone() -> None:
    of_case, simulation = CASE.read({"training": {"rounds": 2}, "privacy": {"target_epsilon": 1.0, "trust": "local"}})
    ways: dict[Way, float | None] = {"local": 4.0, "distributed": 4.0, "noise-off": None, "no-privacy": None}
    studies = {way: Run(way=way, epsilon=epsilon, case=CASE).study(of_case) for way, epsilon in ways.items()}
    assert {study.training.rounds for study in studies.values()} == {2}
    rates = {way: study.training.learning_rate for way, study in studies.items()}
    assert rates == {"local": 0.37, "distributed": 0.37, "noise-off": 2.4, "no-privacy": 2.4}, "as of distributed trust"
    assert of_case.training.learning_rate is None, "so that runs at each ε are of one study's settings"
    assert all(study.model == of_case.model for study in studies.values())
    assert [study.privacy.trust for study in studies.values()] == ["local"] + ["distributed"] * 3
    assert [study.privacy.target_epsilon for study in studies.values()] == [4.0, 4.0, None, None]
    assert studies["no-privacy"].privacy.clipping_norm > studies["noise-off"].privacy.clipping_norm
    assert (simulation.builtin_patients, simulation.builtin_seed) == (3, 5)


def test_of_levers_without_effect_one_is_called_real_in_one_table_of_twenty() -> None:
    tables = np.random.default_rng(1).random((4000, 16))
    called = [min(p for p in together(table.tolist()) if p is not None) < 0.05 for table in tables]
    assert np.mean(called) == pytest.approx(0.05, abs=0.01)
    assert np.mean(tables.min(axis=1) < 0.05) > 0.5, "each judged by itself"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_chances_judged_together_keep_their_order_and_are_none_the_smaller(chances: list[float]) -> None:
    adjusted = [p for p in together(chances) if p is not None]
    assert all(before <= after <= 1 for before, after in zip(chances, adjusted, strict=True))
    in_order = sorted(zip(chances, adjusted, strict=True))
    assert [p for _, p in in_order] == sorted(adjusted)


@pytest.mark.parametrize(
    ("configuration", "name"), [("utility-base", "utility.jsonl"), ("levers-base", "levers.jsonl")]
)
def test_the_configuration_beside_rows_is_what_they_were_made_with(configuration: str, name: str) -> None:
    results = Path(__file__).parents[3] / "tests" / "results"
    first, *_ = RowFile(results / name).read()
    case = Case(sites=first.sites, patients=first.patients, split=first.split, seed=first.seed)
    of_case, _ = case.read(read_toml(results / f"{configuration}.toml"))
    assert Subject.of(Run(way=first.way, epsilon=first.epsilon, case=case), of_case) == first.subject


@pytest.mark.parametrize("name", ["utility.jsonl", "levers.jsonl"])
def test_the_page_of_results_has_the_table_of_the_rows_that_it_rests_on(name: str) -> None:
    root = Path(__file__).parents[3]
    rows = RowFile(root / "tests" / "results" / name).read()
    assert markdown(rows) in (root / "deploy" / "RESULTS.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> RecordFiles:
    """Three patients at each of three sites, and three held out, with a note of one fact each."""
    folder = tmp_path_factory.mktemp("records")
    names = ["hospital-1", "hospital-2", "hospital-3", "evaluation"]
    for name in names:
        lines = [json.dumps({"patient_id": f"{name}-{i}", "text": f"{name} {i}. {NOTE}"}) + "\n" for i in range(3)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    *sites, evaluation = [folder / f"{name}.jsonl" for name in names]
    return RecordFiles(
        cohorts=dict(zip(names, sites, strict=False)),
        opted_out={},
        similar_identifiers=None,
        evaluation=evaluation,
        evaluation_source="made up",
    )


TABLES = {"model": {"name": "tiny"}, "data": {"max_tokens": 64}, "training": {"rounds": 2}}


def test_a_federation_leaves_a_ledger_that_verifies_and_a_row_and_pooled_training_a_row_alone(
    records: RecordFiles, tmp_path: Path
) -> None:
    of_case, _ = CASE.read(TABLES)
    runs = [Run(way=way, epsilon=4.0, case=CASE) for way in WAYS if way in ("distributed", "pooled")]
    rows = {run.way: measured(run, of_case, records, Workplace(folder=tmp_path / run.way)) for run in runs}
    pooled, federated = rows["pooled"], rows["distributed"]
    assert (federated.verified, pooled.verified) == ("ESTABLISHED", None)
    assert federated.noise_multiplier == pooled.noise_multiplier, "a patient meets the same schedule"
    assert federated.perplexity_before == pooled.perplexity_before
    assert federated.f1_before == pooled.f1_before
    assert (federated.noise_over_claimed, pooled.noise_over_claimed) == (round(math.sqrt(3 / 2), 3), 1.0)
    assert not (tmp_path / "pooled").exists()
    # What an earlier call finished is not trained again.
    again = measured(runs[1], of_case, records, Workplace(folder=tmp_path / "distributed", asks=False))
    assert (again.f1_before, again.f1_after) == (None, None) and "| – | – | established |" in markdown([again])
    assert again.ledger == federated.ledger and again.perplexity_after == federated.perplexity_after


def test_pooled_training_without_noise_comes_to_the_adapter_of_a_federation_bit_by_bit(records: RecordFiles) -> None:
    of_case, _ = CASE.read({**TABLES, "privacy": {"sampling_probability": 1.0}})
    study = Run(way="noise-off", epsilon=None, case=CASE).study(of_case)
    central = Central.open(study, records, seed=CASE.seed)
    federated = simulate(study, **records.inputs, adapter_seed=CASE.seed)
    sites = [site.name for site in study.sites]
    assert np.array_equal(central.train(sites), federated.adapter)
    assert not np.array_equal(central.train(sites[:1]), federated.adapter)
    assert central.manifest.frozen_adapter_sha256 == federated.manifest.frozen_adapter_sha256


def test_training_in_one_place_begins_with_the_first_adapter_that_a_federation_begins_with(
    records: RecordFiles, tmp_path: Path
) -> None:
    """And comes to the same adapter without noise, bit by bit."""
    file = tmp_path / "public.safetensors"
    of_case, _ = CASE.read({**TABLES, "privacy": {"sampling_probability": 1.0}})
    file.write_bytes(prepare(of_case, records.evaluation, said="terms", steps=1).first.data)
    named = of_case.model_copy(update={"model": of_case.model.model_copy(update={"first_adapter": str(file)})})
    study = Run(way="noise-off", epsilon=None, case=CASE).study(named)
    central = Central.open(study, records, seed=CASE.seed)
    federated = simulate(study, **records.inputs, adapter_seed=CASE.seed)
    assert federated.manifest.adapter_sha256 == central.manifest.adapter_sha256 == vector_sha256(central.first)
    assert np.array_equal(central.train([site.name for site in study.sites]), federated.adapter)
    assert central.manifest.frozen_adapter_sha256 == federated.manifest.frozen_adapter_sha256
    for way in ("pooled", "pooled-noisier", "alone"):
        found = measured(
            Run(way=way, epsilon=4.0, case=CASE), named, records, Workplace(folder=tmp_path / way, asks=False)
        )
        assert found.perplexity_after and found.stated["model"]["first_text"] == "terms"


def test_the_noise_of_one_place_is_the_claim_s_and_no_more(records: RecordFiles) -> None:
    of_case, _ = CASE.read(TABLES)
    central = Central.open(Run(way="pooled", epsilon=4.0, case=CASE).study(of_case), records, seed=1)
    manifest = central.manifest
    claimed = known(manifest.study.privacy.noise_multiplier) * manifest.lattice.sensitivity
    assert claimed <= central.mechanism(1).noise_stddev < claimed + 1
    noisier = replace(central, noise_over_claimed=1.5).mechanism(1).noise_stddev
    assert 1.5 * claimed <= noisier < 1.5 * claimed + 1
    assert manifest.noise_stddev(1) < central.mechanism(1).noise_stddev, "a site's share alone would be too little"


def test_the_extraction_asks_for_what_a_note_states_once_and_scores_what_the_model_holds_likeliest(
    tmp_path: Path,
) -> None:
    marital = next(fact for fact in FACTS if fact.question == "Marital status:")
    assert marital.answer_in(NOTE) == "single"
    assert marital.answer_in("Patient is single. Patient is married.") is None
    assert macro_f1([("a", "a"), ("a", "b"), ("b", "b")]) == pytest.approx(2 / 3)
    base = save_tiny_model(tmp_path)
    model = LanguageModel.load(base, Lora(target_modules=("v_proj",), rank=1), seed=1)
    task = Extraction(notes=[NOTE], tokenizer=load_tokenizer(str(base)))
    # The same by one pass over each whole text, of which nothing is kept from one to the next.
    note, rows = list(NOTE.encode())[-8:], [(list(b"\nSex:"), list(b" male")), (list(b"\nSex:"), list(b" female"))]
    for (question, answer), found in zip(rows, log_likelihoods(model, note, rows), strict=True):
        tokens = torch.tensor([note + question + answer])
        with torch.inference_mode():
            every = model.logits(tokens).log_softmax(-1)[0, :-1].gather(-1, tokens[0, 1:, None])
        assert found == pytest.approx(float(every[-len(answer) :].sum()), rel=1e-4)
    assert task.f1(model) in (0.0, 0.5, 1.0), "of two facts, each right or wrong"
