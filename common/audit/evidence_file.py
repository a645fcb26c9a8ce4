"""What an audit and attacks leave as a file: JSON of a strict form, from which all that is said of it follows."""

import json
from typing import ClassVar, Self

from pydantic import ValidationError

from ..crypto.identity import canonical_json
from ..errors import StudyError
from ..schema import Section


class EvidenceFile(Section):
    """Evidence that is kept in one file.

    Attributes:
        unlike: what any other file is, in words; ``counts_for`` what the evidence counts for, ``made_by`` where it is
            from.
    """

    unlike: ClassVar[str]
    counts_for: ClassVar[str]
    made_by: ClassVar[str]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The evidence of a file; raises StudyError where it is none."""
        try:
            return cls.model_validate(json.loads(data))
        except (ValueError, RecursionError) as error:
            place = ""
            if isinstance(error, ValidationError):
                first = error.errors(include_url=False, include_input=False)[0]
                words = first["msg"].removeprefix("Value error, ")  # with nothing of what was given
                place = f": {': '.join(filter(None, ('.'.join(map(str, first['loc'])), words)))}"
            raise StudyError(
                f"{cls.unlike} that this version writes{place}", why=cls.counts_for, fix=f"take the {cls.made_by} wrote"
            ) from None

    def to_json(self) -> bytes:
        """The one file of this evidence, which ``parse`` reads."""
        return canonical_json(self.model_dump(mode="json")) + b"\n"
