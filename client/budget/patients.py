"""Which patients a budget is for: an asset knows them by keyed fingerprints, so that no other has them too."""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from ...common.crypto.csprng import KEY_BYTES, fresh_key
from ...common.errors import PrivacyError, StorageError, reason
from ...common.sources.identifiers import canonical
from ...common.system.crash_points import CrashPoint
from ...common.system.files import write_missing
from ..state.database import SiteDatabase

FINGERPRINT_BYTES: Final = 16
_LABEL: Final = b"grandrounds/patient/v1\n"
_OF_NOBODY: Final = b"grandrounds/fingerprint-key/v1\n"  # what tells two keys apart, and is no patient's
_MANY: Final = 500  # values of one query: SQLite takes 999 and more


@dataclass(frozen=True)
class FingerprintKey:
    """The secret under which patients are known in a site's state, which says nothing of them without it."""

    _secret: bytes

    @classmethod
    def make(cls, path: Path) -> None:
        """Make one, unless there is one. Raises StorageError."""
        write_missing(path, lambda: fresh_key().hex().encode(), mode=0o600)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The key in a file. Raises StorageError."""
        try:
            secret = bytes.fromhex(path.read_text("ascii").strip())
            if len(secret) != KEY_BYTES:
                raise ValueError("no key of this length")
        except (OSError, ValueError) as error:
            raise _lost(f"{path} is missing, damaged or cannot be read ({reason(error)})") from error
        return cls(secret)

    def of(self, patient: str) -> bytes:
        """A patient's fingerprint: HMAC-SHA256 of the identifier's canonical form, cut to 16 bytes."""
        return self._cut(_LABEL + canonical(patient).encode())

    @property
    def mark(self) -> bytes:
        """What tells this key from others."""
        return self._cut(_OF_NOBODY)

    def keyed(self, data: bytes) -> bytes:
        """HMAC-SHA256 of what begins with a label of its own, whole."""
        return hmac.digest(self._secret, data, "sha256")

    def _cut(self, data: bytes) -> bytes:
        return self.keyed(data)[:FINGERPRINT_BYTES]


class Patients:
    """Whose budget is which, in a site's database: a patient belongs to one asset for good.

    *Formal guarantee.* Studies that read records of one patient spend one budget, however the site's policy names its
    data, as long as the patient's identifier stays what it is but for its spelling, and state and key are the site's
    own.
    """

    def __init__(self, database: SiteDatabase, key: FingerprintKey) -> None:
        self._database = database
        self._key = key

    def check(self, asset: str, patients: Iterable[str]) -> None:
        """Raises PrivacyError, which names the asset and no patient, if another has one of them; and StorageError."""
        self._check(asset, {self._key.of(patient) for patient in patients})

    def claim(self, asset: str, patients: Iterable[str]) -> None:
        """Fix that they are the asset's, on disk before it returns; again the same changes nothing.

        Raises what ``check`` does, and then none of them is.
        """
        fingerprints = {self._key.of(patient) for patient in patients}
        with self._database.write(CrashPoint.BEFORE_PATIENTS, CrashPoint.AFTER_PATIENTS):
            self._check(asset, fingerprints)
            rows = [(self._key.mark, ""), *((fingerprint, asset) for fingerprint in sorted(fingerprints))]
            self._database.change_many("INSERT OR IGNORE INTO patients VALUES (?, ?)", rows)

    def _check(self, asset: str, fingerprints: set[bytes]) -> None:
        marks = self._database.rows("SELECT fingerprint FROM patients WHERE asset = ''")
        if marks and marks != [(self._key.mark,)]:
            raise _lost("the site's fingerprint key is another than the one that its state was written with")
        known = sorted(fingerprints)
        for start in range(0, len(known), _MANY):
            some = known[start : start + _MANY]
            places = ", ".join("?" * len(some))
            query = f"SELECT asset FROM patients WHERE fingerprint IN ({places}) AND asset != ?"  # noqa: S608
            for (other,) in self._database.rows(f"{query} LIMIT 1", *some, asset):
                number = self._database.integer("SELECT rowid FROM assets WHERE name = ?", other)
                raise PrivacyError(
                    f"data asset {asset} has patients of data asset {number}, {other}",
                    why="each would have a second budget, and all studies together could learn what neither allows",
                    fix=f"name {other} in the policy again (data.asset); an asset of its own is for other patients",
                )


def _lost(what: str) -> StorageError:
    return StorageError(
        what,
        why="patients who had a budget could not be told from those who have none yet",
        fix="put back fingerprint.key from its copy; if there is none, move the folder `state` away and start again "
        "with everything spent: grandrounds client recover",
    )
