"""The trial on public text: norms of units as DP-SGD clips them, and what it says of itself."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.study.tiny_models import TARGETS, load_tiny, save_tiny_model, tiny_example

from grandrounds.client.training.grad_samples import GradSampler, Shape
from grandrounds.common.schema import known, validated
from grandrounds.common.study.completion import complete_study, draw_cap_of
from grandrounds.common.study.study import Study
from grandrounds.deploy.plan.instant import answer_after_s, dp_sgd_of, instant_of
from grandrounds.deploy.plan.trial import MAX_UNITS, run_trial


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("llama"))


def study(base: Path, *, clipping: str = "norm", **data: int) -> Study:
    fields = {
        "model": {"name": str(base), "target_modules": TARGETS["llama"], "rank": 2},
        "data": {"max_tokens": 16, **data},
        "privacy": {"clipping": clipping},
        "training": {"physical_batch": 2},
        "sites": [{"name": site, "nominal_units": 20} for site in ("north", "south", "west")],
    }
    return validated(Study, fields)


def public(path: Path, patients: int, notes: int = 1) -> Path:
    rows = [{"patient_id": i, "text": f"note {j} of text {i}"} for i in range(patients) for j in range(notes)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_a_unit_s_norm_is_that_of_the_mean_over_its_records(base: Path) -> None:
    rng = np.random.default_rng(2)
    examples = [tiny_example(rng, length=length, max_tokens=16) for length in (16, 9, 12, 5, 16, 7)]
    units = [examples[:1], examples[1:4], examples[4:]]  # across the borders of batches of two
    sampler = GradSampler(load_tiny(base), [Shape(16, 2)])
    norms = dp_sgd_of(study(base), sampler).norms(units).tolist()
    alone = [torch.cat([sampler.gradients([example]) for example in unit]).mean(dim=0) for unit in units]
    assert norms == pytest.approx([float(gradient.norm()) for gradient in alone], rel=1e-4)


def test_what_is_trained_on_public_text_is_clipped_as_the_study_clips(base: Path) -> None:
    sampler = GradSampler(load_tiny(base), [Shape(16, 2)])
    found = [dp_sgd_of(study(base, clipping=clipping), sampler).lattice.clipping for clipping in ("norm", "auto")]
    assert found == ["norm", "auto"]


def test_a_trial_reads_as_many_records_a_unit_as_a_step(base: Path, tmp_path: Path) -> None:
    path = public(tmp_path / "public.jsonl", patients=5, notes=3)
    one, all_ = (run_trial(study(base, records_per_unit=count), path) for count in (1, 3))
    assert len(one.norms) == len(all_.norms) == 5
    assert one.norms != all_.norms
    assert (one.source, one.shapes) == ("public.jsonl", (Shape(16, 2),))
    assert one.dimension == load_tiny(base).layout.dimension
    assert one.batch_s > 0


def test_the_instant_covers_the_slowest_path_of_the_largest_draw_of_the_largest_site(base: Path) -> None:
    complete = complete_study(study(base, records_per_unit=3))
    larger = complete.sites[2].model_copy(update={"max_units": 400})
    largest = complete.model_copy(update={"sites": (*complete.sites[:2], larger)})
    units = draw_cap_of(largest, max_units=400, delta=known(largest.privacy.delta))
    shapes = (Shape(8, 4), Shape(12, 2), Shape(16, 2))
    batches = -(-3 * units // 2) + 2 + 2  # one of each shorter shape, and a batch whose two records are tried alone
    assert instant_of(largest, batch_s=2.0, shapes=shapes, dimension=100) == pytest.approx(
        1.25 * batches * 2.0, rel=0.1
    )
    assert instant_of(largest, batch_s=2.0, shapes=shapes, dimension=100) >= 1.25 * batches * 2.0
    assert instant_of(complete, batch_s=2.0, shapes=shapes, dimension=100) < instant_of(
        largest, batch_s=2.0, shapes=shapes, dimension=100
    )
    data = largest.data.model_copy(update={"public": "public.jsonl", "public_units": 50})
    mixed = largest.model_copy(update={"data": data})
    assert instant_of(mixed, batch_s=2.0, shapes=shapes, dimension=100) >= 1.25 * (batches + 3 * 50 // 2) * 2.0
    alone = (Shape(8, 1), Shape(16, 2))  # as many batches as records, where all have 8 tokens
    assert instant_of(largest, batch_s=2.0, shapes=alone, dimension=100) >= 1.25 * 3 * units * 2.0
    sampler = GradSampler(load_tiny(base), [Shape(16, 2)])
    assert answer_after_s(complete, sampler) >= 0.5


def test_a_trial_is_the_same_each_time_and_of_bounded_size(base: Path, tmp_path: Path) -> None:
    path = public(tmp_path / "public.jsonl", patients=MAX_UNITS + 7)
    told: list[str] = []
    first = run_trial(study(base), path, told.append)
    assert first.norms == run_trial(study(base), path).norms
    assert len(first.norms) <= MAX_UNITS
    assert all("note" not in doing for doing in told)
