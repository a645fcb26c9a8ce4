"""The base model: every weight from the files that are hashed, tried before anything rests on it."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from ..errors import ModelError
from .devices import PROCESSORS
from .library_errors import library_errors
from .nf4 import is_nf4, nf4_config, plain_weight, settle
from .reading import check_causal

# How the base model's numbers are held: in 32 bits, in 16, or its linear layers in 4 and the rest in 16. It computes in
# float32 in the first case, in bfloat16 in the others; the adapter is in float32 always.
Precision = Literal["float32", "bfloat16", "nf4"]

_WHY: Final = "the study fine-tunes it"
# Where a configuration says how many tokens can be read; libraries have not agreed on a word.
_POSITIONS: Final = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length", "context_length")


def load_base(folder: Path, *, precision: Precision) -> Any:
    """The causal language model of a folder, without dropout, on processors.

    Only safetensors are read and no code of the model's is run. Quantised it is here, on processors, whose arithmetic
    gives every site the same bits. Raises ModelError, with the cause, where transformers does not load it, where it
    comes quantised, where a weight is in no file or is not finite, and where it reads ahead.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = _configuration(folder)
    quantised = {"quantization_config": nf4_config(), "device_map": PROCESSORS} if precision == "nf4" else {}
    with _loading(f"{folder} cannot be loaded as a causal language model"), quiet():
        base, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32 if precision == "float32" else torch.bfloat16,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # `_check_from_files` says which; the library would not
            output_loading_info=True,
            **quantised,
        )
    _check_can_be_saved(folder, base)
    base.config.pad_token_id = None  # nothing in the model is to look for padding, nor to warn about it
    _check_from_files(folder, [*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])])
    _check_finite(folder, base)
    if quantised:
        settle(base)
    with quiet():
        check_causal(base.eval(), positions=positions(config))
    return base


def load_widened(folder: Path, *, precision: Precision) -> Any:
    """The model of ``load_base``, each of its numbers in float32, which holds it exactly: to merge an adapter into.

    Raises ModelError as ``load_base``.
    """
    import torch

    base = load_base(folder, precision="float32")
    if precision == "float32":
        return base
    held = load_base(folder, precision=precision)
    weights = dict(base.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, layer in held.named_modules():
            for own, parameter in layer.named_parameters(recurse=False):
                is_quantised = own == "weight" and is_nf4(layer)
                weights[f"{name}.{own}" if name else own].copy_(plain_weight(layer) if is_quantised else parameter)
    return base


def positions(config: Any) -> int | None:
    """How many tokens of a record a model of this configuration can read; None where it states no end."""
    text = config.get_text_config()
    stated = (getattr(text, name, None) for name in _POSITIONS)
    return next((int(value) for value in stated if isinstance(value, int) and value > 0), None)


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars, and without the libraries' warnings about each other's next versions and loading."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _configuration(folder: Path) -> Any:
    """The folder's configuration, of a kind that can be loaded, without dropout. Raises ModelError."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    with _loading(f"{folder} has no configuration that transformers can read"), quiet():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    parts = (config, config.get_text_config())
    if any(getattr(part, name, None) for part in parts for name in ("quantization_config", "compression_config")):
        raise ModelError(
            f"the weights in {folder} are quantised, as its config.json says",
            why="gradients through quantised layers may depend on the batch, and no adapter merges into them exactly",
            fix="name the model that it was made from, in float32, bfloat16 or float16, or dequantise it and save it",
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        reads_more = [name for name in ("vision_config", "audio_config") if getattr(config, name, None) is not None]
        beside = f" (it reads more than text, by its {' and '.join(reads_more)})" if reads_more else ""
        raise ModelError(
            f"{folder} is of type {config.model_type}, of which transformers has no causal language model{beside}",
            why=_WHY,
            fix="choose a causal language model of text alone, or one whose text part transformers loads as such",
        )
    _without_dropout(config)
    return config


def _without_dropout(config: Any) -> None:
    """Set every dropout of a configuration to zero: what is trained privately is a function of record and adapter."""
    for name, value in vars(config).items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
        elif hasattr(value, "model_type"):  # the text part of a model of several parts
            _without_dropout(value)


def _check_can_be_saved(folder: Path, base: Any) -> None:
    """Of some models of images and text a part is loaded that cannot be loaded once it is saved by itself."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(base.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"transformers loads a part of {folder} ({type(base).__name__}) that it cannot load once it is saved",
            why="whoever merges the adapter into the model and saves it could not use what was saved",
            fix="choose a causal language model of text alone",
        )


def _check_from_files(folder: Path, missing: list[str]) -> None:
    if missing:
        raise ModelError(
            f"{folder} holds no weights for {_some(sorted(missing))}, or in another shape than its config.json says",
            why="they would be drawn at random at each load: every site would have another model, under one hash",
            fix="save the whole model, with its head, by save_pretrained, or name a causal language model's folder",
        )


def _check_finite(folder: Path, base: Any) -> None:
    import torch

    tensors = [
        (name, tensor.quant_state.absmax if hasattr(tensor, "quant_state") else tensor)
        for name, tensor in base.named_parameters()
        if tensor.numel()
    ]
    # Two numbers of each tensor, without a copy of it: they are not finite where one of its numbers is not.
    damaged = [name for name, tensor in tensors if not torch.isfinite(torch.stack(tensor.detach().aminmax())).all()]
    if damaged:
        raise ModelError(
            f"{folder} holds numbers that are not finite, in {_some(damaged)}",
            why="no record has a gradient there, and a study would spend privacy on nothing",
            fix="download or save the model again; the checkpoint is damaged, or training it overflowed",
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _loading(what: str) -> AbstractContextManager[None]:
    return library_errors(
        what,
        why=_WHY,
        fix="mend what stands in brackets; a model is saved as safetensors, and needs no code of its own",
    )
