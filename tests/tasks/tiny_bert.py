"""A BERT so small that a whole run takes seconds: random weights, a tokenizer of words and letters."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["pump", "leak", "invoice", "paid", "late", "water", "office", "help", "order", "door", "the", "is", "a"]


def make_bert(folder: Path, dropout: float = 0.0) -> Path:
    """Write the folder and return it.

    Args:
        folder: Folder to make.
        dropout: Of the model.
    """
    letters = [chr(code) for code in range(97, 123)]
    pieces = [*SPECIAL, *WORDS, *letters, *(f"##{letter}" for letter in letters), *"0123456789.,;:!?'-()"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(config).save_pretrained(folder)
    torch.random.set_rng_state(state)
    fast.save_pretrained(folder)
    return folder
