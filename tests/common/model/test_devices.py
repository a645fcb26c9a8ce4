"""Where a model computes, as far as a machine without a GPU can show it; ``tests/gpu/on_gpu.py`` has the rest."""

import pytest
import torch
from support.study.tiny_models import load_tiny, save_tiny_model

from grandrounds.common.errors import ModelError
from grandrounds.common.model.devices import described, open_device, within_memory

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def test_on_processors_nothing_is_asked_of_a_gpu_and_determinism_is_left_as_it_is() -> None:
    assert open_device("cpu") == torch.device("cpu")
    assert described("cpu") == "processors"
    assert not torch.are_deterministic_algorithms_enabled()


@needs_no_gpu
@pytest.mark.parametrize(("built", "what"), [(False, "cannot use a GPU"), (True, "no GPU can be used here")])
def test_a_gpu_that_is_not_there_is_told_apart_from_a_torch_that_knows_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, built: bool, what: str
) -> None:
    model = save_tiny_model(tmp_path_factory.mktemp("llama"))
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    for needs_one in (open_device, described, lambda name: load_tiny(model, device=name)):
        with pytest.raises(ModelError, match=what) as refused:
            needs_one("cuda")
        assert "or choose cpu" in refused.value.fix


def test_a_model_too_large_for_a_gpu_is_a_matter_of_its_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    with pytest.raises(ModelError, match="do not fit into the memory of GPU"), within_memory(torch.device("cuda")):
        raise torch.OutOfMemoryError("Tried to allocate 20 MiB")
    with pytest.raises(ZeroDivisionError), within_memory(torch.device("cuda")):
        raise ZeroDivisionError
