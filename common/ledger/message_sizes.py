"""How large the messages of a study can be, generously: what is larger is of nobody honest, and is not kept."""

from typing import Final

from ..protocol.envelope import MAX_HEADER_BYTES
from ..study.manifest import Manifest
from ..study.step import largest_missing_bytes
from .chain import MAX_ENTRY_BYTES

_BESIDE_AN_UPDATE: Final = 1 << 21  # what an answer has of header, keys and shares


def largest_answer_bytes(manifest: Manifest) -> int:
    """The size that no answer of an honest site exceeds: that of its masked update, with room for all else."""
    return manifest.secagg_parameters.update_bytes + _BESIDE_AN_UPDATE


def largest_request_bytes(manifest: Manifest, *, frozen_bytes: int = 0) -> int:
    """The size that no message of the study's honest server exceeds: all of the adapter and of its schedule's ledger.

    ``frozen_bytes`` is the size of the adapter's public tensors, which come with the finished one.
    Generous, and there only so that memory cannot be filled: the worker checks what a message says.
    """
    sites = len(manifest.study.sites)
    names = 72 * sites  # each of at most 63 characters, quoted
    statement = 2048 + 2 * names  # the longest, a view of the attempt, names two groups of sites
    attempt = 4096 + 4 * names + 4 * sites * statement
    others = MAX_ENTRY_BYTES  # manifests with their countersignatures; of what the study leaves, all but its numbers
    trained = largest_missing_bytes(manifest.dimension) + 4 * manifest.dimension  # at the end with the finished one
    folded = frozen_bytes if manifest.study.model.adapter == "core" else 0  # the finished one as a LoRA, too
    return MAX_HEADER_BYTES + trained + frozen_bytes + folded + manifest.max_attempts * attempt + others
