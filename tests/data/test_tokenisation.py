"""One file's records: every faulty one is told in one round, and what is far too long costs nothing."""

import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aitrain.config.data import OnOmission, OnTooLong, Records, Text
from aitrain.config.task import Pretrain, Sft
from aitrain.data.prepare import Files, Prepared, prepare
from aitrain.data.tokenisation import longest_token
from aitrain.errors import DataError

Make = Callable[..., Any]
GOOD = {"prompt": "a", "completion": "b"}


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in records))
    return path


@pytest.fixture
def run(tmp_path: Path, small_tokenizer: Make) -> Callable[..., Prepared]:
    def call(path: Path, family: str = "chatml", held_out: Path | None = None, **keys: Any) -> Prepared:
        files = Files.of(path, held_out)
        return prepare(Records(**keys), Sft(), small_tokenizer(family), tmp_path / "cache", 0, files)

    return call


def refused(run: Callable[..., Prepared], *args: Any, **keys: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        run(*args, **keys)
    return str(caught.value).splitlines()


def test_four_faults_are_told_in_one_round(run: Callable[..., Prepared], tmp_path: Path) -> None:
    records = [
        GOOD,
        "{broken",
        GOOD,
        {"prompt": "a", "completion": ""},
        {**GOOD, "images": ["a.png"]},
        "[1]",
        {"prompt": "a" * 3000, "completion": "b"},
        GOOD,
    ]
    lines = refused(run, write(tmp_path / "a.jsonl", records), sequence_tokens=200)
    assert [line.split(" ")[0] for line in lines[:4]] == ["a.jsonl:2:2:", "a.jsonl:4:", "a.jsonl:5:", "a.jsonl:6:"]
    assert len(lines) == 5 and "1 of 4 samples are longer than data.sequence_tokens=200" in lines[4]


def test_plain_text_is_refused_in_one_round_too(tmp_path: Path, small_tokenizer: Make) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": 3}, {"body": "a"}, "{"])
    with pytest.raises(DataError) as caught:
        prepare(Text(), Pretrain(), small_tokenizer("chatml"), tmp_path / "cache", 0, Files.of(path))
    assert [line.split(" ")[0] for line in str(caught.value).splitlines()] == [
        "a.jsonl:2:",
        "a.jsonl:3:",
        "a.jsonl:4:3:",
    ]


def test_a_fault_of_the_file_does_not_hide_those_of_records(run: Callable[..., Prepared], tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\na,b\na\na,"b\n')
    lines = refused(run, path)
    assert lines[0].startswith("a.csv:3: 1 fields") and "a.csv:4: broken CSV" in lines[1]


def test_what_the_template_leaves_out_is_refused_or_accepted_and_counted(
    run: Callable[..., Prepared], tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [GOOD, {**GOOD, "system": "Be brief."}])
    [line] = refused(run, path, family="mistral_v03")
    assert line.startswith("a.jsonl:2: the model's chat template leaves out the system's message in message 1")
    assert "data.template_omissions=accept" in line
    report = run(path, family="mistral_v03", template_omissions=OnOmission.accept).report
    assert "partly left out by the chat template: 1 (a.jsonl:2)" in report.text()


def test_fields_that_are_not_used_are_listed_with_their_count(run: Callable[..., Prepared], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{**GOOD, "id": 1}, GOOD, {**GOOD, "id": 2, "source": "web"}])
    text = run(path).report.text()
    assert "not used: id in 2 records" in text and "not used: source in 1 record" in text
    assert run(path).report.text() == text  # found done


@pytest.mark.parametrize(("overlap", "allowed"), [(1, True), (2, False)])
def test_held_out_samples_that_are_trained_on(
    run: Callable[..., Prepared], tmp_path: Path, overlap: int, allowed: bool
) -> None:
    train = write(tmp_path / "train.jsonl", [{"prompt": f"q{n}", "completion": "a"} for n in range(20)])
    rows = [{"prompt": f"q{n + 20 - overlap}", "completion": "a"} for n in range(10)]
    held_out = write(tmp_path / "held.jsonl", rows)
    if allowed:
        report = run(train, held_out=held_out).report
        assert report.overlap == overlap and "1 is a training sample too" in report.text()
    else:
        [line] = refused(run, train, held_out=held_out)
        assert line.startswith("held.jsonl: 2 of 10 held-out samples are also training samples")
        assert line.endswith("data.max_overlap=0.2")
        assert run(train, held_out=held_out, max_overlap=0.2).report.overlap == 2


def test_duplicates_inside_one_file_reach_the_held_out_part(run: Callable[..., Prepared], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [GOOD] * 10)
    [line] = refused(run, path, validation_samples=4)
    assert "4 of 4 held-out samples" in line


def test_documents_of_plain_text_are_compared_and_not_blocks(tmp_path: Path, small_tokenizer: Make) -> None:
    train = write(tmp_path / "train.jsonl", [{"text": f"a text of some length {n}"} for n in range(9)])
    held_out = write(tmp_path / "held.jsonl", [{"text": "an other one"}, {"text": "a text of some length 3"}])
    with pytest.raises(DataError, match="held.jsonl: 1 of 2 held-out samples are also training samples"):
        prepare(
            Text(sequence_tokens=16),
            Pretrain(),
            small_tokenizer("chatml"),
            tmp_path / "c",
            0,
            Files.of(train, held_out),
        )


@pytest.mark.parametrize("choice", [OnTooLong.refuse, OnTooLong.drop, OnTooLong.truncate])
def test_one_very_long_line_is_bounded(run: Callable[..., Prepared], tmp_path: Path, choice: OnTooLong) -> None:
    """Ten million characters without a blank: tokenising all of them takes minutes and gigabytes."""
    long = {"prompt": "x", "completion": "ab" * 5_000_000}
    path = write(tmp_path / "a.jsonl", [GOOD, long, GOOD])
    tracemalloc.start()
    began = time.monotonic()
    if choice is OnTooLong.refuse:
        [line] = refused(run, path, too_long=choice, sequence_tokens=64)
        assert "1 of 3 samples are longer than data.sequence_tokens=64 (a.jsonl:2 has at least " in line
        assert "data.too_long=truncate or data.too_long=drop" in line and "write data.sequence_tokens=" not in line
    else:
        prepared = run(path, too_long=choice, sequence_tokens=64)
        assert len(prepared.train) == (2 if choice is OnTooLong.drop else 3)
        assert int(prepared.train.lengths.max()) <= 64
    print(time.monotonic() - began)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500e6


def test_a_truncated_long_line_has_the_tokens_of_the_whole(run: Callable[..., Prepared], tmp_path: Path,
                                                           small_tokenizer: Make) -> None:  # fmt: skip
    answer = "The capital of France is Paris. " * 2000
    path = write(tmp_path / "a.jsonl", [{"prompt": "x", "completion": answer}])
    ids, _ = run(path, too_long=OnTooLong.truncate, sequence_tokens=100).train[0]
    tokenizer = small_tokenizer("chatml")
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": answer}]
    whole = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False).input_ids
    assert ids.tolist() == whole[:100]


def test_a_tokenizer_with_a_token_for_unknown_words_has_no_bound() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    assert longest_token(PreTrainedTokenizerFast(tokenizer_object=words)) is None


def test_other_fields_of_plain_text_are_listed(tmp_path: Path, small_tokenizer: Make) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "one", "title": "a"}, {"text": "two", "title": ""}, {"text": "three"}])
    prepared = prepare(Text(), Pretrain(), small_tokenizer("chatml"), tmp_path / "c", 0, Files.of(path))
    assert "not used: title in 1 record" in prepared.report.text()
