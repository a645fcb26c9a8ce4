"""The files that a study leaves, by their paths in its folder."""

from typing import Final

MANIFEST: Final = "study.json"
LEDGER: Final = "ledger/entries.jsonl"
REPORT: Final = "report.json"
PAGE: Final = "report.html"
ADAPTER: Final = "adapter"
WEIGHTS: Final = f"{ADAPTER}/adapter_model.safetensors"
CONFIG: Final = f"{ADAPTER}/adapter_config.json"
# What an audit found, where one was made: no part of the ledger.
AUDIT: Final = "audit.json"
# Of a simulation's adapter, the scores of its patients under attacks: no part of the ledger.
ATTACKS: Final = "attacks.json"
CARD: Final = f"{ADAPTER}/README.md"
# Of a core adapter, what the study trained and fixed; WEIGHTS are everybody's LoRA that follows from it.
CORE: Final = f"{ADAPTER}/core.safetensors"
# The first adapter, and the sum of each round, by which anybody can take every step again.
SUMS: Final = "sums"
FIRST_ADAPTER: Final = f"{SUMS}/first-adapter"
# All of the first adapter, where it was made of public text.
PREPARED: Final = f"{SUMS}/first-adapter.safetensors"

# Public records of which each step has some.
PUBLIC: Final = f"{SUMS}/public.jsonl"


def trained_path(kind: str) -> str:
    """Where the numbers are that a study of this ``kind`` of adapter trained."""
    return CORE if kind == "core" else WEIGHTS


def results(kind: str) -> tuple[str, ...]:
    """What a study of this ``kind`` of adapter leaves when it is closed."""
    return (*RESULTS, CORE) if kind == "core" else RESULTS


def sum_path(round_: int) -> str:
    """Where the sum of a round lies."""
    return f"{SUMS}/round-{round_:06d}"


# What a finished study leaves beside its ledger: the last but one kind of entry names them, and no others.
RESULTS: Final = (MANIFEST, REPORT, PAGE, WEIGHTS, CONFIG, CARD)
