"""An auxiliary adapter: trained on synthetic notes alone, it shows what these tell of texts that were planted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import numpy as np

from ...client.site.assembly import sampler_of
from ...client.training.dp_sgd import DpSgd
from ...common.crypto.csprng import Stream, derived_key
from ...common.data.preparation import Preparation
from ...common.data.records import named_rows
from ...common.data.tokenisation import Tokenisation
from ...common.errors import StudyError
from ...common.model.adapter import Vector
from ...common.model.language_model import LanguageModel
from ...common.privacy.mechanism import NoNoise
from ...common.schema import known
from ...common.study.study import Study
from ..generate.sampling import Note
from ..plan.instant import dp_sgd_of

_ORDER_LABEL: Final = b"grandrounds/audit/v1/auxiliary-order\n"
_PASSES: Final = 4
_AT_A_TIME: Final = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Auxiliary:
    """Trains the study's ``first`` adapter on notes, by its optimiser, with clipping and without noise.

    Source: Mitchell et al. 2026, "Advancing the State-of-the-Art in Empirical Privacy Auditing" (arXiv 2606.10481): a
    model that is fine-tuned on synthetic data has a lower loss on the canaries that this data shows something of.

    *Formal guarantee.* The adapter is a function of the notes, the base model, the study's settings and a seed, which
    are all that it is given: so what it says of a canary is post-processing of the notes, and a lower bound on ε from
    its losses is one for the notes, and for the adapter that wrote them (Dwork and Roth 2014, proposition 2.1).
    """

    study: Study
    dp_sgd: DpSgd
    tokenisation: Tokenisation
    first: Vector
    seed: bytes

    @classmethod
    def of(cls, study: Study, model: LanguageModel, *, base: Path, seed: bytes) -> Self:
        """For a complete study; its ``model`` holds the first adapter, and is trained in place. Raises ModelError."""
        return cls(
            study=study,
            dp_sgd=replace(dp_sgd_of(study, sampler_of(study, model)), mechanism=NoNoise()),
            tokenisation=Tokenisation.load(str(base), vocabulary_size=model.vocabulary_size),
            first=model.get_adapter(),
            seed=seed,
        )

    def trained_on(self, notes: Sequence[Note], *, passes: int = _PASSES) -> Vector:
        """The adapter float32 [d] after ``passes`` over the notes, a few at a time; ``first`` where none says a word.

        The notes are in an order of the seed's, another in each pass. Raises DataError where the model reads none,
        StudyError where it learns nothing of them.
        """
        rows = [
            {"patient_id": f"note-{number}", "prompt": note.prompt.text, "completion": note.written}
            for number, note in enumerate(notes)
            if note.written.strip()
        ]
        if not rows:
            return self.first
        data, how = self.study.data, self.study.training
        preparation = Preparation(
            tokenisation=self.tokenisation, max_tokens=data.max_tokens, overlap=data.overlap, similar="different"
        )
        store = preparation.of_rows("synthetic notes", named_rows("synthetic notes", rows)).store
        units = list(store.select("record", np.arange(len(store.patients)), max_tokens=data.max_tokens))
        batches = list(self._batches(len(units), passes))
        drawn = iter(batches)
        change = self.dp_sgd.train(
            lambda: [units[number] for number in next(drawn)],
            adapter=self.first,
            optimizer=how.server_optimizer(learning_rate=known(how.learning_rate)),
            steps=len(batches),
            denominator=min(_AT_A_TIME, len(units)),
        )
        if not change.any():
            raise StudyError(
                f"the auxiliary adapter learnt nothing of {len(units)} synthetic notes",
                why="whatever they tell, this attack could not find it",
                fix="leave --synthetic-notes out; the log says what failed",
            )
        return (self.first + change).astype(np.float32)

    def _batches(self, count: int, passes: int) -> Iterator[Sequence[int]]:
        words = Stream(derived_key(self.seed, _ORDER_LABEL)).words(count * passes).reshape(passes, count)
        for order in np.argsort(words, axis=1, kind="stable").tolist():
            yield from (order[start : start + _AT_A_TIME] for start in range(0, count, _AT_A_TIME))
