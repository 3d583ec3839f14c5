"""Bugs to plant into what models do with packed rows; each must turn its test red."""

from __future__ import annotations

from ops.mutant import Mutant

FILE = "aitrain/models/packed_attention.py"
TEST = "tests/models/test_packed_attention.py"
EQUAL = f"{TEST}::test_packed_equals_each_alone"

MUTANTS = [
    Mutant(
        "documents leak",
        FILE,
        "position_ids.expand(rows, -1) if rows > 1 else position_ids, seen.real",
        "torch.arange(length).expand(rows, -1), seen.real",
        f"{EQUAL}[Llama-documents-True]",
    ),
    Mutant(
        "the mask's window is forgotten",
        FILE,
        "min(windows, default=None), attention_mask)",
        "None, attention_mask)",
        f"{EQUAL}[Gemma3Text-documents-False]",
    ),
    Mutant(
        "the cap is forgotten",
        FILE,
        "attention_mask.window, scaling, softcap, dropout)",
        "attention_mask.window, scaling, None, dropout)",
        f"{EQUAL}[Gemma2-documents-False]",
    ),
    Mutant(
        "the cap is forgotten in generation",
        FILE,
        "Pattern(False, None, scaling, softcap, dropout)",
        "Pattern(False, None, scaling, None, dropout)",
        f"{TEST}::test_generation[Gemma2-how0]",
    ),
    Mutant(
        "padding is seen",
        FILE,
        "position_ids, seen.real)",
        "position_ids, None)",
        f"{TEST}::test_padding[Llama-left-False]",
    ),
    Mutant(
        "the next batch meets the documents of the last",
        FILE,
        "self._documents is None or self._told is not told",
        "self._documents is None",
        f"{TEST}::test_documents_follow_what_tells_them",
    ),
    Mutant(
        "a pack goes on from a cache",
        FILE,
        "visible > position_ids[:, -1].to(visible.device) + 1",
        "visible < 0",
        f"{TEST}::test_packed_rows_are_not_continued_from_a_cache",
    ),
    Mutant(
        "an unknown pattern passes",
        FILE,
        'elif maker != "packed_sequence_mask_function":',
        'elif maker == "nobody":',
        f"{TEST}::test_patterns_of_transformers_are_read",
    ),
    Mutant(
        "layers with a state pass",
        FILE,
        "    if others := sorted(",
        "    if others := False and sorted(",
        f"{TEST}::test_layers_that_cannot",
    ),
]
