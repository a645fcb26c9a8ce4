"""A round: sites drop out and come back, an attempt that fails is counted, and a retry starts from nothing."""

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pytest
from support.study.federation import Federation, is_noise_of, lost_after_shares, small_study, trained_on
from support.study.tiny_models import example_of, load_tiny, save_tiny_model

from grandrounds.client.training.cohort import Cohort
from grandrounds.client.training.grad_samples import GradSampler, Shape
from grandrounds.common.errors import ScheduleExhaustedError
from grandrounds.common.model.example import NO_LOSS
from grandrounds.common.protocol.messages import Advert, Begin, MaskedInput
from grandrounds.common.study.step import LastStep, Trained
from grandrounds.server.rounds.accountant import CentralAccountant
from grandrounds.server.rounds.round import AttemptOutcome, Round

SITES = tuple(f"site-{i}" for i in range(1, 6))
WITHOUT_2 = tuple(site for site in SITES if site != "site-2")
TOKENS = 16
UNITS = 60


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    model = load_tiny(save_tiny_model(tmp_path_factory.mktemp("llama")))
    return GradSampler(model, [Shape(TOKENS, 16)])


def ones(manifest, site):
    """Each site's update is a vector of ones, so that the aggregate counts the survivors."""
    return lambda adapter, mechanism: np.ones(7, "<u4")


def federation(**sections):
    return Federation(study=small_study(**sections), dimension=7, release=ones)


def asked(run, attempt, exchange):
    return {traffic.site for traffic in run.traffic if (traffic.attempt, traffic.exchange) == (attempt, exchange)}


def test_a_site_that_drops_out_after_its_shares_is_missed_by_nobody_and_back_in_the_next_round():
    run = federation(training={"rounds": 2}).run(lost_after_shares(site_2=1))
    first, second = run.training.rounds
    assert first.survivors == WITHOUT_2
    assert first.outcomes == (AttemptOutcome(attempt=1, survivors=WITHOUT_2, dropouts={"site-2": "masked-input"}),)
    assert second.survivors == SITES
    assert second.outcomes == (AttemptOutcome(attempt=2, survivors=SITES, dropouts={}),)
    assert asked(run, 1, "survivors") == set(WITHOUT_2)
    assert asked(run, 2, Begin.exchange) == set(SITES)
    assert run.workers["site-2"].charges == 1
    assert run.workers["site-1"].charges == 2


def test_two_sites_that_drop_out_at_once_abort_the_attempt_and_the_retry_counts_too():
    run = federation(training={"rounds": 1, "max_attempts": 3}).run(lost_after_shares(site_2=1, site_5=1))
    (closed,) = run.training.rounds
    failed, unmasked = closed.outcomes
    assert (failed.attempt, failed.survivors) == (1, ())
    assert failed.dropouts == {"site-2": "masked-input", "site-5": "masked-input"}
    assert unmasked == AttemptOutcome(attempt=2, survivors=SITES, dropouts={})
    assert closed.survivors == SITES
    assert run.training.accountant.attempts_committed == 2
    # Who had paid for the attempt that failed has paid; who was gone before its charge has not.
    assert {site: worker.charges for site, worker in run.workers.items()} == dict.fromkeys(SITES, 2) | {
        "site-2": 1,
        "site-5": 1,
    }


class RecordingCohort(Cohort):
    def __init__(self, units):
        super().__init__(units)
        self.draws = []

    def draw(self, **options):
        drawn = super().draw(**options)
        self.draws.append([id(record) for unit in drawn for record in unit])
        return drawn


class ReusedDraw(RecordingCohort):
    def draw(self, **options):
        if not self.draws:
            self.first = super().draw(**options)
        else:
            self.draws.append(self.draws[0])
        return self.first


