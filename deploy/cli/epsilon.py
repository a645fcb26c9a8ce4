"""``grandrounds epsilon``: what a schedule costs, without a study."""

import json
import math
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer

from ...common.privacy.trust import Trust


def epsilon(
    noise_multiplier: Annotated[float, typer.Option(help="Noise over sensitivity, z.")],
    sampling_probability: Annotated[float, typer.Option(help="Chance of a patient to be in a step, q.")],
    steps: Annotated[int, typer.Option(help="Noisy sums that are released.")],
    delta: Annotated[float, typer.Option(help="At most 1/(10 * patients) by default in a study.")],
    sites_per_patient: Annotated[int, typer.Option(help="Most sites at which one patient has records.")] = 1,
    trust: Annotated[Trust, typer.Option(help="Sites share the noise, or each adds all.")] = "distributed",
    noise_stage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STEP:FACTOR", help="From that step on, noise is so many times the first step's. May be repeated."
        ),
    ] = None,
    selected_from: Annotated[
        float | None,
        typer.Option(
            metavar="RUNS",
            help="Runs of this schedule, on average, the best of which is released and the others kept secret: "
            "what does the choice cost?",
        ),
    ] = None,
    stopping: Annotated[
        Literal["logarithmic", "geometric"], typer.Option(help="By which law the number of runs is drawn.")
    ] = "logarithmic",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compute epsilon of a schedule by privacy loss distributions, and by Renyi divergence beside it."""
    from ...common.errors import PrivacyError
    from ...common.privacy.events import SampledGaussianRelease
    from ...common.privacy.selection import selection_cost
    from ..plan.epsilon import epsilon

    stages = [_stage(text) for text in noise_stage or ()]
    if stages and selected_from is not None:
        raise PrivacyError(
            "--noise-stage is given beside --selected-from",
            why="what a choice among runs costs is computed for one noise in all steps",
            fix="leave one of them out; the noise multiplier of the stage with the least noise bounds it from above",
        )
    chosen = None
    if selected_from is not None:
        event = SampledGaussianRelease(
            sampling_probability=sampling_probability,
            noise_multiplier=noise_multiplier,
            trust=trust,
            sites_per_patient=sites_per_patient,
        )
        chosen = selection_cost(event, steps=steps, expected_runs=selected_from, stopping=stopping, delta=delta)
    result = epsilon(
        noise_multiplier=noise_multiplier,
        sampling_probability=sampling_probability,
        steps=steps,
        delta=delta,
        trust=trust,
        sites_per_patient=sites_per_patient,
        noise_stages=stages,
    )
    if as_json:
        figures: dict[str, Any] = {
            "epsilon": result.epsilon,
            "epsilon_rdp": result.epsilon_rdp,
            "accountant": result.accountant,
        }
        if chosen is not None:
            figures["selection"] = asdict(chosen)
        typer.echo(json.dumps(figures))
        return

    from rich.table import Table

    from ...server.report.rounding import up
    from ..views.console import plain_console

    table = Table()
    table.add_column("analysis")
    table.add_column("epsilon", justify="right")
    table.add_row("privacy loss distributions", up(result.epsilon, 4))
    table.add_row("Renyi", "none known" if result.epsilon_rdp is None else up(result.epsilon_rdp, 4))
    if chosen is not None and selected_from is not None:
        table.add_row(f"the best of about {selected_from:g} such runs, Renyi", up(chosen.of_best, 4))
        table.add_row(f"all of {math.ceil(selected_from)} such runs", up(chosen.of_all, 4))
    console = plain_console(highlight=False)
    z = "".join([f"{noise_multiplier:g}", *(f", from step {start} on {factor:g} times it" for start, factor in stages)])
    console.print(f"{steps} steps at q = {sampling_probability:g}, z = {z}, delta = {delta:g}")
    console.print(table)
    console.print(result.accountant)
    if chosen is not None:
        law = f"geometric({chosen.gamma:.6g})" if stopping == "geometric" else f"logseries({1 - chosen.gamma:.6g})"
        console.print(
            f"The best costs so little only for whoever sees it alone: the number of runs is drawn before the first "
            f"(numpy: {law}) and kept secret, each run has a setting drawn at random, with replacement, and is scored "
            "on public records. In a federation server and sites see the sums of every run: for them, and for a "
            "site's budget, all runs count."
        )


def _stage(text: str) -> tuple[int, float]:
    from ...common.errors import PrivacyError

    start, _, factor = text.partition(":")
    try:
        return int(start), float(factor)
    except ValueError:
        raise PrivacyError(
            f"--noise-stage {text} is not STEP:FACTOR",
            why="ε follows from which steps have which noise",
            fix="write for example --noise-stage 13:0.5, for half of the first step's noise from step 13 on",
        ) from None
