"""Adapted layers alone, side by side and as an MLP, against peft's own; when each computes for itself; 4-bit bases."""

from __future__ import annotations

import copy
import importlib.util
import weakref
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from aitrain.models import fused_adapter as subject
from aitrain.models.fused_adapter import adapted_forward, adapted_mlp, is_adapted, projection_of, share_input, why_not
from aitrain.ops.nf4.packed import Packed4bit
from aitrain.ops.nf4.reference import NF4

SIZES = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2}
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj", "down_proj"]


class Linear4bit(nn.Linear):
    """A layer that holds its weight as bitsandbytes' does, and says so."""

    def __init__(self, layer: nn.Linear, block: int = 16) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        code, flat = torch.tensor(NF4), layer.weight.detach().reshape(-1, block)
        absmax = flat.abs().amax(1)
        nibbles = (flat / absmax[:, None]).unsqueeze(-1).sub(code).abs().argmin(-1).reshape(-1, 2)
        packed = (nibbles[:, 0] * 16 + nibbles[:, 1]).to(torch.uint8)[:, None]
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.weight.quant_state = SimpleNamespace(
            **{"absmax": absmax, "code": code, "shape": layer.weight.shape, "dtype": layer.weight.dtype},
            **{"blocksize": block, "quant_type": "nf4", "nested": False},
        )
        self.bias, self.compute_dtype = layer.bias, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        packed = Packed4bit.of(self.weight)
        assert packed is not None
        return F.linear(x, packed.dequantise(x.dtype), self.bias)


def build(targets: list[str], four_bit: bool = False, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))
    base.config.use_cache = False
    for weight in base.parameters():
        weight.data.normal_(0, 0.2)
    if four_bit:
        for layer in base.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, child in list(part.named_children()):
                    if isinstance(child, nn.Linear):
                        setattr(part, name, Linear4bit(child))
    options = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, "target_modules": targets, **options}
    return get_peft_model(base, LoraConfig(**options))


def wire(model: nn.Module) -> tuple[int, int]:
    """Put the ops in as `fuse` does; return how many layers were adapted, and how many share their input."""
    adapted = shared = 0
    for module in model.modules():
        if is_adapted(module) and why_not(module) is None:
            module.forward = MethodType(adapted_forward(module.forward), module)
            adapted += 1
        elif type(module).__name__ == "LlamaMLP":
            module.forward = MethodType(adapted_mlp(type(module).forward, "silu"), module)
        elif type(module).__name__ == "LlamaAttention":
            shared += share_input(module)
    return adapted, shared


