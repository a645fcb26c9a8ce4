"""How a model reads text, found out on random tokens: what a study rests on is tried, and nothing told by names."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

from ..errors import ModelError
from .library_errors import library_errors

if TYPE_CHECKING:  # importing torch takes a second, which `grandrounds --help` does not have
    import torch

# Tokens that are read at a trial; the other sequences differ from the first from one of ``_SPLITS`` on. Both are prime,
# so that a block which is read in both directions has a split inside; the small one is for a prefix that is.
_TOKENS: Final = 37
_SPLITS: Final = (3, 31)
# Of what other tokens change at their own places, what they may change before them: rounding, and nothing else.
_ROUNDING: Final = 1e-5
# What chooses by numbers what is computed next, by PyTorch's names of its operators.
_CHOICES: Final = frozenset(
    {"topk", "sort", "argsort", "argmax", "argmin", "kthvalue", "nonzero", "bincount", "histc", "multinomial"}
    | {"_grouped_mm", "unique_dim", "_unique2", "unique_consecutive", "masked_select"}
)


def vocabulary_size(module: Any) -> int:
    """How many tokens a model has, from 0 on: those that it can read and predict."""
    tables = (module.get_input_embeddings(), module.get_output_embeddings())
    return min(int(table.weight.shape[0]) for table in tables if table is not None)


def check_causal(module: Any, *, positions: int | None) -> None:
    """Raises ModelError where what is predicted at a place depends on later tokens, or is no number."""
    import torch

    tokens = min(positions or _TOKENS, _TOKENS)
    first, other = _random_tokens(module, 2, tokens)
    with _tried(), torch.no_grad():
        expected = _logits(module, first)
        if not torch.isfinite(expected).all():
            raise ModelError(
                "what the model predicts of random tokens is not finite",
                why="no record has a gradient there, and a study would spend privacy on nothing",
                fix="use a checkpoint whose numbers neither overflow nor are damaged",
            )
        for split in (split for split in _SPLITS if split < tokens):
            changed = (_logits(module, torch.cat([first[:split], other[split:]])) - expected).abs()
            if changed[:split].max() > _ROUNDING * changed[split:].max():
                raise ModelError(
                    "the model reads ahead: what it predicts at a place depends on later tokens",
                    why="the next token is what is to be learnt, and such a model, as an encoder like BERT is, sees it",
                    fix="choose a causal language model, which reads in one direction",
                )


def probe_logits(module: Any) -> "torch.Tensor":
    """float32 [tokens, vocabulary], of random tokens: the same ones at each call and for models of one vocabulary."""
    import torch

    with _tried(), torch.no_grad():
        return _logits(module, _random_tokens(module, 1, _TOKENS)[0])


def layers_reached(module: Any) -> set[str]:
    """The names of the layers that make a tensor when the model reads text: of a model of images and text, not all."""
    import torch

    reached: set[str] = set()

    def reach(name: str, made: object) -> None:
        if isinstance(made, torch.Tensor):  # a router may be called a linear layer, and make more than its product
            reached.add(name)

    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, made, name=name: reach(name, made))
        for name, layer in module.named_modules()
    ]
    try:
        with _tried(), torch.no_grad():
            _logits(module, _random_tokens(module, 1, 8)[0])
    finally:
        for hook in hooks:
            hook.remove()
    return reached


def choices(module: Any) -> set[str]:
    """The operators by which the model chooses what to compute for a token, such as topk where it routes to experts."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    met: set[str] = set()

    class Listening(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            met.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with _tried(), torch.no_grad(), Listening():  # type: ignore[no-untyped-call]
        _logits(module, _random_tokens(module, 1, 8)[0])
    return met & _CHOICES


def _random_tokens(module: Any, sequences: int, tokens: int) -> "torch.Tensor":
    """int64 [sequences, tokens], the same at each call."""
    import torch

    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(vocabulary_size(module), (sequences, tokens), generator=generator)
    return drawn.to(next(module.parameters()).device)


def _logits(module: Any, token_ids: "torch.Tensor") -> "torch.Tensor":
    """float32 [tokens, vocabulary] of int64 [tokens]."""
    logits: torch.Tensor = module(input_ids=token_ids[None], use_cache=False).logits[0].float()
    return logits


def _tried() -> AbstractContextManager[None]:
    return library_errors(
        "the model cannot read text",
        why="a study trains on records of text, and on nothing beside it",
        fix="choose a causal language model that transformers runs on text alone",
    )
