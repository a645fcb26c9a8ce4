"""How a plan is shown, and the study file that it proposes."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ...common.durations import duration
from ...common.schema import known
from ...common.study.study import PrivacySection, Study
from ...server.report.claim import count
from ...server.report.rounding import up
from ..plan.plan import NOISE_RULES, NOISE_SHOWS, Noise, Plan, steps_reversed
from ..simulation.settings import MAX_BUILTIN_SITES, Simulation
from ..simulation.study_toml import left_open, study_toml

_NONE: Final = "none"


def print_plan(console: Console, plan: Plan, written: Path | None) -> None:
    """Print a plan: what is proposed, the noise in it, what else could be chosen, time and warnings."""
    study, shares = plan.study, plan.shares
    training = study.training
    _section(console, "Proposed study", _rows(_proposal(plan)))
    _section(console, "Noise", _rows(_noise(plan)))
    _section(
        console,
        "Noise in a sum over what is claimed, by threshold and absent sites",
        _by_threshold(plan),
    )
    _section(console, f"Other ε ({count(training.rounds, 'round')}, the same sampling)", _by_epsilon(plan))
    _section(console, "ε of the planned noise, if a patient is at more sites", _by_overlap(plan))
    if plan.one_more_site is not None:
        more = plan.one_more_site
        text = (
            f"threshold {more.threshold} of {more.sites}, h = {more.honest_shares}, {more.units_per_step:.3g} units a "
            f"step: noise-to-signal {shares.noise_to_signal:.2f} → {more.noise_to_signal:.2f} at the same ε"
        )
        _section(console, "One more site of average size", Text(text))
    if plan.hours is not None and plan.trial is not None:
        _section(console, "Time on this machine", _rows(_times(plan)))
    for warning in plan.warnings:
        console.print(Text(f"\nWarning: {warning}", style="bold yellow"))
    if written is not None:
        console.print(f"\nWritten to {written}; try it: grandrounds simulate --config {written}", soft_wrap=True)
        console.print(
            f"then, with hospitals: grandrounds server init DIR --host HOST --study {written}", soft_wrap=True
        )


def study_file(plan: Plan, proposed: Study, simulation: Simulation, swept: str = "") -> str:
    """The proposed study as TOML; its noise multiplier and its rate are left to follow from ε, unless they were given.

    ``swept`` says what was chosen by a sweep, and on what.
    """
    study = left_open(plan.study, proposed)
    if not simulation.data and len(study.sites) <= MAX_BUILTIN_SITES:
        simulation = simulation.model_copy(update={"builtin_sites": len(study.sites)})
    heading = (
        "A study proposed by grandrounds plan.\n"
        f"The noise multiplier follows: {plan.study.privacy.noise_multiplier:g}"
        f"{stages_in_words(plan.study.privacy)}, for epsilon {up(plan.epsilon)}.\n"
        f"The learning rate{' follows' * (study.training.learning_rate is None)}: "
        f"{known(plan.study.training.learning_rate):g}.\n"
        f"Expected noise-to-signal: {plan.shares.noise_to_signal:.2f}. {_clipping(plan)}"
        + (f"\n{swept}" if swept else "")
    )
    return study_toml(study, simulation, heading=heading)


def _proposal(plan: Plan) -> Iterable[tuple[str, str]]:
    study, shares = plan.study, plan.shares
    privacy, training = study.privacy, study.training
    trained = "" if plan.trial is None else f", {plan.trial.dimension:,} numbers trained"
    precision = f"{study.model.name} in {study.model.precision}"
    yield "model", f"{precision}; {study.model.adapter}, {study.model.lora}{trained}"
    yield "sites", f"{shares.sites} with {study.total_nominal_units} nominal units; {privacy.trust} trust"
    yield "privacy", f"ε = {up(plan.epsilon)} at δ = {privacy.delta:g} for each {privacy.unit}, over all attempts"
    yield "rounds", f"{training.rounds}, in at most {training.max_attempts} attempts; {training.steps_in_words}"
    yield (
        "sampling probability",
        f"q = {privacy.sampling_probability:.4g}: {shares.units_per_step:.4g} units a step, "
        f"each unit in {plan.epochs:.3g} of {training.rounds * training.local_steps} on average. There are no epochs: "
        "each step draws anew, as the claim is computed",
    )
    if study.data.public is not None:
        beside = study.data.public_units
        yield "public units", f"{beside} of each site in each step; they cost no ε, and noise-to-signal is without them"
    cut = ", near which every gradient is brought" if privacy.clipping == "auto" else ""
    yield "clipping norm", f"C = {privacy.clipping_norm:g}{cut}. {_clipping(plan)}"
    yield "noise multiplier", f"z = {privacy.noise_multiplier:g}{stages_in_words(privacy)}"


def stages_in_words(privacy: PrivacySection) -> str:
    """What noise becomes, after the noise multiplier itself; nothing where it stays as it is."""
    return "".join(f"; from attempt {start} on {factor:g} times it" for start, factor in privacy.noise_stages)


def _noise(plan: Plan) -> Iterable[tuple[str, str]]:
    shares, privacy = plan.shares, plan.study.privacy
    yield (
        "who carries it",
        f"h = {shares.honest_shares}"
        + (
            f" honest shares ({shares.threshold} of {shares.sites} must answer, {privacy.corrupt_sites} may be corrupt)"
            if privacy.trust == "distributed"
            else " (each site adds all of it)"
        ),
    )
    verdict = (
        "the noise rules"
        if shares.noise_to_signal > NOISE_RULES
        else "the noise shows"
        if shares.noise_to_signal > NOISE_SHOWS
        else "good"
    )
    floor = "" if plan.trial else " at best, if every gradient is clipped"
    if privacy.noise_stages:
        floor = f"{floor}, in the attempts with the most noise"
    yield "noise-to-signal", f"σC/(√B·ḡ) = {shares.noise_to_signal:.2f}{floor}: {verdict}"
    yield (
        "what that means",
        "σC is the noise of the sum along any one direction, √B·ḡ the length of a step's clipped gradients together if "
        "they have nothing in common; what they have in common lowers it. Noise then turns a step against its own "
        f"gradients in {steps_reversed(shares.noise_to_signal):.1%} of such steps; at {NOISE_SHOWS:g} in "
        f"{steps_reversed(NOISE_SHOWS):.1%}, at {NOISE_RULES:g} in {steps_reversed(NOISE_RULES):.1%}. These two marks "
        "are that arithmetic, Φ(−1/ratio), and no published threshold; that noise must be small beside the batch is "
        "(De et al. 2022; Li et al. 2022; Ponomareva et al. 2023).",
    )


def _clipping(plan: Plan) -> str:
    if plan.trial is None:
        return "No gradient was measured (--no-benchmark)."
    low, middle, high = plan.trial.quartiles
    return (
        f"Norms of {len(plan.trial.norms)} gradients before training: {low:.3g} (25th percentile), {middle:.3g} "
        f"(50th), {high:.3g} (75th). Text: {plan.trial.source}. Norms tend to fall in training, and a C "
        "at which most gradients are clipped often does best (Li et al. 2022)."
    )


def _by_epsilon(plan: Plan) -> Table:
    table = _table("ε", "z distributed", "noise-to-signal", "z local", "noise-to-signal")
    for row in plan.by_epsilon:
        style = "bold" if row.epsilon == plan.study.privacy.target_epsilon else ""
        table.add_row(f"{row.epsilon:g}", *_cells(row.distributed), *_cells(row.local), style=style)
    return table


def _cells(noise: Noise | None) -> Sequence[str]:
    return (_NONE, _NONE) if noise is None else (f"{noise.noise_multiplier:.4f}", f"{noise.noise_to_signal:.2f}")


def _by_threshold(plan: Plan) -> Table:
    """What more absences that are allowed cost, and what those cost that come."""
    table = _table("threshold", "may be absent", "none absent", "one absent", "most absent")
    for row in plan.shares.by_threshold:
        one = _NONE if row.one_absent is None else f"{row.one_absent:.2f}"
        cells = (str(row.may_be_absent), f"{row.none_absent:.2f}", one, f"{row.most_absent:.2f}")
        table.add_row(str(row.threshold), *cells, style="bold" if row.threshold == plan.shares.threshold else "")
    return table


def _by_overlap(plan: Plan) -> Table:
    table = _table("sites", "ε distributed", "ε local")
    for row in plan.by_overlap:
        stated = row.sites_per_patient == plan.study.privacy.sites_per_patient
        cells = (_NONE if value is None else up(value) for value in (row.distributed, row.local))
        table.add_row(str(row.sites_per_patient), *cells, style="bold" if stated else "")
    return table


def _times(plan: Plan) -> Iterable[tuple[str, str]]:
    assert plan.hours is not None and plan.trial is not None  # noqa: S101 (print_plan asked)
    for name, (planned, most) in (
        ("all sites in turn", plan.hours.all_sites),
        ("the largest site alone", plan.hours.largest_site),
    ):
        yield name, f"{duration(3600 * planned)} for the planned rounds, at most {duration(3600 * most)}"
    yield (
        "deployed",
        f"updates leave {duration(plan.hours.answer_after_s)} after they are asked for, whatever was drawn: the time "
        "of the largest draw in its slowest path, and a quarter more",
    )
    yield (
        "measured",
        f"a private step on a batch of {plan.trial.shapes[-1].batch} took {plan.trial.batch_s:.2g} s; evaluation, "
        "network and secure aggregation come on top",
    )


def _section(console: Console, title: str, content: RenderableType) -> None:
    console.print(Text(f"\n{title}", style="bold"))
    console.print(Padding(content, (0, 0, 0, 2)))


def _rows(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right")
    return table
