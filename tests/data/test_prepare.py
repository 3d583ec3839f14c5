"""Data is tokenised once, refused or accounted for in full, and the same on every reading."""

import errno
import json
import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aitrain.config.data import Data, OnFault, OnTooLong, Records, Text
from aitrain.config.task import Pretrain, Sft, Task
from aitrain.data.prepare import Files, Prepared, open_prepared, prepare, sample_text
from aitrain.data.token_set import TokenSet
from aitrain.errors import EXIT_DATA, AitrainError, DataError, ModelError

Make = Callable[..., Any]


def record(question: str, answer: str | None) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"messages": messages + ([{"role": "assistant", "content": answer}] if answer else [])}


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    return write(tmp_path / "train.jsonl", [record(f"Question {n}?", f"Answer {n}." * (n + 1)) for n in range(20)])


@pytest.fixture
def run(tmp_path: Path, small_tokenizer: Make) -> Callable[..., Prepared]:
    def call(
        path: Path, data: Data | None = None, task: Task | None = None, family: str = "chatml", **others: Any
    ) -> Prepared:
        tokenizer = others.pop("tokenizer", None) or small_tokenizer(family)
        files = Files.of(path, others.pop("validation", None))
        chosen = data or Records(path=str(path))
        return prepare(chosen, task or Sft(), tokenizer, tmp_path / "cache", others.pop("seed", 0), files, **others)

    return call


def texts(tokenizer: Any, tokens: TokenSet) -> list[str]:
    return [tokenizer.decode(tokens[i][0]) for i in range(len(tokens))]


def refused(run: Callable[..., Prepared], *args: Any, **others: Any) -> str:
    with pytest.raises(DataError) as caught:
        run(*args, **others)
    assert caught.value.exit_code == EXIT_DATA
    return str(caught.value)


def test_every_sample_in_file_order_with_an_account(
    run: Callable[..., Prepared], talks: Path, small_tokenizer: Make
) -> None:
    tokenizer = small_tokenizer("chatml")
    prepared = run(talks)
    expected = [tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False)
                for line in talks.read_text().splitlines()]  # fmt: skip
    assert texts(tokenizer, prepared.train) == expected
    source = prepared.report.sources[0]
    assert prepared.validation is None
    assert (source.records, source.sequences, source.dropped, source.truncated.count) == (20, 20, {}, 0)
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in expected]
    assert source.tokens == sum(lengths) and source.longest_tokens == max(lengths)
    assert source.longest_at == "train.jsonl:20"
    assert source.length_quantiles["0"] == min(lengths) and source.length_quantiles["100"] == max(lengths)
    trained = [tokenizer.decode(ids[mark]) for ids, mark in (prepared.train[i] for i in range(20))]
    assert trained == [f"Answer {n}." * (n + 1) + "<|im_end|>" for n in range(20)]
    assert (
        source.trained_tokens
        == prepared.train.trained_counts.sum()
        == sum(int(prepared.train[i][1].sum()) for i in range(20))
    )
    assert "train.jsonl: 20 records, 20 sequences" in prepared.report.text()
    assert json.loads(json.dumps(prepared.report.as_dict()))["train_sequences"] == 20


