"""A site's update: the integers that its manifest asks for, whatever happens to its data."""

import numpy as np
import pytest
from support.study.federation import is_noise_of, small_manifest, small_study
from support.study.tiny_models import VOCABULARY, example_of, load_tiny, save_tiny_model, tiny_example

from grandrounds.client.training.cohort import Cohort
from grandrounds.client.training.dp_sgd import DpSgd
from grandrounds.client.training.grad_samples import GradSampler, Shape
from grandrounds.client.training.update import SiteUpdate
from grandrounds.common.crypto.identity import Identity
from grandrounds.common.errors import ModelError
from grandrounds.common.model.example import NO_LOSS
from grandrounds.common.model.language_model import LanguageModel
from grandrounds.common.model.lora import Lora
from grandrounds.common.model.optimizers import make_optimizer
from grandrounds.common.privacy.mechanism import NoNoise
from grandrounds.common.system.content import Stored
from grandrounds.deploy.bench.peak_memory import forget_peak, peak_bytes
from grandrounds.deploy.bench.wide_model import RANK, TARGETS, wide_model

TOKENS = 16
SITE = "site-2"
NOMINAL_UNITS = (4, 6, 4, 4, 4)
RNG = np.random.default_rng(23)
UNITS = [
    [tiny_example(RNG, length=length, max_tokens=TOKENS) for length in lengths]
    for lengths in ([16], [7, 12], [9], [16, 3, 5])
]
TRUSTS = ("distributed", "local")
KEYS = {5: bytes(range(32))}


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    model = load_tiny(save_tiny_model(tmp_path_factory.mktemp("llama")))
    return GradSampler(model, [Shape(TOKENS, 4)])


@pytest.fixture(scope="module")
def adapter(sampler):
    return np.random.default_rng(7).normal(0, 0.3, sampler.model.layout.dimension).astype(np.float32)


def site_update(sampler, cohort=None, *, dimension=None, **sections):
    identities = {f"site-{i}": Identity.generate() for i in range(1, 6)}
    dimension = dimension or sampler.model.layout.dimension
    manifest = small_manifest(
        small_study(NOMINAL_UNITS, **sections), identities, Identity.generate(), dimension=dimension
    )
    return SiteUpdate(manifest=manifest, name=SITE, cohort=cohort or Cohort(UNITS), sampler=sampler)


def plain(update):
    """The site's pieces put together here: a sum without noise."""
    return DpSgd(sampler=update.sampler, lattice=update.manifest.lattice, mechanism=NoNoise())


def computed(update, adapter):
    """An update of the first attempt."""
    return update(adapter, update.manifest.mechanism(KEYS, attempt=1))


def centred(update, manifest):
    return update.view({32: np.int32, 16: np.int16}[manifest.secagg_parameters.modulus_bits]).astype(np.int64)


def test_under_distributed_trust_the_update_is_the_integer_sum_at_the_attempt_s_adapter_and_nothing_else(
    sampler, adapter
):
    update = site_update(sampler)
    released = computed(update, adapter)
    assert released.dtype == np.dtype("<u4")
    sampler.model.set_adapter(adapter)
    np.testing.assert_array_equal(centred(released, update.manifest), plain(update).sum_units(UNITS))
    assert not np.array_equal(computed(update, adapter + np.float32(0.1)), released)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "disk"])
def test_under_local_trust_the_update_is_the_weighted_change_of_k_local_steps(sampler, adapter, optimizer):
    training = {"local_steps": 3, "local_learning_rate": 0.3, "local_optimizer": optimizer, "beta1": 0.5, "beta2": 0.8}
    update = site_update(sampler, trust="local", training=training)
    released = computed(update, adapter)
    assert released.dtype == np.dtype("<u2")
    lattice, parameters = update.manifest.lattice, adapter.astype(np.float64)
    steps = make_optimizer(optimizer, learning_rate=0.3, beta1=0.5, beta2=0.8)
    for _ in range(3):
        sampler.model.set_adapter(parameters.astype(np.float32))
        # q is 1 and the site's nominal units are six, though it has four.
        parameters = steps.step(parameters, lattice.decode(plain(update).sum_units(UNITS)) / 6)
    expected = (steps.left(parameters) - adapter) * 6 / sum(NOMINAL_UNITS)
    decoded = update.manifest.fixed_point.decode(centred(released, update.manifest))
    np.testing.assert_allclose(decoded, expected, rtol=0, atol=0.51 / update.manifest.fixed_point.scale)
    assert np.abs(expected).max() > 100 / update.manifest.fixed_point.scale


