"""What is used of peft, imported as if bitsandbytes were not there: peft would load it, for two seconds."""

from .nf4 import unseen

with unseen():
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.dora import DoraLinearLayer
    from peft.tuners.lora.layer import Embedding
    from peft.utils.integrations import dequantize_module_weight

__all__ = ["DoraLinearLayer", "Embedding", "LoraConfig", "dequantize_module_weight", "get_peft_model"]
