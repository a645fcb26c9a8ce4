"""Training as a whole, through the Flower apps: pooled training's result, public denominators, noise, the schedule."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from support.study.federation import Federation, is_noise_of, lost_after_shares, small_study, trained_on
from support.study.tiny_models import example_of, save_tiny_model, tiny_example

from grandrounds.client.training.dp_sgd import DpSgd
from grandrounds.client.training.grad_samples import GradSampler, Shape
from grandrounds.client.training.update import SiteUpdate
from grandrounds.common.errors import StorageError
from grandrounds.common.model.example import NO_LOSS
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.model.lora import Lora
from grandrounds.common.privacy import site_noise
from grandrounds.common.privacy.mechanism import Mechanism, NoNoise, RoundedGaussian
from grandrounds.common.protocol.messages import Begin
from grandrounds.common.secagg.encoding import centred, residues
from grandrounds.common.secagg.masks import add_masks
from grandrounds.common.study import manifest as common_manifest
from grandrounds.common.study.manifest import Manifest
from grandrounds.server.rounds import attempt as server_secagg
from grandrounds.server.rounds.training import ExchangeClosed, RoundOutcome

TOKENS = 16
LORA = Lora(target_modules=("q_proj", "v_proj"), rank=2, alpha=4.0)
# 12,288 numbers: enough to tell four fifths of a variance from all of it, whatever is drawn.
WIDE_LORA = replace(LORA, rank=256, alpha=512.0)
SITES = tuple(f"site-{i}" for i in range(1, 6))
TRUE_COUNTS = dict(zip(SITES, (3, 1, 4, 2, 5), strict=True))
EQUAL, UNEQUAL = (4, 4, 4, 4, 4), (2, 9, 4, 30, 5)
TRUSTS = ("distributed", "local")
NOISE_MULTIPLIER = 8.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def sampler(folder):
    return GradSampler(LanguageModel.load(folder, LORA, seed=3), [Shape(TOKENS, 4)])


@pytest.fixture(scope="module")
def plain_model(folder):
    """The same model, untouched by per-example gradients."""
    return LanguageModel.load(folder, LORA, seed=3)


@pytest.fixture(scope="module")
def wide_sampler(folder):
    return GradSampler(LanguageModel.load(folder, WIDE_LORA, seed=3), [Shape(TOKENS, 4)])


@pytest.fixture(scope="module")
def cohorts():
    """Units of one to three records each, at no site as many as any nominal figure says."""
    rng = np.random.default_rng(17)

    def record():
        return tiny_example(rng, length=int(rng.integers(4, TOKENS + 1)), max_tokens=TOKENS)

    return {
        site: [[record() for _ in range(rng.integers(1, 4))] for _ in range(count)]
        for site, count in TRUE_COUNTS.items()
    }


def federation(sampler, cohorts, nominal_units=EQUAL, **sections):
    dimension = sampler.model.layout.dimension
    adapter = np.random.default_rng(5).normal(0, 0.3, dimension).astype(np.float32)
    study = small_study(nominal_units, **sections)
    return Federation(study=study, dimension=dimension, release=trained_on(cohorts, sampler), adapter=adapter)


def plain_gradient(model, adapter, example):
    """The gradient of one record's mean loss by autograd on it alone, float64 [d]."""
    model.set_adapter(adapter)
    labels = torch.from_numpy(example.labels).long()
    logits = model.logits(torch.from_numpy(example.token_ids).long()[None])[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=NO_LOSS)
    gradients = torch.autograd.grad(loss, list(model.trained.values()))
    return np.concatenate([gradient.flatten().double().numpy() for gradient in gradients])


def pooled_step(model, study, adapter, units, nominal_units):
    """One step of SGD on units in one place: clip, sum, divide, step; float64 [d]."""
    total = np.zeros(adapter.size)
    for unit in units:
        gradient = np.mean([plain_gradient(model, adapter, example) for example in unit], axis=0)
        total += gradient * min(1.0, study.privacy.clipping_norm / np.linalg.norm(gradient))
    return -study.training.learning_rate * total / nominal_units


