"""Every fault of a model folder is told in one line, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from aitrain.config.model import Model, ModelInit
from aitrain.models.folder import Kind, code_sha256, inspect


def edit(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps(content))


def one_fault(model: Model) -> str:
    faults = inspect(model).faults
    assert len(faults) == 1, faults
    assert "\n" not in faults[0]
    return faults[0]


def test_facts_of_the_shipped_model() -> None:
    facts = inspect(Model(path="asset:tiny-llama"))
    reference = AutoModelForCausalLM.from_pretrained(facts.path)
    assert (facts.kind, facts.faults) == (Kind.asset, [])
    assert facts.parameters == sum(weight.numel() for weight in reference.parameters())
    assert (facts.context_tokens, facts.hidden_size, facts.layers, facts.vocab_size) == (512, 128, 4, 2048)
    assert (facts.intermediate_size, facts.key_value_share, facts.tied) == (384, 0.5, True)
    assert facts.has_chat_template and facts.architecture == "LlamaForCausalLM"


def test_inspecting_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from aitrain.models.folder import inspect; from aitrain.config.model import Model;"
        "inspect(Model(path='asset:tiny-llama')); print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/no/such/folder", "does not exist"),
        ("somebody/some-model", "model.allow_network=true"),
        ("gpt2", "model.allow_network=true"),
        ("asset:nothing", "asset:nothing is not known"),
    ],
)
def test_names_that_lead_nowhere(name: str, words: str) -> None:
    assert words in one_fault(Model(path=name))


def test_a_hub_name_with_the_network_allowed_has_no_fault() -> None:
    facts = inspect(Model(path="somebody/some-model", allow_network=True))
    assert (facts.kind, facts.faults) == (Kind.hub, [])


def drop_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def drop_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def drop_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def leave_only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def make_encoder(folder: Path) -> None:
    edit(folder / "config.json", architectures=["BertForMaskedLM"])


def make_encoder_decoder(folder: Path) -> None:
    edit(folder / "config.json", architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True)


def quantise(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "gptq"})


def leave_only_an_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (drop_config, "has no config.json"),
        (break_config, "not valid JSON"),
        (drop_tokenizer, "has no tokenizer"),
        (drop_weights, "model.init=random"),
        (leave_only_pickles, "safe_serialization=True"),
        (truncate, "shorter than its header says"),
        (make_encoder, "not a causal language model (architectures: BertForMaskedLM)"),
        (make_encoder_decoder, "encoder-decoder"),
        (quantise, "quantised weights (gptq)"),
        (leave_only_an_adapter, "an adapter, not a model"),
    ],
)
def test_each_damage_is_named(folder: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(folder)
    assert words in one_fault(Model(path=str(folder)))


def test_several_faults_are_told_at_once(folder: Path) -> None:
    drop_tokenizer(folder)
    truncate(folder)
    assert len(inspect(Model(path=str(folder))).faults) == 2


def split(folder: Path) -> None:
    """Save the model in three shards with an index."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="1MB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def test_shards_are_counted_like_one_file(folder: Path) -> None:
    split(folder)
    facts = inspect(Model(path=str(folder)))
    assert (facts.faults, facts.parameters) == ([], 1049728)


def test_a_missing_shard_is_named(folder: Path) -> None:
    split(folder)
    lost = sorted(folder.glob("model-*.safetensors"))[-1]
    lost.unlink()
    assert lost.name in one_fault(Model(path=str(folder)))


def test_a_tensor_that_the_index_names_and_no_shard_holds(folder: Path) -> None:
    split(folder)
    save_file({"other": torch.zeros(1)}, sorted(folder.glob("model-*.safetensors"))[-1])
    assert "are in no shard" in one_fault(Model(path=str(folder)))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_in_the_place_of_a_folder(folder: Path, name: str) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert one_fault(Model(path=str(folder / name)))


def test_random_start_needs_no_weights(folder: Path) -> None:
    drop_weights(folder)
    facts = inspect(Model(path=str(folder), init=ModelInit.random))
    assert facts.faults == []
    assert facts.parameters == 1049728


def test_own_code_runs_only_with_its_checksum(folder: Path) -> None:
    edit(folder / "config.json", model_type="made_up", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    (folder / "modeling.py").write_text("class Model: ...")
    present = code_sha256(folder)
    assert present in one_fault(Model(path=str(folder)))
    assert present in one_fault(Model(path=str(folder), vetted_code_sha256="0" * 64))
    assert inspect(Model(path=str(folder), vetted_code_sha256=present)).faults == []
    (folder / "modeling.py").write_text("class Model: ...  # changed")
    assert code_sha256(folder) in one_fault(Model(path=str(folder), vetted_code_sha256=present))


def test_own_code_of_a_known_model_type_is_not_needed(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    (folder / "modeling.py").write_text("class Model: ...")
    assert inspect(Model(path=str(folder))).faults == []


def test_code_from_another_repository_is_refused(folder: Path) -> None:
    edit(folder / "config.json", model_type="made_up", auto_map={"AutoModelForCausalLM": "who/ever--modeling.Model"})
    assert "another repository" in one_fault(Model(path=str(folder), vetted_code_sha256="0" * 64))


def test_a_checksum_without_code_has_no_effect(folder: Path) -> None:
    assert "has no effect" in one_fault(Model(path=str(folder), vetted_code_sha256="0" * 64))


def test_the_estimate_without_weights_is_exact_for_a_llama(folder: Path, tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=100, num_hidden_layers=3, num_attention_heads=4, vocab_size=300
    )
    config.save_pretrained(tmp_path / "plan")
    (tmp_path / "plan/tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    reference = AutoModelForCausalLM.from_config(config)
    facts = inspect(Model(path=str(tmp_path / "plan"), init=ModelInit.random))
    assert facts.parameters == sum(weight.numel() for weight in reference.parameters())


def test_a_revision_of_a_local_model_is_refused() -> None:
    """It would be ignored without a word; of a name on a hub, `aitrain fetch` and the lock file take note of it."""
    found = inspect(Model(path="asset:tiny-llama", revision="main"))
    assert found.faults == ["model.revision='main' has no effect on a local model: remove it"]
    assert not any("revision" in fault for fault in inspect(Model(path="company/model", revision="main")).faults)
