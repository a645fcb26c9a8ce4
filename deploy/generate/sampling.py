"""Notes drawn from a model, batch by batch: each follows from the seed and its number, and from nothing before it."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from ...common.errors import ModelError
from ...common.model.base_model import quiet
from ...common.model.language_model import LanguageModel
from ...common.model.library_errors import library_errors_over_records
from .form import Filling
from .prompts import Prompt, Prompts

if TYPE_CHECKING:  # importing torch takes a second, which `grandrounds --help` does not have
    import torch


_CANDIDATES: Final = 1024
_LOOKED_AT: Final = 1024  # prompts, for one that is another


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How notes are drawn; the seed is public, and chooses nothing that privacy rests on.

    ``top_p`` is nucleus sampling (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration"): each token is
    one of the likeliest that have this probability together. ``precision`` is in what the model computes; None for what
    the adapter was trained in.

    ``guidance`` is classifier-free guidance (Sanchez et al. 2023, "Stay on Topic with Classifier-Free Guidance"): so
    many times counts by how much a note's own prompt changes a token's log-probability beside the next note's prompt
    that is another. At 1 it is the model's own; else each token is computed behind both.
    """

    count: int
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    batch: int
    precision: Literal["float32", "bfloat16"] | None = None
    guidance: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Note:
    """A note: its prompt, and what the model wrote behind it; ``ended`` where it came to an end of its own."""

    prompt: Prompt
    written: str
    ended: bool


def batches(
    model: LanguageModel, tokenizer: Any, prompts: Prompts, sampling: Sampling, *, first: int = 0
) -> Iterator[list[Note]]:
    """The notes from number ``first`` on, which begins a batch, with whatever adapter is active; a batch at a time.

    The same seed gives the same notes on the same machine with the same libraries, wherever one goes on. Raises
    ModelError where a prompt has no token, leaves the model no room, or for guidance has no other beside it.
    """
    import torch

    for start in range(first, sampling.count, sampling.batch):
        numbers = range(start, min(start + sampling.batch, sampling.count))
        fillings = [Filling(prompts.sections, tokenizer) for _ in numbers if prompts.sections]
        begun = [prompts.prompt(number, seed=sampling.seed) for number in numbers]
        others = [_another(prompts, number, seed=sampling.seed) for number in numbers if sampling.guidance != 1]
        generator = torch.Generator(model.device).manual_seed(_seed(sampling.seed, start))
        draw = _Draw(sampling=sampling, generator=generator, fillings=fillings)
        yield _batch(model, tokenizer, begun, others, draw)


def _another(prompts: Prompts, number: int, *, seed: int) -> Prompt:
    """The next note's prompt behind note ``number`` whose text is another. Raises ModelError."""
    own = prompts.prompt(number, seed=seed).text
    following = (prompts.prompt(number + step, seed=seed) for step in range(1, _LOOKED_AT + 1))
    found = next((prompt for prompt in following if prompt.text != own), None)
    if found is None:
        raise ModelError(
            f"the prompts of {prompts.name} do not differ",
            why="guidance counts by what a note's prompt changes beside another's, and would change nothing",
            fix="leave --guidance out, or mix prompts that differ",
        )
    return found


