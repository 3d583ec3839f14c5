"""The oracle against torch's own cross entropy and the formula written out, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from aitrain.ops.cross_entropy.reference import capped, row_losses, row_statistics
from aitrain.ops.cross_entropy.terms import LossTerms


def draw(rows: int = 7, classes: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    targets = torch.randint(classes, (rows,))
    targets[::3] = -100
    targets[1] = classes - 1
    return torch.randn(rows, classes, dtype=torch.float64) * 3, targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_torchs_own(smoothing: float) -> None:
    logits, targets = draw()
    expected = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    found = row_losses(logits, targets, LossTerms(label_smoothing=smoothing))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_every_term_written_out() -> None:
    logits, targets = draw()
    terms = LossTerms(logit_scale=0.5, softcap=4.0, label_smoothing=0.2, z_loss=0.01)
    found = row_losses(logits, targets, terms)
    for row, target in enumerate(targets.tolist()):
        z = 4.0 * torch.tanh(0.5 * logits[row] / 4.0)
        lse = z.exp().sum().log()
        loss = lse - 0.8 * z[max(target, 0)] - 0.2 * z.mean() + 0.01 * lse**2
        torch.testing.assert_close(found[row], loss if target >= 0 else torch.zeros_like(loss))


def test_statistics_are_those_of_a_categorical_distribution() -> None:
    logits, targets = draw()
    terms = LossTerms(logit_scale=1.5, softcap=5.0)
    logprob, entropy, lse = row_statistics(logits, targets, terms)
    kept = targets >= 0
    spread = torch.distributions.Categorical(logits=capped(logits, terms))
    torch.testing.assert_close(logprob[kept], spread.log_prob(targets.clamp(min=0))[kept])
    torch.testing.assert_close(entropy[kept], spread.entropy()[kept])
    torch.testing.assert_close(lse[kept], capped(logits, terms).logsumexp(1)[kept])
    assert not torch.stack([logprob, entropy, lse])[:, ~kept].any()


def test_entropy_beside_a_probability_of_zero() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 0.0]], dtype=torch.float64)
    _, entropy, _ = row_statistics(logits, torch.tensor([0]), LossTerms())
    torch.testing.assert_close(entropy, torch.tensor([2.0], dtype=torch.float64).log())


def test_gradcheck() -> None:
    logits, targets = draw(4, 5)
    terms = LossTerms(logit_scale=0.7, softcap=3.0, label_smoothing=0.1, z_loss=0.02)
    assert torch.autograd.gradcheck(lambda x: row_losses(x, targets, terms), logits.requires_grad_())
    assert torch.autograd.gradcheck(lambda x: row_statistics(x, targets, terms), logits)
