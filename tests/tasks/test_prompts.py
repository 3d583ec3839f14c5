"""Answers are the model's first guess at each token."""

from __future__ import annotations

import torch
from trainer.conftest import Compose

from aitrain.models.load import build_model, load_tokenizer, locate
from aitrain.tasks.prompts import asked, generate


def test_a_generation_ends_at_the_next_token(small: Compose) -> None:
    config = small('evaluate.prompts=["Translate to Dutch: light"]', "evaluate.max_new_tokens=100")
    calls: list[int] = []

    def stop() -> bool:
        calls.append(1)
        return len(calls) > 4

    model, tokenizer = build_model(locate(config.model)).eval(), load_tokenizer(locate(config.model))
    generate(model, tokenizer, config, asked(config, tokenizer), torch.device("cpu"), stop)
    assert len(calls) <= 6


def test_answers_are_the_first_guess_at_each_token(small: Compose) -> None:
    config = small('evaluate.prompts=["Translate to Dutch: light"]', "evaluate.max_new_tokens=5")
    model, tokenizer = build_model(locate(config.model)).eval(), load_tokenizer(locate(config.model))
    ids = tokenizer("<|im_start|>user\nTranslate to Dutch: light<|im_end|>\n<|im_start|>assistant\n").input_ids
    start = len(ids)
    with torch.no_grad():
        for _ in range(5):
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
            if ids[-1] == tokenizer.eos_token_id:
                break
        found = generate(model, tokenizer, config, asked(config, tokenizer), torch.device("cpu"))
    expected = tokenizer.decode(ids[start:], skip_special_tokens=True).strip()
    assert found == [{"prompt": "Translate to Dutch: light", "answer": expected}]