def _batch(
    model: LanguageModel, tokenizer: Any, prompts: Sequence[Prompt], others: Sequence[Prompt], draw: "_Draw"
) -> list[Note]:
    import torch

    sampling, end = draw.sampling, tokenizer.eos_token_id
    encoded = [_tokens(tokenizer, prompt.text, end) for prompt in (*prompts, *others)]
    longest = max(map(len, encoded))
    _check(encoded, model.positions, sampling.max_new_tokens)
    tokens, mask = torch.full((len(encoded), longest), end or 0), torch.zeros(len(encoded), longest, dtype=torch.long)
    for row, each in enumerate(encoded):  # padded on the left: what is written stands behind the last token
        tokens[row, longest - len(each) :], mask[row, longest - len(each) :] = torch.tensor(each), 1
    with torch.inference_mode(), _continuing(sampling.batch), _head_reads_whole_rows(model):
        made = model.module.generate(
            input_ids=tokens.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,  # the likeliest of what ``_Draw`` has left, which is one
            logits_processor=[draw],
            repetition_penalty=1.0,  # else what the model's folder says
            pad_token_id=end or 0,
        )[:, longest:].cpu()
    rows = zip(prompts, encoded, made.tolist(), strict=False)  # behind them are the others, which say the same
    return [_note(tokenizer, prompt, read, written, end) for prompt, read, written in rows]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Draw:
    """Draws each row's next token, of the ``_CANDIDATES`` likeliest at most: to sort all takes as long as the model.

    Where notes have a form, it has the last word (``fillings``, one for each row).
    """

    sampling: Sampling
    generator: "torch.Generator"
    fillings: Sequence[Filling] = ()

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        """Logits float [batch, vocabulary] that leave the token which was drawn, and no other."""
        import torch

        logits = scores.float()
        guided = self.sampling.guidance != 1
        if guided:
            told, other = logits.log_softmax(-1).chunk(2)
            # What is forbidden behind both, as by the model's folder, stays so: the difference would be no number.
            logits = torch.where(other.isneginf(), other, other + self.sampling.guidance * (told - other))
        logits = logits / self.sampling.temperature
        likeliest, places = logits.topk(min(_CANDIDATES, logits.shape[-1]))
        chances = (likeliest - logits.logsumexp(-1, keepdim=True)).exp()
        chances = chances * (chances.cumsum(-1) - chances < self.sampling.top_p)  # what reaches top_p stays
        drawn = places.gather(-1, torch.multinomial(chances, 1, generator=self.generator))
        if self.fillings:
            rows = zip(self.fillings, drawn.flatten().tolist(), strict=True)
            drawn = torch.tensor([[filling.next(token)] for filling, token in rows], device=scores.device)
        if guided:
            drawn = drawn.repeat(2, 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)


@contextmanager
def _head_reads_whole_rows(model: LanguageModel) -> Iterator[None]:
    """Give the last layer the last places' states as a tensor of their own.

    They are a cut through those of the prompts, for which PyTorch would copy the layer's weights for each note.
    """
    head = model.module.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, states: (states[0].contiguous(), *states[1:]))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _continuing(batch: int) -> Iterator[None]:
    import torch

    said = library_errors_over_records(
        "the model does not continue the prompts", why="this is what was asked for", fix="try other prompts"
    )
    try:
        with quiet(), said:
            yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{batch} notes at a time do not fit into the GPU's memory",
            why="the model keeps what it has read of each",
            fix="lower --batch, which changes what is drawn, or --max-new-tokens",
        ) from error


def _note(tokenizer: Any, prompt: Prompt, read: list[int], written: list[int], end: int | None) -> Note:
    ended = end in written
    kept = written[: written.index(end)] if ended and end is not None else written
    # Decoded with the prompt: by itself, what begins with a space would lose it with some tokenizers.
    before, whole = (str(tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in (read, [*read, *kept]))
    return Note(prompt=prompt, written=whole[len(before) :], ended=ended)


def _tokens(tokenizer: Any, text: str, end: int | None) -> list[int]:
    """A prompt's tokens, without the end that some tokenizers put behind each text."""
    tokens = list(tokenizer(text, return_token_type_ids=False)["input_ids"])
    return tokens[:-1] if len(tokens) > 1 and tokens[-1] == end else tokens


def _check(encoded: Sequence[Sequence[int]], positions: int | None, max_new_tokens: int) -> None:
    longest = max(map(len, encoded))
    if not all(encoded):
        raise ModelError("a prompt has no token", why="a model continues a text", fix="give each prompt a word")
    if positions is not None and longest + max_new_tokens > positions:
        raise ModelError(
            f"a prompt has {longest} tokens, and the model reads {positions} with those that it adds",
            why=f"{max_new_tokens} more would not fit",
            fix="shorten the prompts, or lower --max-new-tokens",
        )


def _seed(seed: int, start: int) -> int:
    """The seed of the batch that begins with note ``start``."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{start}".encode()).digest()[:8], "big", signed=True)
