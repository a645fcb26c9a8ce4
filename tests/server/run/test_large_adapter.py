"""A server's state that is too large to be held: it lies in files, and has the same bits there."""

import resource
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from soak.killed_simulation import in_child
from support.study.federation import EVEN, small_manifest, small_study

from grandrounds.common.crypto.identity import Identity, sha256
from grandrounds.common.errors import StorageError
from grandrounds.common.model.adapter import Vector
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import FIELD
from grandrounds.common.study.manifest import Manifest
from grandrounds.common.study.step import DueStep, LastStep, Trained, step
from grandrounds.common.system.content import Content, Stored, blocks
from grandrounds.server.rounds.checkpoint import Checkpoint
from grandrounds.server.rounds.pieces import InPieces
from grandrounds.server.run.study_folder import StudyFolder

IDENTITIES = {f"site-{i}": Identity.from_bytes(bytes([i]) * 32) for i in range(1, 6)}
SERVER = Identity.from_bytes(bytes(32))
SURVIVORS = tuple(IDENTITIES)


def manifest_of(optimizer: str, dimension: int) -> Manifest:
    return small_manifest(small_study(training={"optimizer": optimizer}), IDENTITIES, SERVER, dimension=dimension)


def first(manifest: Manifest, adapter: Vector) -> Checkpoint:
    return Checkpoint.initial(study=manifest.study_id, adapter=adapter, losses=EVEN)


def stepped(folder: StudyFolder, manifest: Manifest, checkpoint: Checkpoint, total: Content) -> Checkpoint:
    """The checkpoint after another round, as a server that starts again finds it."""
    before = checkpoint.last_step.after
    after = folder.take_step(
        DueStep(
            manifest=manifest,
            before=before,
            total=total,
            survivors=SURVIVORS,
            round=checkpoint.round + 1,
            attempt=1,
            shown=(),
        )
    )
    folder.save_checkpoint(
        replace(
            checkpoint,
            round=checkpoint.round + 1,
            last_step=LastStep(after=after, before=before, total=total),
            perplexities=np.vstack([checkpoint.perplexities, EVEN.perplexity.values]),
        )
    )
    again = folder.checkpoint(manifest)
    assert again is not None
    return again


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_a_step_in_files_has_the_bits_of_one_in_memory(optimizer: str, tmp_path: Path) -> None:
    manifest, folder = manifest_of(optimizer, 5), StudyFolder(tmp_path)
    adapter = np.array([0.0, 1.0, -0.25, 1e-3, 7.0], dtype=np.float32)
    checkpoint, expected = folder.save_checkpoint(first(manifest, adapter)), Trained(adapter=adapter)
    for round_ in range(3):
        total = np.array([5, -7, 1000, round_, 0], dtype="<i4").tobytes()
        expected = step(
            DueStep(
                manifest=manifest,
                before=expected,
                total=total,
                survivors=SURVIVORS,
                round=round_ + 1,
                attempt=1,
                shown=(),
            )
        )
        checkpoint = stepped(folder, manifest, checkpoint, total)
        after = checkpoint.last_step.after
        assert isinstance(after.adapter, Stored)
        assert (after.numbers[:], after.optimizer[:]) == (expected.numbers[:], expected.optimizer[:])


def test_a_step_that_does_not_fit_on_the_disk_says_so_and_loses_nothing(tmp_path: Path) -> None:
    manifest, folder = manifest_of("adam", 50_000), StudyFolder(tmp_path)
    checkpoint, total = folder.save_checkpoint(first(manifest, np.zeros(50_000, np.float32))), bytes(200_000)

    def on_a_full_disk() -> None:
        for room in (0, 100_000, 300_000, 700_000):  # of the adapter, of the optimiser, of the checkpoint
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
            with pytest.raises(StorageError, match=r"checkpoint.* cannot be written: (No space left|File too large)"):
                stepped(folder, manifest, checkpoint, total)

        carried = InPieces(folder=tmp_path, largest_bytes=800_000)(b"question")
        next(carried)
        with pytest.raises(StorageError, match=r"an answer cannot be kept in .*: (No space left|File too large)"):
            carried.send({"whole": "0" * 64, "size": 800_000, "start": 0, "piece": bytes(800_000)})

    assert in_child(on_a_full_disk) == 0
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["round-000000.checkpoint"]
    assert stepped(folder, manifest, checkpoint, total).round == 1


def test_no_vector_as_long_as_the_adapter_is_in_memory_from_the_sum_to_the_last_message(tmp_path: Path) -> None:
    dimension = 4_000_000
    manifest, folder = manifest_of("adam", dimension), StudyFolder(tmp_path)
    after = Trained(adapter=np.zeros(dimension, np.float32), optimizer=bytes(8 * dimension + 16))
    begun = first(manifest, np.zeros(1, np.float32))
    checkpoint = folder.save_checkpoint(replace(begun, last_step=LastStep(after=after)))
    del after
    place = tmp_path / "sum"
    place.write_bytes(bytes(4 * dimension))
    carrying = InPieces(folder=tmp_path, largest_bytes=4 * dimension, piece_bytes=1 << 20)
    tracemalloc.start()
    last_step = stepped(folder, manifest, checkpoint, Stored.open(place)).last_step
    context: dict[str, Any] = {
        "manifest": manifest.sha256,
        "attempt": 1,
        "exchange": "x",
        "sender": "server",
        "body": {},
    }
    message = Envelope.seal(SERVER, **context, payload=last_step.missing(behind=None).packed()).wire
    carried, sent = carrying(message), 0
    told = next(carried)
    while "piece" in told:
        sent += len(told["piece"])
        told = carried.send({"held": sent})
    answer, name = Stored.open(place), sha256(Stored.open(place))
    with pytest.raises(StopIteration) as over:
        for start in range(0, len(answer), carrying.piece_bytes):
            piece = answer[start : start + carrying.piece_bytes]
            carried.send({"whole": name, "size": len(answer), "start": start, "piece": piece})
    assert sum(map(len, blocks(over.value.value))) == 4 * dimension
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sent == len(message) > 16 * dimension
    assert FIELD not in told
    assert peak_bytes < 4 * dimension
