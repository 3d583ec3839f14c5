"""`aitrain chat`: answers as training wrote them, commands, and two models side by side."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from trainer.conftest import Ended

from aitrain.chat.talk import Chat, Settings, Speaker, chat, open_chat, side_by_side
from aitrain.errors import AitrainError, ModelError

SHORT = Settings(max_new_tokens=8)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What was written to standard output since it was asked last."""
    return lambda: capsys.readouterr().out


@pytest.fixture(scope="module")
def tiny() -> Chat:
    return open_chat("asset:tiny-llama", SHORT)


def test_an_answer_is_the_first_guess_at_each_token_and_is_streamed(tiny: Chat) -> None:
    pieces: list[str] = []
    words = tiny.tuned.tokenizer
    found = tiny.tuned.answer([{"role": "user", "content": "Translate to Dutch: light"}], SHORT, pieces.append)
    ids = words("<|im_start|>user\nTranslate to Dutch: light<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt")
    out = tiny.tuned.model.generate(**ids, max_new_tokens=8, do_sample=False)
    assert found == words.decode(out[0, ids.input_ids.shape[1] :], skip_special_tokens=True).strip()
    assert "".join(pieces).strip() == found and len(pieces) > 1


def test_a_conversation_and_its_commands(tiny: Chat, said: Callable[[], str]) -> None:
    talk = Chat(tiny.tuned, lambda: tiny.tuned, replace(SHORT, system="Be brief."))
    assert talk.take("light") and talk.take("  ") and talk.take("water")
    assert [message["role"] for message in talk.messages] == ["system", "user", "assistant", "user", "assistant"]
    talk.take("/reset")
    assert talk.messages == [{"role": "system", "content": "Be brief."}]
    talk.take("/system Speak Dutch.")
    assert talk.messages == [{"role": "system", "content": "Speak Dutch."}]
    talk.take("/system")
    assert talk.messages == []
    talk.take("/nothing")
    text = said()
    assert "Unknown command /nothing." in text and "/compare" in text
    assert not talk.take("/quit")


def test_the_base_model_answers_beside_it(tiny: Chat, said: Callable[[], str]) -> None:
    made: list[int] = []

    def base() -> Speaker:
        made.append(1)
        return replace_name(tiny.tuned, "base")

    talk = Chat(replace_name(tiny.tuned, "tuned"), base, SHORT)
    talk.take("/compare")
    talk.take("light")
    talk.take("water")
    lines = said().splitlines()
    assert made == [1] and lines[0] == "the base model answers too"
    assert [line.split(":")[0] for line in lines[1:] if line.startswith(("base: ", "tuned: "))] == ["base", "tuned"] * 2


def replace_name(speaker: Speaker, name: str) -> Speaker:
    return Speaker(name, speaker.model, speaker.tokenizer)


def test_a_run_talks_with_its_own_weights(trained: Ended, said: Callable[[], str]) -> None:
    with pytest.raises(AitrainError, match="--template chatml has no effect on a run"):
        open_chat(str(trained.directory.path), SHORT, template="chatml")
    talk = open_chat(str(trained.directory.path), SHORT)
    assert talk.tuned.name == "tuned"
    talk.take("/compare")
    talk.take("Translate to Dutch: light")
    text = said()
    assert "base: " in text and "tuned: " in text


def test_lines_of_a_pipe_are_answered_one_by_one(
    monkeypatch: pytest.MonkeyPatch, tiny: Chat, said: Callable[[], str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("light\n/quit\nnever asked\n"))
    chat(Chat(tiny.tuned, lambda: tiny.tuned, SHORT))
    lines = said().splitlines()
    assert len(lines) == 1 and "> " not in lines[0]


def test_a_conversation_that_is_too_long_is_told(tiny: Chat, said: Callable[[], str]) -> None:
    talk = Chat(tiny.tuned, lambda: tiny.tuned, SHORT)
    talk.take("word " * 600)
    assert "the model's context 512: /reset" in said() and talk.messages == []


def test_ctrl_c_ends_an_answer_and_not_the_conversation(tiny: Chat) -> None:
    pieces: list[str] = []

    def say(text: str) -> None:
        pieces.append(text)
        raise KeyboardInterrupt

    long = Settings(max_new_tokens=64)
    tiny.tuned.answer([{"role": "user", "content": "Translate to Dutch: And God said, Let there be light"}], long, say)
    assert len(pieces) <= 4  # the piece it came in, and what was in the streamer then


def test_what_cannot_talk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        open_chat(str(tmp_path / "none"), SHORT)
    talk = open_chat("asset:tiny-llama", SHORT)
    with pytest.raises(AitrainError, match="is not a run, so there is no base model to compare with"):
        talk.base()
    with pytest.raises(AitrainError, match="--checkpoint best has no effect on asset:tiny-llama, which is not a run"):
        open_chat("asset:tiny-llama", SHORT, "best")


@pytest.mark.parametrize("width", [60, 120, 200])
def test_two_columns_fit_the_terminal(width: int) -> None:
    lines = side_by_side(["base", "tuned"], ["long words " * 30, "short\n\ntext"], width)
    assert max(map(len, lines)) <= width and lines[0].split() == ["base", "|", "tuned"]
    assert len({line.index("|") for line in lines}) == 1
