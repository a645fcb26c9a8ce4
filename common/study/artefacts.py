"""The files that a study leaves, by their paths in its folder."""

from typing import Final

MANIFEST: Final = "study.json"
LEDGER: Final = "ledger/entries.jsonl"
REPORT: Final = "report.json"
PAGE: Final = "report.html"
ADAPTER: Final = "adapter"
WEIGHTS: Final = f"{ADAPTER}/adapter_model.safetensors"
CONFIG: Final = f"{ADAPTER}/adapter_config.json"
CARD: Final = f"{ADAPTER}/README.md"
# What a finished study leaves beside its ledger: the last but one kind of entry names them, and no others.
RESULTS: Final = (MANIFEST, REPORT, PAGE, WEIGHTS, CONFIG, CARD)
