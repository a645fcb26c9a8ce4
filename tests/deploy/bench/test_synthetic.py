"""What a classifier learns from synthetic notes: it is tested on real ones, of which it sees what notes have."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support.study.tiny_models import TARGETS, load_tiny, save_tiny_model

from grandrounds.common.errors import StudyError
from grandrounds.common.model.lora import Lora
from grandrounds.deploy.bench.synthetic.bench import AS_MANY, BASE, REAL, SyntheticBench, synthetic_table
from grandrounds.deploy.bench.synthetic.classifier import Classifier
from grandrounds.deploy.bench.synthetic.distance import distance, scaled
from grandrounds.deploy.bench.synthetic.tasks import TASKS, Told
from grandrounds.deploy.builtin.patients import DemoData, DemoOptions
from grandrounds.deploy.generate.prompts import Prompts
from grandrounds.deploy.generate.sampling import Sampling

# What real notes would say behind their opening, by age.
HISTORY = {"newborn": "immunizations given", "9 year-old": "school form", "30 year-old": "full time employment"}


def note(age: str, complaint: str, rest: str) -> str:
    return f"2020\n\n# Chief Complaint\n{complaint}\n\n# History of Present Illness\nJo is a {age} white male. {rest}"


def test_a_note_tells_who_its_patient_is_and_what_stands_behind() -> None:
    told = Told.of(note("9 year-old", "- cough (finding)\n- fever (finding)", "Patient is well."))
    assert told == Told(age=9, complaint="- cough (finding)\n- fever (finding)", rest=" Patient is well.")
    assert [truth(told) for truth in TASKS.values()] == ["6 to 17", "respiratory"]
    ages = [Told.of(note(age, "No complaints.", "")) for age in ("newborn", "11 month-old", "18 year-old")]
    assert [told.age for told in ages if told] == [0, 0, 18]
    assert Told.of("Jo is a 9 year-old white male.") is None


def test_the_built_in_prompts_begin_as_the_built_in_patients_notes_and_tell_every_truth() -> None:
    told = [Told.of(Prompts.builtin().prompt(number, seed=0).text) for number in range(300)]
    labels = {task: {truth(each) for each in told if each is not None} for task, truth in TASKS.items()}
    assert None not in told and [len(found) for found in labels.values()] == [3, 2]


def test_a_classifier_learns_what_words_tell_and_nothing_where_they_tell_nothing() -> None:
    rng = random.Random(1)
    texts = [" ".join(rng.choices("abcdefgh", k=8)) for _ in range(300)]
    labels = [("odd", "even")[text.count("a") > 0] for text in texts]
    fitted = Classifier.fit(texts[:200], labels[:200])
    assert fitted.balanced_accuracy(texts[200:], labels[200:]) > 0.9
    shuffled = Classifier.fit(texts[:200], rng.sample(labels[:200], 200))
    assert abs(shuffled.balanced_accuracy(texts[200:], labels[200:]) - 0.5) < 0.25
    kinds = Classifier.fit(["a n", "b m"] * 9, ["x", "y"] * 9)
    moved = [f"{word} {'n ' * 9}" for word in ("a", "b")]
    assert kinds.balanced_accuracy(moved, ["x", "y"]) == 1, "what all texts of a kind have tells nothing"
    rare = Classifier.fit(["a"] * 50 + ["b"], ["x"] * 50 + ["y"])
    assert rare.balanced_accuracy(["a"] * 9 + ["b"], ["x"] * 9 + ["y"]) == 1


def test_the_distance_is_what_pencil_and_paper_say_and_nothing_on_average_between_notes_of_one_kind() -> None:
    # Two rows each, d = 1: the kernel (x·y + 1)³ is 1 within each, and between them 1, 1, 1 and −1.
    assert distance(np.array([[0.0], [2.0]]), np.array([[0.0], [-1.0]])) == pytest.approx(
        1 + 1 - 2 * (1 + 1 + 1 - 1) / 4
    )
    rng = np.random.default_rng(1)
    some, others = rng.normal(size=(2, 200, 30, 8))
    near = np.array([distance(*pair) for pair in zip(some, others, strict=True)])
    assert abs(near.mean()) < 6 * near.std() / 200**0.5, "unbiased, as an estimate with its diagonal is not"
    assert distance(some[0], others[0] + 1) > 5 * near.std()
    assert (
        scaled(some[0], by=some[0]).std(0) == pytest.approx(1) and not scaled(np.ones((2, 3)), by=np.ones((2, 3))).any()
    )


@contextmanager
def silent(what: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


def test_all_are_tested_on_the_same_real_notes_and_go_on_from_the_notes_that_are_there(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    config = json.loads((base / "config.json").read_bytes())
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    lora = Lora(target_modules=TARGETS["llama"], kind="lora", rank=2, alpha=4.0)
    load_tiny(base, kind="lora").export(tmp_path / "tiny", lora=lora, base_model=str(base))

    def patients(options: DemoOptions) -> DemoData:
        rng, path = random.Random(options.seed), tmp_path / f"{options.seed}.jsonl"
        made = [(rng.choice(list(HISTORY)), rng.choice(("- cough", "No complaints."))) for _ in range(60)]
        texts = [note(age, complaint, f"{HISTORY[age]}. {complaint}") for age, complaint in made]
        lines = (json.dumps({"patient_id": f"p{number}", "text": text}) + "\n" for number, text in enumerate(texts))
        path.write_text("".join(lines))
        return DemoData(hospitals={"one": path}, evaluation=path)

    sampling = Sampling(count=24, max_new_tokens=40, temperature=1.0, top_p=0.9, seed=0, batch=24)
    bench = SyntheticBench(
        folders=[tmp_path / "tiny"], output=tmp_path / "out", base=None, sampling=sampling, patients=patients
    )
    figures = bench.run(silent)
    rows = {row["trained_on"]: row for row in figures["rows"]}
    assert list(rows) == [REAL, AS_MANY, BASE, "tiny"] and figures["test_notes"] == 60
    assert [row["notes"] for row in rows.values()] == [60, 24, 24, 24]
    assert all(score > 0.99 for score in rows[REAL]["balanced_accuracy"].values()), "real notes tell it"
    assert all(rows["tiny"]["balanced_accuracy"][task] < 0.9 for task in TASKS), "random ones do not"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert bench.run(silent) == figures
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert "| real notes | – | 60 | 1.000 | 100% |" in synthetic_table(figures)
    with pytest.raises(StudyError, match="two folders have one name"):
        SyntheticBench(
            folders=[tmp_path / "tiny"] * 2, output=tmp_path / "out", base=None, sampling=sampling, patients=patients
        ).run(silent)
