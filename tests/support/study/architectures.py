"""Tiny random models of the architectures that people fine-tune, and of those that a study has to refuse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from support.study.tiny_models import VOCABULARY

_IDS: Final = {"vocab_size": VOCABULARY, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 257}
_SIZES: Final = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_MORE: Final = {"intermediate_size": 64, "max_position_embeddings": 128}
_LIKE_LLAMA: Final = {**_IDS, **_SIZES, **_MORE, "num_key_value_heads": 2}
_LIKE_GPT2: Final = {**_IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
_LIKE_BART: Final = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}
_LIKE_BERT: Final = {"vocab_size": VOCABULARY, "pad_token_id": 257, **_SIZES, **_MORE}
_ROBERTA: Final = _LIKE_BERT | {"pad_token_id": 1, "max_position_embeddings": 130}
_NO_GROUPS: Final = _LIKE_LLAMA | {"num_key_value_heads": 4}
_EIGHT: Final = {"head_dim": 8}
_WINDOW: Final = {"sliding_window": 8}
_EXPERTS: Final = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
_SHARED: Final = {"shared_expert_intermediate_size": 16}
_LATENT: Final = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8}
_MAMBA: Final = _IDS | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
_MAMBA_HEADS: Final = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4}
_DELTA: Final = {"linear_num_key_heads": 2, "linear_num_value_heads": 4} | {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_DEEPSEEK: Final = {**_NO_GROUPS, **_LATENT, "n_routed_experts": 4, "num_experts_per_tok": 2} | {
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
}
_LLAMA4: Final = {**_LIKE_LLAMA, **_EIGHT, "intermediate_size_mlp": 64, "num_local_experts": 2} | {
    "num_experts_per_tok": 1,
    "attention_chunk_size": 64,
}
_VISION: Final = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32} | {
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_VISION: Final = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32}

# Of each: the name of its configuration's class, and the sizes.
_OF_TEXT: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "llama": ("Llama", _LIKE_LLAMA),
    "llama_tied": ("Llama", _LIKE_LLAMA | {"tie_word_embeddings": True}),
    "mistral": ("Mistral", _LIKE_LLAMA | _WINDOW),
    "qwen2": ("Qwen2", _LIKE_LLAMA),
    "qwen3": ("Qwen3", _LIKE_LLAMA | _EIGHT),
    "gemma": ("Gemma", _LIKE_LLAMA | _EIGHT),
    "gemma_untied": ("Gemma", _LIKE_LLAMA | _EIGHT | {"tie_word_embeddings": False}),
    "gemma2": ("Gemma2", _LIKE_LLAMA | _EIGHT | _WINDOW),
    "gemma3": ("Gemma3Text", _LIKE_LLAMA | _EIGHT | _WINDOW),
    "gemma3n": (
        "Gemma3nText",
        {**_LIKE_LLAMA, **_EIGHT, **_WINDOW, "intermediate_size": [64, 64], "vocab_size_per_layer_input": VOCABULARY}
        | {"hidden_size_per_layer_input": 8, "laurel_rank": 4, "num_kv_shared_layers": 0, "altup_num_inputs": 2}
        | {"activation_sparsity_pattern": [0.0, 0.0]},
    ),
    "gemma4": (
        "Gemma4Text",
        {**_LIKE_LLAMA, **_EIGHT, **_WINDOW, "global_head_dim": 8, "hidden_size_per_layer_input": 8}
        | {"vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 0},
    ),
    "vaultgemma": ("VaultGemma", _LIKE_LLAMA | _EIGHT | _WINDOW),
    "phi": ("Phi", _LIKE_LLAMA),
    "phi3": ("Phi3", _LIKE_LLAMA | _WINDOW),
    "gpt2": ("GPT2", _LIKE_GPT2),
    "gpt_neox": ("GPTNeoX", {**_IDS, **_SIZES, **_MORE}),
    "gpt_neo": (
        "GPTNeo",
        {**_IDS, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
        | {"window_size": 8, "max_position_embeddings": 128},
    ),
    "gptj": ("GPTJ", _LIKE_GPT2 | {"rotary_dim": 8}),
    "opt": (
        "OPT",
        {**_IDS, **_SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 128},
    ),
    "bloom": ("Bloom", _IDS | {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon_rope": ("Falcon", {**_IDS, **_SIZES, "multi_query": True}),
    "falcon_alibi": ("Falcon", {**_IDS, **_SIZES, "multi_query": True, "alibi": True}),
    "mpt": ("Mpt", {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128}),
    "biogpt": ("BioGpt", {**_IDS, **_SIZES, **_MORE}),
    "xglm": (
        "XGLM",
        {**_IDS, "pad_token_id": 1, "d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4}
        | {"max_position_embeddings": 128},
    ),
    "codegen": ("CodeGen", _LIKE_GPT2 | {"n_ctx": 128, "rotary_dim": 8}),
    "gpt_bigcode": ("GPTBigCode", _LIKE_GPT2),
    "granite": ("Granite", _LIKE_LLAMA),
    "olmo2": ("Olmo2", _LIKE_LLAMA),
    "olmo3": ("Olmo3", _LIKE_LLAMA | _WINDOW),
    "smollm3": ("SmolLM3", _LIKE_LLAMA),
    "stablelm": ("StableLm", _LIKE_LLAMA),
    "starcoder2": ("Starcoder2", _LIKE_LLAMA),
    "cohere2": ("Cohere2", _LIKE_LLAMA | _WINDOW),
    "glm4": ("Glm4", _LIKE_LLAMA | _EIGHT),
    "nemotron": ("Nemotron", _LIKE_LLAMA),
    "minicpm3": ("MiniCPM3", _NO_GROUPS | _LATENT),
    "mamba": ("Mamba", _MAMBA),
    "mamba2": ("Mamba2", _MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    "falcon_mamba": ("FalconMamba", _MAMBA),
    "falcon_h1": (
        "FalconH1",
        _LIKE_LLAMA | _MAMBA_HEADS | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_chunk_size": 8},
    ),
    "bamba": ("Bamba", _LIKE_LLAMA | _MAMBA_HEADS | {"attn_layer_indices": [1], "mamba_chunk_size": 8}),
    "zamba2": (
        "Zamba2",
        {**_LIKE_LLAMA, "mamba_d_state": 4, "mamba_headdim": 8, "mamba_ngroups": 1, "chunk_size": 8}
        | {"num_mem_blocks": 1, "hybrid_layer_ids": [1], "adapter_rank": 4, "layers_block_type": ["mamba", "hybrid"]},
    ),
    "jamba": (
        "Jamba",
        {**_LIKE_LLAMA, **_EXPERTS, "expert_layer_period": 2, "expert_layer_offset": 1, "attn_layer_period": 2}
        | {"attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 4, "mamba_dt_rank": 4},
    ),
    "recurrent_gemma": (
        "RecurrentGemma",
        {name: size for name, size in _LIKE_LLAMA.items() if name != "max_position_embeddings"}
        | {"lru_width": 32, "attention_window_size": 8, "head_dim": 8, "block_types": ["recurrent", "attention"]},
    ),
    "lfm2": ("Lfm2", _LIKE_LLAMA | {"full_attn_idxs": [1], "block_multiple_of": 8}),
    "qwen3_next": ("Qwen3Next", {**_LIKE_LLAMA, **_EIGHT, **_EXPERTS, **_SHARED, **_DELTA}),
    "qwen3_5": (
        "Qwen3_5Text",
        {**_LIKE_LLAMA, **_EIGHT, **_DELTA, "layer_types": ["linear_attention", "full_attention"]},
    ),
    "mixtral": ("Mixtral", _LIKE_LLAMA | {"num_local_experts": 2}),
    "qwen2_moe": ("Qwen2Moe", _LIKE_LLAMA | _EXPERTS | _SHARED),
    "qwen3_moe": ("Qwen3Moe", _LIKE_LLAMA | _EIGHT | _EXPERTS),
    "gpt_oss": ("GptOss", _LIKE_LLAMA | _EIGHT | _WINDOW | {"num_local_experts": 2, "num_experts_per_tok": 1}),
    "deepseek_v3_moe": ("DeepseekV3", _DEEPSEEK | {"first_k_dense_replace": 1}),
    "deepseek_v3_dense": ("DeepseekV3", _DEEPSEEK | {"first_k_dense_replace": 2}),
    "llama4_moe": ("Llama4Text", _LLAMA4 | {"interleave_moe_layer_step": 1}),
    "llama4_dense": ("Llama4Text", _LLAMA4 | {"moe_layers": []}),
    "granite4_dense": (
        "GraniteMoeHybrid",
        {**_LIKE_LLAMA, "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 64}
        | {"mamba_n_heads": 8, "layer_types": ["full_attention"] * 2, "position_embedding_type": "rope"},
    ),
    "hunyuan": ("HunYuanDenseV1", _LIKE_LLAMA | _EIGHT),
    "bert_decoder": ("Bert", _LIKE_BERT | {"is_decoder": True}),
    "roformer_decoder": ("RoFormer", _LIKE_BERT | {"is_decoder": True}),
    "bart": (
        "Bart",
        {**_IDS, **_LIKE_BART, "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
        | {"max_position_embeddings": 128},
    ),
    "rwkv": (
        "Rwkv",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
        | {"attention_hidden_size": 32, "intermediate_size": 64, "context_length": 128},
    ),
    "xlstm": (
        "xLSTM",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_blocks": 2, "num_heads": 4, "chunk_size": 16},
    ),
    "ctrl": (
        "CTRL",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "dff": 64},
    ),
    "reformer": (
        "Reformer",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4, "attention_head_size": 8}
        | {"feed_forward_size": 64, "num_hidden_layers": 2, "attn_layers": ["local", "local"], "is_decoder": True}
        | {"axial_pos_shape": [8, 16], "axial_pos_embds_dim": [16, 16], "max_position_embeddings": 128}
        | {"local_attn_chunk_length": 8},
    ),
}
# And the class of the model, which is no causal language model of text alone.
_OTHERS: Final[dict[str, tuple[str, dict[str, Any], str]]] = {
    "bert": ("Bert", _LIKE_BERT, "BertForMaskedLM"),
    "roberta": ("Roberta", _ROBERTA, "RobertaForMaskedLM"),
    "xlm_roberta": ("XLMRoberta", _ROBERTA, "XLMRobertaForMaskedLM"),
    "megatron_bert": ("MegatronBert", _LIKE_BERT, "MegatronBertForMaskedLM"),
    "xlnet": (
        "XLNet",
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
        "XLNetLMHeadModel",
    ),
    "t5": (
        "T5",
        {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        | {"pad_token_id": 257, "eos_token_id": 256, "decoder_start_token_id": 257},
        "T5ForConditionalGeneration",
    ),
    "medgemma": (
        "Gemma3",
        {"text_config": {**_LIKE_LLAMA, **_EIGHT, **_WINDOW}, "vision_config": _VISION, "mm_tokens_per_image": 1}
        | {"boi_token_index": 250, "eoi_token_index": 251, "image_token_index": 252, "eos_token_id": 256},
        "Gemma3ForConditionalGeneration",
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {"text_config": _LIKE_LLAMA, "vision_config": _QWEN_VISION},
        "Qwen2_5_VLForConditionalGeneration",
    ),
    "qwen3_5_vl": (
        "Qwen3_5",
        {"text_config": _OF_TEXT["qwen3_5"][1], "vision_config": _QWEN_VISION},
        "Qwen3_5ForConditionalGeneration",
    ),
    "llava": (
        "Llava",
        {"text_config": {"model_type": "llama", **_LIKE_LLAMA}, "image_token_index": 252}
        | {"vision_config": {"model_type": "clip_vision_model", **_VISION}},
        "LlavaForConditionalGeneration",
    ),
    "mistral3_vl": (
        "Mistral3",
        {"text_config": {"model_type": "mistral", **_LIKE_LLAMA}, "image_token_index": 252}
        | {"vision_config": {"model_type": "pixtral", **_VISION, **_EIGHT}},
        "Mistral3ForConditionalGeneration",
    ),
    "llama4_vl": (
        "Llama4",
        {
            "text_config": _LLAMA4,
            "vision_config": _VISION | {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
        },
        "Llama4ForConditionalGeneration",
    ),
    "mllama": (
        "Mllama",
        {"text_config": _LIKE_LLAMA | {"cross_attention_layers": [1]}, "image_token_index": 252}
        | {
            "vision_config": {
                **{name: size for name, size in _VISION.items() if name != "num_attention_heads"},
                "num_global_layers": 1,
                "attention_heads": 2,
                "vision_output_dim": 32,
                "intermediate_layers_indices": [0],
            }
        },
        "MllamaForConditionalGeneration",
    ),
}
NAMES: Final = (*_OF_TEXT, *_OTHERS)


def save_architecture(folder: Path, name: str, **changes: Any) -> Path:
    """Save a tiny model into ``folder``, without a tokenizer; weights large enough that gradients are no rounding.

    ``changes`` are to its configuration.
    """
    make: Callable[[Any], Any]
    if name in _OF_TEXT:
        kind, sizes = _OF_TEXT[name]
        make = transformers.AutoModelForCausalLM.from_config
    else:
        kind, sizes, model_class = _OTHERS[name]
        make = getattr(transformers, model_class)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = make(getattr(transformers, f"{kind}Config")(**sizes | changes))
        for path, parameter in model.named_parameters():
            if parameter.dim() > 1 and "A_log" not in path:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder
