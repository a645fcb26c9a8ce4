"""What a site agrees to when it joins a study: within its policy, and paid for in advance."""

import math
from dataclasses import dataclass
from typing import Final

from ...common.crypto.identity import canonical_json, sha256
from ...common.errors import PrivacyError
from ...common.schema import known
from ...common.study.manifest import Manifest
from .amounts import Amounts, shown_down, shown_up
from .asset import COUNTED, Asset
from .policy import Policy, check_policy
from .reservations import BudgetStatement, Reservations

# Steps in which a divergence is rounded up, so that joining again with another numerical library asks for the same.
_RDP_STEPS: Final = 10**6


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A site's part in a study: its cost in full, and the data asset's budget with it."""

    site: str
    study_id: str
    manifest_sha256: str
    max_attempts: int
    cost: Amounts
    budget: BudgetStatement


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What joining would come to: the agreement, and the budgets of all the site's data assets ``before`` it."""

    agreement: Agreement
    before: tuple[BudgetStatement, ...]

    @property
    def budget(self) -> str:
        """The data asset's budget in words: before, what the study reserves, and after."""
        after, study = self.agreement.budget, self.agreement.study_id
        asset = after.asset
        before = next((each for each in self.before if each.asset.name == asset.name), BudgetStatement(asset=asset))
        cost = self.agreement.cost
        by = "already" if study in {reservation.study for reservation in before.reservations} else "by this study"
        amounts = [
            f"{called} = {shown_down(before.left(amount))} before, {shown_up(getattr(cost, amount))} reserved {by}, "
            f"{shown_down(after.left(amount))} left after"
            for amount, called in COUNTED[asset.filter].items()
        ]
        return f"{asset.name}: {'; '.join(amounts) or asset.described}"

    @property
    def new_beside(self) -> list[str]:
        """The data assets beside which joining would make a new one; none where it makes none."""
        names = [each.asset.name for each in self.before]
        return [] if self.agreement.budget.asset.name in names else names


class _UndoneError(Exception):
    """Takes an agreement out of the transaction that it undoes."""

    def __init__(self, agreement: Agreement) -> None:
        self.agreement = agreement


def propose(manifest: Manifest, policy: Policy, *, name: str, reservations: Reservations) -> Proposal:
    """What ``join`` would come to now, of which nothing stays. Raises what it does."""
    before = tuple(reservations.statements())
    try:
        with reservations.together():
            raise _UndoneError(join(manifest, policy, name=name, reservations=reservations))
    except _UndoneError as undone:
        return Proposal(agreement=undone.agreement, before=before)


def join(manifest: Manifest, policy: Policy, *, name: str, reservations: Reservations) -> Agreement:
    """Check the study against the policy, register the policy's data asset, and reserve the whole schedule there.

    All of it or nothing, alone among those who join. No record is read. Joining again changes nothing, and a successor
    of the study reserves nothing more. Raises StudyError where the policy does not allow it, PrivacyError where the
    budget does not or another manifest of this version was signed, and StorageError.
    """
    check_policy(policy, manifest, name=name)
    asset = policy.data.data_asset()
    cost = cost_of(manifest, asset)
    with reservations.together():
        reservations.register(asset)
        reservations.reserve(asset.name, manifest.study_id, cost, schedule=schedule_sha256(manifest))
        reservations.sign(manifest.sha256, study=manifest.study_id, version=manifest.version)
    return Agreement(
        site=name,
        study_id=manifest.study_id,
        manifest_sha256=manifest.sha256,
        max_attempts=manifest.max_attempts,
        cost=cost,
        budget=reservations.statement(asset.name),
    )


def schedule_sha256(manifest: Manifest) -> str:
    """The hash of what a study may never change, from one manifest to the next: what one unit is exposed to."""
    training = manifest.study.training
    return sha256(
        canonical_json(
            {
                "privacy": manifest.study.privacy.model_dump(exclude={"corrupt_sites"}),
                "max_attempts": manifest.max_attempts,
                "local_steps": training.local_steps,
                "dimension": manifest.dimension,
            }
        )
    )


def cost_of(manifest: Manifest, asset: Asset) -> Amounts:
    """What the whole schedule costs a patient of ``asset``: its target (ε, δ), and a divergence if the asset counts it.

    Nothing without noise. Raises PrivacyError where the schedule costs more than its target.
    """
    # Imported here: they load dp_accounting and scipy.
    from ...common.privacy.accountant import epsilon
    from ...common.privacy.filters import rdp_cost

    schedule = manifest.schedule
    if schedule is None:
        return Amounts()
    target = known(manifest.study.privacy.target_epsilon)
    own = epsilon(schedule, delta=manifest.delta).epsilon
    if own > target:
        raise PrivacyError(
            f"the schedule costs ε = {own:.4f}, above its target {target}",
            why="the target is what sites reserve, so the schedule must cost no more",
            fix="ask the study's author for a manifest whose noise fits its target",
        )
    rdp = 0.0 if asset.order is None else math.ceil(rdp_cost(schedule, order=asset.order) * _RDP_STEPS) / _RDP_STEPS
    return Amounts.rounded_up(epsilon=target, delta=manifest.delta, rdp=rdp)
