"""What a verification has before it: a study's folder as evidence, its ledger replayed, its report rebuilt."""

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from ...common.crypto.identity import written_out
from ...common.errors import GrandRoundsError, OtherProgramError
from ...common.ledger.chain import broken
from ...common.ledger.replay import VerifiedLedger
from ...common.study.artefacts import LEDGER, REPORT
from ...common.system.code_pin import is_running
from ...server.report.report import Declared, Report, build_report
from .evidence import Evidence
from .verdict import Outcome

# Of figures: the accountant's last digits are those of the machine's libraries.
TOLERANCE: Final = 1e-6
INCOMPLETE: Final = "its last line is incomplete: the study is being written, or the ledger was cut: try again"


class DisagreesError(Exception):
    """A claim does not hold."""


class OpenError(Exception):
    """A claim cannot be established from what is there, which makes ``outcome`` of the whole."""

    def __init__(self, detail: str, outcome: Outcome = Outcome.UNKNOWN) -> None:
        super().__init__(detail)
        self.outcome = outcome


class AbsentError(Exception):
    """There is not what the claim is of, which a study need not have: it counts for who requires it, as open."""


class NothingClaimedError(Exception):
    """There is no such claim: the study promises nothing of the kind."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """The evidence, and the hash of the manifest that somebody else vouched for, if there is one."""

    evidence: Evidence
    manifest_hash: str | None

    @property
    def vouched(self) -> str | None:
        """``manifest_hash`` as hashes are written: people copy it in groups, or in capitals."""
        return None if self.manifest_hash is None else written_out(self.manifest_hash)

    @property
    def verified(self) -> VerifiedLedger:
        """The ledger's; raises OpenError where it is not whole, of which its own claim says why.

        Raises OtherProgramError where another version wrote it, in a form that this one does not read.
        """
        self.check_form()
        verified = replay(self.evidence.files.get(LEDGER, b"")).verified
        if verified is None or not verified.manifests:
            raise OpenError("the ledger is not whole")
        return verified

    def check_form(self) -> None:
        """Raises OtherProgramError where the ledger is of another version, in a form that this one does not read."""
        other = replay(self.evidence.files.get(LEDGER, b"")).other_program
        if other is not None:
            raise other

    def otherwise(self, detail: str, found: Iterable["Difference"] = ()) -> DisagreesError | OpenError:
        """What is not as this program writes it: no fault where another one ran the study, which must judge.

        Fields that were ``found`` with another value are a fault whichever it was.
        """
        manifest = self.verified.manifest
        if any(each.both for each in found) or is_running(manifest.package_version, manifest.package_sha256):
            return DisagreesError(detail)
        return OpenError(
            f"{detail}, which another program may have written so: verify it with the one that the study ran"
        )

    def result(self, path: str) -> bytes:
        """A file of a closed study. Raises DisagreesError where it is missing, or there too early."""
        there = path in self.evidence.files or path in self.evidence.faults
        if self.verified.closed is None:
            if there:
                raise DisagreesError(f"{path} is there, and the ledger says nothing of the study's end")
            raise self.unfinished(self.still_open)
        return self.read(path)

    def read(self, path: str) -> bytes:
        """A file. Raises DisagreesError where it is missing or unfit."""
        if path in self.evidence.faults:
            raise DisagreesError(f"{path}: {self.evidence.faults[path]}")
        if path not in self.evidence.files:
            raise DisagreesError(f"{path} is missing")
        return self.evidence.files[path]

    def unfinished(self, detail: str) -> OpenError:
        """What cannot be established yet; where the study is closed, not ever."""
        return OpenError(detail, Outcome.UNFINISHED if self.verified.closed is None else Outcome.UNKNOWN)

    @property
    def still_open(self) -> str:
        """Since when the study is open."""
        return f"the study is not closed: open since attempt {len(self.verified.attempts)}"

    @property
    def report(self) -> Any:
        """The JSON of report.json, whatever it is; raises DisagreesError where it is none."""
        return parse_json(REPORT, self.result(REPORT))

    def found(self, section: str) -> Any:
        """What the report has of an audit, or of attacks; None where it is no report, as its own claim says."""
        try:
            report = parse_json(REPORT, self.evidence.files.get(REPORT, b""))
        except DisagreesError:
            return None
        stated = report.get(section) if isinstance(report, dict) else None
        return stated.get("found") if isinstance(stated, dict) else None

    @functools.cached_property
    def differences(self) -> list["Difference"]:
        """The fields in which report.json is not what the ledger makes of it.

        Raises as ``report`` does, and UnknownFormError where it is none that this program writes.
        """
        report = self.report
        return list(differences(report, build_report(self.verified, Declared.of(report))))

    @property
    def sound_report(self) -> Report:
        """The report, which is a report. Raises OpenError where it is not the one that follows from the ledger."""
        if not self._follows:
            raise OpenError("report.json is not that of this ledger")
        report: Report = self.report
        return report

    @property
    def _follows(self) -> bool:
        try:
            return not self.differences
        except (DisagreesError, GrandRoundsError):  # as the report's own claim says
            return False


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A ledger as it was verified, or why it was not; ``incomplete`` if something stands behind the last whole line.

    ``other_program`` is why it cannot be verified by this program, whose form it does not have.
    """

    verified: VerifiedLedger | None
    fault: str
    incomplete: bool
    other_program: OtherProgramError | None = None


@functools.lru_cache(maxsize=1)
def replay(data: bytes) -> Replayed:
    """Replay a ledger line by line, so that what is wrong is said of the first bad one."""
    *lines, rest = data.split(b"\n")
    verified = VerifiedLedger()
    for number, line in enumerate(lines, start=1):
        try:
            verified.extend([line])
            if len(verified.ledger) < number:
                raise broken("it stands there already")
        except GrandRoundsError as error:
            fault, other = f"line {number}: {error.what}", error if isinstance(error, OtherProgramError) else None
            return Replayed(verified=None, fault=fault, incomplete=bool(rest), other_program=other)
    return Replayed(verified=verified, fault="" if lines else "it has no whole line", incomplete=bool(rest))


def parse_json(path: str, data: bytes) -> Any:
    """The value of a JSON text; raises DisagreesError for anything else, NaN and infinity among it."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DisagreesError(f"{path} is not JSON") from error


def _refuse(constant: str) -> None:
    raise ValueError(constant)


@dataclass(frozen=True)
class Difference:
    """A field by its dotted name, of ``both`` with another value, or of one alone."""

    name: str
    both: bool = True


def differences(there: Any, here: Any, path: str = "") -> Iterator[Difference]:
    """Where a JSON value is not ``here``; figures may differ by one part in a million."""
    if isinstance(here, dict) and isinstance(there, dict):
        for name in [*here, *(name for name in there if name not in here)]:
            inner = f"{path}.{name}" if path else name
            if name in here and name in there:
                yield from differences(there[name], here[name], inner)
            else:
                yield Difference(inner, both=False)
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        for index, (one, other) in enumerate(zip(there, here, strict=True)):
            yield from differences(one, other, f"{path}.{index}")
    elif isinstance(here, float) and isinstance(there, float):
        if not math.isclose(there, here, rel_tol=TOLERANCE):
            yield Difference(path)
    elif type(here) is not type(there) or here != there:
        yield Difference(path)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something that is claimed, and how it is checked: ``check`` says in words what it found, or raises.

    ``check_unread`` is for a ledger that another version wrote: it says what holds in any form, or raises.
    """

    name: str
    claim: str
    recomputed_from: str
    check: Callable[[Case], str]
    check_unread: Callable[[Case], str] = lambda case: ""
