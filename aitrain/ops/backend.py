"""Which implementation of an op runs: Triton kernels on a GPU, plain PyTorch elsewhere; said once in the log."""

from __future__ import annotations

import logging
import os
from functools import cache

import torch

from aitrain.errors import RecipeError

_log = logging.getLogger(__name__)
SWITCH = "AITRAIN_OPS"
"""Environment variable: `auto` (the default), `reference` (plain PyTorch on every device) or `triton` (kernels on every
device; on the CPU they then need Triton's interpreter, `TRITON_INTERPRET=1`)."""


def use_kernels(tensor: torch.Tensor) -> bool:
    """Return whether the op on this tensor runs as a Triton kernel.

    Args:
        tensor: An input of the op; its device decides.

    Raises:
        RecipeError: `AITRAIN_OPS` has an unknown value, or asks for kernels that cannot run here.
    """
    return _decided(tensor.device.type, os.environ.get(SWITCH, "auto"), os.environ.get("TRITON_INTERPRET", "0"))


@cache
def _decided(device: str, wanted: str, interpret: str) -> bool:
    if wanted not in ("auto", "reference", "triton"):
        raise RecipeError(f"{SWITCH}={wanted} is unknown: write auto, reference or triton")
    if wanted == "reference":
        _log.info("ops: plain PyTorch on %s (%s=reference)", device, SWITCH)
        return False
    if wanted == "auto" and device != "cuda":
        return False  # before Triton is imported: it takes a second and 100 MB
    fault = triton_fault()
    if wanted == "triton":
        if fault is not None:
            raise RecipeError(f"{SWITCH}=triton, but {fault}: install triton, or remove {SWITCH}")
        if device == "cpu" and interpret != "1":
            raise RecipeError(f"{SWITCH}=triton on the CPU needs Triton's interpreter: set TRITON_INTERPRET=1 as well")
        _log.info("ops: Triton kernels on %s%s", device, " in the interpreter" if interpret == "1" else "")
        return True
    if fault is not None:
        _log.warning("ops: %s, so plain PyTorch runs in place of the fused kernels: it is slower", fault)
        return False
    _log.info("ops: Triton kernels on %s", torch.cuda.get_device_name())
    return True


@cache
def triton_fault() -> str | None:
    """Return why Triton cannot be imported, or None when it can."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    return None
