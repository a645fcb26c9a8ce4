"""What only a machine with a GPU can show of a site: ``make gpu``, or ``pytest tests/gpu/site_on_gpu.py`` there."""

import pytest
import torch
from support.study.site_study import SiteStudy
from support.study.tiny_models import load_tiny, save_tiny_model

from grandrounds.client.site.assembly import sampler_of
from grandrounds.common.errors import ModelError
from grandrounds.common.model.devices import described
from grandrounds.deploy.site_ops import commands as site_operator
from grandrounds.deploy.site_ops.check import check


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {"llama": save_tiny_model(tmp_path_factory.mktemp("llama"), "llama")}


def test_a_batch_that_does_not_fit_is_told_at_the_start(folders):
    study = SiteStudy(folders["llama"]).federation().manifest.study
    vast = study.model_copy(update={"training": study.training.model_copy(update={"physical_batch": 4096})})
    model = load_tiny(folders["llama"], device="cuda")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.0005)
    try:
        with pytest.raises(ModelError, match="do not fit into the memory of NVIDIA"):
            sampler_of(vast, model)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_site_with_a_gpu_checks_itself_without_a_network(folders, tmp_path):
    study = SiteStudy(folders["llama"])
    federation = study.federation()
    folder = study.initialised(tmp_path / "site", federation, device="cuda")
    site_operator.join_study(folder, study.bundle(federation, tmp_path / "tls"), agreed=lambda agreement: True)
    said = "\n".join(check(folder, folder.study()))
    assert "GiB of the GPU's" in said
    assert described("cuda").split(" (")[0] in said
