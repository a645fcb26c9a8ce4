"""The benchmark: all its runs that have no row yet, in processes beside one another, and the tables of all rows."""

import multiprocessing
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ....common.durations import duration
from ....common.errors import GrandRoundsError, ModelError, StoppedError, StudyError
from ....common.model.devices import PROCESSORS
from ....common.system.files import write_atomically
from ....common.system.package_hash import running_sha256
from ....common.system.processes import end_with_parent
from .levers import Job
from .row import Row, RowFile, Subject
from .table import as_csv, markdown

ROWS: Final = "rows.jsonl"
TABLE: Final = "table.md"
CSV: Final = "table.csv"

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class UtilityBench:
    """What is run: ``jobs``, in this order, into the folder ``output``; without ``asks`` nothing is extracted.

    A run whose row has no F1 is run again where one is asked for, and its new row takes the old one's place.
    """

    output: Path
    jobs: Sequence[Job]
    asks: bool = True
    processes: int = 1
    devices: Sequence[str] = (PROCESSORS,)

    def run(self, tell: Tell) -> list[Row]:
        """The rows of these runs, those of earlier calls among them: each is on disk before the next is waited for.

        Raises StudyError before anything is run; StorageError; StoppedError when it is interrupted; and, when all else
        is done, ModelError where runs failed, each of which was told.
        """
        subjects = {job: job.subject for job in self.jobs}
        if len(set(subjects.values())) < len(subjects):
            raise StudyError(
                "two of the settings to compare are the same",
                why="a lever that changes nothing would be compared with itself",
                fix="leave out of --levers what the configuration says already",
            )
        file = RowFile.create(self.output / ROWS)
        rows = file.read()
        there = [row for row in rows if row.subject in set(subjects.values())]
        done = {row.subject for row in there if not self.asks or row.f1_after is not None}
        missing = {job: subject for job, subject in subjects.items() if subject not in done}
        tell(_begun(len(subjects), there, done))
        failed: list[Job] = []
        try:
            for job, found in self._attempts(missing):
                if isinstance(found, str):
                    failed.append(job)
                    tell(f"{job}: {found}")
                    continue
                file.add(found)
                rows = [*(row for row in rows if row.subject != found.subject), found]
                self._write_tables(self._ordered(rows))
                del missing[job]
                tell(_line(job, found, left=len(missing) - len(failed), processes=self.processes))
        except KeyboardInterrupt:
            raise StoppedError(
                f"stopped; {len(rows)} rows are whole in {file.path}",
                why="a run that has no row is in no table",
                fix="run the same command again: it goes on where this one stopped",
            ) from None
        except BrokenProcessPool:
            raise ModelError(
                "the process of a run was killed",
                why="the machine most likely had no memory left for it",
                fix="run the same command again with fewer --processes, or on a machine with more memory",
            ) from None
        if failed:
            raise ModelError(
                f"{len(failed)} of {len(subjects)} runs failed",
                why="a table lacks what they would have shown",
                fix="see above what each of them says; the same command tries them again",
            )
        return self._ordered([row for row in rows if row.subject in set(subjects.values())])

    def _attempts(self, missing: Mapping[Job, Subject]) -> Iterator[tuple[Job, Row | str]]:
        """What came of each run, as soon as it is over."""
        # A fork would copy the locks of torch's threads; and a process for each run gives its memory back.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            self.processes, mp_context=context, initializer=end_with_parent, max_tasks_per_child=1
        ) as pool:
            futures = {pool.submit(attempt, self, job, subject): job for job, subject in missing.items()}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _write_tables(self, rows: Sequence[Row]) -> None:
        write_atomically(self.output / TABLE, markdown(rows).encode())
        write_atomically(self.output / CSV, as_csv(rows).encode())

    def _ordered(self, rows: Sequence[Row]) -> list[Row]:
        """The given settings' first, whichever run was over first: levers stand beside them."""
        given = self.jobs[0].subject.settings
        return sorted(rows, key=lambda row: row.settings != given)


def attempt(bench: UtilityBench, job: Job, subject: Subject) -> Row | str:
    """The row of a run, or why it failed, in words: an error of ours does not survive the way between processes."""
    import torch

    from .perform import Workplace, perform

    torch.set_num_threads(max(1, torch.get_num_threads() // bench.processes))
    workplace = Workplace(
        folder=bench.output / "runs" / subject.folder,
        asks=bench.asks,
        devices=bench.devices,
        tell=lambda line: print(f"  {job}: {line}", file=sys.stderr, flush=True),
    )
    try:
        return perform(job, workplace)
    except GrandRoundsError as error:
        return error.diagnostics()


def _begun(runs: int, there: Sequence[Row], done: Collection[Subject]) -> str:
    """How much of it is done, by which other programs, and what is done again."""
    lines = [f"{runs} runs, of which {len(done)} are done"]
    if again := len(there) - len(done):
        lines.append(f"{again} have a row without F1 and are run again, for it is asked for")
    others = Counter(row.program[:8] for row in there if row.subject in done and row.program != running_sha256())
    lines += [f"{count} are of another program, {program}" for program, count in sorted(others.items())]
    return "; ".join(lines)


def _line(job: Job, row: Row, *, left: int, processes: int) -> str:
    after = "not finite" if row.perplexity_after is None else f"{row.perplexity_after:g}"
    return (
        f"{job}: perplexity {row.perplexity_before:g} → {after}{_asked(row)}, in "
        f"{duration(row.seconds)}; {left} left, about {duration(left * row.seconds / processes)}"
    )


def _asked(row: Row) -> str:
    if row.f1_before is None or row.f1_after is None:
        return ""
    return f", F1 {row.f1_before:.2f} → {row.f1_after:.2f}"
