"""Metrics of classifiers over all held-out samples, by torchmetrics, and the temperature of their probabilities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torchmetrics.functional import classification as tm


def classes_in(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return accuracy, macro F1 and balanced accuracy of the most probable class.

    Args:
        logits: `(N, C)`.
        labels: int64 `(N,)`.
    """
    count, guesses = logits.shape[1], logits.argmax(1)
    return {
        "accuracy": float(tm.multiclass_accuracy(guesses, labels, count, average="micro")),
        "f1_macro": float(tm.multiclass_f1_score(guesses, labels, count, average="macro")),
        "balanced_accuracy": float(tm.multiclass_recall(guesses, labels, count, average="macro")),
    }


def single_label_metrics(logits: torch.Tensor, labels: torch.Tensor) -> tuple[dict[str, float], float]:
    """Return the metrics of a classifier with one label per sample, and the temperature that calibrates it.

    The calibration error is the expected one over 15 bins (Naeini et al. 2015); the temperature is fitted on these same
    samples (Guo et al., arXiv:1706.04599), so the error after it is slightly optimistic.

    Args:
        logits: `(N, C)`.
        labels: int64 `(N,)`.
    """
    temperature = fitted_temperature(logits, labels)
    errors = {
        name: float(tm.multiclass_calibration_error(scaled.softmax(1), labels, logits.shape[1], n_bins=15))
        for name, scaled in (("calibration_error", logits), ("calibration_error_scaled", logits / temperature))
    }
    return classes_in(logits, labels) | errors, temperature


def fitted_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the number by which logits are divided so that the held-out samples become most likely.

    Args:
        logits: `(N, C)`.
        labels: int64 `(N,)`.

    Returns:
        A number from 0.05 to 20.
    """
    logits = logits.double()

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / 2.0**log_temperature, labels))

    # the likelihood has one peak along this line: golden-section search
    low, high, ratio = -4.3, 4.3, (5**0.5 - 1) / 2
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return float(2.0 ** ((low + high) / 2))


def multi_label_metrics(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return macro and micro F1, and the share of samples whose labels are all right.

    Args:
        logits: `(N, C)`; above 0 = the label is given.
        labels: 0 or 1, `(N, C)`.
    """
    guesses, right = (logits > 0).long(), labels.long()
    count = logits.shape[1]
    return {
        "f1_macro": float(tm.multilabel_f1_score(guesses, right, count, average="macro")),
        "f1_micro": float(tm.multilabel_f1_score(guesses, right, count, average="micro")),
        "exact_match": float((guesses == right).all(1).double().mean()),
    }
