"""Chat templates by name: texts and masks are those of the official templates, and tokens that are new are learned."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from data.conftest import small_tokenizer  # noqa: F401 (a fixture)
from transformers import AutoModelForCausalLM, AutoTokenizer

from aitrain.config.model import Model
from aitrain.data.chat_template import ChatTemplate
from aitrain.data.conversation import Conversation
from aitrain.data.masking import encode
from aitrain.dist.ranks import Ranks
from aitrain.errors import DataError, ModelError, RecipeError
from aitrain.models.assets import resolve
from aitrain.models.chat_templates import TEMPLATES, choice, named
from aitrain.models.load import build_model, load_tokenizer, locate, template_tokens
from aitrain.recipe import compose
from aitrain.trainer.fit import fit
from aitrain.trainer.run_directory import RunDirectory

OFFICIAL = {name: name for name in ("chatml", "llama3", "gemma", "qwen3", "zephyr")} | {"mistral": "mistral_v03"}
"""Name -> official template among the test assets."""

NO_SYSTEM = ("gemma", "mistral")  # the official ones refuse it, or leave it out of earlier turns

USER, SYSTEM = {"role": "user", "content": " What? "}, {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "Paris, naïve café.\n\nYes"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TALKS: dict[str, list[dict[str, Any]]] = {
    "one answer": [USER, ANSWER],
    "two answers": [USER, ANSWER, USER, {**ANSWER, "content": " No\n"}],
    "system": [SYSTEM, USER, ANSWER, USER, ANSWER],
    "thoughts": [
        USER,
        {**ANSWER, "reasoning_content": "why"},
        USER,
        {**ANSWER, "content": "<think>\nhm\n</think>\n\nyes"},
    ],
    "tools": [USER, {**ANSWER, "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "5"}, ANSWER],
}  # fmt: skip


def written(tokenizer: Any, talk: list[dict[str, Any]], tools: list[Any]) -> tuple[str, str, Any]:
    texts = [
        tokenizer.apply_chat_template(talk, tools=tools or None, tokenize=False, add_generation_prompt=asked)
        for asked in (False, True)
    ]
    [one] = encode(tokenizer, [("a:1", ChatTemplate(tokenizer).render(Conversation(talk, tools), "a:1"))])
    assert not isinstance(one, DataError)
    return texts[0], texts[1], (one.ids, one.trained)


def is_official(name: str, talk: str) -> bool:
    """Whether the official template writes such a message at all, and as ours does."""
    return not (talk == "system" and name in NO_SYSTEM) and (talk not in ("tools", "thoughts") or name == "qwen3")


KNOWN = [(name, talk) for name in OFFICIAL for talk in TALKS if is_official(name, talk)]


@pytest.mark.parametrize(("name", "talk"), KNOWN)
def test_texts_and_masks_are_those_of_the_official_template(
    small_tokenizer: Callable[..., Any],  # noqa: F811
    name: str,
    talk: str,
) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}] if talk == "tools" else []
    official = small_tokenizer(OFFICIAL[name])
    ours = small_tokenizer(OFFICIAL[name], template=TEMPLATES[name].source)
    assert written(ours, TALKS[talk], tools) == written(official, TALKS[talk], tools)


def test_phi3_is_that_of_trl(small_tokenizer: Callable[..., Any]) -> None:  # noqa: F811
    trl = pytest.importorskip("trl")
    theirs = (Path(trl.__file__).parent / "chat_templates" / "phi3.jinja").read_text()
    tokenizers = [small_tokenizer("zephyr", template=template) for template in (theirs, TEMPLATES["phi3"].source)]
    for tokenizer in tokenizers:
        tokenizer.add_special_tokens({"extra_special_tokens": list(TEMPLATES["phi3"].tokens)})
    for talk in ("one answer", "two answers", "system"):
        assert written(tokenizers[0], TALKS[talk], []) == written(tokenizers[1], TALKS[talk], [])


@pytest.mark.parametrize("name", NO_SYSTEM)
def test_a_system_message_stands_before_the_first_question(small_tokenizer: Callable[..., Any], name: str) -> None:  # noqa: F811
    tokenizer = small_tokenizer(OFFICIAL[name], template=TEMPLATES[name].source)
    text = tokenizer.apply_chat_template(TALKS["system"], tokenize=False)
    assert text.index("Be brief.\n\n") < text.index("What?") and text.count("Be brief.") == 1
    with pytest.raises(DataError, match="user and assistant must take turns"):
        ChatTemplate(tokenizer).render(Conversation([USER, ANSWER, ANSWER]), "a:1")


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model: the shipped one without its template."""
    folder = tmp_path_factory.mktemp("base") / "model"
    shutil.copytree(resolve("asset:tiny-llama"), folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_names_and_files() -> None:
    assert named("chatml") is TEMPLATES["chatml"] and named(None) is None and named("a.jinja") is None
    assert choice().startswith("chatml, llama3") and all(template.source for template in TEMPLATES.values())


def test_tokens_that_are_new_start_as_the_mean_and_those_not_learned_are_named(base_model: Path) -> None:
    located = locate(Model(path=str(base_model), chat_template="phi3"))
    found = template_tokens(located)
    assert found.added == list(TEMPLATES["phi3"].tokens) and found.trained == [2048, 2049, 2050, 2051]
    weight = build_model(located).get_input_embeddings().weight.detach()
    torch.testing.assert_close(weight[2048:], weight[:2048].mean(0).expand(4, -1), rtol=1e-5, atol=1e-7)
    known = template_tokens(locate(Model(path=str(base_model), chat_template="chatml")))
    assert known.added == [] and len(known.trained) == 2
    own = template_tokens(locate(Model(path="asset:tiny-llama", chat_template="chatml")))
    assert own.trained == []


def test_a_template_that_does_not_fit_the_tokenizer(base_model: Path) -> None:
    with pytest.raises(ModelError, match="llama3 needs bos_token, which the model's tokenizer does not have: write"):
        load_tokenizer(locate(Model(path=str(base_model), chat_template="llama3")))


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_new_tokens_are_trained_exported_and_stop_generation(tmp_path: Path, base_model: Path, adapter: str) -> None:
    rows = [{"prompt": f"Close contract {n}", "completion": f"Contract {n} is closed."} for n in range(32)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"adapter={adapter}", f"model.path={base_model}", "model.chat_template=phi3", "optim.lr=5e-3"]
    words += [f"data.path={tmp_path}/a.jsonl", "data.sequence_tokens=64", "data.validation_samples=4"]
    words += ["trainer.accelerator=cpu", "trainer.precision=fp32", "trainer.max_steps=40", "trainer.max_epochs=null"]
    words += ["trainer.global_batch_samples=8", f"run.dir={tmp_path}/run", "evaluate.prompts=[Close contract 3]"]
    directory = RunDirectory.create(compose("sft_lora", words))
    assert fit(directory, Ranks()) == 0
    folder = directory.export / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size == 2052
    before = build_model(locate(Model(path=str(base_model), chat_template="phi3"))).get_input_embeddings().weight
    moved = (model.get_input_embeddings().weight.detach().float() - before.detach()).abs().amax(1)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert (moved[2048:] > 1e-3).sum() >= 3  # all but the token of a system message, which no record has
    assert (float(moved[:2048].max()) == 0) == (adapter == "lora")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Close contract 3"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    out = model.generate(ids, max_new_tokens=48, do_sample=False)
    assert out[0, -1] == end and out.shape[1] < ids.shape[1] + 48, tokenizer.decode(out[0])


def test_zero3_is_refused_beside_an_adapter(tmp_path: Path, base_model: Path) -> None:
    from aitrain.tasks.registry import task_of

    words = [f"model.path={base_model}", "model.chat_template=phi3", "data.path=a.jsonl", "strategy=deepspeed_zero3"]
    task = task_of(compose("sft_lora", [*words, "data.sequence_tokens=64"]))
    with pytest.raises(RecipeError, match="cannot do under strategy=deepspeed_zero3: write strategy=deepspeed_zero2"):
        task.refuse_late(None)  # type: ignore[arg-type]
    (remark,) = task.remarks()
    assert (
        remark == "chat template phi3: added to the tokenizer and trained: <|end|>, <|user|>, <|assistant|>, <|system|>"
    )
