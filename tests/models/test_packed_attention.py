"""Packed rows of tiny decoders equal their documents alone, in logits and gradients; caches go on working."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from aitrain.errors import ModelError, RecipeError, ShapeError
from aitrain.models import packed_attention
from aitrain.models.packed_attention import NAME, Seen, register, use_packed_attention
from aitrain.ops.attention.choice import SWITCH
from aitrain.ops.attention.documents import documents_of

SIZES: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
    "initializer_range": 0.3,
}
SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {"use_sliding_window": True, **SLIDING},
    "Qwen3": {"head_dim": 8},
    "Gemma2": {"head_dim": 8, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16, **SLIDING},
    "Gemma3Text": {"head_dim": 8, "query_pre_attn_scalar": 16, **SLIDING},
    "Mistral": {"sliding_window": 5},
    "Phi3": {"sliding_window": 6},
    "Olmo2": {},
    "Olmo3": {**SLIDING},
    "SmolLM3": {"no_rope_layers": [1, 0]},
    "GPTNeoX": {"hidden_dropout": 0.0},
}
PACKS: dict[str, list[list[int]]] = {
    "documents": [[5, 1, 9, 1, 4]],
    "rows": [[5, 7], [12], [1, 1, 10]],
}


@cache
def built(family: str, attention: str) -> PreTrainedModel:
    config = getattr(transformers, f"{family}Config")(**SIZES | FAMILIES[family])
    register()
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.eval()
    if attention == "packed":
        use_packed_attention(model)
        assert model.config._attn_implementation == NAME
    return model


def tokens(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 53, (len(rows), sum(rows[0])), generator=random)
    return ids, torch.tensor([[i for length in row for i in range(length)] for row in rows])


def learned(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    assert found
    return found


def each_alone(family: str, ids: torch.Tensor, rows: Sequence[Sequence[int]], weight: torch.Tensor) -> Any:
    """Logits of transformers' own eager attention, a document at a time, and the gradients of their weighted sum."""
    model = built(family, "eager")
    logits = []
    for row, cut in zip(ids, rows, strict=True):
        parts = [model(input_ids=part[None], use_cache=False).logits[0] for part in row.split(list(cut))]
        logits.append(torch.cat(parts))
    whole = torch.stack(logits)
    (whole * weight).sum().backward()
    return whole.detach(), learned(model)


def assert_equal(logits: torch.Tensor, gradients: dict[str, torch.Tensor], expected: Any) -> None:
    torch.testing.assert_close(logits, expected[0], rtol=1e-5, atol=1e-5 * float(expected[0].abs().max()))
    assert gradients.keys() == expected[1].keys()
    for name, gradient in gradients.items():
        # The softmax does not see what all keys share, so the terms of a key's bias gradient cancel: 3.4 is left beside
        # 37 for the weight of the same layer, and eager attention itself is 1.4e-5 from float64 there. Rounding is
        # measured against the terms, whose size the weight's gradient has.
        beside = name.removesuffix("bias") + "weight"
        scale = max(float(expected[1][each].abs().max()) for each in (name, beside) if each in expected[1])
        assert scale > 0, name
        error = float((gradient - expected[1][name]).abs().max())
        assert error <= 1e-5 * scale, f"{name}: {error:.1e} of {scale:.1e}"


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_each_alone(family: str, pack: str, cached: bool) -> None:
    rows = PACKS[pack]
    ids, positions = tokens(rows)
    weight = torch.randn(*ids.shape, 53, generator=torch.Generator().manual_seed(1))
    model = built(family, "packed")
    # with an (empty) cache transformers does not look for documents, and its own attention would let them leak
    logits = model(input_ids=ids, position_ids=positions, use_cache=cached).logits
    (logits * weight).sum().backward()
    assert_equal(logits.detach(), learned(model), each_alone(family, ids, rows, weight))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_leak_would_show(family: str) -> None:
    rows = PACKS["documents"]
    ids, positions = tokens(rows)
    model = built(family, "packed")
    with torch.no_grad():
        apart = model(input_ids=ids, position_ids=positions).logits
        changed = ids.clone()
        changed[:, :6] = changed[:, :6] % 50 + 3
        assert torch.equal(model(input_ids=changed, position_ids=positions).logits[:, 6:], apart[:, 6:])
        together = model(input_ids=changed).logits
    assert not torch.allclose(together[:, 6:], apart[:, 6:], atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_rows_are_attended_as_ever(family: str) -> None:
    ids, _ = tokens([[12], [12]])
    with torch.no_grad():
        ours, theirs = (built(family, kind)(input_ids=ids).logits for kind in ("packed", "eager"))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize(("side", "told"), [("left", True), ("left", False), ("right", True)])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding(family: str, side: str, told: bool) -> None:
    ids, _ = tokens([[12], [12]])
    real = torch.ones_like(ids)
    real[0, slice(0, 5) if side == "left" else slice(7, 12)] = 0
    positions = (real.cumsum(-1) - 1).clamp(min=0) if told else None
    with torch.no_grad():
        ours, theirs = (
            built(family, kind)(input_ids=ids, attention_mask=real, position_ids=positions).logits
            for kind in ("packed", "eager")
        )
    assert ours.isfinite().all()
    kept = real.bool()
    torch.testing.assert_close(ours[kept], theirs[kept], rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_packs_with_a_padding_mask() -> None:
    """Transformers' own attention does not look for documents where a padding mask is given."""
    rows = [[4, 5, 3]]
    ids, positions = tokens(rows)
    real = torch.ones_like(ids)
    real[:, 9:] = 0
    with torch.no_grad():
        for mask in (real, torch.ones_like(ids)):
            logits = built("Llama", "packed")(input_ids=ids, attention_mask=mask, position_ids=positions).logits
            alone = [built("Llama", "eager")(input_ids=part).logits for part in ids.split(rows[0], 1)]
            expected = torch.cat(alone, 1)
            torch.testing.assert_close(logits[:, :9], expected[:, :9], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", [{"num_beams": 1}, {"num_beams": 2}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Gemma3Text", "Mistral", "GPTNeoX"])
def test_generation(family: str, how: dict[str, Any]) -> None:
    ids, _ = tokens([[7], [7]])
    real = torch.ones_like(ids)
    real[0, :3] = 0
    options = {"max_new_tokens": 6, "do_sample": False, "min_new_tokens": 6, "disable_compile": True, **how}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    ours, theirs = (
        built(family, kind).generate(input_ids=ids, attention_mask=real, **options) for kind in ("packed", "eager")
    )
    assert torch.equal(ours.sequences, theirs.sequences) and ours.sequences.shape == (2, 13)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(theirs.logits), rtol=1e-4, atol=1e-4)


