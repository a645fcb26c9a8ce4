"""What cannot be trained privately: models in which one record's gradient depends on the others in its batch."""

from collections.abc import Callable
from typing import Any

from torch import nn

from ...common.errors import ModelError
from ...common.model.nf4 import is_nf4, is_own_config
from ...common.model.peft_library import DoraLinearLayer
from ...common.model.reading import choices
from .private_layers import PrivateMagnitude, is_trained

WHY_ALONE = "a patient's influence is bounded only if each record's gradient depends on that record alone"


def refuse_coupled_records(module: Any) -> None:
    """Raises ModelError, with a reason, for a peft model in which records cannot be told apart."""
    for problem, fix, applies in _REFUSALS:
        if applies(module):
            raise ModelError(f"the model cannot be trained privately: {problem}", why=WHY_ALONE, fix=fix)


def _normalises_over_the_batch(module: Any) -> bool:
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


def _is_quantised(module: Any) -> bool:
    layers = [layer for layer in module.modules() if not is_nf4(layer)]
    parameters = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    plain = all(type(parameter) is nn.Parameter and parameter.is_floating_point() for parameter in parameters)
    quantised_layer = any(type(layer).__module__.startswith("torch.ao.") for layer in layers)
    stated = getattr(module.config, "quantization_config", None)
    return not plain or quantised_layer or not (stated is None or is_own_config(stated))


def _scales_other_than_linear_layers(module: Any) -> bool:
    magnitudes = [layer for layer in module.modules() if isinstance(layer, DoraLinearLayer)]
    return any(type(magnitude) not in (DoraLinearLayer, PrivateMagnitude) for magnitude in magnitudes)


def _trains_embeddings(module: Any) -> bool:
    return any(is_trained(layer) for layer in module.modules() if isinstance(layer, nn.Embedding))


def _ties_trained_weights(module: Any) -> bool:
    trained = [p.data_ptr() for _, p in module.named_parameters(remove_duplicate=False) if p.requires_grad]
    return len(set(trained)) != len(trained)


def _trains_nothing(module: Any) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())


_DENSE = "choose a dense model"
_PLAIN = "choose adapter 'ffa' or 'lora' on linear layers"
_REFUSALS: tuple[tuple[str, str, Callable[[Any], object]], ...] = (
    ("it normalises over the batch", "choose a model with layer normalisation", _normalises_over_the_batch),
    ("its weights or activations are quantised, some by the batch's extremes", "dequantise it first", _is_quantised),
    ("DoRA is not built for embeddings and convolutions", _PLAIN, _scales_other_than_linear_layers),
    ("embeddings are trained whole", "put an adapter on them", _trains_embeddings),
    ("a trained weight is used under two names", _PLAIN, _ties_trained_weights),
    ("nothing in it is trained", "choose target_modules", _trains_nothing),
    # Last, since it lets the model read.
    ("it chooses by a token's content what is computed with it, as one that routes to experts does", _DENSE, choices),
)
