"""Ahead-of-time compilations of the LayerNorm kernels at widths that models have."""

from __future__ import annotations

from ops.rms_norm.specimens import NO_SUM, specimen

SUM = {"grad_total_ptr"}
SPECIMENS = [
    *(specimen(f"forward {n}", "_forward", n, NO_SUM, CENTRED=True, ROUND_FIRST=False) for n in (768, 4096)),
    specimen("forward after a sum 1280", "_forward", 1280, set(), CENTRED=True, ROUND_FIRST=False),
    *(specimen(f"backward {n}", "_backward", n, SUM, CENTRED=True) for n in (768, 4096, 8192)),
    specimen("backward after a sum 768", "_backward", 768, set(), CENTRED=True),
    specimen("backward after a sum 4096", "_backward", 4096, set(), CENTRED=True),
    specimen("backward odd 1001", "_backward", 1001, SUM, wide=False, CENTRED=True),
]
