"""How near is near enough: never more than a multiple of the error that torch itself makes in the same type."""

from __future__ import annotations

import torch

FLOOR = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative error below which nobody is blamed: about 16 units in the last place of fp32 (sums of a few thousand terms),
2 units of fp16 (2**-10 each half-rounded twice) and 2 of bf16 (2**-8): torch may be exact by luck on one input."""


def assert_close_as_torch(
    ours: torch.Tensor, torchs: torch.Tensor, exact: torch.Tensor, factor: float = 2.0, floor: float | None = None
) -> None:
    """Fail when our error is larger than `factor` times torch's own.

    Args:
        ours: Result under test.
        torchs: The same computed by torch in the same type.
        exact: The same computed in float64 from the same inputs.
        factor: Allowed multiple: 2 for outputs, 3 for gradients.
        floor: Relative error that is always allowed; None = `FLOOR` of the type.

    Source:
        The rule of the FlashAttention tests (github.com/Dao-AILab/flash-attention, tests/test_flash_attn.py).
    """
    assert ours.shape == exact.shape, f"shape {tuple(ours.shape)} instead of {tuple(exact.shape)}"
    assert ours.dtype == torchs.dtype, f"type {ours.dtype} instead of {torchs.dtype}"
    assert torch.isfinite(ours).all() or not torch.isfinite(exact).all(), "not finite"
    scale = exact.double().norm() + torch.finfo(torch.float64).tiny
    error, allowed = ((x.double() - exact.double()).norm() / scale for x in (ours, torchs))
    bound = max(factor * float(allowed), FLOOR[ours.dtype] if floor is None else floor)
    assert float(error) <= bound, f"relative error {float(error):.2e}, torch's own {float(allowed):.2e}"
    if exact.numel():
        worst, usual = ((x.double() - exact.double()).abs().max() for x in (ours, torchs))
        limit = max(1.5 * factor * float(usual), 4 * bound * float(exact.double().abs().max()))
        assert float(worst) <= limit, f"largest error {float(worst):.2e}, torch's own {float(usual):.2e}"
