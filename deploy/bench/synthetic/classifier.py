"""A small classifier of texts: logistic regression on hashed words and pairs of words."""

import itertools
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

_FEATURES: Final = 4096
_PENALTY: Final = 1e-3
_ITERATIONS: Final = 200
_WORD: Final = re.compile(r"[a-z]+|\d")


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """Classes by their names, and weights float64 [features + 1, classes], the last row of which is the bias."""

    classes: tuple[str, ...]
    weights: NDArray[np.float64]

    @classmethod
    def fit(cls, texts: Sequence[str], labels: Sequence[str]) -> Self:
        """Of texts with labels; each class weighs the same, however many texts it has.

        Texts are seen less the mean of their own kind, here as where they are classified: what all synthetic notes
        have and no real one has would else put nearly all real ones into one class, whatever differs among them.
        """
        from scipy.optimize import minimize

        classes = tuple(sorted(set(labels)))
        truth = np.array([classes.index(label) for label in labels])
        x, y = _apart(texts), np.eye(len(classes))[truth]
        weight = (1 / (len(classes) * y.sum(0)))[truth]

        def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            weights = flat.reshape(_FEATURES + 1, len(classes))
            logits = x @ weights[:-1] + weights[-1]
            logits -= logits.max(1, keepdims=True)
            chances = np.exp(logits)
            chances /= chances.sum(1, keepdims=True)
            lost = -(weight * np.log(chances[np.arange(len(truth)), truth] + 1e-12)).sum()
            apart = (chances - y) * weight[:, None]
            gradient = np.vstack([x.T @ apart + _PENALTY * weights[:-1], apart.sum(0)])
            return float(lost + _PENALTY / 2 * (weights[:-1] ** 2).sum()), gradient.ravel()

        start = np.zeros((_FEATURES + 1) * len(classes))
        found: Any = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS})
        return cls(classes=classes, weights=found.x.reshape(_FEATURES + 1, len(classes)))

    def balanced_accuracy(self, texts: Sequence[str], labels: Sequence[str]) -> float:
        """The mean over the labels' classes of the part of their texts that is recognised: 1/classes by chance.

        Of the texts together, without their labels, the mean is taken.
        """
        given = (_apart(texts) @ self.weights[:-1] + self.weights[-1]).argmax(1)
        right = np.array([self.classes[number] == label for number, label in zip(given, labels, strict=True)])
        truth = np.array(labels)
        return float(np.mean([right[truth == name].mean() for name in set(labels)]))


def _apart(texts: Sequence[str]) -> NDArray[np.float64]:
    found = features(texts)
    found -= found.mean(0)
    return found


def features(texts: Sequence[str]) -> NDArray[np.float64]:
    """[texts, features], of norm one: logarithms of how often each word and pair of words, hashed, is in a text."""
    found = np.zeros((len(texts), _FEATURES))
    for row, text in enumerate(texts):
        words = _WORD.findall(text.lower())
        for term in (*words, *map(" ".join, itertools.pairwise(words))):
            found[row, zlib.crc32(term.encode()) % _FEATURES] += 1
    found = np.log1p(found)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return found
