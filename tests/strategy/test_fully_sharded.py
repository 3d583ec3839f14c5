"""Which modules become units of sharding."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from aitrain.strategy.fully_sharded import blocks


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2)
    )


def test_blocks_of_a_llama() -> None:
    model = llama()
    assert blocks(model) == list(model.model.layers)


def test_blocks_of_a_llama_with_an_adapter() -> None:
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    found = blocks(model)
    assert [type(block) for block in found] == [LlamaDecoderLayer] * 3
    assert all(any("lora_A" in name for name, _ in block.named_parameters()) for block in found)


class Nested(nn.Module):
    """Blocks that hold lists themselves, beside a smaller list."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.ModuleList([nn.Linear(2, 2)])
        self.large = nn.ModuleList([nn.ModuleList([nn.Linear(9, 9), nn.Linear(9, 9)]) for _ in range(2)])


def test_blocks_of_a_plain_model_are_its_largest_list() -> None:
    model = Nested()
    assert blocks(model) == list(model.large)


def test_only_outermost_blocks_count() -> None:
    class Block(nn.Module):
        def __init__(self, inner: nn.Module | None = None) -> None:
            super().__init__()
            self.inner = inner

    class Model(nn.Module):
        _no_split_modules = ["Block"]

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Block(Block()), Block()])

    model = Model()
    assert blocks(model) == list(model.layers)


def test_a_model_without_blocks_is_one_unit() -> None:
    assert blocks(nn.Linear(3, 3)) == []
    assert blocks(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))) == []
    with torch.device("meta"):
        assert len(blocks(llama())) == 3
