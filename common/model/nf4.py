"""NF4: the weights of a base model's linear layers in 4 bits each, by bitsandbytes."""

import importlib.util
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from ..errors import ModelError

if TYPE_CHECKING:  # importing torch takes a second, which `grandrounds --help` does not have
    import torch

_LIBRARY: Final = "bitsandbytes"
_WHY: Final = "model.precision is nf4: it makes 4 bits of each weight, at every site in the same way"
_BLOCK: Final = 64  # weights that share a scale
# What bitsandbytes fetches native code with, of which no hash is anywhere, where it is installed beside it.
_FETCHER: Final = "kernels"
# By this attribute, which is set on some processors, a layer lays out its weight anew when it is first evaluated, and
# from then on computes by a kernel without a backward pass: gradients would lack, silently, whatever goes through it.
_RELAYS: Final = "support_avx512bf16_for_cpu"


def nf4_config() -> Any:
    """How transformers quantises a base model as it loads it. Raises ModelError where bitsandbytes is not installed.

    NF4 of Dettmers et al. 2023 (QLoRA, section 3): blocks of 64 weights share a float32 scale, and each weight is the
    nearest of 16 quantiles of a normal distribution. The scales are not quantised once more: that saves a tenth of the
    memory, and adds an error and a second format to what every site has to hold alike. What a weight becomes depends
    on weights alone, never on a batch. Products are taken in bfloat16, on processors as on GPUs.
    """
    _require()
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=False,
    )


def settle(base: Any) -> None:
    """Have quantised layers compute alike with and without gradients. Raises ModelError where few weights are such."""
    for layer in base.modules():
        if hasattr(layer, _RELAYS):
            setattr(layer, _RELAYS, False)
    _check_blocks_end_with_rows(base)
    _check_most_is_quantised(base)
    # peft then takes them for the linear layers that they are, whether bitsandbytes was there when it was imported.
    base.is_loaded_in_4bit = False


def is_nf4(layer: Any) -> bool:
    """Whether a layer is linear with a frozen weight in NF4, quantised as ``nf4_config`` says, and is settled."""
    library = sys.modules.get(_LIBRARY)
    if library is None or type(layer) is not library.nn.Linear4bit:
        return False
    weight = layer.weight
    return (
        type(weight) is library.nn.Params4bit
        and weight.quant_type == "nf4"
        and weight.bnb_quantized
        and not weight.compress_statistics
        and not weight.requires_grad
        and not getattr(layer, _RELAYS)
    )


def is_own_config(config: Any) -> bool:
    """Whether a model's configuration says that it is quantised as ``nf4_config`` does it, and no otherwise."""
    return _LIBRARY in sys.modules and getattr(config, "to_dict", dict)() == nf4_config().to_dict()


def plain_weight(layer: Any) -> "torch.Tensor":
    """bfloat16, of the shape that the layer's weight has in its file: the numbers that an NF4 layer multiplies by."""
    from bitsandbytes.functional import dequantize_4bit
    from transformers.pytorch_utils import Conv1D

    weight: torch.Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight.T if layer.source_cls is Conv1D else weight


@contextmanager
def unseen() -> Iterator[None]:
    """Without bitsandbytes for who imports inside: peft would load it wherever it is installed, for two seconds."""
    if _LIBRARY in sys.modules:
        yield
        return
    with _hidden(_LIBRARY):
        yield


def _require() -> None:
    """Import bitsandbytes as it was installed. Raises ModelError where it is not."""
    if importlib.util.find_spec(_LIBRARY) is None:
        raise ModelError(
            "bitsandbytes is not installed",
            why=_WHY,
            fix="run `pip install 'grandrounds[nf4]'`, or, in a study that nobody has signed, choose another precision",
        )
    logger = logging.getLogger(_LIBRARY)
    level = logger.level
    logger.setLevel(logging.ERROR)  # it asks for what it shall not fetch
    try:
        with _hidden(_FETCHER):
            import bitsandbytes  # noqa: F401
    except Exception as error:  # of what it loads itself: native code, and libraries of its own
        raise ModelError(
            f"bitsandbytes is installed and cannot be loaded ({type(error).__name__})",
            why=_WHY,
            fix="run `pip install --force-reinstall 'grandrounds[nf4]'`; `python -m bitsandbytes` says what is wrong",
        ) from error
    finally:
        logger.setLevel(level)


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """A module that whoever imports it inside does not find."""
    missing = object()
    found = sys.modules.get(name, missing)
    sys.modules[name] = None  # type: ignore[assignment]  # so does Python say that there is none
    try:
        yield
    finally:
        del sys.modules[name]
        if found is not missing:
            sys.modules[name] = found  # type: ignore[assignment]


def _check_blocks_end_with_rows(base: Any) -> None:
    """bitsandbytes' kernel for AVX512 begins a block with each row, which its quantisation does not (0.50.2)."""
    for name, layer in base.named_modules():
        if is_nf4(layer) and layer.in_features % _BLOCK:
            raise ModelError(
                f"{name} has rows of {layer.in_features} weights, which is no multiple of {_BLOCK}",
                why="a block of nf4 would run on into the next row, for which processors take another scale than GPUs",
                fix="set model.precision to bfloat16",
            )


def _check_most_is_quantised(base: Any) -> None:
    quantised = sum(layer.weight.quant_state.shape.numel() for layer in base.modules() if is_nf4(layer))
    tables = (base.get_input_embeddings(), base.get_output_embeddings())
    beside = {id(table.weight) for table in tables if table is not None}
    others = sum(each.numel() for each in base.parameters() if each.is_floating_point() and id(each) not in beside)
    if quantised < others:
        raise ModelError(
            f"nf4 makes 4 bits of {quantised / (quantised + others):.0%} of the model's weights alone",
            why="bitsandbytes quantises linear layers, and this model keeps most of its weights in others",
            fix="set model.precision to bfloat16",
        )