def test_the_second_time_it_is_found_done(run: Callable[..., Prepared], talks: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    first = run(talks, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (20, 20)
    calls.clear()
    folder = first.folders[0]
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    second = run(talks, progress=lambda done, total: calls.append((done, total)))
    assert not calls and second.folders == first.folders and second.report == first.report
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_whatever_decides_the_tokens_names_another_folder(
    run: Callable[..., Prepared], talks: Path, small_tokenizer: Make
) -> None:
    other_template = small_tokenizer("chatml")
    other_template.chat_template += " "
    more_tokens = small_tokenizer("chatml")
    more_tokens.add_tokens(["Question"])
    variants = [
        run(talks),
        run(talks, Records(sequence_tokens=500)),
        run(talks, Records(too_long=OnTooLong.drop)),
        run(talks, Records(no_trained_tokens=OnFault.drop)),
        run(talks, task=Sft(system_prompt="Be brief.")),
        run(talks, family="llama3"),
        run(talks, tokenizer=other_template),
        run(talks, tokenizer=more_tokens),
    ]
    talks.write_text(talks.read_text().replace("Question 3", "Question 4"))
    variants.append(run(talks))
    assert len({str(prepared.folders[0]) for prepared in variants}) == len(variants)


def test_what_does_not_decide_the_tokens_finds_the_same_folder(
    run: Callable[..., Prepared], talks: Path, small_tokenizer: Make
) -> None:
    used = small_tokenizer("chatml")
    used(["a", "b c"], truncation=True, max_length=2)  # leaves state in the tokenizer
    variants = [
        run(talks),
        run(talks, seed=7),
        run(talks, Records(validation_samples=3)),
        run(talks, Records(shuffle=False, workers=2)),
        run(talks, tokenizer=used),
    ]
    assert len({str(prepared.folders[0]) for prepared in variants}) == 1


def _prepare_in_a_process(talks: Path, tokenizer: Any, cache: Path, barrier: Any, answers: Any) -> None:
    barrier.wait()
    prepared = prepare(Records(), Sft(), tokenizer, cache, 0, Files.of(talks))
    answers.put((str(prepared.folders[0]), int(prepared.train.lengths.sum())))


def test_two_processes_at_once(talks: Path, tmp_path: Path, small_tokenizer: Make) -> None:
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    workers = [
        context.Process(
            target=_prepare_in_a_process, args=(talks, small_tokenizer("chatml"), tmp_path / "cache", barrier, answers)
        )
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    found = {answers.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(found) == 1 and len(list((tmp_path / "cache").iterdir())) == 1


def test_a_faster_process_between_look_and_rename(
    run: Callable[..., Prepared], talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run(talks).folders[0]
    kept = tmp_path / "kept"
    done.rename(kept)
    import aitrain.data.prepare as module

    write_slowly = module.Tokenisation.write

    def write_while_another_finishes(self: Any, folder: Path) -> None:
        write_slowly(self, folder)
        kept.rename(done)

    monkeypatch.setattr(module.Tokenisation, "write", write_while_another_finishes)
    assert len(run(talks).train) == 20
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [done.name]


def test_nothing_is_left_behind_by_a_refusal(run: Callable[..., Prepared], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [record("a", "b"), {"what": 1}])
    assert "a.jsonl:2: keys here are 'what'" in refused(run, path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_is_one_line(
    run: Callable[..., Prepared], talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: TokenSet, *args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("aitrain.data.token_set.TokenWriter.add", full)
    with pytest.raises(AitrainError, match="cannot be written to .*No space left on device"):
        run(talks)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_folder_is_told(run: Callable[..., Prepared], talks: Path) -> None:
    folder = run(talks).folders[0]
    with open(folder / "tokens.npy", "r+b") as file:
        file.truncate(200)
    assert "is damaged" in refused(run, talks)


def test_too_long_is_refused_with_places_and_keys(run: Callable[..., Prepared], talks: Path) -> None:
    longest = int(run(talks).train.lengths.max())
    lengths = run(talks).train.lengths
    message = refused(run, talks, Records(sequence_tokens=40))
    count = int((lengths > 40).sum())
    first = int(np.flatnonzero(lengths > 40)[0])
    assert f"{count} of 20 samples are longer than data.sequence_tokens=40" in message
    assert f"train.jsonl:{first + 1} has {lengths[first]} tokens" in message
    assert f"data.sequence_tokens={longest}, data.too_long=truncate" in message
    run(talks, Records(sequence_tokens=longest))  # the advice holds


def test_too_long_dropped_and_truncated(run: Callable[..., Prepared], talks: Path) -> None:
    whole = run(talks).train
    count = int((whole.lengths > 40).sum())
    dropped = run(talks, Records(sequence_tokens=40, too_long=OnTooLong.drop))
    assert len(dropped.train) == 20 - count
    places = dropped.report.sources[0].dropped["longer than data.sequence_tokens=40"]
    assert places.count == count and places.first[-1] == f"train.jsonl:{20 - count + 5}"
    cut = run(talks, Records(sequence_tokens=40, too_long=OnTooLong.truncate))
    assert len(cut.train) == 20 and cut.report.sources[0].truncated.count == count
    for i in range(20):
        assert cut.train[i][0].tolist() == whole[i][0][:40].tolist()
        assert cut.train[i][1].tolist() == whole[i][1][:40].tolist()


def test_samples_without_an_answer(run: Callable[..., Prepared], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [record("a", "b"), record("c", None), record("d", "e"), record("f", None)])
    message = refused(run, path)
    assert "2 of 4 samples have no trained token" in message and "(a.jsonl:2, a.jsonl:4)" in message
    assert "data.no_trained_tokens=drop" in message
    prepared = run(path, Records(no_trained_tokens=OnFault.drop))
    assert len(prepared.train) == 2
    assert prepared.report.sources[0].dropped["without a trained token"].first == ["a.jsonl:2", "a.jsonl:4"]
    assert (prepared.train.trained_counts > 0).all()


def test_both_faults_are_told_at_once(run: Callable[..., Prepared], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [record("a", "b" * 500), record("c", None)])
    message = refused(run, path, Records(sequence_tokens=20))
    assert "1 of 2 samples are longer" in message and "1 of 2 samples have no trained token" in message


def test_truncation_that_leaves_no_answer(run: Callable[..., Prepared], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [record("a", "b"), record("word " * 100, "c")])
    message = refused(run, path, Records(sequence_tokens=20, too_long=OnTooLong.truncate))
    assert "1 of 2 samples have no trained tokens after truncation" in message
    accepted = Records(sequence_tokens=20, too_long=OnTooLong.truncate, no_trained_tokens=OnFault.drop)
    prepared = run(path, accepted)
    assert prepared.report.sources[0].dropped["without a trained token in the first 20"].first == ["a.jsonl:2"]
    assert prepared.report.sources[0].truncated.count == 0


def test_no_trained_token_at_all_is_always_refused(run: Callable[..., Prepared], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [record("a", None), record("b", None)])
    message = refused(run, path, Records(no_trained_tokens=OnFault.drop))
    assert "no trained tokens in 2 records (2 without a trained token)" in message


def test_held_out_samples(run: Callable[..., Prepared], talks: Path, small_tokenizer: Make) -> None:
    tokenizer = small_tokenizer("chatml")
    everything = set(texts(tokenizer, run(talks).train))
    draws = set()
    for seed in range(5):
        prepared = run(talks, Records(validation_samples=6), seed=seed)
        assert prepared.validation is not None
        train, held_out = texts(tokenizer, prepared.train), texts(tokenizer, prepared.validation)
        assert len(train) == 14 and len(held_out) == 6 and set(train) | set(held_out) == everything
        again = open_prepared(prepared.folders, Records(validation_samples=6), seed)
        assert again.validation is not None and texts(tokenizer, again.validation) == held_out
        assert texts(tokenizer, again.train) == train and again.report == prepared.report
        draws.add(tuple(held_out))
    assert len(draws) == 5
    assert "data.validation_samples=20 leaves nothing to train on" in refused(
        run, talks, Records(validation_samples=20)
    )


def test_validation_file(run: Callable[..., Prepared], talks: Path, tmp_path: Path, small_tokenizer: Make) -> None:
    other = write(tmp_path / "held.jsonl", [record("x", "y"), record("z", "w")])
    prepared = run(talks, validation=other)
    assert prepared.validation is not None and len(prepared.train) == 20 and len(prepared.validation) == 2
    assert [source.file for source in prepared.report.sources] == ["train.jsonl", "held.jsonl"]
    assert (prepared.report.train_sequences, prepared.report.validation_sequences) == (20, 2)
    assert len(prepared.folders) == 2
    assert "held.jsonl:1" in refused(run, talks, validation=write(other, [{"what": 1}]))
    assert "no.jsonl does not exist" in refused(run, talks, validation=tmp_path / "no.jsonl")


def test_the_system_prompt_is_written(run: Callable[..., Prepared], talks: Path, small_tokenizer: Make) -> None:
    prepared = run(talks, task=Sft(system_prompt="Be brief."))
    assert texts(small_tokenizer("chatml"), prepared.train)[0].startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_plain_text_in_blocks(run: Callable[..., Prepared], tmp_path: Path, small_tokenizer: Make) -> None:
    tokenizer = small_tokenizer("zephyr")
    documents = ["The user asks.", "", "Yes. " * 40, "No."]
    path = write(tmp_path / "a.jsonl", [{"body": document} for document in documents])
    prepared = run(path, Text(text_field="body", sequence_tokens=16), Pretrain(), family="zephyr")
    stream = [
        token
        for document in documents
        if document
        for token in [*tokenizer(document, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ]
    blocks = [stream[i : i + 16] for i in range(0, len(stream), 16)]
    assert len(blocks[-1]) > 1
    assert [prepared.train[i][0].tolist() for i in range(len(prepared.train))] == blocks
    assert all(prepared.train[i][1].all() for i in range(len(prepared.train)))
    assert prepared.train.trained_counts.tolist() == [len(block) - 1 for block in blocks]
    source = prepared.report.sources[0]
    assert (source.records, source.dropped["empty documents"].first) == (4, ["a.jsonl:2"])


def test_a_last_block_of_one_token_is_told(run: Callable[..., Prepared], tmp_path: Path, small_tokenizer: Make) -> None:
    tokenizer = small_tokenizer("zephyr")
    (tmp_path / "a.txt").write_text("The user asks.\n")
    tokens = len(tokenizer("The user asks.", add_special_tokens=False)["input_ids"]) + 1
    prepared = run(tmp_path / "a.txt", Text(sequence_tokens=tokens - 1), Pretrain(), family="zephyr")
    assert len(prepared.train) == 1
    assert prepared.report.sources[0].dropped["last block of a single token, which predicts nothing"].count == 1


def test_text_without_anything_in_it(run: Callable[..., Prepared], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": ""}, {"text": ""}])
    assert "no trained tokens in 2 records (2 empty documents)" in refused(run, path, Text(), Pretrain(), "zephyr")


def test_text_needs_an_end_of_text_token(run: Callable[..., Prepared], tmp_path: Path, small_tokenizer: Make) -> None:
    tokenizer = small_tokenizer("zephyr")
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-text token"):
        run(write(tmp_path / "a.jsonl", [{"text": "a"}]), Text(), Pretrain(), tokenizer=tokenizer)


def test_more_records_than_are_tokenised_at_once(run: Callable[..., Prepared], tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    path = write(tmp_path / "a.jsonl", [record(f"q{n}", f"a{n}") for n in range(600)])
    prepared = run(path, progress=lambda done, total: calls.append((done, total)))
    assert len(prepared.train) == 600 and calls == [(256, 600), (512, 600), (600, 600)]


def test_a_sample_on_the_terminal(run: Callable[..., Prepared], tmp_path: Path, small_tokenizer: Make) -> None:
    path = write(tmp_path / "a.jsonl", [record("Hello! \x1b[31m", "Yes.\nNo.")])
    tokens, trained = run(path).train[0]
    shown = sample_text(small_tokenizer("chatml"), tokens, trained)
    assert shown == (
        "\x1b[2m<|im_start|>user\nHello! \u241b[31m<|im_end|>\n<|im_start|>assistant\n\x1b[0m"
        "\x1b[1;32mYes.\nNo.<|im_end|>\x1b[0m\x1b[2m\n\x1b[0m"
    )
    assert re.findall("\x1b\\[31m", shown) == []
