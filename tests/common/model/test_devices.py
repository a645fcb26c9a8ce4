"""Where a model computes, as far as a machine without a GPU can show it; ``tests/gpu/on_gpu.py`` has the rest."""

import pytest
import torch
from support.study.tiny_models import load_tiny, save_tiny_model

from grandrounds.common.errors import ModelError, StudyError
from grandrounds.common.model.devices import Devices, described, open_device, within_memory
from grandrounds.common.schema import Section, validated

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def test_on_processors_nothing_is_asked_of_a_gpu_and_determinism_is_left_as_it_is() -> None:
    assert open_device("cpu") == torch.device("cpu")
    for name in ("tpu", "", "cpu,cpu"):
        with pytest.raises(ModelError, match="is no device"):
            open_device(name)
    assert described(["cpu"]) == "processors"
    assert not torch.are_deterministic_algorithms_enabled()


@needs_no_gpu
@pytest.mark.parametrize(("built", "what"), [(False, "cannot use a GPU"), (True, "no GPU can be used here")])
def test_a_gpu_that_is_not_there_is_told_apart_from_a_torch_that_knows_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, built: bool, what: str
) -> None:
    model = save_tiny_model(tmp_path_factory.mktemp("llama"))
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    for needs_one in (open_device, lambda name: described(["cpu", name]), lambda name: load_tiny(model, device=name)):
        with pytest.raises(ModelError, match=what) as refused:
            needs_one("cuda")
        assert "or choose cpu" in refused.value.fix


def test_a_model_too_large_for_a_gpu_is_a_matter_of_its_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    with pytest.raises(ModelError, match="do not fit into the memory of GPU"), within_memory(torch.device("cuda")):
        raise torch.OutOfMemoryError("Tried to allocate 20 MiB")
    with pytest.raises(ZeroDivisionError), within_memory(torch.device("cuda")):
        raise ZeroDivisionError


class Machine(Section):
    devices: Devices = ("cpu",)


def test_devices_are_one_or_several_that_can_compute_parts_of_one_step() -> None:
    for given in ("cuda", ["cuda"], ["cuda:0", "cuda:1"], ["cpu", "cpu"]):
        assert validated(Machine, {"devices": given}).devices == tuple([given] if isinstance(given, str) else given)
    for wrong, what in (
        ([], "1 or more"),
        (["cpu", "cuda"], "processors or GPUs alone"),
        (["cuda", "cuda:0"], "each GPU once"),
        (["gpu"], 'needs "cpu", "cuda"'),
        (7, 'needs "cpu", "cuda"'),
    ):
        with pytest.raises(StudyError, match=what):
            validated(Machine, {"devices": wrong})