def equals_pooled(run, model, cohorts, *, sites_of_rounds):
    """Whether each round's step is the pooled one over the sites that stayed, to the resolution of the integers."""
    nominal = {site.name: site.nominal_units for site in run.study.sites}
    before = run.adapter
    for after, sites in zip(run.adapters, sites_of_rounds, strict=True):
        units = [unit for site in sites for unit in cohorts[site]]
        nominal_units = sum(nominal[site] for site in sites)
        pooled = pooled_step(model, run.study, before, units, nominal_units)
        # A unit's number is rounded to a half; its float32 gradient depends on the batch's size by less than 1e-5.
        resolution = len(units) / nominal_units * (0.5 / run.manifest.lattice.scale + 1e-5) + 1e-6
        if run.study.privacy.trust == "local":
            share = nominal_units / sum(nominal.values())
            resolution += len(sites) * 0.5 / run.manifest.fixed_point.scale / share
        assert np.abs(pooled).max() > 10 * resolution, "the step must be far larger than what is let pass"
        if np.abs(after - before - pooled).max() > resolution:
            return False
        before = after
    return True


@pytest.mark.parametrize("nominal_units", [EQUAL, UNEQUAL])
@pytest.mark.parametrize("trust", TRUSTS)
def test_without_noise_and_sampling_five_sites_take_the_steps_of_pooled_training(
    sampler, plain_model, cohorts, trust, nominal_units
):
    run = federation(sampler, cohorts, nominal_units, trust=trust, training={"rounds": 2}).run()
    assert equals_pooled(run, plain_model, cohorts, sites_of_rounds=[SITES, SITES])


@pytest.mark.parametrize("trust", TRUSTS)
def test_with_a_dropout_the_step_is_the_pooled_one_over_the_survivors(sampler, plain_model, cohorts, trust):
    run = federation(sampler, cohorts, UNEQUAL, trust=trust, training={"rounds": 2})
    run.run(lost_after_shares(site_4=1))
    survivors = tuple(site for site in SITES if site != "site-4")
    assert equals_pooled(run, plain_model, cohorts, sites_of_rounds=[survivors, SITES])
    assert not equals_pooled(run, plain_model, cohorts, sites_of_rounds=[SITES, SITES])


@pytest.mark.parametrize("trust", TRUSTS)
def test_a_denominator_of_true_counts_is_noticed(sampler, plain_model, cohorts, trust, monkeypatch):
    monkeypatch.setattr(Manifest, "nominal_units", lambda manifest, site: TRUE_COUNTS[site])
    run = federation(sampler, cohorts, UNEQUAL, trust=trust).run()
    assert not equals_pooled(run, plain_model, cohorts, sites_of_rounds=[SITES])


@pytest.mark.parametrize("trust", TRUSTS)
def test_the_step_does_not_depend_on_how_many_units_there_are(sampler, cohorts, trust):
    """Units without a gradient change the counts and nothing else."""
    silent = example_of(cohorts["site-1"][0][0].token_ids, np.full(TOKENS, NO_LOSS, dtype=np.int32))
    more = {site: [*units, *[[silent]] * 4] for site, units in cohorts.items()}
    run = federation(sampler, cohorts, trust=trust).run()
    other = replace(run, release=trained_on(more, sampler)).run()
    np.testing.assert_array_equal(run.adapters[0], other.adapters[0])


def noise_only(wide_sampler, trust="distributed", update=SiteUpdate, sites_without_noise=(), **sections):
    """A federation whose records have no gradient, so that its aggregate is the sum of the noise and no more."""
    silent = example_of(np.zeros(TOKENS, dtype=np.int32), np.full(TOKENS, NO_LOSS, dtype=np.int32))
    dimension = wide_sampler.model.layout.dimension
    release = trained_on({site: [[silent]] for site in SITES}, wide_sampler)

    def with_or_without(manifest, site):
        return Noiseless(**vars(release(manifest, site))) if site in sites_without_noise else release(manifest, site)

    study = small_study(EQUAL, trust=trust, noise_multiplier=NOISE_MULTIPLIER, secagg={"update_range": 100}, **sections)
    return Federation(study=study, dimension=dimension, release=with_or_without)


class Noiseless(SiteUpdate):
    def _dp_sgd(self, mechanism: Mechanism) -> DpSgd:
        return super()._dp_sgd(NoNoise())


def noise_of_the_sum(run):
    """The sum of the survivors' noise in lattice units, [d], from the one step that the server took."""
    nominal = sum(run.manifest.nominal_units(site) for site in run.training.rounds[0].survivors)
    return run.adapters[0].astype(np.float64) * run.manifest.lattice.scale * nominal


def has_every_share(run, survivors):
    """Whether the noise of the sum is that of so many sites, each as large as the claim takes it to be."""
    shares = survivors - 1 if run.study.privacy.trust == "distributed" else 1  # threshold 4, one corrupt site
    share = NOISE_MULTIPLIER * run.manifest.lattice.sensitivity / np.sqrt(shares)
    return is_noise_of(noise_of_the_sum(run), share * np.sqrt(survivors))


