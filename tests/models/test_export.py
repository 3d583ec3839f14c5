"""What is exported gives the trained model's outputs in plain transformers and peft."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from aitrain.config import RunConfig
from aitrain.config.adapter import Adapter, Dora, Lora, NoAdapter, Qlora
from aitrain.config.export import ExportDtype
from aitrain.config.model import Model, ModelInit
from aitrain.errors import ModelError
from aitrain.models.adapters import apply_adapter
from aitrain.models.export import Card, export_folder, model_card, trained_model
from aitrain.models.folder import Kind, ModelFacts, inspect
from aitrain.models.load import Located, build_model, locate

Make = Callable[[Model, Adapter], RunConfig]
IDS = torch.tensor([[1, 260, 300, 411, 512, 613, 2]])
TINY = Model(path="asset:tiny-llama")


def placed(config: RunConfig) -> tuple[RunConfig, Located]:
    return config, locate(config.model)


def exported(config: RunConfig, weights: dict[str, torch.Tensor], to: Path, **options: Any) -> None:
    export_folder(*placed(config), trained_model(*placed(config), weights), to, **options)


def trained(model: Model, adapter: Adapter) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Move every trained weight at random; return the logits and the trained weights."""
    torch.manual_seed(0)
    built = apply_adapter(build_model(locate(model)), adapter).eval()
    with torch.no_grad():
        for weight in built.parameters():
            if weight.requires_grad:
                weight += 0.02 * torch.randn_like(weight)
        logits = built(IDS).logits
    return logits, {name: weight.detach().clone() for name, weight in built.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("adapter", [NoAdapter(), Lora(rank=4), Dora(rank=4)], ids=["full", "lora", "dora"])
def test_merged_folder_gives_the_same_logits(adapter: Adapter, run_config: Make, tmp_path: Path) -> None:
    logits, weights = trained(TINY, adapter)
    base = AutoModelForCausalLM.from_pretrained(build_model(locate(TINY)).name_or_path, dtype=torch.float32)
    assert (logits - base(IDS).logits).abs().max() > 0.1
    exported(
        run_config(TINY, adapter),
        weights,
        tmp_path / "out",
        merge=True,
    )
    plain, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model", output_loading_info=True)
    assert not any(loading.values()), loading
    assert plain.dtype is torch.float32 and plain.config.use_cache
    torch.testing.assert_close(plain(IDS).logits, logits, rtol=0, atol=1e-5)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/model")
    chat = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|im_start|>user\nHi<|im_end|>\n"
    assert (tmp_path / "out/adapter").exists() == (not isinstance(adapter, NoAdapter))


@pytest.mark.parametrize("adapter", [Lora(rank=4), Dora(rank=4)], ids=["lora", "dora"])
def test_adapter_alone_gives_the_same_logits(adapter: Adapter, run_config: Make, tmp_path: Path) -> None:
    logits, weights = trained(TINY, adapter)
    exported(
        run_config(TINY, adapter),
        weights,
        tmp_path / "out",
        merge=False,
    )
    assert not (tmp_path / "out/model").exists()
    base = AutoModelForCausalLM.from_pretrained(build_model(locate(TINY)).name_or_path, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, tmp_path / "out/adapter").eval()
    torch.testing.assert_close(plain(IDS).logits, logits, rtol=0, atol=1e-5)


def test_qlora_exports_on_the_unquantised_base(run_config: Make) -> None:
    logits, weights = trained(TINY, Lora(rank=4))
    model = trained_model(*placed(run_config(TINY, Qlora(rank=4))), weights)
    torch.testing.assert_close(model(IDS).logits, logits, rtol=0, atol=1e-5)


def test_files_follow_the_umask(run_config: Make, tmp_path: Path) -> None:
    _, weights = trained(TINY, Lora(rank=2))
    probe = tmp_path / "probe"
    probe.touch()
    exported(run_config(TINY, Lora(rank=2)), weights, tmp_path / "out", merge=True)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {stat.S_IMODE(probe.stat().st_mode)}


def drop(weights: dict[str, torch.Tensor]) -> None:
    del weights[sorted(weights)[3]]


def add(weights: dict[str, torch.Tensor]) -> None:
    weights["other"] = torch.zeros(1)


def reshape(weights: dict[str, torch.Tensor]) -> None:
    name = sorted(weights)[3]
    weights[name] = weights[name].T.contiguous()


@pytest.mark.parametrize("adapter", [NoAdapter(), Lora(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize(("damage", "words"), [(drop, "missing for"), (add, "unknown to"), (reshape, "has shape")])
def test_weights_of_another_model_are_refused(
    adapter: Adapter,
    damage: Callable[[dict[str, torch.Tensor]], None],
    words: str,
    run_config: Make,
    tmp_path: Path,
) -> None:
    _, weights = trained(TINY, adapter)
    damage(weights)
    with pytest.raises(ModelError, match=words):
        exported(
            run_config(TINY, adapter),
            weights,
            tmp_path / "out",
            merge=True,
        )
    assert not (tmp_path / "out").exists()


def test_an_adapter_on_random_weights_is_refused(run_config: Make, tmp_path: Path) -> None:
    random = Model(path="asset:tiny-llama", init=ModelInit.random)
    with pytest.raises(ModelError, match="not saved anywhere"):
        exported(run_config(random, Lora()), {}, tmp_path / "out", merge=True)


def test_a_model_from_random_weights_is_exported(run_config: Make, tmp_path: Path) -> None:
    random = Model(path="asset:tiny-llama", init=ModelInit.random)
    logits, weights = trained(random, NoAdapter())
    torch.manual_seed(5)
    exported(run_config(random, NoAdapter()), weights, tmp_path / "out", merge=True)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")
    torch.testing.assert_close(plain(IDS).logits, logits, rtol=0, atol=1e-5)


def test_the_card_tells_the_run_and_no_private_path(run_config: Make) -> None:
    card = Card(run="verses", step=40, tokens=12345, loss_before=3.25, loss_after=2.5)
    text = model_card(run_config(TINY, Lora()), inspect(TINY), card, "transformers")
    for words in ("# verses", "asset:tiny-llama", "apache-2.0", "12,345", "3.2500", "2.5000", "lora", "notes.jsonl"):
        assert words in text
    assert "/somewhere/private" not in text
    facts = ModelFacts("/secret/place/my-model", Kind.folder, licence="mit")
    local = model_card(run_config(Model(path="/secret/place/my-model"), NoAdapter()), facts, Card(run="x"), "peft")
    assert "my-model" in local and "/secret" not in local and "None" not in local and "license: mit" in local


KINDS = {
    "embedding": Lora(rank=4, target_modules=["embed_tokens", "q_proj"]),
    "head": Lora(rank=4, target_modules=["lm_head"]),
    "whole embedding": Lora(rank=4, modules_to_save=["embed_tokens"]),
    "whole head": Lora(rank=4, modules_to_save=["lm_head"]),
    "dora on both": Dora(rank=4, target_modules=["embed_tokens", "lm_head", "v_proj"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_tied_is_untied_where_one_of_the_two_was_trained(kind: str, run_config: Make, tmp_path: Path) -> None:
    """The tiny model's head is its embedding: merged into both, what was learned for one would change the other."""
    logits, weights = trained(TINY, KINDS[kind])
    exported(
        run_config(TINY, KINDS[kind]),
        weights,
        tmp_path / "out",
        merge=True,
    )
    plain, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model", output_loading_info=True)
    assert not any(loading.values()), loading
    torch.testing.assert_close(plain(IDS).logits, logits, rtol=0, atol=1e-5)
    assert plain.config.tie_word_embeddings is False


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_number_format_of_the_base_is_kept_unless_another_is_asked(
    dtype: torch.dtype, run_config: Make, tmp_path: Path
) -> None:
    source = Path(build_model(locate(TINY)).name_or_path)
    shutil.copytree(source, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(source, dtype=dtype).save_pretrained(tmp_path / "base")
    base = Model(path=str(tmp_path / "base"))
    _, weights = trained(base, Lora(rank=2))
    config = run_config(base, Lora(rank=2))
    config.export.dtype = None
    exported(config, weights, tmp_path / "out", merge=True)
    assert size(tmp_path / "out/model") == pytest.approx(size(tmp_path / "base"), rel=0.01)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out/model").dtype is dtype
    config.export.dtype = ExportDtype.fp32
    exported(config, weights, tmp_path / "asked", merge=True)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "asked/model").dtype is torch.float32


def test_one_thing_into_the_folder_itself(run_config: Make, tmp_path: Path) -> None:
    logits, weights = trained(TINY, Lora(rank=4))
    config = run_config(TINY, Lora(rank=4))
    exported(config, weights, tmp_path / "model", merge=True, flat=True)
    exported(config, weights, tmp_path / "adapter", merge=False, flat=True)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(plain(IDS).logits, logits, rtol=0, atol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(build_model(locate(TINY)).name_or_path, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(adapted(IDS).logits, logits, rtol=0, atol=1e-5)
    assert not (tmp_path / "model/adapter").exists() and not (tmp_path / "adapter/adapter").exists()
    _, full = trained(TINY, NoAdapter())
    with pytest.raises(ModelError, match="--adapter-only: this run trained no adapter"):
        exported(run_config(TINY, NoAdapter()), full, tmp_path / "none", merge=False, flat=True)
    assert not (tmp_path / "none").exists()


def test_a_generation_stops_where_the_turns_end(run_config: Make, tmp_path: Path) -> None:
    _, weights = trained(TINY, NoAdapter())
    known = build_model(locate(TINY)).generation_config.eos_token_id
    exported(run_config(TINY, NoAdapter()), weights, tmp_path / "out", merge=True, end_tokens=[known, 7])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")
    assert plain.generation_config.eos_token_id == [known, 7]
