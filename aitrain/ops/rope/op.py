"""Rotary embedding of queries and keys: the public function, and what autograd and the compiler know of it."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from aitrain.errors import ShapeError
from aitrain.ops.backend import use_kernels
from aitrain.ops.registration import register
from aitrain.ops.rope import reference

# B = batch, H = heads, L = positions, D = width of a head, R = features that are rotated


def rope_qk(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None = None,
    heads_dim: int = 1,
    interleaved: bool = False,
    inplace: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate pairs of features of queries and keys by the angle of their position, in one launch.

    Computes ``(a cos - b sin, b cos + a sin)`` of every pair (a, b) in float32 and rounds once.

    Args:
        q: Queries, shape (B, Hq, L, D), or (B, L, Hq, D) with `heads_dim=2`. Any strides with neighbouring features
            side by side, so that views of a projection (Hugging Face's transposed ones too) are read in place.
        k: Keys, likewise with Hk heads.
        cos: Cosines as Hugging Face gives them: (B or 1, L, R) or (L, R), every row holding R / 2 values twice. With
            `positions` a table (longest position + 1, R). R may be less than D: the other features pass.
        sin: Sines, likewise.
        positions: Row of the table for every token, shape (B or 1, L): for packed sequences. A position outside the
            table is an error on the CPU and NaN in the kernel, which may not stop to look.
        heads_dim: Which dimension counts the heads, 1 or 2.
        interleaved: Whether features 2 i and 2 i + 1 are a pair (GLM, Ernie), instead of i and i + R / 2 (Llama).
        inplace: Whether to write into `q` and `k`; only without gradients.

    Returns:
        Rotated queries and keys, in the memory order of the given ones; `q` and `k` themselves where in place.

    Raises:
        ShapeError: Shapes do not fit, the tables ask for gradients, or `inplace` where autograd forbids it.

    Source:
        Su et al., RoFormer, arXiv:2104.09864, eq. 34.
    """
    _check(q, k, cos, sin, positions, heads_dim)
    if inplace:
        _check_inplace(q, k)
    arguments = (q, k, cos, sin, positions, heads_dim, interleaved)
    dispatched = torch.compiler.is_compiling() or type(q) is not torch.Tensor
    if inplace:
        (_REGISTERED_INPLACE if dispatched else _run_inplace)(*arguments)
        return q, k
    return _REGISTERED(*arguments, False) if dispatched else _Eager.apply(*arguments)


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None,
    heads_dim: int,
) -> None:
    if heads_dim not in (1, 2):
        raise ShapeError(f"heads_dim={heads_dim}: write 1 for (B, H, L, D) or 2 for (B, L, H, D)")
    other = 3 - heads_dim
    alike = q.dim() == k.dim() == 4 and all(q.shape[i] == k.shape[i] for i in (0, other, 3)) and q.dtype == k.dtype
    if not alike:
        raise ShapeError(
            f"q {tuple(q.shape)} {q.dtype} and k {tuple(k.shape)} {k.dtype}: "
            f"they may differ in dimension {heads_dim} only"
        )
    batch, length, width = q.shape[0], q.shape[other], q.shape[3]
    if cos.shape != sin.shape or cos.dtype != sin.dtype or cos.shape[-1] % 2 or cos.shape[-1] > width:
        raise ShapeError(
            f"cos {tuple(cos.shape)} {cos.dtype} and sin {tuple(sin.shape)} {sin.dtype}: "
            f"they must have the same shape and dtype, and their width even and at most {width}"
        )
    if positions is not None:
        fits = cos.dim() == 2 and positions.shape[0] in (1, batch) and positions.shape[1:] == (length,)
        wanted = f"positions ({batch} or 1, {length}) and a table (rows, R)"
    else:
        fits = cos.shape[-2] == length and (cos.dim() == 2 or (cos.dim() == 3 and cos.shape[0] in (1, batch)))
        wanted = f"cos ({batch} or 1, {length}, R)"
    if not fits:
        spots = None if positions is None else tuple(positions.shape)
        raise ShapeError(f"cos {tuple(cos.shape)}, positions {spots} for q {tuple(q.shape)}: give {wanted}")
    if cos.requires_grad or sin.requires_grad:
        raise ShapeError("cos and sin require gradients, which this op does not compute: detach them")


