"""That a folder's adapter is the one the study trained: its numbers, and how peft is told to use them."""

import json
from typing import Final

from ...common.crypto.identity import sha256
from ...common.errors import ModelError
from ...common.ledger import entries
from ...common.ledger.chain import EntryType
from ...common.ledger.replay import VerifiedLedger
from ...common.model.adapter import AdapterLayout, Vector, vector_sha256
from ...common.model.adapter_config import adapter_config
from ...common.model.adapter_file import is_folded, read_tensors, vector_of
from ...common.model.base_folder import published_name
from ...common.study.artefacts import CONFIG, CORE, PREPARED, SUMS, WEIGHTS, trained_path
from ...common.study.first_adapter import BY_HASH, FirstAdapter
from .case import Case, Claim, DisagreesError, OpenError, differences, parse_json


def _trained(case: Case) -> str:
    vector = adapter_vector(case, trained=True)
    expected, source = last_adapter(case.verified)
    _require_hash(vector, expected)
    return f"{vector.size} numbers, SHA-256 {expected[:16]}…, as {source}"


def _frozen(case: Case) -> str:
    vector = adapter_vector(case, trained=False)
    _require_hash(vector, case.verified.manifest.frozen_adapter_sha256)
    return f"{vector.size} numbers{_prepared(case)}"


def _prepared(case: Case) -> str:
    """Of which file they are, if of one; where it is there, it is compared. Raises DisagreesError."""
    manifest = case.verified.manifest
    named = manifest.study.model.first_adapter
    if named is None:
        return ""
    model = manifest.study.model
    source = "made from" if model.first_study is None else f"which study {model.first_study} left:"
    of = f", of the first adapter {named}, {source} {model.first_text}"
    data = case.evidence.sum_file(PREPARED)
    if data is None:
        return f"{of}; its file is not in {SUMS}/ to be compared"
    if sha256(data) != named.removeprefix(BY_HASH):
        raise DisagreesError(f"{PREPARED} has the SHA-256 {sha256(data)}, and the study names {named}")
    made = FirstAdapter.parse(data, called=PREPARED).made
    if made.study_sha256 != model.first_study or (made.study_sha256 is not None and made.text != model.first_text):
        origin = "public text" if made.study_sha256 is None else f"study {made.study_sha256}: {made.text}"
        raise DisagreesError(f"{PREPARED} says that it is of {origin}; the manifest, {source} {model.first_text}")
    tensors, kind = read_tensors(data), manifest.study.model.adapter
    _require_hash(vector_of(tensors, kind=kind, trained=False), manifest.frozen_adapter_sha256)
    _require_hash(vector_of(tensors, kind=kind, trained=True), manifest.adapter_sha256)
    return f"{of}; {PREPARED} has them, and what was trained as it began"


def _configured(case: Case) -> str:
    found, model = case.result(CONFIG), case.verified.manifest.study.model
    if model.adapter == "core" and not is_folded(case.result(WEIGHTS), case.result(CORE)):
        raise DisagreesError(f"{WEIGHTS} is not what follows from {CORE}")
    base = published_name(model.name)
    tensors = _tensors(case) if isinstance(model.target_modules, str) else {}  # a pattern's layers are in their names
    expected = [
        adapter_config(model.lora, base_model=base, fan_in_fan_out=each, tensors=tensors) for each in (False, True)
    ]
    if found not in expected:
        other = [*differences(parse_json(CONFIG, found), json.loads(expected[0]))]
        names = ", ".join(each.name for each in other[:10])
        raise case.otherwise(f"{CONFIG} has another {names or 'form'} than follows from the manifest", other)
    return f"byte for byte: {model.lora}, of {base}"


def adapter_vector(case: Case, *, trained: bool) -> Vector:
    """The adapter's trained numbers, or the others, as one vector (``common/model/adapter``). Raises DisagreesError."""
    return vector_of(_tensors(case), kind=case.verified.manifest.study.model.adapter, trained=trained)


def _tensors(case: Case) -> dict[str, Vector]:
    """The adapter's tensors, of the names and shapes that the manifest states. Raises DisagreesError."""
    path = trained_path(case.verified.manifest.study.model.adapter)
    try:
        tensors = read_tensors(case.result(path))
    except ModelError as error:
        raise DisagreesError(f"{path}: {error.what}") from error
    layout = AdapterLayout.of({name: tensor.shape for name, tensor in tensors.items()})
    if layout.sha256 != case.verified.manifest.adapter_layout_sha256:
        raise DisagreesError(f"{path} has tensors of other names or shapes than the study's adapter")
    return tensors


def last_adapter(verified: VerifiedLedger) -> tuple[str, str]:
    """The hash of the adapter that the study left, and who says so."""
    if verified.rounds:
        return verified.rounds[-1].left_sha256, f"round {verified.rounds[-1].round} left it"
    for entry in verified.ledger:
        if entry.type is EntryType.ATTEMPT_BEGUN:
            return entries.AttemptBegun.of(entry).adapter_sha256, "the first attempt began with it"
    raise OpenError("no attempt was begun")


def _require_hash(vector: Vector, expected: str) -> None:
    found = vector_sha256(vector)
    if found != expected:
        raise DisagreesError(f"their SHA-256 is {found[:16]}…, and not {expected[:16]}…")


ADAPTER_CLAIMS: Final = (
    Claim(
        name="trained",
        claim="The adapter's trained numbers are those that the last round left",
        recomputed_from=f"{WEIGHTS} and the ledger",
        check=_trained,
    ),
    Claim(
        name="frozen",
        claim="Its other numbers are the ones that all sites began with",
        recomputed_from=f"{WEIGHTS} and the manifest",
        check=_frozen,
    ),
    Claim(
        name="configuration",
        claim="The adapter is used as it was trained",
        recomputed_from=f"{CONFIG} and the manifest",
        check=_configured,
    ),
)