PUBLIC = [[tiny_example(RNG, length=length, max_tokens=TOKENS)] for length in (16, 5, 11)]


def mixed_update(sampler, private, public=PUBLIC, *, public_units=3, kind=SiteUpdate, **sections):
    data = {"public": f"sha256:{'ab' * 32}", "public_units": public_units}
    update = site_update(sampler, Cohort(private), data=data, **sections)
    return kind(**{**vars(update), "public": Cohort(public)})


def sum_of(update, adapter):
    return centred(computed(update, adapter), update.manifest)


def test_public_units_are_added_to_the_sum_clipped_as_private_ones_are(sampler, adapter):
    update = mixed_update(sampler, UNITS)
    released = sum_of(update, adapter)
    sampler.model.set_adapter(adapter)
    np.testing.assert_array_equal(released, plain(update).sum_units([*UNITS, *PUBLIC]))
    lattice = update.manifest.lattice
    alone = np.linalg.norm(plain(update).sum_units(PUBLIC[:1]).astype(float))
    assert 0 < alone <= lattice.sensitivity


class FillsUp(SiteUpdate):
    """Wrong: public units where private ones are missing."""

    def _draw(self):
        drawn = self.cohort.draw(sampling_probability=1.0, records_per_unit=3, cap=10)
        return [*drawn, *[[unit] for [unit] in PUBLIC * 2][: 6 - len(drawn)]]


class PrivateFirst(SiteUpdate):
    """Wrong: private units where public ones are few."""

    def _draw(self):
        public = (self.public or self.cohort).draw(sampling_probability=1.0, records_per_unit=3, cap=3)
        return [*public, *self.cohort.draw(sampling_probability=1.0, records_per_unit=3, cap=3) * (3 - len(public))]


def most_moved(sampler, adapter, kind, public):
    """Over Δ: how far one unit more moves the sum, at the worst of some units."""
    sampler.model.set_adapter(adapter)
    moved = []
    for more in UNITS[1:]:
        with_it = mixed_update(sampler, [UNITS[0], more], public, kind=kind)
        without = mixed_update(sampler, [UNITS[0]], public, kind=kind)
        change = sum_of(with_it, adapter) - sum_of(without, adapter)
        moved.append(np.linalg.norm(change.astype(float)) / with_it.manifest.lattice.sensitivity)
    return max(moved)


def test_one_private_unit_moves_the_sum_by_no_more_than_without_public_ones_and_wrong_mixtures_show(sampler, adapter):
    assert most_moved(sampler, adapter, SiteUpdate, PUBLIC) <= 1
    assert most_moved(sampler, adapter, FillsUp, PUBLIC) > 1
    assert most_moved(sampler, adapter, PrivateFirst, PUBLIC[:1]) > 1


def test_how_many_public_units_enter_a_step_follows_from_the_manifest_and_which_from_nothing_private(sampler):
    update = mixed_update(sampler, UNITS, public_units=2, privacy={"sampling_probability": 0.5})
    tokens = [unit[0].token_ids.tobytes() for unit in PUBLIC]
    seen = []
    for _ in range(400):
        drawn = update._draw()
        added = [tokens.index(unit[0].token_ids.tobytes()) for unit in drawn if unit[0].token_ids.tobytes() in tokens]
        assert len(added) == 2
        seen.append((len(drawn) - 2, *added))
    counts = np.array([sum(number in added for _, *added in seen) for number in range(3)])
    # Each has two thirds of 400, and is 8 deviations off once in 10^15 runs; what was drawn is printed.
    assert np.abs(counts - 800 / 3).max() < 8 * np.sqrt(400 * 2 / 9), seen
    assert {private for private, *_ in seen} >= {1, 2, 3}


