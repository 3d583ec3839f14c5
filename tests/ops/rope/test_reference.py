"""The definition is Hugging Face's in every layout, and the shorter way writes the same."""

from __future__ import annotations

import pytest
import torch

from aitrain.ops.rope import reference


def tables(length: int, rotated: int, batch: int | None = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines of random angles, every value twice."""
    angles = torch.randn(*(() if batch is None else (batch,)), length, rotated // 2, dtype=torch.float64) * 3
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_bit_is_hugging_faces(dtype: torch.dtype) -> None:
    from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as glm
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as llama
    from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb as phi3

    torch.manual_seed(0)
    q, k = torch.randn(2, 3, 5, 16, dtype=dtype), torch.randn(2, 1, 5, 16, dtype=dtype)
    for theirs, rotated, interleaved in ((llama, 16, False), (phi3, 8, False), (glm, 8, True)):
        cos, sin = (table.to(dtype) for table in tables(5, rotated, 2))
        for x, expected in zip((q, k), theirs(q, k, cos, sin), strict=True):
            assert torch.equal(reference.rope(x, cos, sin, None, interleaved), expected)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotated", [8, 4])
@pytest.mark.parametrize("back", [False, True])
def test_shorter_way_writes_the_same(interleaved: bool, rotated: int, back: bool) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    cos, sin = tables(7, rotated, None)
    positions = torch.randint(0, 7, (2, 5))
    expected = reference.rope(x, cos, -sin if back else sin, positions, interleaved)
    out = torch.full_like(x, float("nan"))
    before = x.clone()
    reference.rotate(x, out, cos, sin, positions, interleaved, back)
    torch.testing.assert_close(out, expected)
    assert torch.equal(x, before)
    reference.rotate(x, x, cos, sin, positions, interleaved, back)
    torch.testing.assert_close(x, expected)


def test_finer_tables_are_rounded_once() -> None:
    torch.manual_seed(2)
    x = torch.randn(1, 2, 5, 8, dtype=torch.bfloat16)
    cos, sin = (table.float() for table in tables(5, 8))
    out = torch.empty_like(x)
    reference.rotate(x, out, cos, sin, None, False, False)
    assert torch.equal(out, reference.rope(x, cos, sin))


def test_rotation_keeps_lengths_and_sees_only_distances() -> None:
    torch.manual_seed(3)
    frequencies = torch.tensor([1.0, 0.1], dtype=torch.float64)
    angles = torch.outer(torch.arange(9, dtype=torch.float64), frequencies)
    cos, sin = (torch.cat((t, t), -1) for t in (angles.cos(), angles.sin()))
    q, k = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    for interleaved in (False, True):
        q_all, k_all = (reference.rope(x.expand(1, 1, 9, 4), cos, sin, None, interleaved)[0, 0] for x in (q, k))
        torch.testing.assert_close(q_all.norm(dim=-1), q.norm().expand(9))
        scores = q_all @ k_all.T
        torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1])
