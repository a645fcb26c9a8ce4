"""What a site sees of synthetic notes beside its records: lines for a terminal, and a page for itself alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from .check import MEASURES, QUANTILES, Beyond, Checked

ALONE: Final = (
    "No noise protects these figures: they are computed from this site’s records. They are for this site alone, and "
    "nobody may choose notes by them: a note that is kept or left out for what a record says is covered by no ε."
)
READING: Final = (
    "Each note is compared with every record of the site, and with how near held-out notes come, on which nobody "
    "trained: notes of one kind share their forms. Words are compared without case and punctuation. How many notes are "
    "nearer than all that are held out is judged by the exact chance of so many, as if notes were drawn one by one; "
    "several of one patient are alike, so that a figure near the border says little. A note may say in other words "
    "what a record says: these figures do not see it."
)
COLUMNS: Final = tuple("greatest" if at == 1 else "half" if at == 0.5 else f"{at:.0%}" for at in QUANTILES)


@dataclass(frozen=True, kw_only=True)
class _Measure:
    title: str
    beyond: str
    rows: tuple[tuple[str, list[str]], ...]


def lines(checked: Checked) -> Iterator[str]:
    """For a terminal."""
    yield from (f"{name}: {text}" for name, text in _compared(checked))
    for measure in _measures(checked):
        yield measure.title
        for name, cells in measure.rows:
            yield f"  {name}: " + ", ".join(f"{at} {cell}" for at, cell in zip(COLUMNS, cells, strict=True))
        yield f"  {measure.beyond}"
    yield checked.verdict()
    yield ALONE


def render(checked: Checked, *, written: datetime) -> str:
    """One page that loads nothing from elsewhere and runs no script; no word of a note or a record is in it."""
    from ...server.report.page import rendered

    return rendered(
        __package__,
        "check.html",
        checked=checked,
        written=written,
        alone=ALONE,
        reading=READING,
        compared=_compared(checked),
        columns=COLUMNS,
        measures=list(_measures(checked)),
    )


def _compared(checked: Checked) -> list[tuple[str, str]]:
    said = checked.origin["privacy"] if checked.origin else "nothing lies beside them that says what they are"
    return [
        ("Synthetic notes", f"{len(checked.synthetic):,}"),
        ("Held-out notes", f"{len(checked.held_out):,}, each cut to the words of a synthetic one"),
        ("Records of the site", f"{checked.records:,}, of {checked.patients:,} patients"),
        ("What the notes say of themselves", str(said)),
    ]


def _measures(checked: Checked) -> Iterator[_Measure]:
    beyond = checked.beyond()
    for name, synthetic, held_out in checked.quantiles():
        title = MEASURES[name]
        shown = _share if name == "contained" else _words
        yield _Measure(
            title=title[0].upper() + title[1:],
            beyond=_beyond(beyond[name], len(checked.synthetic)),
            rows=(("synthetic", list(map(shown, synthetic))), ("held out", list(map(shown, held_out)))),
        )


def _beyond(beyond: Beyond, notes: int) -> str:
    said = f"{beyond.count:,} of {notes:,} synthetic notes are nearer than every held-out note"
    return f"{said}; the chance of so many, were they alike, is {beyond.chance:.2g}" if beyond.count else said


def _share(value: float) -> str:
    return f"{value:.0%}"


def _words(value: float) -> str:
    return f"{value:.0f}"
