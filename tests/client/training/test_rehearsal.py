"""What a site measures before a study: no draw of its records can cost more."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support.study.federation import small_manifest, small_study
from support.study.tiny_models import load_tiny, save_tiny_model, tiny_example

from grandrounds.client.training.cohort import Cohort
from grandrounds.client.training.grad_samples import GradSampler, Shape
from grandrounds.client.training.rehearsal import with_most_work
from grandrounds.client.training.update import SiteUpdate
from grandrounds.common.crypto.identity import Identity
from grandrounds.common.model.example import Example

TOKENS, BATCH, RECORDS, UNITS = 16, 2, 3, 40
EXAMPLE = tiny_example(np.random.default_rng(1), length=9, max_tokens=TOKENS)


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> GradSampler:
    model = load_tiny(save_tiny_model(tmp_path_factory.mktemp("llama")))
    return GradSampler(model, [Shape(4, 2 * BATCH), Shape(8, BATCH), Shape(TOKENS, BATCH)])


def update_of(sampler: GradSampler, cohort: Cohort[Example], public_units: int = 0, **privacy: Any) -> SiteUpdate:
    identities = {f"site-{i}": Identity.generate() for i in range(1, 6)}
    data = {"public": f"sha256:{'ab' * 32}", "public_units": public_units} if public_units else {}
    study = small_study((UNITS,) * 5, privacy=privacy, data=data)
    sites = tuple(site.model_copy(update={"max_units": UNITS}) for site in study.sites)
    manifest = small_manifest(
        study.model_copy(update={"sites": sites}),
        identities,
        Identity.generate(),
        dimension=sampler.model.layout.dimension,
    )
    return SiteUpdate(manifest=manifest, name="site-1", cohort=cohort, sampler=sampler)


def work(update: SiteUpdate, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many batches one update computes."""
    computed = []
    gradients = GradSampler.gradients

    def counted(self: GradSampler, examples: Sequence[Example]) -> torch.Tensor:
        computed.append(len(examples))
        return gradients(self, examples)

    with monkeypatch.context() as patch:
        patch.setattr(GradSampler, "gradients", counted)
        update(np.zeros(update.manifest.dimension, dtype=np.float32), update.manifest.mechanism({}, attempt=1))
    return len(computed)


@pytest.mark.parametrize("probability", [0.05, 1.0])
def test_the_most_work_is_the_largest_draw_beside_a_batch_of_each_shape_and_one_that_fails(
    sampler: GradSampler, probability: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody: Cohort[Example] = Cohort([[EXAMPLE]])
    update = update_of(sampler, nobody, sampling_probability=probability)
    units = update.manifest.draw_cap("site-1")
    assert 0.05 * UNITS < units <= UNITS
    assert (units == UNITS) == (probability == 1)
    records = units * RECORDS
    assert work(with_most_work(update), monkeypatch) == -(-records // BATCH) + 2 + BATCH
    mixed = update_of(sampler, nobody, public_units=5, sampling_probability=probability)
    assert work(with_most_work(mixed), monkeypatch) == -(-(records + 5 * RECORDS) // BATCH) + 2 + BATCH


def test_no_draw_costs_more_however_many_records_the_drawn_units_have(
    sampler: GradSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = Cohort([[EXAMPLE] * 64] * (25 * UNITS))  # were the bound on the cohort not checked
    update = update_of(sampler, many, sampling_probability=0.05)
    assert work(update, monkeypatch) <= work(with_most_work(update), monkeypatch)


def test_without_the_cap_a_large_draw_would_cost_more(sampler: GradSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    class Uncapped(Cohort[Example]):
        def draw(self, *, sampling_probability: float, records_per_unit: int, cap: int) -> Any:
            return super().draw(sampling_probability=sampling_probability, records_per_unit=records_per_unit, cap=10**6)

    many = Uncapped([[EXAMPLE] * 64] * (100 * UNITS))
    update = update_of(sampler, many, sampling_probability=0.05)
    assert work(update, monkeypatch) > work(with_most_work(update), monkeypatch)


def test_a_draw_that_falls_into_parts_costs_no_more_though_each_has_batches_that_are_not_full(
    sampler: GradSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    lengths = [shape.tokens for shape in sampler.shapes]
    mixed = [tiny_example(rng, length=length, max_tokens=length) for length in lengths]
    update = update_of(sampler, Cohort([mixed] * UNITS), sampling_probability=1.0)
    for most in (3, 7, 1024):
        monkeypatch.setattr("grandrounds.client.training.dp_sgd._MOST_RECORDS", most)
        assert work(update, monkeypatch) <= work(with_most_work(update), monkeypatch)
    monkeypatch.setattr("grandrounds.client.training.dp_sgd._MOST_BYTES", 4 * update.manifest.dimension)
    assert work(update, monkeypatch) <= work(with_most_work(update), monkeypatch)
    monkeypatch.setattr("grandrounds.client.training.rehearsal.most_flights", lambda *_, **__: 1)
    assert work(update, monkeypatch) > work(with_most_work(update), monkeypatch), "which one part alone would hide"


def test_no_draw_of_short_records_costs_more_where_these_are_computed_one_at_a_time(
    sampler: GradSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = GradSampler(sampler.model, [Shape(4, 1), Shape(TOKENS, 4)])  # 4 tokens had another's bits on this machine
    short = tiny_example(np.random.default_rng(3), length=4, max_tokens=4)
    update = update_of(alone, Cohort([[short] * RECORDS] * UNITS), sampling_probability=1.0)
    assert UNITS * RECORDS <= work(update, monkeypatch) <= work(with_most_work(update), monkeypatch)
