"""How far notes are from others as the base model reads them."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ....common.model.language_model import LanguageModel

_DEGREE: Final = 3


def read_by(
    model: LanguageModel, tokenizer: Any, texts: Sequence[str], told: Callable[[int], None]
) -> NDArray[np.float64]:
    """[texts, hidden]: of each text the mean over its tokens of the base model's last hidden states.

    ``told`` of how many are read.
    """
    import torch

    body, found = model.module.get_base_model().base_model, []
    with torch.inference_mode(), model.module.disable_adapter():
        for text in texts:
            tokens = torch.tensor([tokenizer(text, return_token_type_ids=False)["input_ids"]])
            states = body(input_ids=tokens.to(model.device), use_cache=False).last_hidden_state
            found.append(states[0].double().mean(0).cpu().numpy())
            told(len(found))
    return np.stack(found)


def scaled(texts: NDArray[np.float64], *, by: NDArray[np.float64]) -> NDArray[np.float64]:
    """[texts, hidden], less the mean of ``by``, in units of its standard deviation: else a few numbers outweigh all."""
    spread = by.std(0)
    found: NDArray[np.float64] = (texts - by.mean(0)) / np.where(spread > 0, spread, 1)
    return found


def distance(some: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """The kernel distance of two samples [n, d] and [m, d], of two rows at least: 0 on average where both are alike.

    The unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012, "A Kernel Two-Sample Test",
    lemma 6) by the cubic kernel of Bińkowski et al. 2018, "Demystifying MMD GANs", section 4: (x·y/d + 1)³. The Fréchet
    distance, which is more often seen, says of a few hundred notes more of their number than of what they are.
    """
    within = sum(_off_diagonal_mean(_kernel(rows, rows)) for rows in (some, others))
    return float(within - 2 * _kernel(some, others).mean())


def _kernel(rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    similar: NDArray[np.float64] = (rows @ columns.T / rows.shape[1] + 1) ** _DEGREE
    return similar


def _off_diagonal_mean(kernel: NDArray[np.float64]) -> float:
    n = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (n * (n - 1)))