def _check_inplace(q: torch.Tensor, k: torch.Tensor) -> None:
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        raise ShapeError("inplace=True where gradients are recorded: leave it out, or call under torch.no_grad()")
    for name, x in (("q", q), ("k", k)):
        if x.stride(-1) != 1 or any(size > 1 and x.stride(i) == 0 for i, size in enumerate(x.shape)):
            raise ShapeError(
                f"inplace=True for {name} with strides {x.stride()}: "
                "its features must be neighbours in memory and its rows distinct"
            )


def _like(x: torch.Tensor) -> torch.Tensor:
    """Return an empty tensor in the memory order of `x`, with neighbouring features side by side."""
    if x.stride(-1) == 1:
        return torch.empty_like(x)
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _rotate(
    q: torch.Tensor,
    k: torch.Tensor,
    q_out: torch.Tensor,
    k_out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None,
    heads_dim: int,
    interleaved: bool,
    back: bool,
) -> None:
    pairs = [(q, q_out), (k, k_out)]
    if heads_dim == 2:
        pairs = [(x.transpose(1, 2), x.transpose(1, 2) if out is x else out.transpose(1, 2)) for x, out in pairs]
    inplace = q_out is q
    if q.dtype == torch.float64 or not use_kernels(q):
        for x, out in pairs:
            reference.rotate(x, x if inplace else out, cos, sin, positions, interleaved, back)
        return
    from aitrain.ops.rope import kernel

    if cos.dim() == 2 and positions is None:
        cos, sin = cos.unsqueeze(0), sin.unsqueeze(0)
    if cos.stride(-1) != 1 or cos.stride() != sin.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    (q, q_out), (k, k_out) = ((x if x.stride(-1) == 1 else x.contiguous(), out) for x, out in pairs)
    outs = (q, k) if inplace else (q_out, k_out)
    kernel.rotate(q, k, *outs, cos, sin, positions, interleaved, back)


def _run(q: torch.Tensor, k: torch.Tensor, *how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    q_out, k_out = _like(q), _like(k)
    _rotate(q, k, q_out, k_out, *how)
    return q_out, k_out


def _run_inplace(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None,
    heads_dim: int,
    interleaved: bool,
) -> None:
    _rotate(q, k, q, k, cos, sin, positions, heads_dim, interleaved, False)


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, *how: Any) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(*how[:3])
        ctx.how = how[3:]
        return _run(q, k, *how, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: torch.Tensor, dk: torch.Tensor) -> tuple[Any, ...]:
        return *_run(dq, dk, *ctx.saved_tensors, *ctx.how, True), None, None, None, None, None


# What the compiler sees: the gradient of the op is the op itself by minus the angle.
def _fake(q: torch.Tensor, k: torch.Tensor, *how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return _like(q), _like(k)


def _fake_inplace(q: torch.Tensor, k: torch.Tensor, *how: Any) -> None:
    return None


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[2:5])
    ctx.how = inputs[5:]


def _compiled_gradients(ctx: Any, dq: torch.Tensor, dk: torch.Tensor) -> tuple[Any, ...]:
    *how, back = ctx.how
    return *_REGISTERED(dq, dk, *ctx.saved_tensors, *how, not back), None, None, None, None, None, None


_REGISTERED = register(
    "rope(Tensor q, Tensor k, Tensor cos, Tensor sin, Tensor? positions, int heads_dim, bool interleaved, bool back) "
    "-> (Tensor, Tensor)",
    _run,
    _fake,
    _compiled_gradients,
    _setup,
)
_REGISTERED_INPLACE = register(
    "rope_(Tensor(a!) q, Tensor(b!) k, Tensor cos, Tensor sin, Tensor? positions, int heads_dim, bool interleaved) "
    "-> ()",
    _run_inplace,
    _fake_inplace,
)
