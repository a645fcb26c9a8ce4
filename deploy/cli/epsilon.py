"""``grandrounds epsilon``: what a schedule costs, without a study."""

import json
from typing import Annotated

import typer

from ...common.privacy.trust import Trust


def epsilon(
    noise_multiplier: Annotated[float, typer.Option(help="Noise over sensitivity, z.")],
    sampling_probability: Annotated[float, typer.Option(help="Chance of a patient to be in a step, q.")],
    steps: Annotated[int, typer.Option(help="Noisy sums that are released.")],
    delta: Annotated[float, typer.Option(help="At most 1/(10 * patients) by default in a study.")],
    sites_per_patient: Annotated[int, typer.Option(help="Most sites at which one patient has records.")] = 1,
    trust: Annotated[Trust, typer.Option(help="Sites share the noise, or each adds all.")] = "distributed",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compute epsilon of a schedule by privacy loss distributions, and by Renyi divergence beside it."""
    from ..plan.epsilon import epsilon

    result = epsilon(
        noise_multiplier=noise_multiplier,
        sampling_probability=sampling_probability,
        steps=steps,
        delta=delta,
        trust=trust,
        sites_per_patient=sites_per_patient,
    )
    if as_json:
        figures = {"epsilon": result.epsilon, "epsilon_rdp": result.epsilon_rdp, "accountant": result.accountant}
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
    console = plain_console(highlight=False)
    console.print(f"{steps} steps at q = {sampling_probability:g}, z = {noise_multiplier:g}, delta = {delta:g}")
    console.print(table)
    console.print(result.accountant)
