"""What PyTorch makes while something is computed."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class MadeTensors(TorchDispatchMode):
    """Every tensor that an operation gives, kept so that none takes another's place in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.tensors += [made] if isinstance(made, torch.Tensor) else []
        return made
