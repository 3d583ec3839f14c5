"""Metrics of search over a pool of texts in which each question has one right answer."""

from __future__ import annotations

import torch


def ranks_of(scores: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the place of each question's right text, from 1; of texts with the same score, half count as before it.

    Args:
        scores: `(Q, N)`.
        right: int64 `(Q,)`, column of the right text.
    """
    own = scores.gather(1, right[:, None])
    higher, equal = (scores > own).sum(1), (scores == own).sum(1) - 1
    return 1 + higher + equal.double() / 2


def search_metrics(ranks: torch.Tensor) -> dict[str, float]:
    """Return recall at 1, 5 and 10, nDCG at 10 and the mean reciprocal rank, with one right text per question.

    Args:
        ranks: Place of the right text, from 1, `(Q,)`.

    Source: Järvelin and Kekäläinen 2002 (nDCG); with one right text the ideal gain is 1.
    """
    ranks = ranks.double()
    gain = torch.where(ranks <= 10, 1 / torch.log2(ranks + 1), 0.0)
    found = {f"recall_at_{k}": float((ranks <= k).double().mean()) for k in (1, 5, 10)}
    return found | {"ndcg_at_10": float(gain.mean()), "mrr": float((1 / ranks).mean())}
