"""Comparisons seed by seed: a federation with pooled training, and settings with those that they were tried beside."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean, stdev
from typing import Any, Final, Self

from ....common.schema import as_toml
from .row import Row

_CONFIDENCE: Final = 0.95


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The mean of ``count`` paired differences of log-perplexity, and half of its 95 % t-interval: None of one pair.

    ``p`` is the chance of one that is as far from 0, were there no difference; None where pairs do not differ.
    """

    mean: float
    half: float | None
    count: int
    p: float | None = None

    @classmethod
    def of(cls, differences: Sequence[float]) -> Self:
        """Of one pair or more (Student 1908).

        >>> found = Paired.of([0.0, 0.1])
        >>> f"{found.mean:.3f} {found.half:.3f} {found.p:.3f}"
        '0.050 0.635 0.500'
        """
        from scipy.stats import t

        mean, count, half, p = fmean(differences), len(differences), None, None
        if count > 1:
            error = stdev(differences) / math.sqrt(count)
            half = float(t.ppf((1 + _CONFIDENCE) / 2, count - 1)) * error
            p = float(2 * t.sf(abs(mean) / error, count - 1)) if error else None
        return cls(mean=mean, half=half, count=count, p=p)

    @property
    def interval(self) -> str:
        """As people read it."""
        return "–" if self.half is None else f"{self.mean - self.half:+.3f} to {self.mean + self.half:+.3f}"


@dataclass(frozen=True, kw_only=True)
class Lever:
    """Settings beside the first ones, in one way of training: ``changed`` says in what they differ.

    ``row`` is one of their runs; ``perplexity`` and ``first`` are geometric means over the seeds that both have.
    """

    settings: str
    changed: str
    row: Row
    perplexity: float
    first: float
    difference: Paired


def against_pooled(rows: Sequence[Row]) -> Iterator[str]:
    """In words: by how much a federation's log-perplexity exceeds that of all patients at one site, seed by seed.

    With the t-interval of the mean of the paired differences; of fewer than two pairs nothing is said. Where a run of a
    pair came to no figure there is no mean, which would be one of the runs that went well.
    """
    federated = _alike([row for row in rows if row.way == "distributed"])
    for group, way in product(federated, ("pooled", "pooled-noisier")):
        pooled = {(row.case, row.epsilon): row for row in rows if row.way == way}
        pairs = [(row, other) for row in group if (other := pooled.get((row.case, row.epsilon)))]
        if len(pairs) < 2:
            continue
        (first, other), differences = pairs[0], _differences(pairs)
        if len(differences) < len(pairs):
            outcome = (
                f"no mean, since {len(pairs) - len(differences)} of {len(pairs)} seeds have a run without a figure"
            )
        else:
            found = Paired.of(differences)
            outcome = f"ln perplexity {found.mean:+.3f}, 95 % t-interval {found.interval} ({found.count} seeds)"
        yield (
            f"Distributed against {way}, {first.sites} sites, {first.patients} patients ({first.split}), "
            f"ε = {first.epsilon:g}, noise {first.noise_over_claimed:g} and {other.noise_over_claimed:g} × claimed: "
            f"{outcome}."
        )


def levers(groups: Sequence[Sequence[Row]]) -> Iterator[Lever]:
    """Of rows by their settings, those settings that were tried beside the first ones and not for themselves.

    So are all whose every run has one of the first settings to be held against, and that have none without noise,
    which says how much of a gain is kept.
    """
    if not groups:
        return
    first, *others = groups
    against = {(row.way, row.case, row.epsilon): row for row in first}
    for group in others:
        pairs = [(row, other) for row in group if (other := against.get((row.way, row.case, row.epsilon)))]
        if len(_differences(pairs)) < len(group) or any(row.way == "noise-off" for row in group):
            continue
        for rows in _alike(group):
            beside = [(row, other) for row, other in pairs if row in rows]
            yield Lever(
                settings=group[0].settings,
                changed=changed(first[0].stated, group[0].stated),
                row=rows[0],
                perplexity=_geometric_mean([row for row, _ in beside]),
                first=_geometric_mean([other for _, other in beside]),
                difference=Paired.of(_differences(beside)),
            )


def together(chances: Sequence[float | None]) -> list[float | None]:
    """The p-value of each, judged with all others: all below 0.05 are real at once, but for one time in 20 (Holm 1979).

    >>> together([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    known = sorted((p, number) for number, p in enumerate(chances) if p is not None)
    adjusted: list[float | None] = [None] * len(chances)
    largest = 0.0
    for rank, (p, number) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[number] = largest
    return adjusted


def lever_cells(tried: Sequence[Lever]) -> list[list[str]]:
    """The lines of a table of levers, and its head: the largest gain first."""
    judged = together([lever.difference.p for lever in tried])
    head = ["what differs", "way", "ε", "sites", "patients", "seeds", "perplexity", "of the first settings"]
    lines = [[*head, "ln perplexity", "95 % t-interval", "p, all together"]]
    for lever, p in sorted(zip(tried, judged, strict=True), key=lambda one: one[0].difference.mean):
        row, found = lever.row, lever.difference
        means = (f"{lever.perplexity:.2f}", f"{lever.first:.2f}", f"{found.mean:+.3f}", found.interval, _shown(p))
        where = (row.way, "none" if row.epsilon is None else f"{row.epsilon:g}", str(row.sites), str(row.patients))
        lines.append([lever.changed, *where, str(found.count), *means])
    return lines


def _shown(p: float | None) -> str:
    return "–" if p is None else f"{p:.2g}" if p >= 0.001 else "< 0.001"


def said(stated: Mapping[str, Any]) -> list[str]:
    """What is stated of settings, each as a study's file would have it."""
    return [f"{name} = {as_toml(value)}" for name, value in _flat(stated).items()]


def changed(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What the ``other`` settings state otherwise than the ``first``; what they leave out is the study's default.

    >>> changed({"model": {"rank": 1}, "training": {"rounds": 4}}, {"model": {"rank": 4}})
    'model.rank = 4; training.rounds by default'
    """
    before, after = _flat(first), _flat(other)
    new = [f"{name} = {as_toml(value)}" for name, value in after.items() if before.get(name) != value]
    return "; ".join([*new, *(f"{name} by default" for name in before if name not in after)])


def _flat(stated: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, fields in stated.items() for name, value in fields.items()}


def _differences(pairs: Sequence[tuple[Row, Row]]) -> list[float]:
    """Of log-perplexity, of those pairs that came to figures."""
    return [
        math.log(row.perplexity_after / other.perplexity_after)
        for row, other in pairs
        if row.perplexity_after and other.perplexity_after
    ]


def _geometric_mean(rows: Sequence[Row]) -> float:
    return math.exp(fmean(math.log(row.perplexity_after) for row in rows if row.perplexity_after))


def _alike(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that differ in their seeds alone."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.way, row.sites, row.patients, row.split, row.epsilon, row.noise_over_claimed].append(row)
    return list(groups.values())
