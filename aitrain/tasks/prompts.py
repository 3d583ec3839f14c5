"""Prompts and answers of a language model: as its chat template writes them, greedily."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from aitrain.config import RunConfig
from aitrain.config.task import Preference, Sft
from aitrain.data.chat_template import ChatTemplate
from aitrain.data.conversation import Conversation
from aitrain.errors import RecipeError


def generate(
    model: Any, tokenizer: Any, config: RunConfig, device: torch.device, stop: Callable[[], bool] = lambda: False
) -> list[dict[str, str]]:
    """Let a Hugging Face model go on from the recipe's prompts, taking its first guess at each token.

    Args:
        model: A model with `generate`.
        tokenizer: Its tokenizer.
        config: The run.
        device: Where the model is.
        stop: Whether to end at the next token.

    Returns:
        One `{"prompt", "answer"}` per prompt; fewer when it was to end.
    """
    found: list[dict[str, str]] = []
    known = model.generation_config.eos_token_id
    ends = {*(known if isinstance(known, (list, tuple)) else [known]), *end_tokens(config, tokenizer)} - {None}
    for prompt in config.evaluate.prompts:
        if stop():
            break
        ids = torch.tensor([prompt_ids(prompt, tokenizer, config)], device=device)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=config.evaluate.max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=sorted(ends) or None,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            synced_gpus=False,
            stopping_criteria=StoppingCriteriaList([_Stop(stop)]),
        )
        found.append(
            {"prompt": prompt, "answer": tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()}
        )
    return found


def end_tokens(config: RunConfig, tokenizer: Any) -> list[int]:
    """Return the ids with which the chat template ends a turn of the assistant; none where the task has no turns.

    Args:
        config: The run.
        tokenizer: The model's tokenizer.
    """
    if not isinstance(config.task, (Sft, Preference)):
        return []
    probe = Conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    spans = ChatTemplate(tokenizer).render(probe, "a conversation of two words").spans
    return [int(tokenizer.convert_tokens_to_ids(span.end_token)) for span in spans]


class _Stop(StoppingCriteria):
    """Ends a generation at the next token when the run is asked to stop."""

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
            raise RecipeError(f"evaluate.prompts: the model's chat template refuses {prompt[:40]!r}: {error}") from None
    ids: list[int] = tokenizer(text, add_special_tokens=not isinstance(config.task, (Sft, Preference))).input_ids
    if not ids:
        raise RecipeError(f"evaluate.prompts: {prompt!r} has no token: write a prompt with words")
    return ids
