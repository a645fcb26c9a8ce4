import peft
import pytest
import torch
from support.study.tiny_models import load_tiny, save_tiny_model
from transformers import AutoModelForCausalLM

from grandrounds.client.training.grad_samples import GradSampler, Shape
from grandrounds.client.training.supported_models import refuse_coupled_records
from grandrounds.common.errors import ModelError
from grandrounds.common.model.language_model import LanguageModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("wide"), width=64)


def with_adapter(folder, **options):
    base = AutoModelForCausalLM.from_pretrained(folder)
    return peft.get_peft_model(base, peft.LoraConfig(r=2, task_type="CAUSAL_LM", **options))


def refused(module, word):
    with pytest.raises(ModelError, match=word):
        GradSampler(LanguageModel(module), [Shape(8, 2)])


def test_a_plain_lora_model_is_accepted(folder):
    refuse_coupled_records(load_tiny(folder).module)


def test_batch_normalisation_is_refused(folder):
    module = load_tiny(folder).module
    module.base_model.model.model.norm = torch.nn.BatchNorm1d(16)
    refused(module, "over the batch")


def test_mixtures_of_experts_are_refused(tmp_path):
    refused(load_tiny(save_tiny_model(tmp_path, "mixtral"), "mixtral").module, "experts")


def test_routing_is_found_whatever_it_is_called(folder):
    class Chooser(torch.nn.Module):
        def forward(self, hidden):
            return hidden * hidden.topk(1, dim=-1).values

    module = load_tiny(folder).module
    module.base_model.model.model.layers[0].mlp = Chooser()
    refused(module, "experts")


def test_a_dense_model_is_accepted_whatever_it_is_called_and_counts(folder):
    module = load_tiny(folder).module
    module.base_model.model.model.layers[0].mlp.__class__ = type(
        "MoeRouterExperts", (type(module.base_model.model.model.layers[0].mlp),), {}
    )
    module.config.num_local_experts = 8
    refuse_coupled_records(module)


def test_a_quantised_model_is_refused(folder):
    configured = load_tiny(folder).module
    configured.config.quantization_config = {"quant_method": "torchao"}
    refused(configured, "quantised")
    of_integers = load_tiny(folder).module
    head = of_integers.base_model.model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach().to(torch.int8), requires_grad=False)
    refused(of_integers, "quantised")


def test_a_base_model_that_was_quantised_on_loading_is_accepted_and_no_other_is(wide):
    import bitsandbytes as bnb

    module = load_tiny(wide, precision="nf4").module
    refuse_coupled_records(module)
    layers = module.base_model.model.model.layers
    fp4 = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="fp4", compress_statistics=False).to("cpu")
    nested = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4").to("cpu")
    by_outliers = bnb.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False, threshold=6.0)
    for other in (fp4, nested):
        other.support_avx512bf16_for_cpu = False  # as in those that are accepted
    for other in (fp4, nested, by_outliers):
        own, layers[0].self_attn.k_proj = layers[0].self_attn.k_proj, other
        refused(module, "quantised")
        layers[0].self_attn.k_proj = own
    module.config.quantization_config.bnb_4bit_quant_type = "fp4"
    refused(module, "quantised")


def test_dora_of_anything_but_a_linear_layer_is_refused(folder):
    refused(with_adapter(folder, target_modules=["embed_tokens"], use_dora=True), "DoRA")


def test_embeddings_that_are_trained_whole_are_refused(folder):
    module = load_tiny(folder).module
    module.get_input_embeddings().weight.requires_grad_(True)
    refused(module, "embeddings")


def test_a_trained_weight_under_two_names_is_refused(folder):
    module = load_tiny(folder).module
    layers = module.base_model.model.model.layers
    layers[1] = layers[0]
    refused(module, "two names")


def test_a_model_in_which_nothing_is_trained_is_refused(folder):
    refused(load_tiny(folder).module.requires_grad_(False), "nothing")
