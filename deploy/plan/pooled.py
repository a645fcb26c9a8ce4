"""DP-SGD in one place: the steps that a federation takes, where all units are at hand. No protocol is run."""

from collections.abc import Callable, Sequence

from ...client.training.dp_sgd import DpSgd, DrawUnits
from ...common.model.adapter import Vector
from ...common.study.manifest import Manifest
from ...common.study.step import DueStep, Trained, left, step, sum_bytes


def trained_in_one_place(
    manifest: Manifest,
    dp_sgd_of: Callable[[int], DpSgd],
    draw: DrawUnits,
    *,
    first: Vector,
    sites: Sequence[str],
    shown: Sequence[str] = (),
    tell: Callable[[int], None],
) -> Vector:
    """The adapter float32 [d] that the rounds of ``manifest`` leave, from ``first``, each over a fresh draw.

    *No guarantee is made here*: nothing is entered in a ledger. The draws are of the units of ``sites``, whose noise
    is that of ``dp_sgd_of`` an attempt, of which each round takes one, as if those that have ``shown`` theirs had some
    of it taken off. ``tell`` is given each round that is over.
    """
    trained = Trained(adapter=first)
    for round_ in range(1, manifest.study.training.rounds + 1):
        dp_sgd = dp_sgd_of(round_)
        dp_sgd.sampler.model.set_adapter(trained.vector)
        total = sum_bytes(manifest, dp_sgd.release(draw))
        trained = step(
            DueStep(
                manifest=manifest,
                before=trained,
                total=total,
                survivors=sites,
                round=round_,
                attempt=round_,
                shown=shown,
            )
        )
        tell(round_)
    return left(manifest, trained)
