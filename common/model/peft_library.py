"""What is used of peft, and the one layer that it lacks. Imported as if bitsandbytes were not there, which peft would
load for two seconds."""

from typing import cast

import torch
from torch import nn

from .nf4 import unseen

with unseen():
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.dora import DoraLinearLayer
    from peft.tuners.lora.layer import Embedding
    from peft.utils.integrations import dequantize_module_weight


class CoreLinear(nn.Linear):
    """A of a core adapter, whose result [..., r] a square matrix ``core`` [r, r] multiplies."""

    core: nn.Linear

    @classmethod
    def follow(cls, a: nn.Module) -> bool:
        """Turn a plain A into one with a core of zeros, where that can be done: module tree and names stay peft's."""
        if type(a) is not nn.Linear:
            return False
        a.__class__, rank = cls, a.out_features
        cast(CoreLinear, a).core = nn.Linear(rank, rank, bias=False, dtype=torch.float32)
        nn.init.zeros_(cast(CoreLinear, a).core.weight)
        return True

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's name)
        """x [..., in] -> [..., r]."""
        return cast(torch.Tensor, self.core(super().forward(input)))


__all__ = ["CoreLinear", "DoraLinearLayer", "Embedding", "LoraConfig", "dequantize_module_weight", "get_peft_model"]