def reaches_the_claim(run):
    """Whether the noise of the sum is not significantly below the credited one (false alarm below 1e-9)."""
    credited = NOISE_MULTIPLIER * run.manifest.lattice.sensitivity
    noise = noise_of_the_sum(run) / credited
    return float(np.square(noise).sum()) > stats.chi2.ppf(1e-9, noise.size)


@pytest.mark.parametrize("trust", TRUSTS)
@pytest.mark.parametrize("lost", [{}, {"site_2": 1}])
def test_the_noise_of_the_sum_is_every_survivor_s_share_and_reaches_the_claim(wide_sampler, trust, lost):
    run = noise_only(wide_sampler, trust).run(lost_after_shares(**lost))
    assert has_every_share(run, survivors=5 - len(lost))
    assert reaches_the_claim(run)


def one_mask_left(vector, *, plus=(), minus=()):
    add_masks(vector, plus=plus, minus=minus[1:])


def clipped_first(dp_sgd, draw, *, release=DpSgd.release):
    noisy_sum = centred(release(dp_sgd, draw)).astype(np.int64)
    limit = int(np.quantile(np.abs(noisy_sum), 0.9))
    return residues(np.clip(noisy_sum, -limit, limit), 8 * dp_sgd.integers.itemsize)


def without_layers(manifest, layer_keys, *, attempt):
    return RoundedGaussian(noise_stddev=manifest.site_noise(attempt).stddev)


BROKEN_NOISE = {
    "h taken as n": (site_noise, "noise_shares", lambda **_: (Fraction(5), Fraction(10_000))),
    "a layer that nobody drew": (common_manifest.Manifest, "mechanism", without_layers),
    "a mask left in": (server_secagg, "add_masks", one_mask_left),
    "a noised vector clipped before the sum": (DpSgd, "release", clipped_first),
}


@pytest.mark.parametrize("broken", BROKEN_NOISE)
def test_broken_noise_is_noticed(wide_sampler, broken, monkeypatch):
    monkeypatch.setattr(*BROKEN_NOISE[broken])
    run = noise_only(wide_sampler).run(lost_after_shares(site_2=1))
    assert not has_every_share(run, survivors=4)


def test_noise_for_h_taken_as_n_does_not_reach_the_claim(wide_sampler, monkeypatch):
    monkeypatch.setattr(*BROKEN_NOISE["h taken as n"])
    assert not reaches_the_claim(noise_only(wide_sampler).run(lost_after_shares(site_2=1)))


@pytest.mark.parametrize("trust", TRUSTS)
@pytest.mark.parametrize("sites", [("site-3",), SITES])
def test_a_share_of_noise_that_is_missing_is_noticed(wide_sampler, trust, sites):
    run = noise_only(wide_sampler, trust, sites_without_noise=sites).run()
    assert not has_every_share(run, survivors=5)


def losing_two(*attempts):
    return lambda site, envelope: any(
        lost_after_shares(site_1=attempt, site_5=attempt)(site, envelope) for attempt in attempts
    )


def plain_federation(**sections):
    """Without a model: each site's update is a vector of ones."""
    study = small_study(**sections)
    return Federation(
        study=study, dimension=7, release=lambda manifest, site: lambda adapter, mechanism: np.ones(7, "<u4")
    )


def test_a_schedule_without_a_further_attempt_ends_the_training_whole():
    run = plain_federation(training={"rounds": 3, "max_attempts": 4}).run(losing_two(2, 3))
    training = run.training
    assert training.exhausted
    assert training.finished
    assert [closed.round for closed in training.rounds] == [1, 2]
    assert (training.exhausted.round, training.exhausted.outcomes, training.exhausted.survivors) == (3, (), ())
    assert training.accountant.attempts_committed == 4
    assert [checkpoint.attempts for checkpoint in run.checkpoints] == [1, 4]
    np.testing.assert_array_equal(run.checkpoints[-1].adapter, training.adapter)
    begins = [traffic.attempt for traffic in run.traffic if traffic.exchange == Begin.exchange]
    assert begins == [attempt for attempt in (1, 2, 3, 4) for _ in SITES]


def test_a_study_whose_every_attempt_fails_keeps_its_adapter():
    run = plain_federation(training={"rounds": 1, "max_attempts": 2})
    closed: list[Any] = []
    run.run(losing_two(1, 2), observe=closed.append)
    assert run.training.exhausted
    assert run.training.rounds == []
    assert run.checkpoints == []
    np.testing.assert_array_equal(run.training.adapter, run.adapter)
    exchanges = [event.exchange for event in closed if isinstance(event, ExchangeClosed)]
    assert exchanges == ["advert", "shares", "masked-input"] * 2


