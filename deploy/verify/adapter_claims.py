"""That a folder's adapter is the one the study trained: its numbers, and how peft is told to use them."""

from collections.abc import Mapping
from typing import Any, Final

from ...common.ledger import entries
from ...common.ledger.chain import EntryType
from ...common.ledger.replay import VerifiedLedger
from ...common.model.adapter import AdapterLayout, Vector, vector_sha256
from ...common.study.artefacts import CONFIG, WEIGHTS
from ...common.study.study import ModelSection
from .case import Case, Claim, DisagreesError, OpenError, parse_json

_A, _B = ".lora_A.weight", ".lora_B.weight"
# Fields of adapter_config.json that change nothing about what the adapter computes on the base model, whose name is
# compared with the report's.
_BASE: Final = "base_model_name_or_path"
_WITHOUT_EFFECT: Final = frozenset(
    {
        _BASE,
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "task_type",
    }
)


def _trained(case: Case) -> str:
    vector = adapter_vector(case, trained=True)
    expected, source = _last_adapter(case.verified)
    _require_hash(vector, expected)
    return f"{vector.size} numbers, SHA-256 {expected[:16]}…, as {source}"


def _frozen(case: Case) -> str:
    vector = adapter_vector(case, trained=False)
    _require_hash(vector, case.verified.manifest.frozen_adapter_sha256)
    return f"{vector.size} numbers"


def _configured(case: Case) -> str:
    config, model = parse_json(CONFIG, case.result(CONFIG)), case.verified.manifest.study.model
    if not isinstance(config, dict):
        raise DisagreesError(f"{CONFIG} is no object")
    targets = config.get("target_modules")
    given = {**config, "target_modules": sorted(targets) if isinstance(targets, list) else targets}
    expected: dict[str, Any] = {
        "peft_type": "LORA",
        "r": model.rank,
        "lora_alpha": model.alpha,
        "target_modules": sorted(model.target_modules),
        "bias": "none",
    }
    wrong = [name for name, value in expected.items() if given.get(name) != value]
    # Whatever else peft knows is off: it would make something else of the same numbers.
    wrong += [name for name, value in given.items() if value and name not in _WITHOUT_EFFECT and name not in expected]
    if wrong:
        raise DisagreesError(f"{CONFIG} has another {', '.join(wrong[:10])}")
    if given.get(_BASE) != case.sound_report["base_model"]:
        raise DisagreesError(f"{CONFIG} has another {_BASE} than the report")
    return f"rank {model.rank}, alpha {model.alpha:g}, on {', '.join(model.target_modules)}"


def adapter_vector(case: Case, *, trained: bool) -> Vector:
    """The adapter's trained numbers, or the others, as one vector (``common/model/adapter``). Raises DisagreesError."""
    tensors, model = _tensors(case.result(WEIGHTS)), case.verified.manifest.study.model
    _check_tensors(tensors, model)
    suffixes = (_B,) if model.adapter == "ffa" else (_A, _B)
    chosen = {name: tensor for name, tensor in tensors.items() if name.endswith(suffixes) == trained}
    return AdapterLayout.of({name: tensor.shape for name, tensor in chosen.items()}).flatten(chosen)


def _tensors(data: bytes) -> dict[str, Vector]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DisagreesError(f"{WEIGHTS} is no file of safetensors") from error
    if any(tensor.dtype != "float32" for tensor in tensors.values()):
        raise DisagreesError(f"{WEIGHTS} has numbers that are not float32")
    return tensors


def _check_tensors(tensors: Mapping[str, Vector], model: ModelSection) -> None:
    """An A and a B of the study's rank for each layer, on layers that the study names; nothing else."""
    layers = {name.removesuffix(_A).removesuffix(_B) for name in tensors}
    if set(tensors) != {layer + part for layer in layers for part in (_A, _B)} or not layers:
        raise DisagreesError(f"{WEIGHTS} does not hold an A and a B for each layer, and those alone")
    for layer in sorted(layers):
        a, b = tensors[layer + _A].shape, tensors[layer + _B].shape
        if len(a) < 2 or len(b) < 2 or (a[0], b[1]) != (model.rank, model.rank):
            raise DisagreesError(f"the adapter of {layer} is not of rank {model.rank}")
        if not layer.endswith(tuple(f".{target}" for target in model.target_modules)):
            raise DisagreesError(f"there is an adapter for {layer}, which the study does not name")


def _last_adapter(verified: VerifiedLedger) -> tuple[str, str]:
    """The hash of the adapter that the study left, and who says so."""
    if verified.rounds:
        return verified.rounds[-1].adapter_sha256, f"round {verified.rounds[-1].round} left it"
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
        claim="The adapter's trained numbers are those that the last round left",
        recomputed_from=f"{WEIGHTS} and the ledger",
        check=_trained,
    ),
    Claim(
        claim="Its other numbers are the public ones that all sites began with",
        recomputed_from=f"{WEIGHTS} and the manifest",
        check=_frozen,
    ),
    Claim(
        claim="The adapter is used as it was trained",
        recomputed_from=f"{CONFIG}, the report's base model and the manifest",
        check=_configured,
    ),
)
