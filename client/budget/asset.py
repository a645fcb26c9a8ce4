"""A data asset: one set of patients at a site, and what all studies together may learn about each of them."""

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

from ...common.errors import PrivacyError
from ...common.privacy.draw_cap import CUT_SHARE
from ...common.study.study import PrivacyUnit
from .amounts import Amounts, shown_down

Filter = Literal["sum", "rdp", "synthetic"]
# What each filter adds up and holds against the limit, and how people call it.
COUNTED: Final[dict[Filter, dict[str, str]]] = {
    "sum": {"epsilon": "ε", "delta": "δ"},
    "rdp": {"rdp": "RDP", "delta": "δ"},
    "synthetic": {},
}
LARGEST_EPSILON: Final = 1e6
# Of an RDP asset's δ, for draws that are cut: a divergence knows no δ, and each study spends up to a thousandth of its
# own on them (common/privacy/draw_cap). So studies' δ may add up to ten times the asset's.
_CUT_RESERVE: Final = 0.01
_TIMES_DELTA: Final = round(_CUT_RESERVE / CUT_SHARE)


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One set of patients at the site, whose budget all studies that read them share.

    A site has one, unless the patients of its assets are disjoint. ``order`` is the Rényi order of an RDP filter.
    """

    name: str
    filter: Filter
    limit: Amounts
    order: int | None = None
    unit: PrivacyUnit = "patient"

    @classmethod
    def summed(cls, name: str, *, epsilon: float, delta: float, unit: PrivacyUnit = "patient") -> "Asset":
        """Studies' ε add up to at most ``epsilon``, and their δ to at most ``delta``. Raises PrivacyError.

        Valid however each study was chosen in view of those before it (Rogers, Roth, Ullman and Vadhan 2016).
        """
        _check_limit(epsilon, delta)
        return cls(name=name, filter="sum", limit=Amounts.rounded_down(epsilon=epsilon, delta=delta), unit=unit)

    @classmethod
    def renyi(cls, name: str, *, epsilon: float, delta: float, order: int, unit: PrivacyUnit = "patient") -> "Asset":
        """Studies' Rényi divergences at one order, fixed now, add up to at most what is (ε, δ). Raises PrivacyError.

        A hundredth of δ is set aside for draws that are cut.
        Valid however each study was chosen in view of those before it (Feldman and Zrnic 2021).
        """
        from ...common.privacy.filters import rdp_budget  # it loads scipy

        _check_limit(epsilon, delta)
        rdp = rdp_budget(epsilon=epsilon, delta=delta * (1 - _CUT_RESERVE), order=order)
        limit = Amounts.rounded_down(epsilon=epsilon, delta=delta, rdp=rdp)
        return cls(name=name, filter="rdp", limit=limit, order=order, unit=unit)

    @classmethod
    def synthetic(cls, name: str, *, unit: PrivacyUnit = "patient") -> "Asset":
        """Records of nobody: there is no limit, and studies without noise may read them."""
        return cls(name=name, filter="synthetic", limit=Amounts(), unit=unit)

    def most(self, amount: str) -> int:
        """Trillionths up to which studies may add up, of an amount that the filter counts."""
        limit = int(getattr(self.limit, amount))
        return limit * _TIMES_DELTA if (self.filter, amount) == ("rdp", "delta") else limit

    @property
    def promise(self) -> "Asset":
        """What was promised, without the divergence that follows from it: equal promises are one."""
        return replace(self, limit=replace(self.limit, rdp=0))

    @property
    def described(self) -> str:
        """The budget in words."""
        if self.filter == "synthetic":
            return "synthetic records, without a limit"
        by = "summed" if self.order is None else f"by Rényi divergences (RDP) of order {self.order}"
        return f"ε = {shown_down(self.limit.epsilon)} and δ = {shown_down(self.limit.delta)} for each {self.unit}, {by}"


def _check_limit(epsilon: float, delta: float) -> None:
    if not (0 < epsilon <= LARGEST_EPSILON and 0 < delta < 1 and math.isfinite(epsilon)):
        raise PrivacyError(
            f"a data asset's budget is ε = {epsilon} at δ = {delta}",
            why="all studies together may learn that much about each of its patients, and this bounds nothing",
            fix=f"choose an ε above 0 and up to {LARGEST_EPSILON:g}, and a δ between 0 and 1",
        )
