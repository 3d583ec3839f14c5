"""The public function: what autograd, the compiler and fake tensors know of it, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from aitrain.errors import ShapeError
from aitrain.ops.rope import reference
from aitrain.ops.rope.op import rope_qk
from ops.passes import assert_passes, draw, run


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["reference", "triton"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("AITRAIN_OPS", request.param)
    return str(request.param)


def tables(rows: int, rotated: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.randn(rows, rotated // 2, dtype=torch.float64) * 3
    angles = torch.cat((angles, angles), -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("interleaved", [False, True])
def test_gradients_on_the_cpu(dtype: torch.dtype, interleaved: bool) -> None:
    cos, sin = tables(7, 4, dtype)
    positions = torch.tensor([[0, 1, 6], [2, 0, 1]])

    def torchs(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(
            reference.rope(x, cos.to(x.dtype), sin.to(x.dtype), positions, interleaved).to(x.dtype) for x in (q, k)
        )

    inputs = {"q": draw(2, 4, 3, 8, dtype=dtype), "k": draw(2, 2, 3, 8, dtype=dtype, layout="swapped")}
    upstream = [draw(2, 4, 3, 8, dtype=dtype, scale=2.0), draw(2, 2, 3, 8, dtype=dtype, layout="expanded")]
    assert_passes(lambda q, k: rope_qk(q, k, cos, sin, positions, 1, interleaved), torchs, inputs, upstream)


def test_gradcheck() -> None:
    q, k = (torch.randn(1, heads, 3, 6, dtype=torch.float64, requires_grad=True) for heads in (2, 1))
    cos, sin = tables(3, 4, torch.float64)
    for interleaved in (False, True):
        torch.autograd.gradcheck(lambda q, k, i=interleaved: rope_qk(q, k, cos, sin, None, 1, i), (q, k))


def test_second_backward_pass_gives_the_same(mode: str) -> None:
    q, k, how = draw(1, 2, 3, 8).requires_grad_(), draw(1, 1, 3, 8).requires_grad_(), tables(3, 8)
    q_out, k_out = rope_qk(q, k, *how)
    loss = (q_out * q_out * k_out).sum()
    first = torch.autograd.grad(loss, [q, k], retain_graph=True)
    second = torch.autograd.grad(loss, [q, k])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_gradient_that_others_share_stays_whole(mode: str) -> None:
    q, k, how, grad = draw(1, 2, 3, 8).requires_grad_(), draw(1, 2, 3, 8), tables(3, 8), draw(1, 2, 3, 8)
    (found,) = torch.autograd.grad(rope_qk(q * 1.0, k, *how)[0] + q, q, grad)
    (alone,) = torch.autograd.grad(rope_qk(q, k, *how)[0], q, grad)
    torch.testing.assert_close(found, alone + grad)


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_alone(mode: str, used: int) -> None:
    q, k, (cos, sin) = draw(1, 2, 3, 8).requires_grad_(), draw(1, 1, 3, 8).requires_grad_(), tables(3, 8)
    out = rope_qk(q, k, cos, sin)[used]
    grad = torch.randn_like(out)
    (found,) = torch.autograd.grad(out, (q, k)[used], grad)
    torch.testing.assert_close(found, reference.rope(grad, cos, -sin))


@pytest.mark.parametrize(
    ("interleaved", "heads_dim"),
    [(False, 1), *(pytest.param(*rest, marks=pytest.mark.slow) for rest in ((True, 1), (False, 2), (True, 2)))],
)
def test_registered_op(mode: str, interleaved: bool, heads_dim: int) -> None:
    shape = (1, 2, 3, 8) if heads_dim == 1 else (1, 3, 2, 8)
    q, k = draw(*shape).requires_grad_(), draw(*shape).requires_grad_()
    (cos, sin), positions = tables(5, 6), torch.tensor([[4, 0, 1]])
    for back in (False, True):
        torch.library.opcheck(torch.ops.aitrain.rope, (q, k, cos, sin, positions, heads_dim, interleaved, back))
    turned = draw(*shape, layout="turned").requires_grad_()
    torch.library.opcheck(torch.ops.aitrain.rope, (q, turned, cos[:3], sin[:3], None, heads_dim, interleaved, False))
    inplace = (q.detach(), k.detach(), cos, sin, positions, heads_dim, interleaved)
    torch.library.opcheck(torch.ops.aitrain.rope_, inplace)


def test_compiled_whole(mode: str) -> None:
    cos, sin = tables(5, 4)

    def block(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rope_qk(q.transpose(1, 2) * 2.0, k.transpose(1, 2), cos, sin)

    inputs = {"q": draw(2, 5, 3, 8).requires_grad_(), "k": draw(2, 5, 1, 8).requires_grad_()}
    upstream = [draw(2, 3, 5, 8), draw(2, 1, 5, 8)]
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for found, right in zip(run(compiled, inputs, upstream), run(block, inputs, upstream), strict=True):
        torch.testing.assert_close(found, right)


def test_compiled_in_place(mode: str) -> None:
    cos, sin = tables(5, 8)

    def block(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        q, k = rope_qk(q, k, cos, sin, inplace=True)
        return q.sum() + k.sum()

    q, k = draw(2, 3, 5, 8), draw(2, 1, 5, 8)
    expected = [reference.rope(x, cos, sin) for x in (q, k)]
    torch._dynamo.reset()
    torch.compile(block, fullgraph=True, backend="aot_eager")(q, k)
    torch.testing.assert_close([q, k], expected)


def test_in_place_on_the_cpu() -> None:
    q, k, (cos, sin) = draw(1, 3, 2, 8), draw(1, 3, 1, 8), tables(3, 6)
    expected = [reference.rope(x.transpose(1, 2), cos, sin).transpose(1, 2) for x in (q, k)]
    found = rope_qk(q, k, cos, sin, heads_dim=2, inplace=True)
    assert found[0] is q and found[1] is k
    torch.testing.assert_close([q, k], expected)


def test_fake_tensors_have_the_shape_and_the_type() -> None:
    with FakeTensorMode():
        q = torch.empty(2, 5, 3, 8, dtype=torch.bfloat16, requires_grad=True).transpose(1, 2)
        k, table = torch.empty(2, 1, 5, 8, dtype=torch.bfloat16), torch.empty(1, 5, 8)
        q_out, k_out = rope_qk(q, k, table, table)
        (dq,) = torch.autograd.grad(q_out, q, torch.empty_like(q_out))
    assert q_out.shape == dq.shape == (2, 3, 5, 8) and k_out.shape == (2, 1, 5, 8)
    assert q_out.dtype == dq.dtype == torch.bfloat16
    assert q_out.stride() == q.stride()


@pytest.mark.usefixtures("on_the_cpu")
def test_a_position_outside_the_table_is_an_error_on_the_cpu() -> None:
    for bad in (5, -1):
        with pytest.raises((IndexError, RuntimeError), match="out of range"):
            rope_qk(draw(1, 2, 1, 8), draw(1, 2, 1, 8), *tables(5, 8), torch.tensor([[bad]]))


def test_what_does_not_fit_is_refused() -> None:
    q, k, (cos, sin) = draw(2, 4, 5, 8), draw(2, 2, 5, 8), tables(5, 8)
    cases = [
        ((q, draw(2, 2, 4, 8), cos, sin), {}, "dimension 1 only"),
        ((q, k, cos, sin), {"heads_dim": 2}, "dimension 2 only"),
        ((q, k, cos, sin), {"heads_dim": 3}, "write 1 for"),
        ((q, k, cos, sin[:, :4]), {}, "must have the same shape and dtype"),
        ((q, k, *tables(5, 10)), {}, "at most 8"),
        ((q, k, cos[:, :7], sin[:, :7]), {}, "even"),
        ((q, k, *tables(4, 8)), {}, r"give cos \(2 or 1, 5, R\)"),
        ((q, k, cos, sin, torch.zeros(3, 5, dtype=torch.long)), {}, r"give positions \(2 or 1, 5\)"),
        ((q, k, cos[None], sin[None], torch.zeros(2, 5, dtype=torch.long)), {}, r"a table \(rows, R\)"),
        ((q, k, cos.clone().requires_grad_(), sin), {}, "detach them"),
        ((q.clone().requires_grad_(), k, cos, sin), {"inplace": True}, "under torch.no_grad"),
        ((q, k[:, :1].expand(2, 2, 5, 8), cos, sin), {"inplace": True}, "rows distinct"),
        ((q.mT.contiguous().mT, k, cos, sin), {"inplace": True}, "neighbours in memory"),
    ]
    for given, words, message in cases:
        with pytest.raises(ShapeError, match=message):
            rope_qk(*given, **words)
