"""The CUDA C++ twin: compiled without spills for both GPUs; its arithmetic, on the CPU, against the reference."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from aitrain.ops.adamw import native, reference
from aitrain.ops.adamw.bucket import Numbers
from aitrain.ops.adamw.codes import SIGNED, UNSIGNED, Code, encode
from aitrain.ops.adamw.table import build_table
from aitrain.ops.build import ARCHITECTURES, BuildError, find_nvcc, library
from ops.adamw.buckets import KINDS, make_bucket, twin, written

NEEDS_NVCC = pytest.mark.skipif(find_nvcc() is None, reason="there is no nvcc here, so nothing is compiled")


@pytest.fixture(scope="module")
def compiled() -> Path:
    """The library for sm_80 and sm_90; a quarter of a minute when the sources are new."""
    native.load()
    return library("adamw", native.SOURCES, ARCHITECTURES)


@NEEDS_NVCC
def test_no_kernel_spills(compiled: Path) -> None:
    said = compiled.with_suffix(".log").read_text()
    for arch in ARCHITECTURES:
        kernels = re.findall(rf"Compiling entry function '\w*(?:step|squares)_kernel\w*' for 'sm_{arch}'", said)
        assert len(kernels) == 28, "12 kinds of tensors and 2 of gradients, each wide and narrow"
    assert set(re.findall(r"(\d+) bytes spill (?:stores|loads)", said)) == {"0"}
    # two blocks of 256 threads per multiprocessor, at least: 65,536 / 512
    assert max(int(n) for n in re.findall(r"Used (\d+) registers", said)) <= 128


@NEEDS_NVCC
def test_every_kind_agrees_with_the_reference(compiled: Path) -> None:
    assert native.check(torch.device("cpu")) is None


@NEEDS_NVCC
@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_one_step_is_the_references(kind: str, stochastic: bool, compiled: Path) -> None:
    numbers = Numbers(1e-2, 0.9, 0.999, 1e-8, 0.1, max_norm=0.5, stochastic=stochastic, seed=0x1234567890)
    ours = make_bucket(kind)
    exact = twin(ours)
    table = build_table(ours)
    squares = native.squared_norms(ours, table)
    torch.testing.assert_close(squares.sum(), reference.squared_norms(exact.grads).sum())
    coefficients = reference.prepare(torch.tensor(4.0), numbers, squares)
    native.step(ours, table, coefficients, numbers)
    reference.step(exact, coefficients, numbers)
    for mine, other in zip(written(ours), written(exact), strict=True):
        if mine.dtype == torch.float32:
            torch.testing.assert_close(mine, other, rtol=4 * 2**-23, atol=4 * 2**-25)
        else:
            assert (mine != other).sum() <= mine.numel() // 200


@NEEDS_NVCC
def test_a_wrong_kernel_is_not_trusted(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = native.octave_table
    monkeypatch.setattr(native, "octave_table", lambda code: [[x * 1.1 for x in row] for row in right(code)])
    native._tables.cache_clear()
    fault = native.check(torch.device("cpu"))
    native._tables.cache_clear()
    assert fault is not None and "uint8 moments" in fault


@NEEDS_NVCC
def test_registered(compiled: Path) -> None:
    bucket = make_bucket("fp32", [(40,)])
    (part, wide), *_ = build_table(bucket).parts()
    squares = (part.rows, part.chunks, torch.zeros(1), False, wide, 8192)
    torch.library.opcheck(torch.ops.aitrain_cuda.adamw_squares.default, squares)
    tables = (torch.zeros(8), *native._tables(torch.device("cpu")))
    step = (part.rows, part.chunks, *tables, 0.9, 0.999, 1e-8, 0, False, False, 32, True, wide, 8192)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.aitrain_cuda.adamw_step.default, step, test_utils=checks)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) if torch.is_tensor(x) else x for x in step]
        assert torch.ops.aitrain_cuda.adamw_step(*fakes) is None


@pytest.mark.parametrize("code", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
def test_octaves_give_the_same_codes(code: Code) -> None:
    """The table that the kernel looks up, read as it does, over every bf16 number in [0, 1]."""
    table = torch.tensor(native.octave_table(code))
    x = torch.arange(0x3F81, dtype=torch.int16).view(torch.bfloat16).float()
    octave = ((x.view(torch.int32) >> 23) - (127 - 23)).clamp(0, 23)
    start, slope, steeper, count = table[octave].unbind(1)
    above = x >= start
    slope, count = torch.where(above, steeper, slope), torch.where(above, 2 * count, count)
    index = torch.floor(x * slope + count * (8 / 9))
    index = torch.minimum(torch.maximum(index, count), 2 * count - 1)
    inner = (x >= max(code.smallest, 1e-37)) & (x < code.largest)
    assert torch.equal((code.zero + index - (code.first - 1))[inner].to(torch.uint8), encode(x, code)[inner])
    assert table[-1].tolist() == [code.smallest, code.largest, 0.0, 0.0]


def test_only_on_nvidia_and_only_when_nothing_else_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        device = torch.device("cuda:0")

    monkeypatch.setattr(native, "_usable", lambda device: True)
    monkeypatch.delenv("AITRAIN_OPS", raising=False)
    assert not native.use_native(torch.zeros(1, device="cpu"))
    assert native.use_native(OnGpu())  # type: ignore[arg-type]
    monkeypatch.setenv("AITRAIN_OPS", "triton")
    assert not native.use_native(OnGpu())  # type: ignore[arg-type]
    monkeypatch.delenv("AITRAIN_OPS")
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert not native.use_native(OnGpu())  # type: ignore[arg-type]


def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise BuildError("there is no nvcc")

    monkeypatch.setattr(native, "load", fail)
    native._usable.cache_clear()
    assert not native._usable(torch.device("cuda:0"))
    native._usable.cache_clear()
    assert "no CUDA C++ for AdamW, because there is no nvcc: Triton runs in its place" in caplog.text