def passes(model: nn.Module) -> dict[str, torch.Tensor]:
    ids = torch.arange(24).reshape(2, 12)
    model.zero_grad()
    logits = model(ids).logits
    F.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return {"logits": logits.detach(), **found}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, right in expected.items():
        torch.testing.assert_close(found[name], right, rtol=1e-4, atol=2e-5 * float(right.abs().max()))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many projections each call of the op had."""
    seen: list[int] = []
    real, real_mlp = subject.lora_linears, subject.lora_mlp
    monkeypatch.setattr(subject, "lora_linears", lambda x, given: seen.append(len(given)) or real(x, given))
    monkeypatch.setattr(subject, "lora_mlp", lambda *given: seen.append(-1) or real_mlp(*given))
    return seen


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("checkpointing", [None, True, False])
def test_same_as_peft(checkpointing: bool | None, four_bit: bool, calls: list[int]) -> None:
    model = build([*ATTENTION, "o_proj", *MLP], four_bit, rank_pattern={"k_proj": 2}, alpha_pattern={"up_proj": 3})
    if checkpointing is not None:
        model.enable_input_require_grads()
        model.base_model.model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    model.train()
    expected = passes(model)
    assert len(expected) == 1 + 2 * 7 * 2
    assert wire(model) == (14, 6)
    assert_same(passes(model), expected)
    # per decoder layer: q, k and v at once; o; the MLP; when checkpointed again in the backward pass
    assert calls == [3, 1, -1] * 2 * (1 if checkpointing is None else 2)


@pytest.mark.parametrize(
    ("targets", "expected_calls"),
    [(["q_proj", "v_proj"], [2]), (["k_proj"], [1]), (["down_proj"], [-1]), (["o_proj", "up_proj"], [1, -1])],
)
def test_some_layers_have_adapters(targets: list[str], expected_calls: list[int], calls: list[int]) -> None:
    model = build(targets)
    expected = passes(model)
    wire(model)
    assert_same(passes(model), expected)
    assert calls == expected_calls * 2


def test_an_mlp_with_dropout_or_a_trained_layer_computes_for_itself(calls: list[int]) -> None:
    model = build(["up_proj"])
    model.base_model.model.model.layers[0].mlp.gate_proj.weight.requires_grad_()
    expected = passes(model)
    wire(model)
    assert_same(passes(model), expected)
    assert calls == [1, -1]
    calls.clear()
    dropped = build(MLP, lora_dropout=0.1).eval()
    expected = passes(dropped)
    assert wire(dropped) == (0, 0)
    assert_same(passes(dropped), expected)
    assert calls == []


def attention(targets: list[str] = ATTENTION) -> Any:
    model = build(targets)
    wire(model)
    return model.base_model.model.model.layers[0].self_attn


def neighbours(part: Any) -> Any:
    return part.q_proj.fused_neighbours


def test_nothing_stays_behind_the_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    part = attention()
    angles = (torch.ones(1, 5, 8), torch.zeros(1, 5, 8))
    x = torch.randn(1, 5, 32, requires_grad=True)
    part(hidden_states=x, position_embeddings=angles, attention_mask=None)
    held = neighbours(part)
    assert held._input is None and held._outputs == [] and not held._is_open
    # also when the forward breaks off between q and k
    monkeypatch.setattr(part.k_proj, "forward", lambda *_: 1 / 0)
    seen = weakref.ref(x)
    with pytest.raises(ZeroDivisionError):
        part(hidden_states=x, position_embeddings=angles, attention_mask=None)
    assert held._input is None and held._outputs == [] and not held._is_open
    del x
    assert seen() is None


def test_each_layer_alone_outside_the_attention(calls: list[int]) -> None:
    part, x = attention(), torch.randn(3, 32)
    for name in ATTENTION:
        getattr(part, name)(x)
    assert calls == [1, 1, 1]


def test_another_input_or_a_changed_one_is_computed_anew(calls: list[int]) -> None:
    part, x, y = attention(), torch.randn(3, 32), torch.randn(3, 32)
    right = {name: getattr(part, name)(tensor) for name, tensor in zip(ATTENTION, (x, y, x + 1), strict=True)}
    calls.clear()
    held = neighbours(part)
    held.open()
    found = {"q_proj": part.q_proj(x), "k_proj": part.k_proj(y)}
    x += 1
    found["v_proj"] = part.v_proj(x)
    held.close()
    for name in ATTENTION:
        torch.testing.assert_close(found[name], right[name])
    assert calls == [3, 1, 1]


def test_an_output_is_given_away_once(calls: list[int]) -> None:
    part, x = attention(), torch.randn(3, 32)
    held = neighbours(part)
    held.open()
    first, second = part.q_proj(x), part.q_proj(x)
    held.close()
    torch.testing.assert_close(first, second)
    assert first.data_ptr() != second.data_ptr() and calls == [3, 1]


@pytest.mark.parametrize("where", ["k_proj", "k_proj.base_layer", "k_proj.lora_A.default", "k_proj.lora_B.default"])
def test_a_hook_that_may_bring_the_weight_is_waited_for(where: str, calls: list[int]) -> None:
    part, x, hooked = attention(), torch.randn(3, 32), []
    part.get_submodule(where).register_forward_pre_hook(lambda *_: hooked.append(1))
    held = neighbours(part)
    held.open()
    for name in ATTENTION:
        getattr(part, name)(x)
    held.close()
    assert hooked and 3 not in calls


def test_cross_attention_shares_nothing() -> None:
    class Cross(nn.Module):
        def __init__(self, like: nn.Module) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = like.q_proj, like.k_proj, like.v_proj

        def forward(self, hidden_states: torch.Tensor, key_value_states: torch.Tensor) -> None:
            raise AssertionError

    assert share_input(Cross(attention())) == 0
    assert share_input(nn.Linear(2, 2)) == 0
    assert share_input(build(["q_proj"]).base_model.model.model.layers[0].self_attn) == 0


def test_a_copy_has_neighbours_of_its_own() -> None:
    part = attention()
    other = copy.deepcopy(part)
    assert neighbours(other) is other.k_proj.fused_neighbours is not neighbours(part)
    assert neighbours(other)._layers == [other.q_proj, other.k_proj, other.v_proj]
    (hook,) = other._forward_pre_hooks.values()
    assert hook.__self__ is neighbours(other)


def test_when_pefts_own_forward_has_to_run() -> None:
    model, x = build(["q_proj"]), torch.randn(3, 32)
    layer: Any = model.base_model.model.model.layers[0].self_attn.q_proj
    assert projection_of(layer, x) is not None
    with model.disable_adapter():
        assert projection_of(layer, x) is None
    layer.merge()
    assert projection_of(layer, x) is None
    layer.unmerge()
    layer.base_layer.weight.requires_grad_()
    assert projection_of(layer, x) is None
    layer.base_layer.weight.requires_grad_(False)
    layer.lora_A.default.weight.placements = ()  # a DTensor
    assert projection_of(layer, x) is None
    del layer.lora_A.default.weight.placements
    layer._active_adapter = []
    assert projection_of(layer, x) is None
    assert projection_of(nn.Conv1d(1, 1, 1), x) is None


def test_a_4_bit_layer_that_computes_in_another_type_is_left_to_itself() -> None:
    model, x = build(["q_proj"], four_bit=True), torch.randn(3, 32)
    layer: Any = model.base_model.model.model.layers[0].self_attn.q_proj
    assert why_not(layer) is None and isinstance(projection_of(layer, x).weight, Packed4bit)  # type: ignore[union-attr]
    layer.base_layer.compute_dtype = torch.bfloat16
    assert projection_of(layer, x) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert projection_of(layer, x) is not None
    layer.base_layer.weight.quant_state = None
    assert projection_of(layer, x.bfloat16()) is None


def test_the_compiler_takes_the_whole_attention() -> None:
    class Part(nn.Module):
        """What an attention module does with its projections."""

        def __init__(self) -> None:
            super().__init__()
            like = build(ATTENTION).base_model.model.model.layers[0].self_attn
            self.q_proj, self.k_proj, self.v_proj = like.q_proj, like.k_proj, like.v_proj

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
            out: torch.Tensor = (q[..., :16] * k).softmax(-1) @ v.transpose(-1, -2)
            return out

    part = Part()
    for layer in part.children():
        layer.forward = MethodType(adapted_forward(layer.forward), layer)  # type: ignore[method-assign]
    assert share_input(part) == 3
    x = torch.randn(2, 5, 32, requires_grad=True)
    trained = [x, *(weight for weight in part.parameters() if weight.requires_grad)]
    torch._dynamo.reset()
    compiled = torch.compile(part, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), part(x))
    found, right = (torch.autograd.grad(run(x).square().sum(), trained) for run in (compiled, part))
    torch.testing.assert_close(found, right)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_bitsandbytes_own_layers(calls: list[int]) -> None:
    import bitsandbytes

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))
    base.config.use_cache = False
    for layer in base.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear):
                    made = bitsandbytes.nn.LinearNF4(child.in_features, child.out_features, bias=False)
                    made.load_state_dict(child.state_dict())
                    setattr(part, name, made.to("cpu"))
    base.is_loaded_in_4bit = True
    model = get_peft_model(base, LoraConfig(r=4, target_modules=[*ATTENTION, *MLP], init_lora_weights=False)).train()
    expected = passes(model)
    assert wire(model) == (12, 6)
    assert_same(passes(model), expected)
    assert calls == [3, -1] * 2
