import subprocess
import sys

import pytest

from grandrounds.common.errors import ModelError
from grandrounds.common.model.base_model import Precision
from grandrounds.common.model.lora import Lora
from grandrounds.deploy.bench.steps import dp_step, kinds
from grandrounds.deploy.bench.steps.kinds import KINDS, Task
from grandrounds.deploy.bench.steps.random_models import random_model, stacked_model
from grandrounds.deploy.bench.steps.unit_sum import SumBench, sum_lines

TARGETS = ("q_proj", "v_proj")

# Of what is installed, a machine that only computes has none of these. None in sys.modules says so to every import.
BARE = """
import sys
absent = "cryptography dp_accounting flwr httpx jinja2 lxml platformdirs pyarrow rfc8785 rich sqlalchemy typer".split()
sys.modules.update(dict.fromkeys(absent))
import grandrounds.client.training.physical_batch
from grandrounds.common.model.lora import Lora
from grandrounds.deploy.bench.steps.random_models import random_model
from grandrounds.deploy.bench.steps.kinds import KINDS, Task, draws_noise
model = random_model("random:tiny", Lora(target_modules=("v_proj",)), precision="float32", device="cpu")
before = model.get_adapter()
task = Task.random(model, records=3, tokens=8, batch=2)
KINDS["private"](task)()
assert not draws_noise() and (model.get_adapter() != before).any()
assert not [name for name in absent if sys.modules[name]]
"""


def test_a_private_step_is_computed_where_nothing_of_a_network_or_of_signatures_is_installed() -> None:
    ran = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def task(precision: Precision = "float32") -> Task:
    lora = Lora(target_modules=TARGETS, rank=2)
    model = random_model("random:tiny", lora, precision=precision, device="cpu")
    return Task.random(model, records=4, tokens=8, batch=2)


def test_every_kind_of_step_moves_its_own_adapter_and_shares_the_frozen_weights() -> None:
    one = task("bfloat16")
    start = one.model.get_adapter()
    for kind in KINDS.values():
        own = one.with_own_adapter()
        frozen = [p.data_ptr() for p in own.model.module.parameters() if not p.requires_grad]
        assert frozen == [p.data_ptr() for p in one.model.module.parameters() if not p.requires_grad]
        kind(own)()
        assert (own.model.get_adapter() != start).any()
    assert (one.model.get_adapter() == start).all()
    assert one.model.precision == "bfloat16"


def test_opacus_and_we_come_to_the_same_step_where_no_noise_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "draws_noise", lambda: False)
    monkeypatch.setattr(kinds, "_NOISE_MULTIPLIER", 0.0)
    one, moved = task(), {}
    for name, kind in KINDS.items():
        own = one.with_own_adapter()
        kind(own)()
        moved[name] = own.model.get_adapter() - one.model.get_adapter()
    ours, unclipped = moved.pop("private"), moved.pop("without privacy")
    assert len(moved) == 2
    for opacus in moved.values():
        assert abs(ours - opacus).max() < 0.02 * abs(ours).max()
    assert abs(ours - unclipped).max() > 0.1 * abs(ours).max()


def test_a_step_s_operations_follow_the_formula() -> None:
    model = task().model
    linear = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128) + 64 * 512
    trained = 2 * 2 * (64 + 32)
    assert dp_step.model_flops(model, 8) == 8 * (4 * linear + 6 * trained) + 12 * 2 * 64 * 8**2


def test_a_random_model_of_another_name_is_refused() -> None:
    with pytest.raises(ModelError, match="no random model random:3b"):
        random_model("random:3b", Lora(target_modules=TARGETS), precision="float32", device="cpu")


def test_a_stack_trains_about_the_numbers_asked_for_on_one_shared_weight() -> None:
    model = stacked_model(dimension=50_000, width=64, rank=4, device="cpu")
    assert abs(model.layout.dimension - 50_000) <= 7 * 2 * 4 * 64
    assert len({p.data_ptr() for n, p in model.module.named_parameters() if "base_layer" in n}) == 1
    figures = SumBench(dimension=8_000, tokens=8, width=64, rank=4, records=2).run()
    assert figures["sum_s"] > 0
    assert "of it" in sum_lines(figures)
