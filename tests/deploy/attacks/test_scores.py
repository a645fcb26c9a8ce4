"""What a model says of patients' records is what the libraries say of them, and a memorised record shows."""

import numpy as np
import pytest
import torch
from support.study.tiny_models import load_tiny, save_tiny_model

from grandrounds.client.training.grad_samples import GradSampler, Shape
from grandrounds.common.audit.membership import AGAINST_BASE, STATES, WEIGHTS
from grandrounds.common.data.windows import Window
from grandrounds.common.model.optimizers import make_optimizer
from grandrounds.deploy.attacks.scores import MOST_WINDOWS, Scorer
from grandrounds.server.report.findings import Findings

TOKENS = 24


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_tiny(save_tiny_model(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def scorer(model):
    after = model.get_adapter()
    return Scorer(model=model, before=np.zeros_like(after), after=after, clipping_norm=1e9)


def window(tokens, length=TOKENS):
    return Window(tokens=np.array(tokens, np.int32), learnt=((0, len(tokens)),)).example(length)


def random_patients(count, seed=1):
    rng = np.random.default_rng(seed)
    return [[window(rng.integers(0, 256, TOKENS - 4))] for _ in range(count)]


def test_losses_are_those_of_the_evaluation_whatever_the_padding(model, scorer):
    patients = random_patients(3)
    seen = scorer.seen(patients)
    for number, patient in enumerate(patients):
        assert seen.base[number] == pytest.approx(np.log(model.perplexity(patient, scorer.before).whole), rel=1e-5)
        assert seen.adapter[number] == pytest.approx(np.log(model.perplexity(patient, scorer.after).whole), rel=1e-5)
    assert seen.tokens.tolist() == [TOKENS - 5] * 3
    other_length = scorer.seen([[window(patient[0].token_ids[: TOKENS - 4], TOKENS + 8)] for patient in patients])
    assert other_length.adapter == pytest.approx(seen.adapter, rel=1e-5)


def test_what_the_library_generates_greedily_is_one_verbatim_run_and_a_changed_token_cuts_it(model, scorer):
    model.set_adapter(scorer.after)
    prefix = torch.arange(8)[None]
    made = model.module.generate(
        input_ids=prefix,
        attention_mask=torch.ones_like(prefix),
        max_new_tokens=40,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    text = made[0].tolist()
    changed = list(text)
    changed[28] = (changed[28] + 1) % 256
    runs = scorer.seen([[window(text, 48)], [window(changed, 48)]]).adapter_run
    assert runs[0] >= 40
    assert 20 <= runs[1] < 40


def test_a_gradient_s_alignment_is_how_fast_the_loss_falls_along_the_change(model, scorer):
    patients, small = random_patients(4, seed=2), 1e-2
    direction = scorer.after / np.linalg.norm(scorer.after)
    near = Scorer(
        model=model, before=scorer.before, after=(small * direction).astype(np.float32), clipping_norm=1e9
    ).seen(patients)
    assert near.aligned == pytest.approx(scorer.seen(patients).aligned, rel=1e-4)
    assert near.aligned == pytest.approx((near.base - near.adapter) / small, rel=0.05, abs=1e-3)
    cut = Scorer(model=model, before=scorer.before, after=scorer.after, clipping_norm=1e-3).seen(patients)
    assert np.abs(cut.aligned).max() <= 1e-3 * (1 + 1e-5)


def test_of_a_patient_with_many_windows_some_are_read_and_one_without_any_to_learn_is_left_out(scorer):
    nothing = Window(tokens=np.zeros(4, np.int32), learnt=()).example(TOKENS)
    many = [patient[0] for patient in random_patients(3 * MOST_WINDOWS)]
    seen = scorer.seen([many, [nothing]])
    assert len(seen) == 1
    assert seen.tokens[0] == MOST_WINDOWS * (TOKENS - 5)


def test_an_adapter_that_memorised_its_patients_is_found_out_and_one_that_did_nothing_is_not(model, scorer):
    members, others = random_patients(10, seed=3), random_patients(10, seed=4)
    sampler, adapter = GradSampler(model, [Shape(tokens=TOKENS, batch=10)]), scorer.before
    optimizer = make_optimizer("adam", learning_rate=0.1, beta1=0.9, beta2=0.99)
    for _ in range(40):
        model.set_adapter(adapter)
        gradient = sampler.gradients([patient[0] for patient in members]).mean(dim=0)
        adapter = optimizer.step(adapter, gradient.numpy())
    found = {}
    for after in (adapter, scorer.before):
        scored = Scorer(model=model, before=scorer.before, after=after, clipping_norm=1.0)
        found[after is adapter] = Findings.of(scored.seen(members), scored.seen(others), curve=None)
    areas = {attack.name: attack.auc for attack in found[True].attacks}
    assert areas[AGAINST_BASE].low > 0.6
    assert areas[WEIGHTS].value > 0.8
    assert found[True].adapter_gap - found[True].base_gap > 0.2
    still = {attack.name: attack for attack in found[False].attacks}
    assert still[AGAINST_BASE].auc.value == still[WEIGHTS].auc.value == still[STATES].auc.value == 0.5
    assert not any(attack.finds for attack in found[False].attacks)