@dataclass
class Retried:
    """A round of noise only, whose first attempt failed: what three sites drew and released in both attempts."""

    run: Federation
    cohorts: list[RecordingCohort] = field(default_factory=list)
    updates: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @classmethod
    def of(cls, sampler, cohort=RecordingCohort, again=lambda release, kept: release):
        """``again`` may replace what a site computes, given what it computed before."""
        # One object a record, so that a draw can be told from another; no record has a gradient.
        silent = np.full(TOKENS, NO_LOSS, dtype=np.int32)
        units = [[example_of(np.zeros(TOKENS, dtype=np.int32), silent)] for _ in range(UNITS)]
        cohorts: list[RecordingCohort] = []
        updates: dict[str, list[np.ndarray]] = {}

        def keep_cohort(units):
            cohorts.append(cohort(units))
            return cohorts[-1]

        def release(manifest, site):
            compute = trained_on(dict.fromkeys(SITES, units), sampler, cohort=keep_cohort)(manifest, site)
            kept = updates.setdefault(site, [])

            def compute_and_keep(adapter, mechanism):
                update = again(compute, kept)(adapter, mechanism)
                kept.append(update.copy())
                return update

            return compute_and_keep

        study = small_study(noise_multiplier=8.0, privacy={"sampling_probability": 0.5, "delta": 1e-3})
        run = Federation(study=study, dimension=sampler.model.layout.dimension, release=release)
        return cls(run.run(lost_after_shares(site_2=1, site_5=1)), cohorts, updates)

    @property
    def has_fresh_draws(self):
        """By chance two draws are equal with probability 2**-60."""
        return all(one != other for cohort in self.cohorts for one, other in combinations(cohort.draws, 2))

    @property
    def has_fresh_noise(self):
        """The difference of two independent shares has twice the variance of one."""
        stddev = np.sqrt(2) * self.run.manifest.noise_stddev(1)
        pairs = [kept for kept in self.updates.values() if len(kept) == 2]
        assert len(pairs) == 3
        return all(is_noise_of((one - other).view(np.int32), stddev) for one, other in pairs)


def test_a_retry_has_its_own_draw_and_noise(sampler):
    retried = Retried.of(sampler)
    assert [outcome.attempt for outcome in retried.run.training.rounds[0].outcomes] == [1, 2]
    assert retried.has_fresh_draws
    assert retried.has_fresh_noise


def test_a_draw_reused_in_a_retry_is_noticed(sampler):
    assert not Retried.of(sampler, cohort=ReusedDraw).has_fresh_draws


def test_noise_reused_in_a_retry_is_noticed(sampler):
    def from_memory(release, kept):
        return (lambda adapter, mechanism: kept[0].copy()) if kept else release

    assert not Retried.of(sampler, again=from_memory).has_fresh_noise


def test_a_retry_has_its_own_keys_and_masks():
    run = federation().run(lost_after_shares(site_2=1, site_5=1))
    adverts = [Advert.of(answer) for _, answer in run.answers() if answer.exchange == Advert.exchange]
    assert len(adverts) == 2 * len(SITES)
    published = {value for advert in adverts for value in (advert.channel_key, advert.mask_key, advert.seed_commitment)}
    assert len(published) == 3 * len(adverts)
    masked = [bytes(answer.payload) for _, answer in run.answers() if answer.exchange == MaskedInput.exchange]
    assert len(set(masked)) == len(masked) == 3 + 5


def open_round(run, *, max_attempts=1):
    return Round(
        number=1,
        accountant=CentralAccountant(schedule=None, max_attempts=max_attempts, delta=1e-3),
        ledger=run.ledger,
        last_step=LastStep(after=Trained(adapter=run.adapter)),
    )


def test_an_attempt_is_counted_as_it_begins():
    round_ = open_round(federation())
    round_.open_attempt()
    assert round_.accountant.attempts_committed == 1
    assert not round_.finished
    assert not round_.failed
    assert set(round_.messages()) == set(SITES)


def test_an_attempt_beyond_the_schedule_is_refused_before_it_begins():
    round_ = open_round(federation())
    round_.accountant.commit()
    with pytest.raises(ScheduleExhaustedError):
        round_.open_attempt()
    assert round_.accountant.attempts_committed == 1
    with pytest.raises(RuntimeError, match="no attempt"):
        round_.messages()


def test_a_wrong_answer_removes_its_site_and_nobody_else():
    run = federation()
    round_ = open_round(run)
    round_.open_attempt()
    while not round_.finished:
        for site, message in round_.messages().items():
            answer = run.workers[site].handle(message)
            round_.receive(site, b"noise" if site == "site-2" else answer)
        round_.advance()
    assert round_.survivors == WITHOUT_2
    assert round_.outcomes[0].dropouts == {"site-2": "advert"}


def test_an_exchange_says_why_it_lost_a_site_and_no_later_one_says_it_again():
    run = federation()
    round_ = open_round(run)
    round_.open_attempt()
    said = []
    while not round_.finished:
        for site, message in round_.messages().items():
            if site != "site-2":
                round_.receive(site, run.workers[site].handle(message))
        said.append(round_.advance().lost)
    assert said == [{"site-2": "no answer before the deadline"}, *[{}] * 4]
    assert round_.aggregate.tolist() == [4] * 7
