"""Coverage-guided fuzzing of one parser: ``python -m soak.fuzz TARGET SECONDS FOLDER``, for ``make soak``.

FOLDER keeps the corpus that was found, from which the next run goes on, and an input that was found to break the
parser; feed it to the target again with ``python -m soak.fuzz TARGET FILE``.
"""

import logging
import sys
from pathlib import Path

import atheris

# Coverage is counted in what is imported here and nowhere else.
with atheris.instrument_imports(include=["grandrounds"]):
    from soak.fuzz_targets import FRAGMENTS, TARGETS

MEMORY_MIB = 2048
INPUT_SECONDS = 30
MAX_BYTES = 1 << 16


def main(name: str, seconds: str, folder: Path) -> None:
    """Fuzz until the time is over; the process exits with 0, or with another code at the first finding."""
    logging.disable()  # a worker says why it refuses, for each input
    target = TARGETS[name]
    corpus = folder / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(target.samples()):
        (corpus / f"sample-{number}").write_bytes(sample)
    dictionary = folder / "dictionary"
    dictionary.write_text("".join(f'"{_escaped(fragment)}"\n' for fragment in FRAGMENTS if len(fragment) <= 64))
    options = {
        "max_total_time": seconds,
        "max_len": MAX_BYTES,
        "timeout": INPUT_SECONDS,
        "rss_limit_mb": MEMORY_MIB,
        "dict": dictionary,
        "artifact_prefix": f"{folder}/{name}-",
        "verbosity": 0,
        "print_final_stats": 1,
    }
    atheris.Setup(
        [sys.argv[0], *(f"-{option}={value}" for option, value in options.items()), str(corpus)], target.accepts
    )
    atheris.Fuzz()


def _escaped(fragment: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in fragment)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print("taken" if TARGETS[sys.argv[1]].accepts(Path(sys.argv[2]).read_bytes()) else "refused")
    else:
        main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