def test_a_public_unit_that_fails_counts_as_zero_and_touches_no_other(sampler, adapter):
    broken = [example_of(np.full(TOKENS, VOCABULARY, np.int32), np.full(TOKENS, 1, np.int32))]
    update = mixed_update(sampler, UNITS, [*PUBLIC[:2], broken])
    released = sum_of(update, adapter)
    sampler.model.set_adapter(adapter)
    np.testing.assert_array_equal(released, plain(update).sum_units([*UNITS, *PUBLIC[:2]]))


class Unreadable(Cohort):
    def draw(self, **options):
        raise OSError("no page for Mrs Abernathy")


def silent_units(count):
    return [[example_of(np.zeros(TOKENS, np.int32), np.full(TOKENS, NO_LOSS, np.int32))] for _ in range(count)]


FAILING_COHORTS = {
    "no such token": Cohort([[example_of(np.full(TOKENS, VOCABULARY, np.int32), np.full(TOKENS, 1, np.int32))]]),
    "another length": Cohort([[example_of(np.zeros(3, np.int32), np.zeros(3, np.int32))]]),
    "no records": Cohort([[None, None]]),
    "nothing to learn": Cohort(silent_units(3)),
    "unreadable": Unreadable(UNITS),
}


@pytest.mark.parametrize("trust", TRUSTS)
@pytest.mark.parametrize("failing", FAILING_COHORTS)
def test_records_that_fail_leave_pure_noise(sampler, adapter, trust, failing, caplog):
    sections = {"trust": trust, "noise_multiplier": 8.0, "secagg": {"update_range": 100}}
    update = site_update(sampler, FAILING_COHORTS[failing], **sections)
    noise = centred(computed(update, adapter), update.manifest).astype(np.float64)
    if trust == "local":
        # The site divided by its nominal units, and weighted by them over all.
        noise *= update.manifest.lattice.scale * sum(NOMINAL_UNITS) / update.manifest.fixed_point.scale
    assert is_noise_of(noise, update.manifest.noise_stddev(1))
    assert "Abernathy" not in caplog.text


def test_a_failing_record_costs_its_own_unit_and_no_other(sampler, adapter):
    bad = example_of(np.full(TOKENS, VOCABULARY, np.int32), np.full(TOKENS, 1, np.int32))
    among_others = [UNITS[0], [bad], UNITS[1], [UNITS[2][0], bad], UNITS[3], UNITS[2]]
    sound = computed(site_update(sampler), adapter)
    np.testing.assert_array_equal(computed(site_update(sampler, Cohort(among_others)), adapter), sound)


@pytest.mark.parametrize("trust", TRUSTS)
def test_every_call_draws_units_and_noise_afresh(sampler, adapter, trust):
    update = site_update(
        sampler, Cohort(silent_units(3)), trust=trust, noise_multiplier=8.0, secagg={"update_range": 100}
    )
    one, two = (centred(computed(update, adapter), update.manifest) for _ in range(2))
    assert not np.array_equal(one, two)
    without_noise = site_update(sampler, Cohort(UNITS * 20), trust=trust, privacy={"sampling_probability": 0.5})
    draws = {centred(computed(without_noise, adapter), without_noise.manifest).tobytes() for _ in range(2)}
    assert len(draws) == 2, "two draws of 80 units are equal with probability 2**-80"


def test_an_update_for_another_dimension_is_refused_whatever_the_records(sampler, adapter):
    with pytest.raises(ModelError, match="the adapter has"):
        computed(site_update(sampler, dimension=adapter.size + 1), adapter)


def test_an_update_takes_sum_and_noise_once_and_one_gradient_beyond_the_model(sampler, adapter, tmp_path):
    d = wide_model(tmp_path / "model", dimension=8_500_000)
    model = LanguageModel.load(tmp_path / "model", Lora(target_modules=TARGETS, rank=RANK), seed=0)
    units = [[tiny_example(RNG, length=4, max_tokens=4)] for _ in range(2)]
    large = GradSampler(model, [Shape(4, 1)])
    update = site_update(large, Cohort(units), dimension=d, max_units=8, noise_multiplier=8.0)
    computed(site_update(sampler, noise_multiplier=8.0), adapter)  # so that libraries are loaded
    with (tmp_path / "adapter").open("wb+") as file:
        file.truncate(4 * d)
        before = forget_peak()
        assert computed(update, Stored(file)).any()
        assert peak_bytes() - before < 3 * 4 * d + (64 << 20)  # so much malloc may keep of what was freed
