"""Bugs to plant into attention of packed sequences; each must turn its test red."""

from __future__ import annotations

from ops.mutant import Mutant

SDPA = "aitrain/ops/attention/sdpa.py"
FLEX = "aitrain/ops/attention/flex.py"
DOCUMENTS = "aitrain/ops/attention/documents.py"
CHOICE = "aitrain/ops/attention/choice.py"
VARLEN = "aitrain/ops/attention/varlen.py"
PATTERN = "aitrain/ops/attention/pattern.py"
HERE = "tests/ops/attention"
EQUAL = f"{HERE}/test_sdpa.py::test_equals_each_alone"
POSITIONS = f"{HERE}/test_documents.py::test_from_positions"

MUTANTS = [
    Mutant(
        "the window sees one key more",
        SDPA,
        "(back.abs() < pattern.window)",
        "(back.abs() <= pattern.window)",
        f"{EQUAL}[batches-window-512]",
    ),
    Mutant(
        "a block forgets the window's first key",
        SDPA,
        "begin - window + 1)",
        "begin - window + 2)",
        f"{EQUAL}[batches-window-4]",
    ),
    Mutant(
        "a block forgets the keys ahead",
        SDPA,
        "min(length, end + window - 1)",
        "end",
        f"{EQUAL}[batches-window both ways-4]",
    ),
    Mutant(
        "the cap is forgotten",
        SDPA,
        "capped = pattern.softcap * torch.tanh(wide / pattern.softcap)",
        "capped = wide",
        f"{EQUAL}[batches-softcap-512]",
    ),
    Mutant(
        "the cap ignores the scale",
        SDPA,
        " * pattern.scale_of(width)",
        " * width**-0.5",
        f"{EQUAL}[batches-softcap in a window-512]",
    ),
    Mutant(
        "results come back in the order of the batches",
        SDPA,
        "return joined if plan.back is None else joined.index_select(0, plan.back)",
        "return joined",
        f"{EQUAL}[batches-causal-512]",
    ),
    Mutant(
        "the order is taken for its inverse",
        SDPA,
        "joined.argsort().to(device)",
        "joined.to(device)",
        f"{EQUAL}[batches-causal-512]",
    ),
    Mutant(
        "padding is seen",
        SDPA,
        "_rounded(length) if padding else length",
        "_rounded(length)",
        f"{HERE}/test_sdpa.py::test_padding_is_not_seen",
    ),
    Mutant(
        "two documents are one row",
        SDPA,
        "for length in filter(None, documents.lengths()):",
        "for length in [sum(documents.lengths())]:",
        f"{EQUAL}[one by one-causal-512]",
    ),
    Mutant(
        "flex sees other documents",
        FLEX,
        "same = document[query] == document[key]",
        "same = document[query] >= document[key]",
        f"{HERE}/test_flex.py::test_equals_each_alone[causal]",
    ),
    Mutant(
        "flex looks ahead past the window",
        FLEX,
        " & (key - query < window)",
        "",
        f"{HERE}/test_flex.py::test_equals_each_alone[window both ways]",
    ),
    Mutant(
        "flex keeps one mask for all windows",
        FLEX,
        'key = ("flex", pattern.causal, pattern.window)',
        'key = ("flex", pattern.causal)',
        f"{HERE}/test_flex.py::test_mask_is_made_once_for_each_pattern",
    ),
    Mutant(
        "a row goes on with the document of the row above",
        DOCUMENTS,
        "begins = torch.ones(rows, length, dtype=torch.bool, device=device)",
        "begins = torch.ones(rows, length, dtype=torch.bool, device=device)\n    begins[1:, :1] = False",
        f"{POSITIONS}[rows4-expected4-None]",
    ),
    Mutant(
        "only a zero begins a document",
        DOCUMENTS,
        "position_ids[:, 1:] != position_ids[:, :-1] + 1",
        "(position_ids[:, 1:] == 0) & (position_ids[:, :-1] != 0)",
        f"{POSITIONS}[rows2-expected2-None]",
    ),
    Mutant(
        "padding joins the document before",
        DOCUMENTS,
        "begins[:, 1:] |= real[:, 1:] != real[:, :-1]",
        "pass",
        f"{HERE}/test_documents.py::test_padding_is_a_document_of_its_own[None]",
    ),
    Mutant(
        "one document too many is swallowed",
        DOCUMENTS,
        "rank[-1] < most",
        "rank[-1] <= most",
        f"{HERE}/test_documents.py::test_as_many_documents_as_allowed_and_one_more",
    ),
    Mutant(
        "tokens after the last document pass",
        DOCUMENTS,
        " & (self.cu_seqlens[-1] == total)",
        "",
        f"{HERE}/test_documents.py::test_wrong_boundaries[cu_seqlens0-None]",
    ),
    Mutant(
        "FlashAttention's window counts the query itself",
        PATTERN,
        "return (self.window - 1, ",
        "return (self.window, ",
        f"{HERE}/test_varlen.py::test_call[flash 2-window]",
    ),
    Mutant(
        "FlashAttention gets no window",
        VARLEN,
        'options["window_size"] = pattern.sides()\n    if torch.are',
        'options["window"] = pattern.sides()\n        del options["window"]\n    if torch.are',
        f"{HERE}/test_varlen.py::test_call[flash 3-window]",
    ),
    Mutant(
        "a capped request goes to who has no cap",
        CHOICE,
        '("softcap", NEVER),',
        "",
        f"{HERE}/test_choice.py::test_best_that_is_there[changed8-there8-flex-reasons8]",
    ),
    Mutant(
        "the environment is read once",
        CHOICE,
        'return _chosen(request, os.environ.get(SWITCH, "auto"))',
        'return _chosen(request, _chosen.__dict__.setdefault("wanted", os.environ.get(SWITCH, "auto")))',
        f"{HERE}/test_choice.py::test_forced[documents-documents]",
    ),
]
