"""How useful a study's adapter is, in words: where in a record it predicts held-out text better or worse."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import Field

from ...common.model.perplexity import BANDS
from ...common.model.perplexity import Perplexity as Measured
from ...common.schema import Section

Perplexity = Annotated[float, Field(ge=1)]


class AtPosition(Section):
    """Perplexity of the tokens from ``begin`` to before ``end``, without end where that is None.

    ``before`` and ``after`` training; None if it is not finite.
    """

    begin: int
    end: int | None
    before: Perplexity | None
    after: Perplexity | None

    @classmethod
    def all_of(cls, before: Measured, after: Measured) -> tuple[Self, ...]:
        """Every band in which something was predicted."""
        return tuple(
            cls(begin=begin, end=end, before=published(first), after=published(last))
            for (begin, end), first, last in zip(BANDS, before.by_position, after.by_position, strict=True)
            if not math.isnan(first)
        )

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        """From its row in a report; raises KeyError, TypeError or ValidationError."""
        return cls.model_validate({name: row[name] for name in cls.model_fields})

    @property
    def name(self) -> str:
        """Which tokens these are.

        >>> AtPosition(begin=256, end=None, before=2.0, after=1.0).name
        'tokens 256 and beyond'
        """
        return f"tokens {self.begin} and beyond" if self.end is None else f"tokens {self.begin}–{self.end}"

    @property
    def is_worse(self) -> bool:
        """Whether training made it worse."""
        return is_worse(self.before, self.after)


def is_worse(before: float | None, after: float | None) -> bool:
    """Whether a perplexity rose; None is one that is not finite.

    >>> is_worse(10.0, 10.1), is_worse(10.0, None), is_worse(None, 10.0), is_worse(10.0, 10.0)
    (True, True, False, False)
    """
    return before is not None and (after is None or after > before)


def verdict(before: float | None, after: float | None, by_position: Sequence[AtPosition]) -> str:
    """In a sentence, where the adapter is worse than the base model; a rise counts like a fall, however small.

    >>> early = AtPosition(begin=0, end=64, before=54.0, after=11.0)
    >>> late = AtPosition(begin=64, end=None, before=18.0, after=38.0)
    >>> verdict(19.0, 33.0, [early, late])
    'WORSE than the base model over whole records and at tokens 64 and beyond.'
    >>> verdict(19.0, 15.0, [early])
    'Better than the base model over whole records, and worse at no position.'
    """
    worse = (["over whole records"] if is_worse(before, after) else []) + [
        f"at {band.name}" for band in by_position if band.is_worse
    ]
    if worse:
        *rest, last = worse
        return f"WORSE than the base model {', '.join(rest)}{' and ' if rest else ''}{last}."
    if before == after:
        return "As the base model over whole records, and worse at no position."
    return "Better than the base model over whole records, and worse at no position."


def evaluated(*, max_tokens: int, cut: int) -> str:
    """What was read of each record that was evaluated.

    >>> evaluated(max_tokens=8192, cut=0)
    'whole records, which are cut at 8,192 tokens; none was longer'
    """
    longer = {0: "none was longer", 1: "1 was longer"}.get(cut, f"{cut:,} were longer")
    return f"whole records, which are cut at {max_tokens:,} tokens; {longer}"


def published(value: float | None) -> float | None:
    """A perplexity as it is released: of three digits, since it is without noise; JSON knows no infinity.

    >>> published(15.8432), published(math.inf)
    (15.8, None)
    """
    return float(f"{value:.3g}") if value is not None and math.isfinite(value) else None
