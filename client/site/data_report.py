"""What a site's records come to, in figures: for its own operator alone, exact and so never to leave."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from ...common.data.buckets import bucket_lengths
from ...common.data.quarantine import SetAside
from .reading import Counts, Reading
from .repetition import Repetition
from .site_records import SiteRecords
from .survey import USUAL, Survey

_PLACES: Final = 3  # of each reason for which records are set aside
_BINS: Final = 14
_WIDE: Final = 8  # where the greatest is so many times the least, bins grow by factors


@dataclass(frozen=True, kw_only=True)
class Bin:
    """How many of some whole numbers lie from ``first`` to ``last``."""

    first: int
    last: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How some whole numbers lie: the least, quantiles, the greatest, their mean, and how many are in each bin."""

    least: int
    tenth: int
    median: int
    nine_tenths: int
    greatest: int
    mean: float
    bins: tuple[Bin, ...]

    @classmethod
    def of(cls, values: NDArray[Any]) -> Self:
        """Of one or more numbers from 0 on, which are rounded."""
        whole = np.rint(values).astype(np.int64)
        least, tenth, median, nine_tenths, greatest = np.quantile(
            whole, [0, 0.1, 0.5, 0.9, 1], method="inverted_cdf"
        ).tolist()
        ends = _ends(least, greatest)
        counts = np.bincount(np.searchsorted(ends, whole), minlength=len(ends)).tolist()
        starts = [least, *(end + 1 for end in ends)]
        bins = (
            Bin(first=first, last=last, count=held) for first, last, held in zip(starts, ends, counts, strict=False)
        )
        return cls(
            least=least,
            tenth=tenth,
            median=median,
            nine_tenths=nine_tenths,
            greatest=greatest,
            mean=float(whole.mean()),
            bins=tuple(bins),
        )


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """The ``windows`` that are computed as ``tokens`` tokens each, of which the share ``padding`` fills them up."""

    tokens: int
    windows: int
    padding: float


