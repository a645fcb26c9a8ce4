"""All attacks on one adapter."""

from collections.abc import Callable, Sequence

from ...common.audit.membership import Seen
from ...common.model.adapter import Vector
from ...common.model.language_model import LanguageModel
from ...common.study.manifest import Manifest
from .scores import Patient, Scorer


def attacked(
    model: LanguageModel,
    adapter: Vector,
    manifest: Manifest,
    *,
    members: Sequence[Patient],
    others: Sequence[Patient],
    tell: Callable[[str], None],
) -> tuple[Seen, Seen]:
    """What attacks see of members and of others, of an ``adapter``, float32 [d], beside the base model.

    On the ``model`` is all of the study's adapter that is not trained. ``tell`` hears how far it is. Raises ModelError.
    """
    scorer = Scorer.against_base(model, adapter, clipping_norm=manifest.study.privacy.clipping_norm)
    return (
        scorer.seen(members, lambda done: tell(f"attacking the adapter with records it was trained on, {done} %")),
        scorer.seen(others, lambda done: tell(f"attacking the adapter with records of others, {done} %")),
    )