def test_the_attempts_of_a_round_that_the_schedule_left_unfinished_are_kept_and_told():
    run = plain_federation(training={"rounds": 2, "max_attempts": 3})
    events: list[Any] = []
    training = run.run(losing_two(2, 3), observe=events.append).training
    assert [closed.committed for closed in (*training.rounds, training.exhausted)] == [True, False]
    assert [outcome.attempt for outcome in training.exhausted.outcomes] == [2, 3]
    for outcome in training.exhausted.outcomes:
        assert outcome.dropouts == {"site-1": "masked-input", "site-5": "masked-input"}
    assert [event for event in events if isinstance(event, RoundOutcome)] == [*training.rounds, training.exhausted]
    np.testing.assert_array_equal(run.checkpoints[-1].adapter, training.adapter)


def test_an_adapter_that_is_not_finite_ends_the_training_and_no_site_spends_on_it():
    plain = plain_federation(training={"rounds": 2, "max_attempts": 2})
    run = replace(plain, adapter=np.full(7, np.inf, dtype=np.float32)).run()
    assert run.training.exhausted
    assert {worker.charges for worker in run.workers.values()} == {0}
    assert [answer.body.get("code") for _, answer in run.answers()] == ["adapter"] * 2 * len(run.workers)


def test_a_training_that_begins_with_another_adapter_than_its_manifest_s_begins_no_attempt():
    run = plain_federation(training={"rounds": 2, "max_attempts": 2})
    run.adapter = np.full(7, np.inf, dtype=np.float32)
    before = list(run.lines)
    with pytest.raises(StorageError, match="has another adapter than the ledger"):
        run.open_training()
    assert run.lines == before


@pytest.mark.parametrize(("evaluations", "evaluated"), [(1, [5]), (2, [3, 5]), (4, [2, 3, 4, 5]), (9, [1, 2, 3, 4, 5])])
def test_the_adapter_is_evaluated_as_often_as_the_study_says_and_after_the_last_round(evaluations, evaluated):
    events: list[Any] = []
    training = {"rounds": 5, "max_attempts": 5, "evaluations": evaluations}
    run = plain_federation(training=training).run(observe=events.append)
    assert sorted(run.study.training.evaluated_rounds) == evaluated
    assert len(run.adapters) == len(evaluated)
    closed = [event for event in events if isinstance(event, RoundOutcome)]
    assert closed == run.training.rounds
    assert [event.round for event in closed if event.perplexity is not None] == evaluated
    rows = run.checkpoints[-1].perplexities
    assert np.flatnonzero(~np.isnan(rows[:, 0])).tolist() == [0, *evaluated]


def test_what_is_left_when_the_schedule_is_used_up_is_evaluated_once():
    run = plain_federation(training={"rounds": 3, "max_attempts": 3, "evaluations": 1})
    run.run(losing_two(2, 3))
    assert (run.training.exhausted.perplexity, len(run.adapters)) == (1.0, 1)
    assert run.training.rounds[-1].perplexity == 1.0
    assert run.checkpoints[-1].round == 1 and run.checkpoints[-1].last_evaluated.whole == 1.0
    resumed = run.open_training()
    assert resumed.rounds[-1].perplexity == resumed.exhausted.perplexity == 1.0
    assert len(run.adapters) == 1, "the checkpoint has it"
    run.checkpoints.pop()  # the server died before it was saved
    assert run.open_training().exhausted.perplexity == 1.0 and len(run.adapters) == 2


def test_a_checkpoint_after_every_round_holds_what_the_next_one_starts_from():
    run = plain_federation(training={"rounds": 3, "max_attempts": 3, "optimizer": "adam"}).run()
    assert [checkpoint.round for checkpoint in run.checkpoints] == [1, 2, 3]
    for checkpoint, adapter in zip(run.checkpoints, run.adapters, strict=True):
        assert checkpoint.study == run.manifest.study_id
        np.testing.assert_array_equal(checkpoint.adapter, adapter)
    steps = [checkpoint.last_step for checkpoint in run.checkpoints]
    assert [later.before for later in steps[1:]] == [earlier.after for earlier in steps[:-1]]
    powers = [np.frombuffer(each.after.optimizer[-16:]).tolist() for each in steps]
    assert powers == [[0.9, 0.99], [0.9 * 0.9, 0.99 * 0.99], [0.9 * 0.9 * 0.9, 0.99 * 0.99 * 0.99]]
