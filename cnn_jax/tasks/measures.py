"""Measures of predictions, computed on the host in float64. Labels are class indices in [0, K)."""

from dataclasses import dataclass

import numpy as np


def wilson_interval(correct: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Returns the confidence interval of a proportion, for `z` standard deviations (1.96: 95 %).

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927. Unlike the normal
    approximation it stays in [0, 1] and does not collapse at 0 or `count` correct.

    >>> [round(bound, 4) for bound in wilson_interval(9900, 10000)]
    [0.9879, 0.9918]
    """
    share = correct / count
    centre = share + z**2 / (2 * count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    # Clip: rounding could push bounds of exactly 0 or 1 out of range.
    return max(0.0, float((centre - half) / scale)), min(1.0, float((centre + half) / scale))


def top_k_accuracy(scores_NxK: np.ndarray, labels_N: np.ndarray, k: int) -> float:
    """Returns the share of rows in which fewer than `k` other classes score at least as high as the true one."""
    right_Nx1 = scores_NxK[np.arange(len(labels_N)), labels_N][:, None]
    # "Not lower" rather than "higher": ties and NaN count as wrong.
    not_lower_N = (~(scores_NxK < right_Nx1)).sum(axis=1) - 1
    return float(np.mean(not_lower_N < k))


def confusion_matrix(labels_N: np.ndarray, predictions_N: np.ndarray, classes: int) -> np.ndarray:
    """Returns the counts, int64 (K, K): row true class, column predicted class.

    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
    array([[1, 1],
           [0, 1]])
    """
    pairs = labels_N.astype(np.int64) * classes + predictions_N
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def frequent_confusions(confusion_KxK: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """Returns up to `most` confusions, (true class, predicted class, count), the most frequent first."""
    wrong = confusion_KxK * (1 - np.eye(len(confusion_KxK), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    return [(i, j, int(wrong[i, j])) for i, j in pairs if wrong[i, j] > 0]


@dataclass(frozen=True)
class PerClass:
    """Scores of each class, arrays (K,); NaN where the denominator is 0."""

    count: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def per_class(confusion_KxK: np.ndarray) -> PerClass:
    """Returns the number of examples, precision, recall and their harmonic mean F1 of each class."""
    right = np.diag(confusion_KxK).astype(np.float64)
    count, predicted = confusion_KxK.sum(axis=1), confusion_KxK.sum(axis=0)
    return PerClass(
        count=count,
        precision=_ratio(right, predicted),
        recall=_ratio(right, count),
        f1=_ratio(2 * right, count + predicted),
    )


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy in bins of equal width over [0, 1]; NaN in empty bins."""

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray
    error: float
    """Expected calibration error, in [0, 1]."""


def calibration(probabilities_NxK: np.ndarray, labels_N: np.ndarray, bins: int = 15) -> Calibration:
    """Compares the probability of the predicted class with how often the prediction is right.

    Guo et al., "On calibration of modern neural networks", 2017, eq. 3, with their 15 bins: the error is the mean over
    the examples of |accuracy - confidence| in their bin.
    """
    confidence_N = probabilities_NxK.max(axis=1).astype(np.float64)
    correct_N = probabilities_NxK.argmax(axis=1) == labels_N
    bin_N = np.clip(np.ceil(confidence_N * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(bin_N, minlength=bins)
    confidence = _ratio(np.bincount(bin_N, confidence_N, bins), count)
    accuracy = _ratio(np.bincount(bin_N, correct_N.astype(np.float64), bins), count)
    error = np.nansum(count * np.abs(accuracy - confidence)) / len(labels_N)
    return Calibration(confidence, accuracy, count, float(error))


def worst_mistakes(probabilities_NxK: np.ndarray, labels_N: np.ndarray, most: int) -> np.ndarray:
    """Returns the indices of up to `most` misclassified examples, the most confident first."""
    wrong = np.flatnonzero(probabilities_NxK.argmax(axis=1) != labels_N)
    order = np.argsort(-probabilities_NxK[wrong].max(axis=1), kind="stable")
    return wrong[order[:most]]


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)