def test_packed_rows_are_not_continued_from_a_cache() -> None:
    ids, positions = tokens([[5, 7]])
    model = built("Llama", "packed")
    with torch.no_grad():
        past = model(input_ids=ids, position_ids=positions, use_cache=True).past_key_values
        for more in (1, 2):
            going = torch.arange(7, 7 + more)[None]
            with pytest.raises(ShapeError, match="packed rows cannot be continued from a cache"):
                model(input_ids=ids[:, :more], position_ids=going, past_key_values=copy.deepcopy(past))
        whole = model(input_ids=ids, use_cache=True).past_key_values
        model(input_ids=ids[:, :1], past_key_values=whole)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    rows = PACKS["rows"]
    ids, positions = tokens(rows)
    weight = torch.randn(*ids.shape, 53)
    model = built("Gemma2", "packed")
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.train()
    try:
        logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        (logits * weight).sum().backward()
    finally:
        model.eval()
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()
    assert_equal(logits.detach(), learned(model), each_alone("Gemma2", ids, rows, weight))


def test_boundaries_in_place_of_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of transformers' own flash attention; the positions are then not asked."""
    monkeypatch.setattr(packed_attention, "documents_of", None)
    rows = [[5, 7], [12]]
    ids, positions = tokens(rows)
    bounds = torch.tensor([0, 5, 12, 24, 24], dtype=torch.int32)
    names = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 12, "max_length_k": 12}
    weight = torch.randn(*ids.shape, 53)
    for family in FAMILIES:
        model = built(family, "packed")
        logits = model(input_ids=ids, position_ids=positions, use_cache=False, **names).logits
        (logits * weight).sum().backward()
        assert_equal(logits.detach(), learned(model), each_alone(family, ids, rows, weight))


def test_documents_are_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = packed_attention.documents_of
    monkeypatch.setattr(packed_attention, "documents_of", lambda *x: calls.append(x) or real(*x))
    ids, positions = tokens(PACKS["documents"])
    built("Llama", "packed")(input_ids=ids, position_ids=positions)
    assert len(calls) == 1, "for two layers"
    other = torch.arange(20)[None]
    built("Llama", "packed")(input_ids=ids, position_ids=other)
    assert calls[1][0] is other, "a new batch is looked at anew"


def test_documents_follow_what_tells_them() -> None:
    seen = Seen(True, None, None)
    first, other = torch.tensor([[0, 1, 0]]), torch.tensor([[0, 1, 2]])
    for told, lengths in ((first, [2, 1]), (first, [2, 1]), (other, [3])):
        assert seen.documents(told, lambda told=told: documents_of(told)).lengths() == lengths


def test_sharding_hands_the_mask_on_untouched() -> None:
    from torch.distributed.utils import _apply_to_tensors
    from torch.utils._pytree import tree_map

    seen = Seen(True, None, torch.ones(1, 3))
    assert _apply_to_tensors(torch.Tensor.double, {"mask": seen})["mask"] is seen
    assert tree_map(lambda x: x, {"mask": seen})["mask"] is seen


