"""A forecaster: patches of the past as tokens of a transformer, quantiles of every future step as its outputs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

PER_STEP = 16
"""Features passed from the past to each future step."""

# Shapes: B = windows, C = steps of the past, H = steps to forecast, K = known columns, N = patches, D = width,
# Q = quantiles.


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model."""

    context: int
    horizon: int
    known: int
    quantiles: int
    season: int
    width: int = 128
    layers: int = 3
    heads: int = 8
    patch: int = 16
    dropout: float = 0.1

    @property
    def stride(self) -> int:
        """Steps between two patches: half a patch."""
        return max(1, self.patch // 2)

    @property
    def seasons(self) -> int:
        """How many of the last seasons each step sees a value of: what the past holds, three at most."""
        return min(3, self.context // self.season)

    @property
    def patches(self) -> int:
        """N: patches that cover the past; the first may begin before it."""
        return -(-max(self.context - self.patch, 0) // self.stride) + 1

    def as_dict(self) -> dict[str, Any]:
        """Return the sizes as plain values."""
        return asdict(self)


class Block(nn.Module):
    """Attention among patches and a layer for each of them, with norms first.

    Args:
        sizes: Of the model.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.heads, self.dropout = sizes.heads, sizes.dropout
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.drop = nn.Dropout(sizes.dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the tokens after this block, `(B, N, D)`.

        Args:
            tokens: `(B, N, D)`.
        """
        parts = self.query_key_value(self.attention_norm(tokens)).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        tokens = tokens + self.drop(self.out(found.transpose(1, 2).flatten(2)))
        return tokens + self.drop(self.mlp(self.mlp_norm(tokens)))


class PatchTransformer(nn.Module):
    """Quantiles of the next steps of a series, all of them at once.

    The past is cut into overlapping patches, each a token with its values, which of them are there, and what is known
    of these steps (Nie et al., arXiv:2211.14730, with layer norms instead of batch norms, which would mix the windows
    of a micro-batch). All tokens together give some numbers per future step; these, what is known of that step, and the
    values at its place in the last seasons give its quantiles (after Das et al., arXiv:2304.08424).

    Args:
        sizes: Of the model.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embed = nn.Linear(sizes.patch * (2 + sizes.known), sizes.width)
        self.position = nn.Parameter(0.02 * torch.randn(sizes.patches, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)
        self.ahead = nn.Linear(sizes.patches * sizes.width, sizes.horizon * PER_STEP)
        self.step = nn.Sequential(
            nn.Linear(PER_STEP + sizes.known + 2 * sizes.seasons, 128),
            nn.GELU(),
            nn.Dropout(sizes.dropout),
            nn.Linear(128, sizes.quantiles),
        )
        self.straight = nn.Linear(PER_STEP, sizes.quantiles)

    def forward(self, values: torch.Tensor, observed: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Return the quantiles of each future step, not sorted, `(B, H, Q)`, scaled as the values are.

        Args:
            values: Centred and scaled, 0 where there is none, `(B, C)`.
            observed: 1 where there is a value, else 0, `(B, C)`.
            known: What is known of all steps, `(B, C + H, K)`.
        """
        sizes = self.sizes
        past = torch.cat([values[..., None], observed[..., None], known[:, : sizes.context]], 2)
        lacking = sizes.patch + (sizes.patches - 1) * sizes.stride - sizes.context
        past = F.pad(past, (0, 0, lacking, 0))
        patches = past.unfold(1, sizes.patch, sizes.stride).flatten(2)
        tokens = self.embed(patches) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        ahead = self.ahead(self.norm(tokens).flatten(1)).unflatten(1, (sizes.horizon, PER_STEP))
        alike = [part for back in range(1, sizes.seasons + 1) for part in self._alike(values, observed, back)]
        return self.straight(ahead) + self.step(torch.cat([ahead, known[:, sizes.context :], *alike], 2))

    def _alike(self, values: torch.Tensor, observed: torch.Tensor, back: int) -> list[torch.Tensor]:
        """Return value and mask at each future step's place in an earlier season, `(B, H, 1)` each."""
        sizes = self.sizes
        begin = sizes.context - back * sizes.season
        repeats = -(-sizes.horizon // sizes.season)
        season = [part[:, begin : begin + sizes.season].repeat(1, repeats) for part in (values, observed)]
        return [part[:, : sizes.horizon, None] for part in season]


class Forecaster(nn.Module):
    """The model with its scaling, for use outside of training: input and output in measured units.

    Args:
        model: The model.
        centre: Mean of each known column in training, `(K,)`.
        scale: Its standard deviation, `(K,)`.
    """

    centre: torch.Tensor
    scale: torch.Tensor

    def __init__(self, model: PatchTransformer, centre: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)

    def forward(
        self, values: torch.Tensor, observed: torch.Tensor, known: torch.Tensor, spread: torch.Tensor
    ) -> torch.Tensor:
        """Return the quantiles of each future step, rising, `(B, H, Q)`.

        Args:
            values: `(B, C)`; anything where there is none.
            observed: 1 where there is a value, else 0, `(B, C)`; at least one is there.
            known: What is known of all steps, as in the table, calendar last, `(B, C + H, K)`.
            spread: Standard deviation of the whole series, `(B,)`.
        """
        count = observed.sum(1)
        there = torch.where(observed > 0, values, torch.zeros_like(values))
        centre = there.sum(1) / count
        variance = ((there - centre[:, None]) ** 2 * observed).sum(1) / count
        scale = torch.sqrt(variance + (0.1 * spread) ** 2)
        given = torch.where(observed > 0, (values - centre[:, None]) / scale[:, None], torch.zeros_like(values))
        found = self.model(given, observed, (known - self.centre) / self.scale)
        return found.sort(-1).values * scale[:, None, None] + centre[:, None, None]
