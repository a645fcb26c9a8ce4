"""A prompt continued by the base model, and by the base model with the adapter."""

from dataclasses import dataclass
from typing import Any

from ...common.errors import ModelError
from ...common.model.base_model import quiet
from ...common.model.language_model import LanguageModel
from ...common.model.library_errors import library_errors_over_records


@dataclass(frozen=True, kw_only=True)
class Continuations:
    """What follows the prompt; both greedy, so that they differ by the adapter and by nothing drawn."""

    without: str
    with_adapter: str


def continuations(model: LanguageModel, tokenizer: Any, prompt: str, *, max_new_tokens: int) -> Continuations:
    """Continue a prompt by at most ``max_new_tokens`` tokens without the adapter, and with it.

    Raises ModelError where there is nothing to continue, or more than the model reads.
    """
    encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    tokens, positions = encoded["input_ids"].shape[1], model.positions
    if not tokens:
        raise ModelError(
            "the prompt is empty",
            why="a model continues a text",
            fix='give one, as in `grandrounds adapter try DIR "Reason for visit:"`, or send it to standard input',
        )
    if positions is not None and tokens + max_new_tokens > positions:
        raise ModelError(
            f"the prompt has {tokens} tokens, and the model reads {positions} with those that it adds",
            why=f"{max_new_tokens} more would not fit",
            fix="shorten the prompt, or lower --max-new-tokens",
        )

    def continued() -> str:
        with (
            quiet(),
            library_errors_over_records(
                "the model does not continue the prompt", why="this is what was asked for", fix="try another prompt"
            ),
        ):
            made = model.module.generate(
                **encoded, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id or 0
            )
        return str(tokenizer.decode(made[0, tokens:], skip_special_tokens=True))

    with model.module.disable_adapter():
        without = continued()
    return Continuations(without=without, with_adapter=continued())