@dataclass(frozen=True, kw_only=True)
class Windows:
    """All text in windows of at most ``max_tokens``, and what does not get into them or is in them for nothing.

    Attributes:
        windows: how many they are.
        padding: the share of what is computed that fills them to the lengths of their ``buckets``.
        cut: how many prompts lose their beginnings; 0 where there are none.
        lost: the share of all tokens that these are.
    """

    max_tokens: int
    overlap: int
    windows: int
    padding: float
    buckets: tuple[Bucket, ...]
    cut: int
    lost: float

    @classmethod
    def of(
        cls, lengths: NDArray[Any], max_tokens: int, overlap: int, *, times: NDArray[Any], cut: int, lost: float
    ) -> Self:
        """Of windows of some ``lengths``, of each of which there are so many ``times``."""
        computed = padded(lengths, max_tokens)
        ends, of_window = np.unique(computed, return_inverse=True)
        windows, held = (np.bincount(of_window, weights=weights) for weights in (times, lengths * times))
        return cls(
            max_tokens=max_tokens,
            overlap=overlap,
            windows=int(times.sum()),
            padding=1 - float((lengths * times).sum() / (computed * times).sum()),
            buckets=tuple(
                Bucket(tokens=int(end), windows=int(count), padding=1 - float(tokens / (end * count)))
                for end, count, tokens in zip(ends, windows, held, strict=True)
                if count
            ),
            cut=cut,
            lost=lost,
        )


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step of a study reads, in expectation, and what all of its steps come to.

    Attributes:
        units: how many are drawn, at most ``most_units``.
        windows: how many are read of them, ``share`` of all.
        tokens: how many these hold; ``computed`` with their padding.
        every: a unit is read once in so many steps.
        steps: of the study.
        share_read: the share of all windows that are read at least once in it.
    """

    unit: str
    units: float
    most_units: int
    windows: float
    share: float
    tokens: float
    computed: float
    every: float
    steps: int
    share_read: float


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why records are set aside, how many, and where the first of them are."""

    reason: str
    count: int
    places: tuple[str, ...]

    @classmethod
    def all_of(cls, set_aside: Iterable[SetAside]) -> tuple[Self, ...]:
        """Each reason, the most frequent first."""
        places: dict[str, list[str]] = defaultdict(list)
        for one in set_aside:
            places[one.reason].append(one.position)
        reasons = (cls(reason=why, count=len(at), places=tuple(at[:_PLACES])) for why, at in places.items())
        return tuple(sorted(reasons, key=lambda one: -one.count))


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """All figures; those of tokens are of ``sampled`` records, or of all where it is None.

    ``repeated`` records say what another of the same patient says, and ``shared`` texts are several patients'. Who
    opted out is counted nowhere; ``unmatched`` are the lines of the opt-outs that mean nobody, by number. ``machine``
    says in lines how the study is computed here, where that was found out.
    """

    source: str
    study: str | None
    patients: int
    records: int
    records_each: Spread
    tokens_each: Spread
    sampled: int | None
    windows: tuple[Windows, ...]
    step: Step | None
    repeated: int
    shared: int
    set_aside: tuple[Reason, ...]
    opt_out_lines: int
    unmatched: tuple[int, ...]
    machine: tuple[str, ...] = ()

    @classmethod
    def surveyed(cls, survey: Survey, reading: Reading | None = None, *, most_units: int = 0, study: str = "") -> Self:
        """Of records as they were read, and estimated where tokens are counted; for a study if there is one."""
        each = survey.records_each
        forms = [(reading.max_tokens, reading.overlap)] if reading else [(most, 0) for most in USUAL]
        step = None
        if reading:
            windows, last, _ = _cut(survey, reading.max_tokens, reading.overlap)
            before = (windows - 1) * reading.max_tokens
            of_units = (
                reading.units(of_records, each)
                for of_records in (windows, before + last, before + padded(last, reading.max_tokens))
            )
            step = step_of(reading, *of_units, most_units=most_units)
        return cls(
            source=survey.file,
            study=study or None,
            patients=len(survey.patients),
            records=survey.records,
            records_each=Spread.of(each),
            tokens_each=Spread.of(np.asarray(survey.lengths.tokens or [0])),
            sampled=len(survey.lengths.tokens),
            windows=tuple(_windows(survey, *form) for form in forms),
            step=step,
            repeated=survey.repeated,
            shared=survey.shared,
            set_aside=Reason.all_of(survey.quarantine.set_aside),
            opt_out_lines=survey.opt_out_lines,
            unmatched=tuple(survey.unmatched),
        )

    @classmethod
    def prepared(cls, site_records: SiteRecords, reading: Reading, *, most_units: int, source: str, study: str) -> Self:
        """Of records as they are prepared for a study: exact."""
        store, kept = site_records.store, site_records.kept
        each = np.diff(store.units)
        is_kept = np.zeros(len(each), dtype=np.bool_)
        is_kept[kept] = True
        of_kept = np.repeat(is_kept, each)
        windows, lengths = np.diff(store.block.records)[of_kept], site_records.lengths
        held, computed = (
            np.add.reduceat(of_windows, np.cumsum(windows) - windows)
            for of_windows in (lengths, padded(lengths, reading.max_tokens))
        )
        tokens = held - reading.overlap * (windows - 1)
        said = Repetition()
        owners = np.repeat(kept, each[kept]).tolist()
        for owner, content in zip(owners, site_records.contents(), strict=True):
            if content:
                said.add(store.patients[owner], content)
        return cls(
            source=source,
            study=study,
            patients=len(kept),
            records=len(windows),
            records_each=Spread.of(each[kept]),
            tokens_each=Spread.of(tokens[tokens > 0] if tokens.any() else tokens),
            sampled=None,
            windows=(
                Windows.of(
                    lengths,
                    reading.max_tokens,
                    reading.overlap,
                    times=np.ones(len(lengths)),
                    cut=site_records.cut,
                    lost=site_records.lost / ((int(tokens.sum()) + site_records.lost) or 1),
                ),
            ),
            step=step_of(
                reading,
                *(reading.units(of_records, each[kept]) for of_records in (windows, held, computed)),
                most_units=most_units,
            ),
            repeated=said.repeated,
            shared=said.shared,
            set_aside=Reason.all_of(site_records.quarantine.set_aside),
            opt_out_lines=site_records.opt_out_lines,
            unmatched=tuple(site_records.unmatched),
        )


