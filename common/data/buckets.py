"""Buckets: the few lengths to which examples are padded, so that short ones cost little."""

from typing import Final

# A length uniform in its logarithm wastes 1 - (1 - 1/r) / ln r of what is computed: 8.6 % at this ratio.
_RATIO: Final = 1.2
_STEP: Final = 8  # which kernels like
_SHORTEST: Final = 16


def bucket_lengths(max_tokens: int) -> tuple[int, ...]:
    """The lengths of a study's buckets, in order; the last is ``max_tokens`` itself, which most windows fill.

    A function of what the study says alone: were they chosen by how long a site's records are, one patient's would
    change the shape, and so the rounding, of another's gradient.

    >>> bucket_lengths(96), bucket_lengths(24)
    ((16, 24, 32, 40, 48, 56, 64, 80, 96), (16, 24))
    """
    lengths = [max_tokens]
    while lengths[-1] > _SHORTEST:
        shorter = min(round(lengths[-1] / _RATIO / _STEP), (lengths[-1] - 1) // _STEP) * _STEP
        lengths.append(max(shorter, _SHORTEST))
    return tuple(reversed(lengths))
