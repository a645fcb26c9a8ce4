"""Canary patients hold what nothing else could tell, and exposure says how much of it a model gives away."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.study.tiny_models import load_tiny, save_tiny_model, tiny_tokenizer

from grandrounds.common.audit.membership import FEWEST
from grandrounds.common.errors import StudyError
from grandrounds.common.model.example import Example
from grandrounds.deploy.attacks.canaries import canaries, exposure, numbers
from grandrounds.deploy.bench.attacks import AttackBench, attack_table, exposures


def test_canaries_are_the_same_of_a_seed_and_share_no_number():
    drawn = list(canaries(200, seed=1))
    assert drawn == list(canaries(200, seed=1))
    assert len({canary.number for canary in drawn} | set(numbers(31, seed=1))) == 231
    assert all(f"Record number {canary.number}." in canary.record["text"] for canary in drawn)


def test_a_number_that_the_model_knows_no_better_than_others_has_the_exposure_of_chance():
    source = random.Random(4)
    found = [exposure(source.random(), [source.random() for _ in range(31)]) for _ in range(2000)]
    expected = np.mean([math.log2(32 / rank) for rank in range(1, 33)])
    assert abs(np.mean(found) - expected) < 0.17  # six standard errors
    assert max(found) == 5.0


def test_exposure_is_a_rank_among_likelihoods_of_the_number_behind_its_note(tmp_path):
    """By the evaluation's own loss of each whole note, which differs by nothing but the number."""
    model, tokenizer = load_tiny(save_tiny_model(tmp_path)), tiny_tokenizer()
    canary = next(canaries(1, seed=2))
    short = type(canary)(patient_id="one", prefix="No. ", number=canary.number, rest="")

    def log_likelihood(number):
        tokens = np.array(tokenizer(f"{short.prefix}{number}")["input_ids"], np.int32)
        labels = np.where(np.arange(len(tokens)) < len(short.prefix), -100, tokens).astype(np.int32)
        example = Example(token_ids=tokens, labels=labels)
        return -8 * math.log(model.perplexity([example], model.get_adapter()).whole)

    own, others = log_likelihood(short.number), [log_likelihood(number) for number in numbers(7, seed=0)]
    assert exposures(model, tokenizer, [short], others=7) == [exposure(own, others)]


def test_an_adapter_that_was_trained_on_a_note_gives_its_number_away_and_no_other_canary_s(tmp_path):
    model, tokenizer = load_tiny(save_tiny_model(tmp_path)), tiny_tokenizer()
    known, unknown = (replace(canary, prefix="No. ", rest="") for canary in canaries(2, seed=2))
    tokens = torch.tensor([tokenizer(known.prefix + known.number)["input_ids"]])
    trained = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        model.module(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    found = dict(zip(("known", "unknown"), exposures(model, tokenizer, [known, unknown], others=31), strict=True))
    assert found["known"] == 5.0 > found["unknown"]


class WithoutNoise(AttackBench):
    """One of its ways, the quickest."""

    @property
    def ways(self):
        return {"noise off": (FEWEST, {"privacy": {"noise": False, "sampling_probability": 0.5}})}


def test_the_benchmark_trains_on_canaries_and_attacks_what_comes_of_it_beside_as_many_others():
    said: list[str] = []
    rows = WithoutNoise(members=FEWEST + 5, memorised=FEWEST, rounds=1, model="tiny").run(said.append)
    doing = [
        next(n for n, line in enumerate(said) if part in line) for part in ("reading", "round 1", "attack", "rank")
    ]
    assert doing[0] == 0 and doing == sorted(doing), "each step is told as it begins"
    assert all(line.startswith("noise off: ") for line in said)
    row = rows["noise off"]
    assert (row["members"], row["others"], row["epsilon"]) == (FEWEST, FEWEST + 5, None)
    assert "| noise off | none |" in attack_table(rows)
    assert list(AttackBench().ways) == ["private", "noise off", "memorised"]
    with pytest.raises(StudyError, match="21 canary patients"):
        AttackBench(members=21)
    with pytest.raises(StudyError, match="25 canary patients who are trained on, of 20"):
        AttackBench(members=20, memorised=25)
