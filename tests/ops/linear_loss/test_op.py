"""The public functions beside plain torch: values, gradients, inputs that real models have, and what is refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from aitrain.errors import ShapeError
from aitrain.ops.cross_entropy.terms import LossTerms
from aitrain.ops.linear_loss.op import info_nce, linear_cross_entropy, linear_logprobs
from ops.linear_loss.plain import (
    ALL_TERMS,
    ANY_TERMS,
    SCALED,
    contrast,
    mean_loss,
    row_losses,
    row_statistics,
    some_targets,
)
from ops.passes import assert_passes, draw

DTYPES = [torch.float32, torch.float16]
SHAPES = {  # rows, width, classes; a chunk of 1 byte is 16 rows
    "odd": (37, 13, 53),
    "tiny": (1, 1, 2),
    "one class": (3, 4, 1),
    "two blocks of classes": (2, 3, 8195),
    "empty": (0, 5, 7),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["reference", "triton"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("AITRAIN_OPS", request.param)
    return str(request.param)


def given(
    rows: int, width: int, classes: int, dtype: torch.dtype = torch.float32, bias: bool = True
) -> dict[str, torch.Tensor | None]:
    return {
        "hidden": draw(rows, width, dtype=dtype),
        "weight": draw(classes, width, dtype=dtype),
        "bias": draw(classes, dtype=dtype) if bias else None,
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_mean(mode: str, shape: str, dtype: torch.dtype) -> None:
    rows, width, classes = SHAPES[shape]
    # of one class the gradient is what z-loss leaves of 1 - 1: nobody's float32 has digits of it
    fixed = {"targets": some_targets(rows, classes), "terms": ALL_TERMS if classes > 1 else SCALED}
    ours = partial(linear_cross_entropy, chunk_bytes=1, **fixed)
    assert_passes(
        ours, partial(mean_loss, **fixed), given(rows, width, classes, dtype), [torch.tensor(0.7, dtype=dtype)]
    )


@pytest.mark.parametrize("terms", ANY_TERMS)
@pytest.mark.parametrize("bias", [True, False])
def test_sum_with_each_term(mode: str, terms: str, bias: bool) -> None:
    fixed = {"targets": some_targets(21, 33), "terms": ANY_TERMS[terms]}
    ours = partial(linear_cross_entropy, reduction="sum", num_items=8.0, chunk_bytes=1, **fixed)

    def torchs(**inputs: torch.Tensor) -> torch.Tensor:
        return row_losses(**inputs, **fixed).sum() / 8

    assert_passes(ours, torchs, given(21, 6, 33, bias=bias), [torch.tensor(-2.0)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_row_with_its_own_upstream_gradient(mode: str, shape: str, dtype: torch.dtype) -> None:
    rows, width, classes = SHAPES[shape]
    # of one class the gradient is what z-loss leaves of 1 - 1: nobody's float32 has digits of it
    fixed = {"targets": some_targets(rows, classes), "terms": ALL_TERMS if classes > 1 else SCALED}
    ours = partial(linear_cross_entropy, reduction="none", chunk_bytes=1, **fixed)
    assert_passes(ours, partial(row_losses, **fixed), given(rows, width, classes, dtype), [draw(rows)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_logprobs_entropy_and_lse(mode: str, shape: str, dtype: torch.dtype) -> None:
    rows, width, classes = SHAPES[shape]
    fixed = {"targets": some_targets(rows, classes), "terms": SCALED}
    ours = partial(linear_logprobs, chunk_bytes=1, **fixed)
    inputs = given(rows, width, classes, dtype)
    assert_passes(ours, partial(row_statistics, **fixed), inputs, [draw(rows), draw(rows), draw(rows)])


@pytest.mark.parametrize("alone", [0, 1, 2])
def test_one_statistic_alone(mode: str, alone: int) -> None:
    fixed = {"targets": some_targets(21, 11)}

    def one(function: object, **inputs: torch.Tensor) -> torch.Tensor:
        return function(**inputs, **fixed)[alone]  # type: ignore[operator]

    # one number for all rows: the upstream gradient arrives with strides of 0
    inputs, upstream = given(21, 5, 11, bias=False), torch.tensor(0.3).expand(21)
    assert_passes(
        partial(one, partial(linear_logprobs, chunk_bytes=1)), partial(one, row_statistics), inputs, [upstream]
    )


@pytest.mark.parametrize("layout", ["columns", "turned", "swapped", "expanded"])
def test_layouts_of_hidden(mode: str, layout: str) -> None:
    inputs = {"hidden": draw(3, 7, 10, layout=layout), "weight": draw(19, 10)}
    fixed = {"targets": some_targets(21, 19).view(3, 7)}
    assert_passes(
        partial(linear_cross_entropy, chunk_bytes=1, **fixed), partial(mean_loss, **fixed), inputs, [torch.tensor(0.5)]
    )
    assert_passes(
        partial(linear_logprobs, chunk_bytes=1, **fixed),
        partial(row_statistics, **fixed),
        inputs,
        [draw(3, 7, layout="expanded"), draw(7, 3).t(), draw(3, 7)],
    )


@pytest.mark.parametrize("layout", ["columns", "turned", "expanded"])
def test_layouts_of_weight_and_targets(mode: str, layout: str) -> None:
    inputs = {"hidden": draw(21, 10), "weight": draw(19, 10, layout=layout), "bias": draw(1).expand(19)}
    fixed = {"targets": some_targets(42, 19)[::2]}
    assert_passes(
        partial(linear_cross_entropy, chunk_bytes=1, **fixed), partial(mean_loss, **fixed), inputs, [torch.tensor(0.5)]
    )


TARGETS = {
    "all ignored": (torch.full((21,), -100), -100),
    "one counts": (torch.full((21,), -100).index_fill(0, torch.tensor([17]), 4), -100),
    "last class": (torch.full((21,), 10), -100),
    "none ignored": (torch.arange(21) % 11, -100),
    "a class is the ignored one": (torch.arange(21) % 11, 5),
    "the last class is the ignored one": (torch.arange(21) % 11, 10),
    "a class more is the ignored one": (torch.arange(21) % 12, 11),
}


@pytest.mark.parametrize("which", TARGETS)
def test_targets(mode: str, which: str) -> None:
    aims, ignore_index = TARGETS[which]
    fixed = {"targets": aims.to(torch.get_default_device()), "ignore_index": ignore_index}
    inputs = given(21, 5, 11)
    assert_passes(
        partial(linear_cross_entropy, chunk_bytes=1, **fixed), partial(mean_loss, **fixed), inputs, [torch.tensor(0.5)]
    )
    assert_passes(
        partial(linear_logprobs, chunk_bytes=1, **fixed),
        partial(row_statistics, **fixed),
        inputs,
        [draw(21), draw(21), draw(21)],
    )


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e5), (torch.float16, 50.0)])
def test_huge_logits(mode: str, dtype: torch.dtype, size: float) -> None:
    # the largest logits of fp16 lie at 30000: exp of them overflows, and so does their square
    inputs = {"hidden": draw(21, 64, dtype=dtype, scale=size), "weight": draw(19, 64, dtype=dtype, scale=size / 2)}
    if dtype == torch.float16:
        assert 2e4 < float((inputs["hidden"].float() @ inputs["weight"].float().T).abs().max()) < 65504
    fixed = {"targets": some_targets(21, 19)}
    assert_passes(
        partial(linear_cross_entropy, chunk_bytes=1, **fixed), partial(mean_loss, **fixed), inputs, [torch.tensor(0.5)]
    )
    found = linear_logprobs(**inputs, **fixed)
    assert all(torch.isfinite(x).all() for x in found)


@pytest.mark.parametrize("which", ["mean", "none", "logprobs"])
def test_rows_that_are_ignored_may_hold_anything(mode: str, which: str) -> None:
    """On the CPU they are counted; on a GPU the caller says how many are not."""
    targets = some_targets(37, 11)
    inputs = given(37, 5, 11)
    hidden, weight, bias = (inputs[name].requires_grad_() for name in ("hidden", "weight", "bias"))  # type: ignore[union-attr]
    fixed = {"bias": bias, "chunk_bytes": 1, "valid_rows": int((targets >= 0).sum())}

    def run(rows: torch.Tensor) -> list[torch.Tensor]:
        if which == "logprobs":
            outputs = list(linear_logprobs(rows, weight, targets, **fixed))
        else:
            outputs = [linear_cross_entropy(rows, weight, targets, reduction=which, **fixed)]
        return [*outputs, *torch.autograd.grad([out.sum() for out in outputs], [rows, weight, bias])]

    right = run(hidden)
    spoiled = hidden.detach().masked_fill((targets < 0)[:, None], float("nan")).requires_grad_()
    assert all(torch.equal(a, b) for a, b in zip(run(spoiled), right, strict=True))


def test_a_class_that_a_bias_forbids(mode: str) -> None:
    inputs = given(21, 5, 11)
    inputs["bias"][3] = float("-inf")  # type: ignore[index]
    fixed = {"targets": torch.full((21,), 4)}
    assert_passes(
        partial(linear_cross_entropy, chunk_bytes=1, **fixed), partial(mean_loss, **fixed), inputs, [torch.tensor(0.5)]
    )


AUTOCAST = [("reference", torch.bfloat16), ("reference", torch.float16), ("triton", torch.float16)]


@pytest.mark.parametrize(("passes", "dtype"), AUTOCAST)  # the interpreter rounds bf16 the wrong way
def test_autocast(monkeypatch: pytest.MonkeyPatch, passes: str, dtype: torch.dtype) -> None:
    if passes == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setenv("AITRAIN_OPS", passes)
    targets = some_targets(37, 19)

    def under(function: object, **inputs: torch.Tensor) -> object:
        with torch.autocast(inputs["hidden"].device.type, dtype):  # leaves float64 as it is
            return function(**inputs, targets=targets)  # type: ignore[operator]

    for inputs in (given(37, 8, 19), {**given(37, 8, 19), "hidden": draw(37, 8, dtype=dtype)}):
        assert_passes(
            partial(under, partial(linear_cross_entropy, chunk_bytes=1)),
            partial(under, mean_loss),
            inputs,
            [torch.tensor(0.5)],
        )
        assert_passes(
            partial(under, partial(linear_logprobs, chunk_bytes=1)),
            partial(under, row_statistics),
            inputs,
            [draw(37), draw(37), draw(37)],
        )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_gradients_the_same_loss(mode: str, reduction: str) -> None:
    hidden, weight, targets = draw(21, 5).requires_grad_(), draw(11, 5).requires_grad_(), some_targets(21, 11)
    run = partial(linear_cross_entropy, targets=targets, terms=ALL_TERMS, reduction=reduction, chunk_bytes=1)
    with torch.no_grad():
        quiet = run(hidden, weight)
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, run(hidden, weight).detach())
    torch.testing.assert_close(quiet, run(hidden.detach(), weight.detach()))


def gradcheck_inputs() -> list[torch.Tensor]:
    return [torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in ((20, 3), (5, 3), (5,))]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck_of_the_loss(reduction: str) -> None:
    run = partial(linear_cross_entropy, targets=some_targets(20, 5), terms=ALL_TERMS, reduction=reduction)
    assert torch.autograd.gradcheck(lambda x, w, b: run(x, w, bias=b, chunk_bytes=1), gradcheck_inputs())


def test_gradcheck_of_the_statistics() -> None:
    run = partial(linear_logprobs, targets=some_targets(20, 5), terms=SCALED, chunk_bytes=1)
    assert torch.autograd.gradcheck(lambda x, w, b: tuple(run(x, w, bias=b)), gradcheck_inputs())


def test_gradcheck_of_info_nce() -> None:
    queries, keys, scale = (torch.randn(size, dtype=torch.float64) for size in ((18, 3), (18, 3), ()))
    leaves = [x.requires_grad_() for x in (queries, keys, scale)]
    for symmetric in (False, True):
        assert torch.autograd.gradcheck(partial(info_nce, symmetric=symmetric, chunk_bytes=1), leaves)


CONTRASTS = {
    "own key": (21, 21, False, False),
    "more keys": (21, 34, False, False),
    "given targets": (21, 8, False, True),
    "symmetric": (21, 21, True, False),
    "one pair": (1, 1, True, False),
    "no query": (0, 3, False, False),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", [name for name in CONTRASTS if name != "no query"])
def test_info_nce_with_a_learned_scale(mode: str, which: str, dtype: torch.dtype) -> None:
    count, others, symmetric, named = CONTRASTS[which]
    queries, keys = (F.normalize(draw(n, 16), dim=1).to(dtype) for n in (count, others))
    fixed = {"targets": torch.randint(others, (count,)) if named else None, "symmetric": symmetric}
    assert_passes(
        partial(info_nce, chunk_bytes=1, **fixed),
        partial(contrast, **fixed),
        {"queries": queries, "keys": keys, "scale": torch.tensor(14.0)},
        [torch.tensor(0.7)],
        # The scaled queries are rounded to the type of the inputs, each way to another value; the rest is fp32.
        floor=None if dtype is torch.float32 else torch.finfo(dtype).eps / 8,
    )


def test_info_nce_of_no_query_is_0(mode: str) -> None:
    queries, keys = draw(0, 4).requires_grad_(), draw(3, 4).requires_grad_()
    loss = info_nce(queries, keys, 5.0)
    assert float(loss.detach()) == 0.0
    for slope in torch.autograd.grad(loss, [queries, keys]):
        assert not slope.any()


REFUSED = {
    "width": (lambda x, w, t: linear_cross_entropy(x, w[:, :4], t), r"hidden \(6, 5\) and weight \(7, 4\) must be"),
    "put away": (lambda x, w, t: linear_cross_entropy(x, w[:0], t), "inside the head's own forward"),
    "targets": (lambda x, w, t: linear_cross_entropy(x, w, t[:3]), r"targets must be int64 \(6,\), one per row"),
    "int32": (lambda x, w, t: linear_cross_entropy(x, w, t.int()), "not torch.int32"),
    "bias": (lambda x, w, t: linear_cross_entropy(x, w, t, bias=w[:3, 0]), r"bias \(3,\) must be \(7,\)"),
    "types": (lambda x, w, t: linear_logprobs(x.half(), w, t), "cast one of them, or use autocast"),
    "integers": (lambda x, w, t: linear_logprobs(x.long(), w.long(), t), "must be floating point"),
    "reduction": (lambda x, w, t: linear_cross_entropy(x, w, t, reduction="avg"), "write sum, mean or none"),
    "num_items": (lambda x, w, t: linear_cross_entropy(x, w, t, num_items=3.0), "needs reduction=sum, not mean"),
    "chunk": (lambda x, w, t: linear_logprobs(x, w, t, chunk_bytes=0), "chunk_bytes=0 must be positive"),
    "valid_rows": (lambda x, w, t: linear_logprobs(x, w, t, valid_rows=-1), "valid_rows=-1 must not be negative"),
    "terms": (lambda x, w, t: linear_logprobs(x, w, t, terms=LossTerms(z_loss=0.1)), "belong to a loss"),
    "dimensions": (lambda x, w, t: info_nce(x[None], x, 1.0), r"must be \(B, D\), \(N, D\)"),
    "few keys": (lambda x, w, t: info_nce(x, x[:3], 1.0), "6 queries have only 3 keys: give targets"),
    "lopsided": (lambda x, w, t: info_nce(x[:3], x, 1.0, symmetric=True), "as many keys as queries"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_what_does_not_fit_is_refused(which: str) -> None:
    call, words = REFUSED[which]
    with pytest.raises(ShapeError, match=words):
        call(draw(6, 5), draw(7, 5), torch.arange(6))


@pytest.mark.parametrize("wrong", [-1, 7, 10**12])
def test_a_target_that_is_no_class(mode: str, wrong: int) -> None:
    hidden, weight = draw(6, 5).requires_grad_(), draw(7, 5)
    targets = torch.arange(6)
    targets[4] = wrong
    if hidden.is_cuda:  # cannot be asked without waiting for it
        assert linear_cross_entropy(hidden, weight, targets).isnan()
        assert linear_logprobs(hidden, weight, targets).logprobs.isnan().tolist() == [i == 4 for i in range(6)]
        return
    for function in (linear_cross_entropy, linear_logprobs):
        with pytest.raises(ShapeError, match=rf"targets\[4\]={wrong} is outside 0\.\.6 and not ignore_index=-100"):
            function(hidden, weight, targets)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grad", [True, False])
def test_no_items_and_no_rows_give_0(mode: str, dtype: torch.dtype, grad: bool) -> None:
    hidden, weight = draw(4, 6, dtype=dtype).requires_grad_(grad), draw(9, 6, dtype=dtype)
    loss = linear_cross_entropy(hidden, weight, torch.full((4,), -100), reduction="sum", num_items=0)
    assert loss.item() == 0
    with pytest.raises(ShapeError, match="it must be one number"):
        linear_cross_entropy(
            hidden, weight, torch.zeros(4, dtype=torch.int64), reduction="sum", num_items=torch.ones(2)
        )
