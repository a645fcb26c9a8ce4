"""One root for every error a user can meet; each says what was wrong, why it matters and what to do."""

from .printable import printable


class GrandRoundsError(Exception):
    """A refusal or failure with a diagnosis; the command line prints it and exits with 1.

    None of the three texts may contain text from a record, nor a message of an exception that could.
    """

    def __init__(self, what: str, *, why: str, fix: str) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    def diagnostics(self) -> str:
        """The diagnosis as one paragraph, without what could steer a terminal: it names files, fields and values.

        >>> print(StudyError("threshold is 9", why="only 5 sites exist", fix="choose 4").diagnostics())
        threshold is 9. Why it matters: only 5 sites exist. What to do: choose 4.
        """
        end = "" if self.what.endswith("?") else "."
        return printable(f"{self.what}{end} Why it matters: {self.why}. What to do: {self.fix}.")


def reason(error: Exception) -> str:
    """Why a file cannot be used, in words that hold nothing of it: the system's, or that its contents are at fault.

    >>> reason(FileNotFoundError(2, "No such file or directory")), reason(ValueError("Jane"))
    ('No such file or directory', 'its contents are not what they should be')
    """
    told = error.strerror if isinstance(error, OSError) else None
    return told or "its contents are not what they should be"


class StudyError(GrandRoundsError):
    """The study's parameters are contradictory, unsafe or unknown."""


class OtherProgramError(StudyError):
    """A study is another version's of this program, which only that one can read, or go on with."""


class DataError(GrandRoundsError):
    """A site's records cannot be used as they are."""


class ModelError(GrandRoundsError):
    """The model cannot be loaded, or cannot be trained privately."""


class PrivacyError(GrandRoundsError):
    """A mechanism or an accountant was asked for something it cannot promise."""


class ScheduleExhaustedError(PrivacyError):
    """Another attempt would exceed the schedule that the claim covers."""


class EnvelopeError(GrandRoundsError):
    """Bytes that are not a well-formed message, or not signed by whom they name."""


class ProtocolError(GrandRoundsError):
    """A message that the protocol does not allow at this point; the attempt is abandoned."""


class LedgerError(GrandRoundsError):
    """A ledger that is not whole, or does not bear out what is claimed from it."""


class StorageError(GrandRoundsError):
    """Something could not be written or read back whole."""


class StoppedError(GrandRoundsError):
    """The user stopped a command before its end."""
