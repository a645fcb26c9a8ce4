"""An auxiliary adapter finds what notes copy, and nothing in notes of nobody."""

import math
from dataclasses import replace

import numpy as np
import pytest
from support.study.tiny_models import save_tiny_model

from grandrounds.common.audit.bounds import f_dp_bound
from grandrounds.common.data.records import parse_records
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.privacy.mechanism import NoNoise
from grandrounds.common.study.completion import complete_study
from grandrounds.common.study.study import Study
from grandrounds.deploy.audit.auxiliary import Auxiliary
from grandrounds.deploy.generate.prompts import Prompt
from grandrounds.deploy.generate.sampling import Note

CANARIES = 40
PASSES = 30


def note(written: str) -> Note:
    return Note(prompt=Prompt(text="Plan:", controls={}), written=written, ended=False)


def random_notes(count: int, *, seed: int) -> list[Note]:
    rng = np.random.default_rng(seed)
    return [note(" " + "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def auxiliary(tmp_path_factory) -> Auxiliary:
    base = save_tiny_model(tmp_path_factory.mktemp("base"))
    study = complete_study(
        Study.model_validate(
            {
                "model": {"name": str(base), "rank": 8, "adapter": "lora"},
                "data": {"max_tokens": 32, "evaluation": "synthetic"},
                "privacy": {"clipping_norm": 9.6},
                "training": {"rounds": 1, "physical_batch": 8, "optimizer": "adam", "learning_rate": 0.03},
                "sites": [{"name": name, "nominal_units": 20} for name in ("north", "south", "west")],
            }
        )
    )
    model = LanguageModel.load(base, study.model.lora, seed=1)
    return Auxiliary.of(study, model, base=base, seed=bytes(32))


def bound(auxiliary: Auxiliary, notes: list[Note], canaries: list[Note], bits: np.ndarray) -> float:
    """On ε, by how much an adapter that was trained on the notes lowers the canaries' losses."""
    model = auxiliary.dp_sgd.sampler.model
    rows = [
        {"patient_id": str(n), "prompt": canary.prompt.text, "completion": canary.written}
        for n, canary in enumerate(canaries)
    ]
    records = parse_records("canaries", rows, similar="different")
    examples = auxiliary.tokenisation.evaluation_set(records, positions=model.positions).examples

    def losses(adapter: np.ndarray) -> np.ndarray:
        return np.array([math.log(model.perplexity([example], adapter).whole) for example in examples])

    scores = losses(auxiliary.first) - losses(auxiliary.trained_on(notes, passes=PASSES))
    return f_dp_bound(list(scores), list(bits), delta=1e-3, confidence=0.95)


def test_notes_that_copy_the_canaries_that_are_in_are_found_out_and_notes_of_nobody_show_nothing(auxiliary) -> None:
    canaries, bits = random_notes(CANARIES, seed=3), np.random.default_rng(4).random(CANARIES) < 0.5
    copies = [canary for canary, is_in in zip(canaries, bits, strict=True) if is_in]
    assert bound(auxiliary, copies, canaries, bits) > 0.5
    assert bound(auxiliary, random_notes(len(copies), seed=5), canaries, bits) == 0.0


def test_it_is_trained_without_noise_from_the_first_adapter_so_that_the_same_notes_leave_the_same(auxiliary) -> None:
    notes = random_notes(9, seed=6)
    assert isinstance(auxiliary.dp_sgd.mechanism, NoNoise)
    once, again = (auxiliary.trained_on(notes, passes=2) for _ in range(2))
    assert (once == again).all() and (once != auxiliary.first).any()
    assert (replace(auxiliary, seed=bytes(31) + b"\1").trained_on(notes, passes=2) != once).any()


def test_every_note_is_read_once_a_pass_and_one_without_a_word_is_none(auxiliary) -> None:
    for count in (1, 8, 19):
        read = [number for batch in auxiliary._batches(count, 3) for number in batch]
        assert [sorted(read[start : start + count]) for start in range(0, 3 * count, count)] == [list(range(count))] * 3
    assert auxiliary.trained_on([note("  "), note("")]) is auxiliary.first
    said = random_notes(3, seed=7)
    with_silence = auxiliary.trained_on([*said, note(" ")], passes=1)
    assert (with_silence == auxiliary.trained_on(said, passes=1)).all()