def padded(lengths: NDArray[Any], max_tokens: int) -> NDArray[np.int64]:
    """How many tokens windows of some ``lengths`` are computed as."""
    ends = np.asarray(bucket_lengths(max_tokens))
    return ends[np.searchsorted(ends[:-1], lengths)]  # what is estimated may be above the last by a rounding


def step_of(
    reading: Reading, windows: Counts, tokens: NDArray[Any], computed: NDArray[Any], *, most_units: int
) -> Step:
    """What a study's step reads of units: their windows, these' tokens, and as how many they are computed [units]."""
    drawn = reading.in_a_step(windows)
    read, q = float(drawn.sum()), reading.sampling_probability
    return Step(
        unit=reading.unit,
        units=q * len(windows),
        most_units=most_units,
        windows=q * read,
        share=q * read / float(windows.sum()),
        tokens=q * float((tokens * drawn / windows).sum()),
        computed=q * float((computed * drawn / windows).sum()),
        every=1 / q,
        steps=reading.steps,
        share_read=reading.share_read(windows),
    )


def _windows(survey: Survey, max_tokens: int, overlap: int) -> Windows:
    windows, last, lost = _cut(survey, max_tokens, overlap)
    return Windows.of(
        np.append(last, max_tokens),  # the windows before a record's last are full
        max_tokens,
        overlap,
        times=np.append(np.ones(len(last)), (windows - 1).sum()),
        cut=int((lost > 0).sum()),
        lost=float(lost.sum() / (survey.tokens.sum() or 1)),
    )


def _cut(survey: Survey, max_tokens: int, overlap: int) -> tuple[Counts, NDArray[np.float64], NDArray[np.float64]]:
    """How many windows each record makes, how many tokens its last one has, and how many are in none: [records]."""
    tokens, continued, windows = survey.tokens, survey.continued, survey.windows(max_tokens, overlap)
    # A prompt whose completion needs several windows is lost whole, as `windows_of` says.
    lost = np.where(continued > max_tokens, tokens - continued, np.maximum(tokens - max_tokens, 0))
    return windows, tokens - lost - (windows - 1) * (max_tokens - overlap), lost


def _ends(least: int, greatest: int) -> Sequence[int]:
    """The last number of each of a few bins, which begin at ``least`` and hold ``greatest``: whole, round numbers.

    >>> list(_ends(0, 3)), list(_ends(290, 361)), list(_ends(9, 500))
    ([0, 1, 2, 3], [290, 300, 310, 320, 330, 340, 350, 360, 370], [16, 32, 64, 128, 256, 512])
    """
    if greatest - least < _BINS:
        return range(least, greatest + 1)
    if greatest > _WIDE * least:
        factor = next(2**power for power in count(1) if (_log(greatest, 2**power) - _log(least, 2**power)) < _BINS)
        return [factor**power for power in range(_log(least, factor), _log(greatest, factor) + 1)]
    steps = (digit * 10**power for power in count() for digit in (1, 2, 5))
    step = next(step for step in steps if -(-greatest // step) - -(-least // step) < _BINS)
    return range(-(-least // step) * step, greatest + step, step)


def _log(value: int, factor: int) -> int:
    """The least power of ``factor`` that is at least ``value``."""
    return next(power for power in count() if factor**power >= value)
