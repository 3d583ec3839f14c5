"""The CUDA C++ twin of the Triton kernels: compiled on first use, checked against the reference, then trusted."""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path

import torch

from aitrain.ops.adamw import reference
from aitrain.ops.adamw.bucket import Bucket, Numbers
from aitrain.ops.adamw.codes import DECADES, SIGNED, UNSIGNED, Code, quantise, value_table
from aitrain.ops.adamw.table import CHUNK, Table, build_table
from aitrain.ops.backend import SWITCH
from aitrain.ops.build import BuildError, library

_log = logging.getLogger(__name__)
FOLDER = Path(__file__).parent / "csrc"
SOURCES = (FOLDER / "adamw.cu", FOLDER / "arithmetic.h")
OCTAVES = 24
PARTIALS = 1024


def use_native(tensor: torch.Tensor) -> bool:
    """Return whether the CUDA C++ kernels run; never while `AITRAIN_OPS` names another implementation.

    Args:
        tensor: A tensor of the op; its device decides.
    """
    if tensor.device.type != "cuda" or torch.version.hip or os.environ.get(SWITCH, "auto") != "auto":
        return False
    return _usable(tensor.device)


@cache
def _usable(device: torch.device) -> bool:
    try:
        load()
    except BuildError as error:
        _log.warning("ops: no CUDA C++ for AdamW, because %s: Triton runs in its place", error)
        return False
    fault = check(device)
    if fault is not None:
        _log.warning("ops: AdamW in CUDA C++ disagrees with its reference (%s): Triton runs in its place", fault)
        return False
    _log.info("ops: AdamW in CUDA C++ on %s", torch.cuda.get_device_name(device))
    return True


@cache
def load() -> None:
    """Compile the library, or find it in the cache, and make its ops known.

    Raises:
        BuildError: There is no compiler, or it failed.
    """
    torch.ops.load_library(str(library("adamw", SOURCES)))
    torch.library.register_fake("aitrain_cuda::adamw_step", lambda *args: None)
    torch.library.register_fake("aitrain_cuda::adamw_squares", lambda *args: None)


def octave_table(code: Code) -> list[list[float]]:
    """Return what `encode` in arithmetic.h looks up: one row per power of two, and one with the ends.

    No power of two holds the borders of two decades, so a row is the border in it (or none), the slope below and above
    it, and the first index of the decade below.

    Args:
        code: Which of the two codes.
    """
    starts = [*code.starts, float("inf")]
    rows = []
    for exponent in range(1 - OCTAVES, 1):
        decade = sum(start < 2.0**exponent for start in code.starts)
        inside = starts[decade] < 2.0 ** (exponent + 1)
        above = min(decade + 1, DECADES - 1)
        start = starts[decade] if inside else float("inf")
        rows.append([start, code.slopes[decade], code.slopes[above], float(code.first << decade)])
    return [*rows, [code.smallest, code.largest, 0.0, 0.0]]


@cache
def _tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.cat([value_table(True, device), value_table(False, device)])
    octaves = torch.tensor([octave_table(SIGNED), octave_table(UNSIGNED)], dtype=torch.float32, device=device)
    return values, octaves


def squared_norms(bucket: Bucket, table: Table) -> torch.Tensor:
    """Return fp32 partial sums of squares; as `kernel.squared_norms`.

    Args:
        bucket: Its gradients.
        table: Its addresses.
    """
    found = []
    for part, wide in table.parts():
        partials = torch.empty(min(len(part.chunks), PARTIALS), dtype=torch.float32, device=part.rows.device)
        bf16 = bucket.grads[0].dtype == torch.bfloat16
        torch.ops.aitrain_cuda.adamw_squares(part.rows, part.chunks, partials, bf16, wide, CHUNK)
        found.append(partials)
    return torch.cat(found) if found else torch.zeros(1, device=bucket.params[0].device)


def step(bucket: Bucket, table: Table, coefficients: torch.Tensor, numbers: Numbers) -> None:
    """Take one step on a bucket; as `kernel.step`.

    Args:
        bucket: The tensors.
        table: Their addresses.
        coefficients: From `prepare`.
        numbers: Hyperparameters.
    """
    values, octaves = _tables(coefficients.device)
    for part, wide in table.parts():
        torch.ops.aitrain_cuda.adamw_step(
            part.rows,
            part.chunks,
            coefficients,
            values,
            octaves,
            numbers.beta1,
            numbers.beta2,
            numbers.eps,
            numbers.seed,
            bucket.params[0].dtype == torch.bfloat16,
            bucket.grads[0].dtype == torch.bfloat16,
            8 * bucket.exp_avgs[0].element_size(),
            numbers.stochastic,
            wide,
            CHUNK,
        )


def check(device: torch.device) -> str | None:
    """Run every kind of tensors through the kernels and the reference, aligned and not.

    Args:
        device: Where to run.

    Returns:
        What disagrees, or None.
    """
    numbers = Numbers(1e-2, 0.9, 0.999, 1e-8, 0.1, max_norm=1.0, seed=11)
    for param in (torch.float32, torch.bfloat16):
        for moment in (torch.float32, torch.bfloat16, torch.uint8):
            mine, other = (_sample(param, moment, device) for _ in range(2))
            table = build_table(mine)
            squares = squared_norms(mine, table).sum()
            exact = reference.squared_norms(other.grads).sum()
            if not torch.allclose(squares, exact, rtol=1e-4):
                return f"norm of {param} gradients"
            coefficients = reference.prepare(torch.zeros((), device=device), numbers, exact)
            step(mine, table, coefficients, numbers)
            reference.step(other, coefficients, numbers)
            for name in ("params", "exp_avgs", "exp_avg_sqs", "exp_avg_scales", "exp_avg_sq_scales"):
                for ours, wanted in zip(getattr(mine, name), getattr(other, name), strict=True):
                    # a last bit of fp32 turns a draw or a code now and then; a bug turns most of them
                    off = ~torch.isclose(ours.float(), wanted.float(), rtol=1e-5, atol=1e-7)
                    if off.sum() > ours.numel() // 100:
                        return f"{name} with {param} parameters and {moment} moments"
    return None


def _sample(param: torch.dtype, moment: torch.dtype, device: torch.device) -> Bucket:
    generator = torch.Generator(device).manual_seed(0)

    def draw(scale: float) -> list[torch.Tensor]:
        # several chunks, an end in the middle of a block, an address in the middle of a granule
        sizes = ((CHUNK * 2 + 512,), (300 + 1,), (40,))
        found = [torch.randn(size, generator=generator, device=device) * scale for size in sizes]
        return [*found, (torch.randn(600, generator=generator, device=device) * scale)[3:]]

    params = [x.to(param) for x in draw(1.0)]
    grads = [x.to(param) for x in draw(1.0)]
    first, second = draw(0.1), [x.square() for x in draw(0.1)]
    offsets = [0, CHUNK * 4, CHUNK * 4 + 304, CHUNK * 5 + 3]
    if moment != torch.uint8:
        return Bucket(params, grads, [x.to(moment) for x in first], [x.to(moment) for x in second], offsets=offsets)
    codes = [[quantise(x, signed) for x in xs] for xs, signed in ((first, True), (second, False))]
    columns = [[pair[i] for pair in pairs] for i in (0, 1) for pairs in codes]
    return Bucket(params, grads, columns[0], columns[1], columns[2], columns[3], offsets)
