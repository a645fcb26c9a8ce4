"""Records from their file to a draw: how fast they are prepared beside the tokenizer alone, and what that takes."""

import json
import multiprocessing
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from ...client.site.folder import SiteSettings
from ...client.site.prepared import PreparedRecords
from ...client.site.site_records import SiteRecords
from ...client.training.cohort import Cohort
from ...common.data.tokenisation import load_tokenizer
from ...common.sources.source import DataSource
from ...common.study.study import DataSection
from ...common.system.processes import end_with_parent
from .peak_memory import forget_peak, peak_bytes

TABLE: Final = (10_000, 100_000, 1_000_000)

_NOTES_PER_PATIENT: Final = 50
_UNITS_DRAWN: Final = 200
_WINDOWS_OF_EACH: Final = 4
_DRAWS: Final = 5
_BATCH: Final = 1000
_VOCABULARY: Final = 20_000


@dataclass(frozen=True, kw_only=True)
class DataBench:
    """What is measured: ``notes`` of ``words`` each, prepared in windows of ``max_tokens`` for the model ``base``."""

    base: Path
    notes: int = 10_000
    words: int = 300
    max_tokens: int = 384

    def run(self) -> dict[str, Any]:
        """The figures, with what was measured."""
        with TemporaryDirectory(prefix="grandrounds-bench-") as folder:
            file = Path(folder) / "notes.jsonl"
            write_notes(file, base=self.base, notes=self.notes, words=self.words)
            alone_s = self._tokenizer_alone(file)
            made, opened = (self._in_a_process(measure, Path(folder)) for measure in (_prepare, _open))
        return {
            "notes": self.notes,
            "words": self.words,
            "bytes_read": made["bytes_read"],
            "tokens": opened["tokens"],
            "tokenizer_s": alone_s,
            "prepare_s": made["prepare_s"],
            "prepare_ratio": alone_s / made["prepare_s"],
            "prepare_peak_bytes": made["peak_bytes"],
            "open_s": opened["open_s"],
            "draw_s": opened["draw_s"],
            "worker_peak_bytes": opened["peak_bytes"],
        }

    def _tokenizer_alone(self, file: Path) -> float:
        """Seconds of the library's own batch encoding of all the texts, and of nothing else."""
        encode = load_tokenizer(str(self.base)).backend_tokenizer.encode_batch_fast
        elapsed = 0.0
        texts = _texts(file)
        while some := list(islice(texts, _BATCH)):
            started = time.perf_counter()
            encode(some, add_special_tokens=False)
            elapsed += time.perf_counter() - started
        return elapsed

    def _in_a_process(self, measure: Any, folder: Path) -> dict[str, Any]:
        """A process of its own, so that memory is what it takes and no more."""
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
            return dict(pool.submit(measure, self, folder).result())


def write_notes(file: Path, *, base: Path, notes: int, words: int) -> None:
    """Notes of random words that the tokenizer has, the first the most frequent: nobody's."""
    numbers = load_tokenizer(str(base)).get_vocab()
    known = sorted(numbers, key=numbers.__getitem__)
    words_of = [token[1:] for token in known if token[0] in "\u0120\u2581" and token[1:].isalpha()]
    vocabulary = words_of[:_VOCABULARY] or list(filter(str.isalpha, known))
    rng = np.random.Generator(np.random.Philox(key=0))
    with file.open("w", encoding="utf-8") as out:
        for number in range(notes):
            ranks = np.floor(len(vocabulary) ** rng.random(words)).astype(int) - 1  # as words of a language: Zipf
            text = " ".join([vocabulary[rank] for rank in ranks])
            out.write(json.dumps({"patient_id": number // _NOTES_PER_PATIENT, "text": text}) + "\n")


def _texts(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line)["text"] for line in lines)


def _records(bench: DataBench, folder: Path) -> tuple[PreparedRecords, DataSection]:
    settings = SiteSettings(name="bench", data=DataSource.of(folder / "notes.jsonl"), model=bench.base)
    records = PreparedRecords(folder=folder / "prepared", settings=settings, minimiser=None)
    return records, DataSection(max_tokens=bench.max_tokens)


def _prepare(bench: DataBench, folder: Path) -> dict[str, Any]:
    records, data = _records(bench, folder)
    load_tokenizer(str(bench.base))  # what the libraries take to load is no part of a preparation
    forget_peak()
    started = time.perf_counter()
    records.open(data)
    elapsed = time.perf_counter() - started
    return {
        "prepare_s": elapsed,
        "peak_bytes": peak_bytes(),
        "bytes_read": (folder / "notes.jsonl").stat().st_size,
    }


def _open(bench: DataBench, folder: Path) -> dict[str, Any]:
    records, data = _records(bench, folder)
    forget_peak()
    started = time.perf_counter()
    found = SiteRecords.of(records.open(data), None)
    units = found.store.select("patient", found.kept, max_tokens=bench.max_tokens)
    cohort = Cohort.stated(units, privacy_unit="patient", max_units=len(units))
    open_s = time.perf_counter() - started
    seconds = []
    for _ in range(_DRAWS):
        started = time.perf_counter()
        cohort.draw(
            sampling_probability=min(1.0, _UNITS_DRAWN / len(units)),
            records_per_unit=_WINDOWS_OF_EACH,
            cap=2 * _UNITS_DRAWN,
        )
        seconds.append(time.perf_counter() - started)
    return {
        "open_s": open_s,
        "draw_s": sorted(seconds)[_DRAWS // 2],
        "peak_bytes": peak_bytes(),
        "tokens": len(found.store.block.tokens),
    }


def data_line(figures: Mapping[str, Any]) -> str:
    """For people."""
    return (
        f"{figures['notes']:,} notes, {figures['tokens']:,} tokens: prepared in {figures['prepare_s']:.1f} s, at "
        f"{figures['prepare_ratio']:.2f} of the tokenizer's own speed, with {_mib(figures['prepare_peak_bytes'])} of "
        f"memory; opened in {figures['open_s']:.2f} s, with {_mib(figures['worker_peak_bytes'])}; "
        f"{_UNITS_DRAWN} patients' {_WINDOWS_OF_EACH} windows drawn in {1000 * figures['draw_s']:.1f} ms"
    )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.0f} MiB"
