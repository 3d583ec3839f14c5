"""The public function: what the compiler and fake tensors know of it, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from aitrain.errors import ShapeError
from aitrain.ops.nf4.op import nf4_dequantise


@pytest.fixture(params=["reference", "triton"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("AITRAIN_OPS", request.param)
    return str(request.param)


def nested() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "packed": torch.randint(256, (100,), dtype=torch.uint8),
        "absmax": torch.randint(256, (4,), dtype=torch.uint8),
        "nested_absmax": torch.rand(1),
        "nested_code": torch.randn(256),
        "offset": torch.tensor(0.5),
    }


def test_opcheck(mode):
    given = nested()
    code = torch.randn(16)
    inner = (given["nested_absmax"], given["nested_code"], given["offset"])
    op = torch.ops.aitrain.nf4_dequantise
    torch.library.opcheck(op, (given["packed"], code, given["absmax"], *inner, 64, 256, [10, 20], torch.float16))
    torch.library.opcheck(op, (given["packed"], code, torch.rand(4), None, None, None, 64, 256, [200], torch.float32))


def test_compiled_whole(mode):
    given = nested()
    x = torch.randn(3, 20)

    def layer(x):
        return x @ nf4_dequantise(shape=(10, 20), dtype=torch.float32, **given).t()

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_fake_tensors_have_the_shape_and_the_type():
    given = nested()
    with FakeTensorMode() as fake:
        found = nf4_dequantise(shape=(10, 20), **{name: fake.from_tensor(part) for name, part in given.items()})
    assert found.shape == (10, 20) and found.dtype == torch.bfloat16


def test_it_asks_for_no_gradient(mode):
    given = nested()
    given["offset"].requires_grad_()
    assert not nf4_dequantise(shape=(10, 20), **given).requires_grad


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"packed": torch.zeros(99, dtype=torch.uint8)}, "must be 100 bytes"),
        ({"packed": torch.zeros(100)}, "uint8"),
        ({"absmax": torch.zeros(5, dtype=torch.uint8)}, "must hold 4 numbers"),
        ({"absmax": torch.rand(4)}, "uint8 with nested_absmax"),
        ({"block": 48}, "power of two"),
        ({"nested_block": 0}, "power of two"),
        ({"code": torch.rand(15)}, "16 numbers"),
        ({"offset": None}, "all three or none"),
        ({"nested_absmax": torch.rand(2)}, "must hold 1 numbers"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    with pytest.raises(ShapeError, match=words):
        nf4_dequantise(shape=(10, 20), **{**nested(), **change})
