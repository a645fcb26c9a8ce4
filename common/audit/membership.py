"""Who was trained on: attacks that score each patient by what a model says of that patient's records. No torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from .roc import Scores

FEWEST: Final = 20  # patients of each kind: of fewer, every interval is as good as none
# How far from the reference's probability towards one that of a model which was trained on a record is taken to lie,
# where the reference was not (Zarifzadeh, Liu and Shokri 2024, on references that are few and all without it).
_OFFLINE: Final = 0.3


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What the base model and the adapter say of some patients, one number [patients] each.

    Attributes:
        tokens: how many tokens of theirs are predicted.
        base: the base model's mean loss, in nats a token.
        adapter: the adapter's.
        base_run: the longest run of tokens that the base model continues verbatim, by the likeliest token.
        adapter_run: the adapter's.
        moved: how far the mean of the last hidden states is from the base model's, over the length of that.
        aligned: the inner product of the clipped gradient at the base model with the adapter's change from it, of
            length one; positive where the change lowers the patient's loss.
    """

    tokens: Scores
    base: Scores
    adapter: Scores
    base_run: Scores
    adapter_run: Scores
    moved: Scores
    aligned: Scores

    def __len__(self) -> int:
        return len(self.tokens)


# What each attack is called, in words for whoever reads its figures.
LOSS: Final = "loss"
AGAINST_BASE: Final = "loss against the base model's"
CALIBRATED: Final = "loss, calibrated by the base model's"
LIKELIHOOD: Final = "likelihood ratio (LiRA)"
RELATIVE: Final = "relative likelihood (RMIA)"
WEIGHTS: Final = "weights: gradient and change"
STATES: Final = "embeddings: hidden states"


def attacks(members: Seen, others: Seen) -> Mapping[str, tuple[Scores, Scores]]:
    """Each attack's scores of members and of others; the higher, the more a patient looks trained on.

    The one reference is the base model, which was trained on none of them.

    *Loss*: the lower (Yeom et al. 2018). *Loss against the base's*: by how much the adapter lowers it (Watson et al.
    2022). *Calibrated*: by how much it is below the line through the losses of those who were not trained on, by the
    base model's loss (Bertran et al. 2023, by least squares): training lowers the losses of texts that the base finds
    hard more than others, and the plain difference takes that for membership. *Likelihood ratio*: that of all tokens
    together, in standard deviations of what chance does to so many (Carlini et al. 2022, offline, one variance).
    *Relative likelihood*: for how many of those who were not trained on it is no larger (Zarifzadeh et al. 2024, with γ
    of one). *Weights*: with the adapter in hand, how much its change points along what the patient would have done to
    it (Nasr et al. 2019). *Embeddings*: how far the patient's mean hidden state moved, which is all that is seen where
    a model is served for embeddings.
    """
    population, foretold = _relative(others), _foretold(others)

    def each(seen: Seen) -> dict[str, Scores]:
        # Of a patient of the population, the others in it: nobody is compared with himself.
        own = 1.0 if seen is others else 0.0
        no_larger: Scores = np.searchsorted(np.sort(population), _relative(seen), side="right").astype(np.float64) - own
        return {
            LOSS: -seen.adapter,
            AGAINST_BASE: seen.base - seen.adapter,
            CALIBRATED: foretold(seen) - seen.adapter,
            LIKELIHOOD: np.sqrt(seen.tokens) * (seen.base - seen.adapter),
            RELATIVE: no_larger / (len(population) - own),
            WEIGHTS: seen.aligned,
            STATES: seen.moved,
        }

    of_members, of_others = each(members), each(others)
    return {name: (of_members[name], of_others[name]) for name in of_members}


def loss_gap(members: Seen, others: Seen) -> tuple[float, float]:
    """By how many nats a token members are predicted better than others: by the base model, and by the adapter."""
    base, adapter = (
        float(getattr(others, name).mean() - getattr(members, name).mean()) for name in ("base", "adapter")
    )
    return base, adapter


def _foretold(others: Seen) -> Callable[[Seen], Scores]:
    """The adapter's loss by the base model's, on the line of least squares through the ``others``.

    Of one of the others himself, on the line through the rest of them: nobody is compared with himself.
    """
    count, centre = len(others), others.base.mean()
    spread = float(((others.base - centre) ** 2).sum())
    slope = float(((others.base - centre) * others.adapter).sum()) / spread if spread else 0.0

    def of(seen: Seen) -> Scores:
        line: Scores = others.adapter.mean() + slope * (seen.base - centre)
        if seen is not others:
            return line
        leverage = 1 / count + ((seen.base - centre) ** 2 / spread if spread else 0.0)
        rest: Scores = seen.adapter - (seen.adapter - line) / np.maximum(1 - leverage, 1e-9)
        return rest

    return of


def _relative(seen: Seen) -> Scores:
    likelihood: Scores = np.exp(-seen.adapter) / (((1 + _OFFLINE) * np.exp(-seen.base) + 1 - _OFFLINE) / 2)
    return likelihood
