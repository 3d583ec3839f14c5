"""Whatever stands in a record file or behind a command: exit code 0, 2 or 3, one clear message, and no traceback.

`AITRAIN_FUZZ=20` runs twenty times as many cases. They are the same on every machine until this file changes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from aitrain import cli
from aitrain.config.data import OnFault, OnOmission, OnTooLong, Records, Text
from aitrain.config.manual import all_keys
from aitrain.config.task import Pretrain, Sft
from aitrain.data.prepare import Files, prepare
from aitrain.errors import AitrainError

TIMES = int(os.environ.get("AITRAIN_FUZZ", "1"))
RECORD_CASES, OVERRIDE_CASES = 1000 * TIMES, 500 * TIMES
FEW = settings(
    max_examples=RECORD_CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
FIELDS = ["messages", "prompt", "completion", "instruction", "input", "output", "conversations", "system", "history",
          "tools", "text", "id", "train", "weight", "loss", "images", "label", "mask"]  # fmt: skip
INSIDE = ["role", "content", "from", "value", "train", "weight", "name", "tool_calls", "reasoning_content", "function",
          "arguments", "tool_call_id"]  # fmt: skip
ROLES = ["system", "user", "assistant", "tool", "human", "gpt", "function", "", "USER"]
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from([*ROLES, "[]", "{}", "null", '[{"role": "user", "content": "a"}]', "<think>a</think>b", "</think>",
                     "<|im_end|>", "zq0answer;", "{% x %}", "\u0000", "\u2028", "a" * 300, "~", "[{"]),
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), TEXTS, st.sampled_from([0, 1, 0.5, 10**400, -1])
)
MESSAGES = st.dictionaries(
    st.sampled_from(INSIDE), st.one_of(TEXTS, SCALARS, st.lists(SCALARS, max_size=2)), max_size=4
)
GOOD = st.builds(
    lambda role, content, **more: {"role": role, "content": content, **more}, st.sampled_from(ROLES[:4]), TEXTS
)
VALUES = st.recursive(
    st.one_of(SCALARS, MESSAGES, GOOD, st.lists(GOOD, max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
RECORDS = st.dictionaries(st.one_of(st.sampled_from(FIELDS), TEXTS), VALUES, max_size=4)
TALKS = st.builds(lambda turns, more: {"messages": turns, **more}, st.lists(GOOD, min_size=1, max_size=5), RECORDS)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3)
ALTERNATING = PAIRS.map(
    lambda pairs: {"messages": [{"role": r, "content": c} for p in pairs for r, c in zip(ROLES[1:3], p, strict=True)]}
)
LINES = st.one_of(
    st.one_of(RECORDS, TALKS, ALTERNATING).map(lambda record: json.dumps(record).encode()),
    RECORDS.map(lambda record: json.dumps(record, ensure_ascii=False).encode(errors="surrogatepass")),
    st.binary(max_size=30),
    st.sampled_from([b"", b"{", b"[1]", b'"a"', b"[" * 100_000, b'{"a":' * 50_000,
                     b'{"messages": ' + b"9" * 5000 + b"}",
                     b'{"prompt": "a", "completion": "\\ud800"}', b"\xff\xfe", b"NaN", b'{"prompt": 1e999}']),
)  # fmt: skip
FILES = st.lists(LINES, min_size=0, max_size=5)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def counted(codes: Counter[int], name: str) -> None:
    """Show how the cases ended; `pytest -s` prints it."""
    print(
        f"\n{name}: {sum(codes.values())} cases, " + ", ".join(f"{n} with code {c}" for c, n in sorted(codes.items()))
    )


def test_record_files(tokenizer: Any, tmp_path: Path) -> None:
    codes: Counter[int] = Counter()
    number = iter(range(10**9))
    kinds = [".jsonl", ".json", ".csv", ".txt"]

    @FEW
    @given(FILES, st.sampled_from(kinds), st.booleans(), st.sampled_from(list(OnTooLong)), st.booleans())
    def one(lines: list[bytes], suffix: str, plain: bool, too_long: OnTooLong, lenient: bool) -> None:
        path = tmp_path / f"a{next(number)}{suffix}"
        path.write_bytes(b"[" + b",".join(lines) + b"]" if suffix == ".json" else b"\n".join(lines))
        faults, omissions = (OnFault.drop, OnOmission.accept) if lenient else (OnFault.refuse, OnOmission.refuse)
        records = Records(sequence_tokens=64, too_long=too_long, no_trained_tokens=faults, template_omissions=omissions)
        data = Text(sequence_tokens=64) if plain else records
        codes[
            outcome(lambda: prepare(data, Pretrain() if plain else Sft(), tokenizer, tmp_path / "c", 0, Files.of(path)))
        ] += 1
        path.unlink()

    one()
    counted(codes, "record files")
    assert set(codes) == {0, 3} and sum(codes.values()) >= RECORD_CASES, codes


def outcome(call: Callable[[], object]) -> int:
    try:
        call()
    except AitrainError as error:
        assert str(error).strip() and "Traceback" not in str(error)
        return error.exit_code
    return 0


KEYS = sorted({row.key for row in all_keys()})
WORDS = st.one_of(
    st.builds(
        lambda key, sign, value: f"{key}{sign}{value}",
        st.one_of(st.sampled_from(KEYS), st.sampled_from(["optim", "strategy", "evaluate", "epochs", ""]), TEXTS),
        st.sampled_from(["=", "=", "=", "", "==", "+=", " = "]),
        st.one_of(
            TEXTS,
            st.integers().map(str),
            st.floats().map(str),
            st.sampled_from(["null", "true", "[]", "[a,b]", "{a:1}", "1,2", "range(0,3)", "${seed}", "${x}",
                             "???", "${", "9" * 5000, "1e999", "-1", "nan", "'", '"', "~",
                             "~nobody/x", "a\nb", "\\", "[" * 500,
                             "x" * 5000, "/", ".", "..", "\x00", "é" * 300, "choice(a,b)", "glob(*)", "adamw", "muon"]),
        ),
    ),
    TEXTS,
    st.sampled_from(["+a=1", "~seed", "++seed=1", "optim@x=muon", "--", "seed=1", "-m"]),
)  # fmt: skip


def test_overrides(tiny_model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    codes: Counter[int] = Counter()
    common = [
        f"model.path={tiny_model}",
        f"data.path={tiny_data}",
        "data.sequence_tokens=64",
        "trainer.accelerator=cpu",
    ]

    @settings(FEW, max_examples=OVERRIDE_CASES)
    @given(st.sampled_from(["sft_full", "sft_lora", "sft_qlora"]), st.lists(WORDS, min_size=1, max_size=3))
    def one(recipe: str, words: list[str]) -> None:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                code = cli.main(["check", recipe, "--no-data", *common, *words])
            except SystemExit as ended:  # argparse: a word that begins with a dash is an option
                code = int(ended.code or 0)
        assert "Traceback" not in said.getvalue()
        codes[code] += 1

    one()
    counted(codes, "overrides")
    assert set(codes) <= {0, 2, 3} and codes[0] and codes[2] and sum(codes.values()) >= OVERRIDE_CASES, codes
    assert not list(tmp_path.iterdir()), "check writes nothing"


PIECES = st.one_of(
    TEXTS,
    st.sampled_from(["defaults", "base", "_self_", "override adapter: lora", "optim", "lr", "1e-4", "{", "}", "[", "]",
                     ":", "\n", "\n  ", "- ", "'", '"', "&a", "*a", "!!python/object", "???", "${seed}", "${", "null",
                     "true",
                     "model", "path", "9" * 5000, "\t", "#", "|", ">", "%", "@", "? ", "<<: *a", "---", "2025-01-01",
                     "0x1F", ".inf", "evaluate", "prompts", "[" * 2000]),
)  # fmt: skip
YAML = st.tuples(st.sampled_from(["", "defaults: [base, _self_]\n"]), st.lists(PIECES, max_size=12)).map(
    lambda drawn: drawn[0] + " ".join(drawn[1])
)


def test_recipe_files_and_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    codes: Counter[int] = Counter()
    path = tmp_path / "mine.yaml"
    profile = ["submit", "sft_full", "model.path=m", "data.path=d", "--dry-run", "--cluster", str(path)]

    @settings(FEW, max_examples=OVERRIDE_CASES // 4)
    @given(YAML, st.booleans())
    def one(text: str, is_recipe: bool) -> None:
        path.write_text(text, encoding="utf-8", errors="replace")
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            codes[cli.main(["check", str(path), "--no-data"] if is_recipe else profile)] += 1
        assert "Traceback" not in said.getvalue() and said.getvalue().strip()

    one()
    counted(codes, "recipe files and profiles")
    assert set(codes) == {2}, codes


@pytest.mark.parametrize("kind", ["string", "nested"])
def test_parquet_that_is_not_utf8(kind: str, tmp_path: Path, tokenizer: Any) -> None:
    raw = pyarrow.array([b"good", b"\xff\xfe bad"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())
    column = text if kind == "string" else pyarrow.StructArray.from_arrays([text], ["inner"])
    table = pyarrow.table({"prompt": pyarrow.array(["a", "b"]), "completion": column})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(AitrainError) as caught:
        prepare(Records(), Sft(), tokenizer, tmp_path / "c", 0, Files.of(tmp_path / "a.parquet"))
    assert caught.value.exit_code == 3 and "a.parquet[1]: not UTF-8" in str(caught.value)
