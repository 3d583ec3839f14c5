"""Rotary embedding in plain PyTorch: the definition as Hugging Face writes it, and the same in fewer passes."""

from __future__ import annotations

import torch

# B = batch, H = heads, L = positions, D = width of a head, R = features that are rotated (R <= D)


def rows(table: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """Return the table's row of every token, shape (B or 1, L, R).

    Args:
        table: Shape (B or 1, L, R) or (L, R); with positions (largest position + 1, R).
        positions: Shape (B or 1, L), whole numbers.
    """
    if positions is not None:
        return table.index_select(0, positions.reshape(-1)).reshape(*positions.shape, table.shape[-1])
    return table if table.dim() == 3 else table.unsqueeze(0)


def turned(x: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Return every pair (a, b) as (-b, a)."""
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def rope(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None = None,
    interleaved: bool = False,
) -> torch.Tensor:
    """Rotate pairs of features by the angle of their position.

    Args:
        x: Shape (B, H, L, D).
        cos: Cosines as in `rows`; the first half of a row counts.
        sin: Sines likewise.
        positions: As in `rows`.
        interleaved: Whether neighbours are a pair, instead of features half a width apart.
    """
    wide, half = cos.shape[-1], cos.shape[-1] // 2
    c, s = (rows(table, positions).unsqueeze(1)[..., :half] for table in (cos, sin))
    c, s = (t.repeat_interleave(2, -1) if interleaved else torch.cat((t, t), -1) for t in (c, s))
    first, rest = x[..., :wide], x[..., wide:]
    return torch.cat(((first * c + turned(first, interleaved) * s).to(x.dtype), rest), dim=-1)


def halves(x: torch.Tensor, wide: int, interleaved: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return views of the first and of the second number of every pair."""
    first = x[..., :wide]
    return (first[..., 0::2], first[..., 1::2]) if interleaved else (first[..., : wide // 2], first[..., wide // 2 :])


def rotate(
    x: torch.Tensor,
    out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None,
    interleaved: bool,
    back: bool,
) -> None:
    """Write the rotated `x` into `out`, which may be `x` itself.

    Args:
        x: Shape (B, H, L, D).
        out: Likewise.
        cos: As in `rope`.
        sin: As in `rope`.
        positions: As in `rope`.
        interleaved: As in `rope`.
        back: Whether to rotate by minus the angle: that is the gradient.
    """
    fine = torch.promote_types(cos.dtype, x.dtype)
    if fine != x.dtype:  # finer tables: compute in their type and round once
        copy = x.to(fine)
        rotate(copy, copy, cos, sin, positions, interleaved, back)
        out.copy_(copy)
        return
    wide, sign = cos.shape[-1], -1.0 if back else 1.0
    c, s = (rows(table, positions).unsqueeze(1)[..., : wide // 2].to(x.dtype) for table in (cos, sin))
    a, b = halves(x, wide, interleaved)
    left, right = halves(out, wide, interleaved)
    if out is x:
        turned_a = torch.addcmul(a * c, b, s, value=-sign)
        torch.addcmul(b * c, a, s, value=sign, out=right)
        left.copy_(turned_a)
        return
    torch.addcmul(a * c, b, s, value=-sign, out=left)
    torch.addcmul(b * c, a, s, value=sign, out=right)
    if wide < x.shape[-1]:
        out[..., wide:].copy_(x[..., wide:])
