"""A registry as its commands print it, and as figures for machines."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from ...common.model.perplexity import CONFIDENCE, Interval
from ...common.schema import known
from ...server.report.claim import NO_PRIVACY, for_whom
from ...server.report.findings import Findings
from ...server.report.rounding import area, bound, number, up
from ..registry.drift import Drift, Measured
from ..registry.entries import Chosen, Incident, Noted, Opened, Received, Released, Withdrawn
from ..registry.lineage import Lineage
from ..registry.releases import Registry, Release
from ..registry.spent import NOTE, Spent
from .console import plain_console


def release_figures(registry: Registry, release: Release) -> dict[str, Any]:
    """All that the registry knows of a release, for machines."""
    released = release.released
    return {
        "release": str(release.adapter),
        "in_use": is_in_use(registry, release),
        "withdrawn": None if release.withdrawn is None else release.withdrawn.model_dump(mode="json"),
        "at": released.at,
        "by": released.by,
        **released.facts.model_dump(mode="json"),
        "assets": [asset.model_dump(mode="json") for asset in released.assets],
        "unestablished": list(released.unestablished),
        "received": [each.model_dump(mode="json", exclude={"adapter"}) for each in release.received],
        "incidents": [each.model_dump(mode="json", exclude={"about"}) for each in release.incidents],
    }


def spent_figures(rows: Iterable[Spent]) -> list[dict[str, Any]]:
    """What was spent, for machines."""
    return [
        {
            "asset": row.asset.called,
            "site": row.asset.site,
            "key": row.asset.key,
            "at": row.release.released.at,
            "release": str(row.release.adapter),
            "epsilon": row.own_epsilon,
            "epsilon_so_far": row.epsilon,
            "delta_so_far": row.delta,
        }
        for row in rows
    ]


def drift_figures(drift: Drift) -> dict[str, Any]:
    """What was measured, for machines: nats per token; an end that is infinite is None."""

    def each(part: Measured | Drift) -> dict[str, Any]:
        return {name: _interval(getattr(part, name)) for name in ("base", "adapter", "gain")}

    return {
        "unit": "nats per token",
        "confidence": CONFIDENCE,
        "patients": drift.now.patients,
        "patients_at_release": drift.then.patients,
        "at_release": each(drift.then),
        "now": each(drift.now),
        "change": each(drift),
        "attacks_at_release": None if drift.attacks_then is None else drift.attacks_then.model_dump(mode="json"),
        "attacks_now": None if drift.attacks_now is None else drift.attacks_now.model_dump(mode="json"),
        "warnings": drift.warnings,
    }


def print_releases(registry: Registry) -> None:
    """A line for each release."""
    if not registry.releases:
        print(f"{registry.called} has no release yet: grandrounds registry add DIR STUDY --name NAME")
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("release", "", "day", "ε", "perplexity", "given to"):
        table.add_column(column, no_wrap=True)
    table.add_column("base model", overflow="fold")
    for release in registry.releases.values():
        facts = release.released.facts
        table.add_row(
            str(release.adapter),
            _state(registry, release),
            release.released.at[:10],
            _epsilon(facts.epsilon),
            f"{number(facts.perplexity_before)} → {number(facts.perplexity_after)}",
            str(len({each.receiver for each in release.received})),
            facts.base_model,
        )
    plain_console(highlight=False).print(table)


def release_lines(registry: Registry, release: Release) -> Iterator[str]:
    """All that the registry knows of a release."""
    released, facts = release.released, release.released.facts
    state = _state(registry, release)
    yield f"{release.adapter}{', ' + state if state else ''}: released on {released.at} by {released.by}"
    if facts.title is not None:
        yield f"study        {facts.title}"
    yield f"study's id   {facts.study_id}, a {facts.setting}; its manifest's SHA-256 {facts.manifest_sha256}"
    yield f"base model   {facts.base_model}, SHA-256 {facts.base_sha256}"
    if facts.epsilon is None:
        yield f"privacy      {NO_PRIVACY}"
    else:
        yield (
            f"privacy      ε = {up(facts.epsilon)} at δ = {facts.delta:g} for "
            f"{for_whom(facts.privacy_unit, facts.sites_per_patient)}"
        )
    yield f"perplexity   {number(facts.perplexity_before)} → {number(facts.perplexity_after)} on {facts.evaluation}"
    if facts.attacks is not None:
        worst = max(facts.attacks.attacks, key=lambda attack: abs(attack.auc.value - 0.5))
        allowed = "no bound" if facts.attacks.curve is None else f"ε allows {facts.attacks.promised_auc:.2f}"
        yield (
            f"attacks      on {facts.attacks.members} and {facts.attacks.others} patients of nobody, by the word of "
            f"whoever ran them: at most {area(worst.auc.model_dump())} of 1 by {worst.name}; guessing is 0.5, {allowed}"
        )
    yield f"patients of  {', '.join(asset.called for asset in released.assets)}"
    if released.unestablished:
        yield f"open then    {', '.join(released.unestablished)} (`grandrounds verify` says what that is)"
    for received in release.received:
        yield f"received     {received.at} by {received.receiver}"
    for incident in release.incidents:
        yield f"incident     {incident.at} {incident.what}"
    if release.withdrawn is not None:
        yield f"WITHDRAWN    {release.withdrawn.at}: {release.withdrawn.reason}"


def lineage_lines(lineage: Lineage) -> Iterator[str]:
    """Which releases it goes back to and which go back to it, with who has these."""
    if lineage.began_with is not None:
        yield f"began with   what the study of manifest {lineage.began_with} left, whose patients it tells of too"
    for earlier in lineage.before:
        yield f"goes back to {earlier.adapter}"
    yield from withdrawn_lines(lineage)
    for later in lineage.after:
        state = "withdrawn" if later.withdrawn is not None else "not withdrawn"
        yield f"led to       {later.adapter}, {state}, received by: {receivers(later)}"


def withdrawn_lines(lineage: Lineage) -> Iterator[str]:
    """A warning for each withdrawn release that it goes back to."""
    for earlier in lineage.withdrawn:
        noted = known(earlier.withdrawn)
        yield (
            f"WARNING      it goes back to {earlier.adapter}, which was withdrawn on {noted.at[:10]}: {noted.reason}. "
            "Withdraw it, too, unless that is no reason against it"
        )


def lineage_figures(lineage: Lineage) -> dict[str, Any]:
    """The same, for machines."""
    return {
        "began_with": lineage.began_with,
        **{name: [str(each.adapter) for each in getattr(lineage, name)] for name in ("before", "withdrawn", "after")},
    }


def log_lines(notes: Iterable[Noted]) -> Iterator[str]:
    """A line for each entry, the oldest first."""
    for note in notes:
        yield f"{note.at}  {note.by}  {_happened(note)}"


def print_spent(rows: Iterable[Spent]) -> None:
    """A row for each study of each asset, and what the sums mean."""
    table = Table(box=None, padding=(0, 3, 0, 0))
    for column in ("patients of", "day", "release", "ε", "ε so far", "δ so far"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(
            row.asset.called,
            row.release.released.at[:10],
            str(row.release.adapter),
            bound(row.own_epsilon),
            bound(row.epsilon),
            "no bound" if row.delta is None else f"{row.delta:g}",
        )
    console = plain_console(highlight=False)
    console.print(table)
    console.print(NOTE)


def print_drift(drift: Drift, *, release: str, records: str) -> None:
    """What was measured then and now, and what follows."""
    patients = drift.then.patients
    then = "its report, to three digits" if patients is None else f"{patients} patients held out then"
    console = plain_console(highlight=False)
    console.print(f"{release} on {records}, {drift.now.patients} patients; at its release by {then}")
    table = Table(box=None, padding=(0, 3, 0, 0))
    for column in ("", "at release", "now", "change in nats per token"):
        table.add_column(column, overflow="fold")
    for called, name in (("perplexity of the base model", "base"), ("perplexity with the adapter", "adapter")):
        before, after = (f"{math.exp(getattr(part, name).value):.3g}" for part in (drift.then, drift.now))
        table.add_row(called, before, after, _shown(getattr(drift, name)))
    table.add_row("gain in nats per token", _shown(drift.then.gain), _shown(drift.now.gain), _shown(drift.gain))
    console.print(table)
    if drift.attacks_now is not None:
        _print_attacks(console, drift.attacks_now, drift.attacks_then)
    console.print(f"In brackets, {CONFIDENCE:.0%} confidence intervals over patients. {drift.verdict}")


def _print_attacks(console: Console, now: Findings, then: Findings | None) -> None:
    """Areas under ROC curves, then and now; at a release whose study had none, now alone."""
    console.print(
        f"{now.members} patients whom it was trained on, attacked beside {now.others} of these who were not"
        + ("; at its release nobody attacked it (--against has the records of then)" if then is None else "")
    )
    table = Table(box=None, padding=(0, 3, 0, 0))
    for column in ("area under the ROC curve, by", *([] if then is None else ["at release"]), "now"):
        table.add_column(column, overflow="fold")
    before = {} if then is None else {attack.name: area(attack.auc.model_dump()) for attack in then.attacks}
    for attack in now.attacks:
        known = [] if then is None else [before.get(attack.name, "not made")]
        table.add_row(attack.name, *known, area(attack.auc.model_dump()))
    alone = [] if then is None else [area(then.base_alone.model_dump())]
    table.add_row("the base model alone", *alone, area(now.base_alone.model_dump()))
    if now.curve is not None:
        table.add_row("what ε allows any attack", *([] if then is None else [""]), f"{now.promised_auc:.2f}")
    console.print(table)


def is_in_use(registry: Registry, release: Release) -> bool:
    """Whether it is the version of its name that is in use."""
    return registry.in_use.get(release.adapter.name) == release.adapter.version


def receivers(release: Release) -> str:
    """Who was given it, in words."""
    return ", ".join(dict.fromkeys(each.receiver for each in release.received)) or "nobody"


def _state(registry: Registry, release: Release) -> str:
    if release.withdrawn is not None:
        return "WITHDRAWN"
    return "in use" if is_in_use(registry, release) else ""


def _epsilon(epsilon: float | None) -> str:
    return "NO PRIVACY" if epsilon is None else up(epsilon)


def _happened(note: Noted) -> str:
    match note:
        case Opened():
            return f"opened: {note.called}"
        case Released():
            return f"{note.adapter} released, ε = {_epsilon(note.facts.epsilon)}"
        case Withdrawn():
            return f"{note.adapter} withdrawn: {note.reason}"
        case Chosen():
            return f"{note.adapter} put in use: {note.reason}"
        case Received():
            return f"{note.adapter} received by {note.receiver}"
        case Incident():
            about = f" ({', '.join(map(str, note.about))})" if note.about else ""
            return f"incident{about}: {note.what}"
    raise TypeError(type(note).__name__)


def _shown(interval: Interval) -> str:
    if interval.low == interval.high:
        return f"{interval.value:+.3f}"
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _interval(interval: Interval) -> dict[str, float | None]:
    ends = {"low": interval.low, "high": interval.high}
    return {"value": interval.value, **{name: end if math.isfinite(end) else None for name, end in ends.items()}}
