"""What each study has set aside of a data asset's budget: in full, before it reads a record."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from ...common.crypto.csprng import below
from ...common.errors import PrivacyError
from ...common.system.crash_points import CrashPoint
from ..state.database import SiteDatabase
from .amounts import Amounts, shown_down, shown_up
from .asset import COUNTED, Asset

# In place of a study's id: what nobody remembers any more.
RECOVERED: Final = "0" * 64
_NUMBER_BITS: Final = 39


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """What a study set aside for its ``schedule``, and the attempts that this site began and paid for in it."""

    study: str
    asset: str
    amounts: Amounts
    schedule: str = ""
    attempts_begun: int = 0
    attempts_charged: int = 0


@dataclass(frozen=True, kw_only=True)
class BudgetStatement:
    """An asset's budget with everything that is reserved in it."""

    asset: Asset
    reservations: tuple[Reservation, ...] = ()

    @property
    def reserved(self) -> Amounts:
        """What all studies together set aside."""
        return sum((reservation.amounts for reservation in self.reservations), Amounts())

    def left(self, amount: str) -> int:
        """Trillionths that are left of one of the amounts that the asset's filter counts."""
        return self.asset.most(amount) - int(getattr(self.reserved, amount))


class Reservations:
    """Assets and reservations in a site's database: each study's whole schedule is set aside before a record is read.

    *Formal guarantee.* Whatever studies were run, and whichever were chosen in view of earlier ones, what they release
    about one unit of the asset is (ε, δ) differentially private together at the limit that was registered, under each
    study's own assumptions. Several processes may reserve at once, beside a running worker; together they never
    reserve more than the limit.
    """

    def __init__(self, database: SiteDatabase) -> None:
        self._database = database

    def together(self) -> AbstractContextManager[None]:
        """One transaction for all that is changed inside."""
        return self._database.together()

    def spend(self, asset: str) -> None:
        """Reserve all that is left of an asset's budget, for nothing. Raises PrivacyError and StorageError."""
        statement = self.statement(asset)
        left = {amount: max(0, statement.left(amount)) for amount in COUNTED[statement.asset.filter]}
        with self._database.write(CrashPoint.BEFORE_RESERVATION, CrashPoint.AFTER_RESERVATION):
            cost = Amounts(**left)
            self._database.change(
                "INSERT INTO reservations VALUES (?, ?, ?, ?, ?, ?, ?)",
                # A number that peers have not seen, nor any of the next.
                *(below(1 << _NUMBER_BITS), RECOVERED, asset, cost.epsilon, cost.delta, cost.rdp, ""),
            )

    def register(self, asset: Asset) -> None:
        """Fix an asset's budget, on disk before it returns; again the same changes nothing.

        Raises PrivacyError if the asset was registered with another budget, and StorageError.
        """
        with self._database.write(CrashPoint.BEFORE_ASSET, CrashPoint.AFTER_ASSET):
            known = next((s.asset for s in self.statements() if s.asset.name == asset.name), None)
            if known is None:
                limit = asset.limit
                self._database.change(
                    "INSERT INTO assets VALUES (?, ?, ?, ?, ?, ?, ?)",
                    *(asset.name, asset.unit, asset.filter, limit.epsilon, limit.delta, limit.rdp, asset.order),
                )
            elif known.promise != asset.promise:
                raise PrivacyError(
                    f"data asset {asset.name} is registered with {known.described}, not with {asset.described}",
                    why="a budget that could be raised after looking at what it bought would be none",
                    fix="state the registered budget in the policy; a new budget is only for patients of whom no "
                    "study has read a record, as an asset with a name of its own",
                )

    def reserve(self, asset: str, study: str, cost: Amounts, *, schedule: str = "") -> None:
        """Set aside the ``cost`` of the whole ``study``, on disk before it returns; again the same changes nothing.

        ``schedule`` tells two schedules of one cost apart (a hash): a study has one for its whole life, or else the
        attempts of both would share one cost. Raises PrivacyError, which says by how much, if less is left; if the
        study reserved something else before; if the asset is not registered; if noise is missing where patients are
        real. Raises StorageError.
        """
        with self._database.write(CrashPoint.BEFORE_RESERVATION, CrashPoint.AFTER_RESERVATION):
            statement = self.statement(asset)
            earlier = next((r for r in self._reservations() if r.study == study), None)
            if earlier is not None:
                if (earlier.asset, earlier.amounts, earlier.schedule) != (asset, cost, schedule):
                    raise PrivacyError(
                        f"study {study[:12]} reserved ε = {shown_up(earlier.amounts.epsilon)} of {earlier.asset} "
                        f"before, and now asks for ε = {shown_up(cost.epsilon)} of {asset}"
                        f"{'' if earlier.schedule == schedule else ' for another schedule'}",
                        why="one schedule, fixed beforehand, covers a study for its whole life",
                        fix="ask the study's author for a successor with the same schedule, or for a new study",
                    )
                return
            _check_cost(statement, study, cost)
            self._database.change(
                "INSERT INTO reservations (study, asset, epsilon, delta, rdp, schedule) VALUES (?, ?, ?, ?, ?, ?)",
                *(study, asset, cost.epsilon, cost.delta, cost.rdp, schedule),
            )

    def sign(self, manifest: str, *, study: str, version: int) -> None:
        """Note that the site signs a ``manifest`` (its hash), on disk before it returns; again the same does nothing.

        Raises PrivacyError if it signed another of the study's version, or a later version: a ledger that branches
        there could get the signatures of all sites on both branches. Raises StorageError.
        """
        with self._database.write(CrashPoint.BEFORE_SIGNATURE, CrashPoint.AFTER_SIGNATURE):
            self._database.change("INSERT OR IGNORE INTO signed VALUES (?, ?, ?)", study, version, manifest)
            query = "SELECT version, manifest FROM signed WHERE study = ? AND version >= ? ORDER BY version"
            (_, signed), *later = self._database.rows(query, study, version)
            if signed != manifest:
                raise PrivacyError(
                    f"version {version} of study {study[:12]} was signed before, as {signed[:16]}…",
                    why="two manifests of one version would be two studies that share one budget",
                    fix="compare the manifest's hash with the other sites'; a change needs a version of its own",
                )
            if later:
                raise PrivacyError(
                    f"version {later[-1][0]} of study {study[:12]} was signed, and this is version {version}",
                    why="attempts of the older one could be hidden from those who joined with the later one",
                    fix="go on with the later version, or wait until all its sites have signed it",
                )

    def cancel(self, study: str) -> None:
        """Give back what ``study`` reserved, on disk before it returns: only while it has begun no attempt here.

        Raises PrivacyError afterwards, also where attempts are left: when to stop was chosen along the way, and the
        cost of a schedule that was cut short in view of its results is that of the whole. Raises StorageError.
        """
        with self._database.write(CrashPoint.BEFORE_CANCELLATION, CrashPoint.AFTER_CANCELLATION):
            if self._database.rows("SELECT 1 FROM attempts WHERE study = ? LIMIT 1", study):
                raise PrivacyError(
                    f"study {study[:12]} has begun an attempt, and what it reserved stays spent",
                    why="when to stop is chosen along the way, so that stopping early gives nothing back",
                    fix="leave the study if you wish; its budget is used up all the same",
                )
            if not self._database.change("DELETE FROM reservations WHERE study = ?", study):
                raise PrivacyError(
                    f"study {study[:12]} has nothing reserved",
                    why="only what was set aside can be given back",
                    fix="compare the study's id with those that `grandrounds client budget` shows",
                )

    def statement(self, asset: str) -> BudgetStatement:
        """One asset's budget. Raises PrivacyError if it is not registered."""
        for statement in self.statements():
            if statement.asset.name == asset:
                return statement
        raise PrivacyError(
            f"data asset {asset} is not registered",
            why="a study can only spend what the site has allowed for these patients",
            fix="state its budget in the site's policy, and join with that",
        )

    def statements(self) -> list[BudgetStatement]:
        """Every asset's budget, in the order of registration. Raises StorageError."""
        reservations = self._reservations()
        assets = self._database.rows(
            "SELECT name, unit, filter, epsilon, delta, rdp, rdp_order FROM assets ORDER BY rowid"
        )
        return [
            BudgetStatement(
                asset=Asset(
                    name=name,
                    unit=unit,
                    filter=filter_,
                    limit=Amounts(epsilon=epsilon, delta=delta, rdp=rdp),
                    order=order,
                ),
                reservations=tuple(r for r in reservations if r.asset == name),
            )
            for name, unit, filter_, epsilon, delta, rdp, order in assets
        ]

    def _reservations(self) -> list[Reservation]:
        rows = self._database.rows(
            "SELECT study, asset, epsilon, delta, rdp, schedule, count(attempt), coalesce(sum(charged), 0) "
            "FROM reservations LEFT JOIN attempts USING (study) GROUP BY study ORDER BY number"
        )
        return [
            Reservation(
                study=study,
                asset=asset,
                amounts=Amounts(epsilon=epsilon, delta=delta, rdp=rdp),
                schedule=schedule,
                attempts_begun=begun,
                attempts_charged=charged,
            )
            for study, asset, epsilon, delta, rdp, schedule, begun, charged in rows
        ]


def _check_cost(statement: BudgetStatement, study: str, cost: Amounts) -> None:
    """Raises PrivacyError unless the asset's filter allows ``cost`` beside what is reserved."""
    asset = statement.asset
    for amount, called in COUNTED[asset.filter].items():
        asked, left = getattr(cost, amount), statement.left(amount)
        if asked <= 0:
            raise PrivacyError(
                f"study {study[:12]} states no cost in {called} for data asset {asset.name}",
                why="a study without noise has no bound on what it reveals, so no budget covers it",
                fix="take part with synthetic records only, under a policy with synthetic_data_only",
            )
        if asked > left:
            raise PrivacyError(
                f"study {study[:12]} asks for {called} = {shown_up(asked)} of data asset {asset.name}, and "
                f"{shown_down(left)} is left: {shown_up(asked - left)} too much",
                why="more could then be learnt about its patients than the site has allowed for all studies together",
                fix="ask for a study with more noise, a smaller sample or fewer rounds; budgets are not raised",
            )
