"""Toy models that do one thing each: what is found out is found out by what they do."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from grandrounds.common.errors import ModelError
from grandrounds.common.model.reading import check_causal, choices, layers_reached, vocabulary_size

VOCABULARY = 97


class Toy(nn.Module):
    """Each place's logits are of the mean over the places that ``seen`` [tokens, tokens] says it sees."""

    def __init__(self, seen, head=None):
        super().__init__()
        torch.manual_seed(0)
        self.seen = seen
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.unused = nn.Linear(8, 8)
        self.head = nn.Linear(8, VOCABULARY) if head is None else head

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.head if hasattr(self.head, "weight") else None

    def forward(self, input_ids, use_cache=False):
        weights = self.seen(input_ids.shape[1]).float()
        hidden = (weights / weights.sum(dim=1, keepdim=True)) @ self.embed(input_ids)
        return SimpleNamespace(logits=self.head(hidden))


def causal(tokens):
    return torch.tril(torch.ones(tokens, tokens))


def a_block(size):
    return lambda tokens: torch.maximum(
        causal(tokens), (torch.arange(tokens)[:, None] // size == torch.arange(tokens) // size).float()
    )


READING_AHEAD = {
    "everywhere": lambda tokens: torch.ones(tokens, tokens),
    "by one token": lambda tokens: torch.tril(torch.ones(tokens, tokens), diagonal=1),
    "in blocks of 4": a_block(4),
    "in blocks of 16": a_block(16),
    "in blocks of 32": a_block(32),
    "in a prefix of 6": lambda tokens: torch.maximum(
        causal(tokens), (torch.arange(tokens) < 6).float() * causal(6).new_ones(tokens, 1)
    ),
    "at one place in a thousand parts": lambda tokens: causal(tokens) + 1e-3 * torch.ones(tokens, tokens),
}


@pytest.mark.parametrize("seen", READING_AHEAD.values(), ids=READING_AHEAD.keys())
def test_a_model_that_reads_ahead_is_refused(seen):
    with pytest.raises(ModelError, match="later tokens"):
        check_causal(Toy(seen), positions=None)


@pytest.mark.parametrize("positions", [None, 8, 64, 4096])
def test_a_model_that_reads_in_one_direction_is_accepted(positions):
    check_causal(Toy(causal), positions=positions)


def test_a_model_that_predicts_no_numbers_is_refused():
    model = Toy(causal)
    model.head.bias.data[3] = float("inf")
    with pytest.raises(ModelError, match="not finite"):
        check_causal(model, positions=None)


def test_what_a_library_raises_over_text_is_told_with_its_words():
    model = Toy(lambda tokens: causal(3))
    with pytest.raises(ModelError, match=r"cannot read text \(RuntimeError: .*size"):
        check_causal(model, positions=None)


def test_the_layers_that_text_reaches_are_those_that_are_called_and_make_a_tensor():
    assert layers_reached(Toy(causal)) == {"embed", "head"}


class Routed(nn.Module):
    def __init__(self, choose):
        super().__init__()
        self.choose = choose
        self.experts = nn.Parameter(torch.randn(3, 8, VOCABULARY))

    def forward(self, hidden):
        return self.choose(hidden) + hidden @ self.experts[0]


CHOOSING = {
    "topk": lambda hidden: hidden.topk(2).values.sum(),
    "the largest": lambda hidden: hidden.argmax(dim=-1, keepdim=True) * 1.0,
    "an order": lambda hidden: hidden.sort(dim=-1).values[..., :1],
    "where a number is positive": lambda hidden: (hidden > 0).nonzero().float().sum(),
}


@pytest.mark.parametrize("choose", CHOOSING.values(), ids=CHOOSING.keys())
def test_a_model_that_chooses_by_content_what_it_computes_is_found_out_whatever_it_is_called(choose):
    assert choices(Toy(causal, head=Routed(choose)))


def test_a_model_that_computes_the_same_for_every_token_chooses_nothing():
    assert choices(Toy(causal, head=Routed(lambda hidden: hidden.mean()))) == set()


def test_the_vocabulary_is_what_can_be_both_read_and_predicted():
    assert vocabulary_size(Toy(causal)) == VOCABULARY
    assert vocabulary_size(Toy(causal, head=nn.Linear(8, 50))) == 50
    assert vocabulary_size(Toy(causal, head=nn.Identity())) == VOCABULARY
