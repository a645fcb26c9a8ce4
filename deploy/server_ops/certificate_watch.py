"""Tells, while a server runs, that its certificates end, before no site can connect any more."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from ...common.errors import StorageError, StudyError
from ...server.report.claim import count
from ...server.run.server_folder import ServerFolder
from ..enrolment.certificates import check_certificates

RENEW_WITHIN: Final = timedelta(days=30)
_AGAIN: Final = timedelta(days=1)


class CertificateWatch:
    """Looks when it is first tended and once a day from then on; ``say`` is told where an end is near, or past."""

    def __init__(
        self,
        folder: ServerFolder,
        say: Callable[[str], None],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = folder
        self._say = say
        self._clock = clock
        self._next: datetime | None = None

    def tend(self) -> None:
        """Look, if it is time."""
        now = self._clock()
        if self._next is not None and now < self._next:
            return
        self._next = now + _AGAIN
        # Between the programs of this machine, too: each start renews that, and this one may be long ago.
        for path, host in (
            (self._folder.certificates, self._folder.settings().host),
            (self._folder.inside, "localhost"),
        ):
            try:
                left = check_certificates(path, host, now=now)
            except (StudyError, StorageError) as error:
                self._say(error.what)
                continue
            if left < RENEW_WITHIN:
                self._say(
                    f"the certificate in {path} ends in {count(left.days, 'day')}, and no site can connect then: "
                    "`grandrounds server init` renews it, if its authority was made here; then start the server again"
                )
