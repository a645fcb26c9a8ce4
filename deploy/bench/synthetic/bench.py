"""Train on synthetic notes, test on real ones: beside training on real ones, and on the base model's notes."""

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ....common.data.record import Text
from ....common.data.records import read_records
from ....common.data.tokenisation import load_tokenizer
from ....common.errors import DataError, StudyError
from ...adapter.finished import FinishedAdapter
from ...builtin.patients import DemoData, DemoOptions, demo_data
from ...generate.check import read_notes
from ...generate.generation import Generation
from ...generate.prompts import Prompts
from ...generate.provenance import claimed, in_short
from ...generate.sampling import Sampling
from .classifier import Classifier
from .distance import distance, read_by, scaled
from .tasks import TASKS, Told

REAL: Final = "real notes"
AS_MANY: Final = "as many real notes as synthetic ones"
BASE: Final = "the base model's notes"
# Of patients whom no study trains on: those of the built-in study have another seed, and so have those of benchmarks.
TEST_SEED: Final = 101
_TEST: Final = "the real notes on which all are tested"
_READ: Final = 64  # notes of each that the base model reads for the distance
Counted = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True, kw_only=True)
class SyntheticBench:
    """Notes of finished adapters, which were trained on the built-in patients, and of their base model.

    Attributes:
        folders: studies' folders, or adapters alone.
        output: a folder for the notes; what is there already is not made again.
        base: of the base model, where it is not where the studies have it.
        sampling: of each adapter's notes.
        patients: where the built-in patients come from.
    """

    folders: Sequence[Path]
    output: Path
    base: str | None
    sampling: Sampling
    patients: Callable[[DemoOptions], DemoData] = demo_data

    def run(self, counted: Counted) -> dict[str, Any]:
        """Balanced accuracies of each task's classifier on real notes, by what it was trained on.

        Raises StudyError, StorageError, ModelError or DataError.
        """
        adapters = {folder.resolve().name: FinishedAdapter.read(folder) for folder in self.folders}
        if len(adapters) < len(self.folders):
            raise StudyError(
                "two folders have one name",
                why="each adapter's notes are a file of that name",
                fix="name studies' folders, rather than the adapter's in each",
            )
        first = next(iter(adapters.values()))
        notes = {
            BASE: self._notes("base-model", first, counted, with_adapter=False),
            **{name: self._notes(name, adapter, counted) for name, adapter in adapters.items()},
        }
        tokenizer = load_tokenizer(str(first.base_folder(self.base)))
        trained, unseen = (
            _hospitals(self.patients(DemoOptions(seed=seed))) for seed in (DemoOptions().seed, TEST_SEED)
        )
        most = self.sampling.max_new_tokens
        test = _told(unseen, tokenizer, most)
        sources = {name: _told(texts, tokenizer, most) for name, texts in {REAL: trained, **notes}.items()}
        distances = self._distances(first, tokenizer, test, sources, counted)
        claims = {name: in_short(claimed(adapter)) for name, adapter in adapters.items()}
        rows = [_row(name, told, test, claim=claims.get(name), far=distances[name]) for name, told in sources.items()]
        as_many = _some(sources[REAL], self.sampling.count)
        rows.insert(1, _row(AS_MANY, as_many, test, claim=None, far=None))
        return {"test_notes": len(test), "tokens": most, "rows": rows}

    def _distances(
        self,
        adapter: FinishedAdapter,
        tokenizer: Any,
        test: Sequence[Told],
        sources: Mapping[str, Sequence[Told]],
        counted: Counted,
    ) -> dict[str, float]:
        """From the real notes of patients whom no study trains on, as the base model reads some of each."""
        model = adapter.on(adapter.base_folder(self.base))
        states = {}
        for name, notes in {_TEST: test, **sources}.items():
            texts = [each.rest for each in _some(notes, _READ)]
            with counted(f"{name}: read by the base model", len(texts)) as told:
                states[name] = read_by(model, tokenizer, texts, told)
        unseen = states.pop(_TEST)
        return {name: distance(scaled(each, by=unseen), scaled(unseen, by=unseen)) for name, each in states.items()}

    def _notes(
        self, name: str, adapter: FinishedAdapter, counted: Counted, *, with_adapter: bool = True
    ) -> Sequence[str]:
        path = self.output / f"{name}.jsonl"
        if not path.exists():
            generation = Generation(
                adapter=adapter,
                base=adapter.base_folder(self.base),
                prompts=Prompts.builtin(),
                sampling=self.sampling,
                with_adapter=with_adapter,
            )
            with counted(f"notes of {name}", self.sampling.count) as told:
                generation.run(path, told)
        return read_notes(path)[0]


def _hospitals(data: DemoData) -> Sequence[str]:
    records = (record for path in data.hospitals.values() for record in read_records(path))
    return [record.content.text for record in records if isinstance(record.content, Text)]


def _told(texts: Sequence[str], tokenizer: Any, most: int) -> Sequence[Told]:
    """What notes tell, of each as many tokens as a synthetic note has."""
    found = [told for text in texts if (told := Told.of(text)) is not None]
    if not found:
        raise DataError(
            "no note begins as the built-in patients' notes do",
            why="their opening says what the truth is",
            fix="compare adapters with notes that were made by the built-in prompts",
        )
    cut = (tokenizer(told.rest, add_special_tokens=False)["input_ids"][:most] for told in found)
    return [replace(told, rest=tokenizer.decode(tokens)) for told, tokens in zip(found, cut, strict=True)]


def _some(told: Sequence[Told], count: int) -> Sequence[Told]:
    """So many at most, the same whenever it is asked."""
    return random.Random(0).sample(told, min(count, len(told)))  # noqa: S311 (what is drawn is public)


def _row(
    name: str, told: Sequence[Told], test: Sequence[Told], *, claim: str | None, far: float | None
) -> dict[str, Any]:
    scores = {}
    for task, truth in TASKS.items():
        fitted = Classifier.fit([each.rest for each in told], [truth(each) for each in told])
        scores[task] = fitted.balanced_accuracy([each.rest for each in test], [truth(each) for each in test])
    return {"trained_on": name, "notes": len(told), "claim": claim, "balanced_accuracy": scores, "distance": far}


def synthetic_table(figures: Mapping[str, Any]) -> str:
    """For people, as Markdown."""
    real = figures["rows"][0]["balanced_accuracy"]
    head = [
        "trained on",
        "claim",
        "notes",
        *(f"{task}{part}" for task in TASKS for part in ("", ", of real")),
        "distance",
    ]
    rows = [head, ["---"] * len(head)]
    for row in figures["rows"]:
        scores = row["balanced_accuracy"]
        cells = (f"{cell}" for task in TASKS for cell in (f"{scores[task]:.3f}", f"{scores[task] / real[task]:.0%}"))
        far = "–" if row["distance"] is None else f"{row['distance']:.3g}"
        rows.append([row["trained_on"], row["claim"] or "–", f"{row['notes']:,}", *cells, far])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
