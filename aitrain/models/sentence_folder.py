"""What sentence-transformers needs in addition to a Hugging Face folder: how tokens are pooled, and vectors of length
1.
"""

from __future__ import annotations

import json
from pathlib import Path

from aitrain.config.task import Embeddings

_PARTS = ("Transformer", "Pooling", "Normalize")


def add_pooling(folder: Path, keys: Embeddings, sequence_tokens: int, width: int) -> None:
    """Write the files that make a model folder one of sentence-transformers.

    Args:
        folder: Where the model is.
        keys: Pooling and prefixes.
        sequence_tokens: Longest text in tokens.
        width: Dimensions of a vector.
    """
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{part}"}
        for at, (path, part) in enumerate(zip(paths, _PARTS, strict=True))
    ]
    words = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
    pooling = {f"pooling_mode_{word}": name == keys.pooling.name for name, word in words.items()}
    prompts = {"query": keys.query_prefix or "", "document": keys.passage_prefix or ""}
    content = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": width, **pooling},
        "2_Normalize/config.json": {},
        "sentence_bert_config.json": {"max_seq_length": sequence_tokens, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": prompts, "similarity_fn_name": "cosine"},
    }
    for name, values in content.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
