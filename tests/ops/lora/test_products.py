"""How the products are arranged: what is read once, made again, left out, and never done."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aitrain.ops.lora import products
from aitrain.ops.lora.projection import Projection, laid_out
from ops.lora.projections import mixed, quantised, unfused

ROWS, WIDTH = 11, 8


class Recorded(TorchDispatchMode):
    """Counts what PyTorch is asked for, by name and size of the result."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else None
        self.seen[func.overloadpacket.__name__, shape] += 1
        return found

    def of(self, name):
        return sum(count for (seen, _), count in self.seen.items() if seen == name)


def setting(given):
    torch.manual_seed(0)
    parts, numbers = laid_out(given)
    scalings = [each.scaling for each in given]
    wanted = [True, *(part is not None and part.requires_grad for each in given for part in (each.a, each.b))]
    upstream = [torch.randn(ROWS, each.weight.shape[0]) for each in given]
    return torch.randn(ROWS, WIDTH), parts, numbers, scalings, wanted, upstream


@torch.no_grad()
def test_products_and_no_passes_over_activations_beside_them():
    given = mixed(WIDTH, torch.float32)[:3]
    x, parts, numbers, scalings, wanted, upstream = setting(given)
    with Recorded() as forward:
        products.forward(x, parts, numbers, scalings, torch.float32)
    # one product of x with all A; one with each layer; one for each adapter, inside its layer's output
    assert forward.of("mm") + forward.of("addmm") == 1 + 3 and forward.of("addmm_") == 2
    with Recorded() as backward:
        products.backward(upstream, x, parts, numbers, scalings, torch.float32, wanted)
    # dx: one, and two added to it, and one for all adapters; the gradients of all A: one; x A^T again: one
    assert backward.of("mm") == 1 + 1 + 1 and backward.of("addmm_") == 2 + 1 + 2 + 2
    for seen in (forward.seen, backward.seen):
        assert not {"add", "add_", "mul", "mul_", "clone", "sum"} & {name for name, _ in seen}


@torch.no_grad()
def test_upstream_is_not_written_to():
    x, parts, numbers, scalings, wanted, upstream = setting(mixed(WIDTH, torch.float32))
    before = [grad.clone() for grad in upstream]
    products.backward(upstream, x, parts, numbers, scalings, torch.float32, wanted)
    assert all(torch.equal(one, other) for one, other in zip(before, upstream, strict=True))


def dequantisations(monkeypatch):
    count, real = [], products.weight_of
    monkeypatch.setattr(products, "weight_of", lambda *given: count.append(1) or real(*given))
    return count


@torch.no_grad()
def test_weights_are_made_only_where_x_wants_a_gradient(monkeypatch):
    given = [Projection(quantised(5, WIDTH), None, torch.randn(2, WIDTH), torch.randn(5, 2))]
    x, parts, numbers, scalings, _, upstream = setting(given)
    count = dequantisations(monkeypatch)
    to_x, to_a, to_b = products.backward(upstream, x, parts, numbers, scalings, torch.float32, [False, True, True])
    assert to_x is None and to_a is not None and to_b is not None and not count
    products.backward(upstream, x, parts, numbers, scalings, torch.float32, [True, False, False])
    assert len(count) == 1


@torch.no_grad()
def test_no_gradient_for_an_output_means_no_product(monkeypatch):
    given = mixed(WIDTH, torch.float32)
    x, parts, numbers, scalings, wanted, upstream = setting(given)
    count = dequantisations(monkeypatch)
    some = [upstream[0], None, None, None, upstream[4]]
    found = products.backward(some, x, parts, numbers, scalings, torch.float32, wanted)
    assert len(count) == 2
    whole = [grad if grad is not None else torch.zeros_like(upstream[at]) for at, grad in enumerate(some)]
    expected = products.backward(whole, x, parts, numbers, scalings, torch.float32, wanted)
    for mine, right in zip(found, expected, strict=True):
        assert (mine is None) == (right is None)
        if mine is not None:
            torch.testing.assert_close(mine, right)
    nothing = products.backward([None] * 5, x, parts, numbers, scalings, torch.float32, wanted)
    assert all(grad is None or not grad.any() for grad in nothing)


@pytest.mark.parametrize("at", [0, 2])
def test_gradients_share_no_memory(at):
    given = mixed(WIDTH, torch.float32)
    x, parts, numbers, scalings, wanted, upstream = setting(given)
    with torch.no_grad():
        found = products.backward(upstream, x, parts, numbers, scalings, torch.float32, wanted)
    stores = [grad.untyped_storage().data_ptr() for grad in found if grad is not None]
    assert len(set(stores)) == len(stores)


def test_layers_without_any_adapter():
    given = [Projection(torch.randn(5, WIDTH), torch.randn(5)), Projection(torch.randn(4, WIDTH))]
    x, parts, numbers, scalings, _, upstream = setting(given)
    x.requires_grad_()
    for mine, right in zip(
        products.forward(x, parts, numbers, scalings, torch.float32), unfused(x, given), strict=True
    ):
        torch.testing.assert_close(mine, right)
    found = products.backward(upstream, x.detach(), parts, numbers, scalings, torch.float32, [True] + 4 * [False])
    (right,) = torch.autograd.grad(unfused(x, given), [x], upstream)
    torch.testing.assert_close(found[0], right)
