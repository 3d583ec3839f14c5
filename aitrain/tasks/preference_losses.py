"""Losses of pairs of answers as in their papers, on sums of log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from aitrain.config.task import Preference, PreferenceLoss


@dataclass(frozen=True)
class Answers:
    """Log-probabilities of the answers of some pairs; every tensor float32 `(pairs,)`."""

    chosen: torch.Tensor
    """Sum over the tokens of the better answer, under the model."""

    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    reference_chosen: torch.Tensor
    """The same sums under the model as it was at the start; 0 where no reference is needed."""

    reference_rejected: torch.Tensor

    @property
    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean log-probability per token of the better answer and of the other."""
        return self.chosen / self.chosen_tokens, self.rejected / self.rejected_tokens

    def margins(self, keys: Preference) -> torch.Tensor:
        """Return by how much the better answer is ahead, in the loss's own measure; above 0 = ranked correctly.

        Args:
            keys: The recipe's task.
        """
        if keys.loss is PreferenceLoss.dpo:
            return keys.beta * ((self.chosen - self.reference_chosen) - (self.rejected - self.reference_rejected))
        chosen, rejected = self.means
        if keys.loss is PreferenceLoss.ipo:
            return (chosen - self.reference_chosen / self.chosen_tokens) - (
                rejected - self.reference_rejected / self.rejected_tokens
            )
        if keys.loss is PreferenceLoss.simpo:
            return keys.beta * (chosen - rejected)
        return (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))


def losses(answers: Answers, keys: Preference) -> torch.Tensor:
    """Return the loss of each pair, float32 `(pairs,)`.

    Args:
        answers: Log-probabilities.
        keys: The recipe's task.

    Source: dpo: Rafailov et al., arXiv:2305.18290, equation 7, with label smoothing as in Mitchell 2023; ipo: Azar et
    al., arXiv:2310.12036, equation 17, on mean log-probabilities as TRL has it; simpo: Meng et al., arXiv:2405.14734,
    equation 6; orpo: Hong et al., arXiv:2403.07691, equations 6 and 7.
    """
    margins = answers.margins(keys)
    if keys.loss is PreferenceLoss.dpo:
        smooth = keys.label_smoothing
        return -(1 - smooth) * F.logsigmoid(margins) - smooth * F.logsigmoid(-margins)
    if keys.loss is PreferenceLoss.ipo:
        return (margins - 1 / (2 * keys.beta)).square()
    if keys.loss is PreferenceLoss.simpo:
        return -F.logsigmoid(margins - keys.margin)
    return -answers.means[0] - keys.beta * F.logsigmoid(margins)


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """Return log(1 - exp(x)) for x < 0 without cancellation.

    Source: Mächler 2012, "Accurately computing log(1 - exp(-|a|))".
    """
    x = x.clamp(max=-1e-7)
    return torch.where(x > -0.6931472, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