def test_every_layer_asks_our_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, positions = tokens(PACKS["documents"])
    monkeypatch.setenv(SWITCH, "flash")
    with pytest.raises(RecipeError, match="needs a GPU"):
        built("Llama", "packed")(input_ids=ids, position_ids=positions)


def test_compiled_is_not_wrong() -> None:
    ids, positions = tokens(PACKS["documents"])
    model = built("Llama", "packed")
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        found = compiled(input_ids=ids, position_ids=positions, use_cache=False).logits
        expected = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_patterns_of_transformers_are_read() -> None:
    from transformers import masking_utils as theirs

    ids = torch.tensor([[0, 1, 0, 1]])
    windowed = theirs.sliding_window_causal_mask_function
    for function, causal, window in (
        (theirs.causal_mask_function, True, None),
        (theirs.bidirectional_mask_function, False, None),
        (windowed(3), True, 3),
        (theirs.sliding_window_bidirectional_mask_function(3), False, 4),
    ):
        seen = packed_attention.mask(1, 9, 9, mask_function=function)
        assert isinstance(seen, Seen) and (seen.causal, seen.window) == (causal, window)
        back = torch.arange(9)[:, None] - torch.arange(9)
        meant = (back >= 0) | torch.tensor(not causal)
        meant = meant if window is None else meant & (back.abs() < window)
        assert torch.equal(theirs.sdpa_mask(1, 9, 9, mask_function=function, allow_is_causal_skip=False)[0, 0], meant)
    documents = theirs.find_packed_sequence_indices(ids)
    packed = theirs.packed_sequence_compatibility_function(windowed(3), ids, documents)
    seen = packed_attention.mask(1, 4, 4, mask_function=packed)
    assert isinstance(seen, Seen) and (seen.causal, seen.window) == (True, 3)
    for function in (
        theirs.chunked_causal_mask_function(4, torch.zeros(1)),
        theirs.or_masks(theirs.causal_mask_function, theirs.blockwise_overlay(ids)),
        lambda b, h, q, k: q >= k,
    ):
        with pytest.raises(ModelError, match="its own attention pattern.*keep model.attention=sdpa"):
            packed_attention.mask(1, 4, 4, mask_function=function)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (transformers.BloomConfig(n_layer=1, hidden_size=16, n_head=2, vocab_size=20), "cannot be replaced"),
        (
            transformers.MambaConfig(num_hidden_layers=1, hidden_size=16, vocab_size=20, state_size=4),
            "carry a state from token to token",
        ),
    ],
)
def test_models_that_cannot(config: Any, told: str) -> None:
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=f"does not support packed rows: .*{told}.*keep model.attention=sdpa"):
        use_packed_attention(model)


def test_layers_that_cannot() -> None:
    model = copy.deepcopy(built("Llama", "eager"))
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ModelError, match="layers of the kind linear_attention"):
        use_packed_attention(model)


def test_requests_that_are_not_served() -> None:
    module = torch.nn.Module()
    q, positions = torch.randn(1, 2, 3, 4), torch.arange(3)[None]
    run = packed_attention.attention
    for name in packed_attention._UNSERVED:
        with pytest.raises(ModelError, match="which aitrain_packed does not support"):
            run(module, q, q, q, None, position_ids=positions, **{name: torch.ones(1)})
    run(module, q, q, q, None, position_ids=positions, output_attentions=False, s_aux=None)
    with pytest.raises(ModelError, match="does not pass its position ids"):
        run(module, q, q, q, None)
    with pytest.raises(ShapeError, match="1 queries and 3 keys"):
        run(module, q[:, :, :1], q, q, None, position_ids=positions)
    with pytest.raises(ShapeError, match=r"a mask of shape \(1, 1, 3, 3\) in torch.float32"):
        run(module, q, q, q, torch.zeros(1, 1, 3, 3), position_ids=positions)


def test_without_a_mask_the_module_says() -> None:
    module = torch.nn.Module()
    q, positions = torch.randn(1, 2, 6, 4), torch.tensor([[0, 1, 2, 0, 1, 2]])
    run = packed_attention.attention
    causal, _ = run(module, q, q, q, None, position_ids=positions)
    plain = torch.nn.functional.scaled_dot_product_attention
    alone = plain(q[:, :, 3:], q[:, :, 3:], q[:, :, 3:], is_causal=True).transpose(1, 2)
    torch.testing.assert_close(causal[:, 3:], alone)
    module.is_causal = False  # type: ignore[assignment]
    both, _ = run(module, q, q, q, None, position_ids=positions)
    torch.testing.assert_close(both[:, 3:], plain(q[:, :, 3:], q[:, :, 3:], q[:, :, 3:]).transpose(1, 2))
    narrow, _ = run(module, q, q, q, None, position_ids=positions, sliding_window=1, is_causal=True)
    torch.testing.assert_close(narrow, q.transpose(1, 2))
