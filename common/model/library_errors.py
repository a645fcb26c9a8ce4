"""What libraries raise over a model, as errors that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import GrandRoundsError, ModelError


@contextmanager
def library_errors(what: str, *, why: str, fix: str) -> Iterator[None]:
    """Raises ModelError for whatever a library raises inside, with what the library says of it.

    Only where no record can have had a part in that: around files of a model, and tokens that nobody wrote.
    """
    try:
        yield
    except GrandRoundsError:
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0][:300]
        cause = f"{type(error).__name__}: {said}".rstrip(".: ")
        raise ModelError(f"{what} ({cause})", why=why, fix=fix) from error


@contextmanager
def library_errors_over_records(what: str, *, why: str, fix: str) -> Iterator[None]:
    """Raises ModelError for whatever a library raises inside, with the exception's name alone: it may quote a record.

    What a GPU's memory does not hold passes; ``within_memory`` has more to say of it.
    """
    import torch

    try:
        yield
    except (GrandRoundsError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(f"{what} ({type(error).__name__})", why=why, fix=fix) from None
