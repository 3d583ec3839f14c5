"""Prompts and answers of a language model, with its chat template and greedy decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from aitrain.config import RunConfig
from aitrain.config.task import Preference, Sft
from aitrain.data.chat_template import ChatTemplate
from aitrain.data.conversation import Conversation
from aitrain.data.token_set import TokenSet
from aitrain.errors import RecipeError


@dataclass(frozen=True)
class Question:
    """A prompt for a model."""

    text: str
    """The prompt as shown to users."""

    ids: list[int]
    """The prompt as the model reads it."""

    expected: str | None = None
    """The target answer, if known."""


def asked(config: RunConfig, tokenizer: Any) -> list[Question]:
    """Return the recipe's prompts (`evaluate.prompts`).

    Args:
        config: The run.
        tokenizer: The model's tokenizer.
    """
    return [Question(prompt, prompt_ids(prompt, tokenizer, config)) for prompt in config.evaluate.prompts]


def of_held_out(config: RunConfig, tokenizer: Any, tokens: TokenSet, context: int | None) -> list[Question]:
    """Return the first question of some held-out conversations with its target answer (`evaluate.answered_samples`).

    Args:
        config: The run.
        tokenizer: The model's tokenizer.
        tokens: The held-out conversations.
        context: Longest sequence of the model; conversations whose answer would not fit are not asked.
    """
    wanted = min(config.evaluate.answered_samples, len(tokens))
    found = []
    for index in np.linspace(0, len(tokens) - 1, wanted).round().astype(int):
        ids, trained = tokens[int(index)]
        begin = int(np.argmax(trained))
        length = int(np.argmin(np.append(trained[begin:], False)))
        if context is not None and begin + config.evaluate.max_new_tokens > context:
            continue
        answer = tokenizer.decode(ids[begin : begin + length], skip_special_tokens=True).strip()
        said = tokenizer.decode(ids[:begin], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        found.append(Question(last_words(said, tokenizer), [int(token) for token in ids[:begin]], answer))
    return found


def last_words(text: str, tokenizer: Any) -> str:
    """Return the user's last message in a text rendered by a chat template up to the model's turn.

    Args:
        text: The text.
        tokenizer: The tokenizer with the template.
    """
    mark = "zq1zq"
    try:
        written = tokenizer.apply_chat_template(
            [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
        )
    except (jinja2.TemplateError, TypeError, ValueError):
        return text.strip()
    head, _, tail = written.partition(mark)
    body = text.rstrip().removesuffix(tail.rstrip())
    for size in range(len(head), 0, -1):
        at = body.rfind(head[-size:])
        if at >= 0:
            return body[at + size :].strip()
    return body.strip()


def generate(
    model: Any,
    tokenizer: Any,
    config: RunConfig,
    questions: Sequence[Question],
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, str]]:
    """Generate answers with a Hugging Face model, with greedy decoding.

    Args:
        model: A model with `generate`.
        tokenizer: Its tokenizer.
        config: The run.
        questions: What it is to answer.
        device: Where the model is.
        stop: Whether to end at the next token.

    Returns:
        One `{"prompt", "answer"}` per question, with `"expected"` where the right answer is known; fewer when it was to
        end.
    """
    found: list[dict[str, str]] = []
    ends = stop_tokens(model, end_tokens(config, tokenizer))
    for question in questions:
        if stop():
            break
        ids = torch.tensor([question.ids], device=device)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=config.evaluate.max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=ends or None,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            synced_gpus=False,
            stopping_criteria=StoppingCriteriaList([_Stop(stop)]),
        )
        answer = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
        expected = {} if question.expected is None else {"expected": question.expected}
        found.append({"prompt": question.text, "answer": answer, **expected})
    return found


def stop_tokens(model: Any, ends: Sequence[int]) -> list[int]:
    """Return the ids at which a generation stops: those of the model, and those with which a turn ends.

    Args:
        model: A Hugging Face model.
        ends: Ids with which the template ends a turn.
    """
    known = model.generation_config.eos_token_id
    return sorted({*(known if isinstance(known, (list, tuple)) else [known]), *ends} - {None})


def end_tokens(config: RunConfig, tokenizer: Any) -> list[int]:
    """Return the ids with which the chat template ends a turn of the assistant; none if the task has no turns.

    Args:
        config: The run.
        tokenizer: The model's tokenizer.
    """
    return template_end_tokens(tokenizer) if isinstance(config.task, (Sft, Preference)) else []


def template_end_tokens(tokenizer: Any) -> list[int]:
    """Return the ids with which a tokenizer's chat template ends a turn of the assistant.

    Args:
        tokenizer: A tokenizer with a chat template.
    """
    probe = Conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    spans = ChatTemplate(tokenizer).render(probe, "a conversation of two words").spans
    return [int(tokenizer.convert_tokens_to_ids(span.end_token)) for span in spans]


class _Stop(StoppingCriteria):
    """Ends generation at the next token if the run is asked to stop."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self.stop(), dtype=torch.bool, device=input_ids.device)


def prompt_ids(prompt: str, tokenizer: Any, config: RunConfig) -> list[int]:
    """Return a prompt as the model reads it: in conversations, with the chat template.

    Args:
        prompt: One of `evaluate.prompts`.
        tokenizer: The model's tokenizer.
        config: The run.

    Returns:
        Token ids, at least one.

    Raises:
        RecipeError: The chat template refuses it, or it has no token.
    """
    text = prompt
    if isinstance(config.task, (Sft, Preference)):
        system = [{"role": "system", "content": config.task.system_prompt}] if config.task.system_prompt else []
        messages = [*system, {"role": "user", "content": prompt}]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise RecipeError(f"evaluate.prompts: the model's chat template rejects {prompt[:40]!r}: {error}") from None
    ids: list[int] = tokenizer(text, add_special_tokens=not isinstance(config.task, (Sft, Preference))).input_ids
    if not ids:
        raise RecipeError(f"evaluate.prompts: {prompt!r} has no token: write a prompt with words")
    return ids
