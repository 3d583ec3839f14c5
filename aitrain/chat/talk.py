"""`aitrain chat`: talk to a run's model or to any chat model in the terminal, optionally next to its base model."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jinja2
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteriaList, TextStreamer

from aitrain.checkpoint import store
from aitrain.config.model import Model
from aitrain.config.task import Preference, Sft
from aitrain.errors import AitrainError, ModelError
from aitrain.io.terminal import can_move
from aitrain.models.chat_templates import choice
from aitrain.models.load import Located, build_model, load_tokenizer, locate
from aitrain.models.quiet import quiet
from aitrain.tasks.prompts import stop_tokens, template_end_tokens
from aitrain.tasks.registry import task_of
from aitrain.trainer.evaluation import model_of
from aitrain.trainer.run_directory import RunDirectory

HELP = """/reset        forget the conversation
/compare      answer with the base model too, side by side; again to stop
/system TEXT  set the system message; without a text, remove it
/quit         leave (so does Ctrl-D); Ctrl-C stops an answer"""

SIDE_BY_SIDE = 100
"""Terminal width from which two answers are shown side by side; otherwise one below the other."""


@dataclass(frozen=True)
class Settings:
    """Generation settings of a chat."""

    system: str | None = None
    max_new_tokens: int = 512
    temperature: float = 0.0
    """0 = the most probable token each time."""

    compare: bool = False


@dataclass
class Speaker:
    """A model to chat with."""

    name: str
    model: Any
    tokenizer: Any

    @property
    def context(self) -> int | None:
        """Longest sequence of the model in tokens."""
        found = getattr(self.model.config, "max_position_embeddings", None)
        return found if isinstance(found, int) else None

    def answer(self, messages: list[dict[str, str]], settings: Settings, say: Callable[[str], None]) -> str:
        """Answer the last message, streaming the answer.

        Args:
            messages: The conversation, a question last.
            settings: How the model is asked.
            say: Called with each piece of the answer.

        Raises:
            AitrainError: The chat template refuses the conversation, or it is longer than the context.
        """
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise AitrainError(f"the chat template rejects this conversation: {error}") from None
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(self.model.device)
        room = None if self.context is None else self.context - ids.shape[1]
        if room is not None and room < 1:
            raise AitrainError(
                f"the conversation has {ids.shape[1]} tokens, the model's context {self.context}: /reset"
            )
        streamer = _Pieces(self.tokenizer, say)
        sampled = {"do_sample": True, "temperature": settings.temperature} if settings.temperature else {}
        with torch.no_grad():
            self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=min(settings.max_new_tokens, room or settings.max_new_tokens),
                use_cache=True,
                eos_token_id=stop_tokens(self.model, template_end_tokens(self.tokenizer)) or None,
                pad_token_id=self.tokenizer.pad_token_id,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([streamer.stop]),
                **(sampled or {"do_sample": False}),
            )
        return "".join(streamer.pieces).strip()


class _Pieces(TextStreamer):
    """Streams the pieces of an answer; Ctrl-C ends the answer, not the conversation."""

    def __init__(self, tokenizer: Any, say: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.pieces: list[str] = []
        self.say = say
        self.interrupted = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.append(text)
        try:
            self.say(text)
        except KeyboardInterrupt:
            self.interrupted = True

    def stop(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Whether to stop: the user has asked for it."""
        return torch.full((len(input_ids),), self.interrupted, dtype=torch.bool, device=input_ids.device)


@dataclass
class Chat:
    """A conversation in a terminal, or one question a line from a pipe.

    Args:
        tuned: The model that answers.
        base: Loads the base model to compare with; called once, when it is needed.
        settings: Generation settings.
    """

    tuned: Speaker
    base: Callable[[], Speaker]
    settings: Settings
    messages: list[dict[str, str]] = field(default_factory=list)
    compares: bool = False
    _base: Speaker | None = None

    def __post_init__(self) -> None:
        self.compares = self.settings.compare
        self._start(self.settings.system)

    def _start(self, system: str | None) -> None:
        self.messages = [{"role": "system", "content": system}] if system else []

    def take(self, line: str) -> bool:
        """Answer a line or run its command; return whether to continue.

        Args:
            line: What the user wrote.
        """
        word, _, rest = line.strip().partition(" ")
        if word in ("/quit", "/exit", "/bye"):
            return False
        if word == "/reset":
            self.messages = self.messages[:1] if self.messages[:1] and self.messages[0]["role"] == "system" else []
            _say("conversation forgotten\n")
        elif word == "/system":
            self._start(rest.strip() or None)
            _say("system message set, conversation forgotten\n" if rest.strip() else "no system message\n")
        elif word == "/compare":
            self.compares = not self.compares
            _say("the base model answers too\n" if self.compares else "the base model no longer answers\n")
        elif word in ("/help", "/?"):
            _say(HELP + "\n")
        elif word.startswith("/"):
            _say(f"Unknown command {word}.\n{HELP}\n")
        elif line.strip():
            self._ask(line.strip())
        return True

    def _ask(self, question: str) -> None:
        asked = [*self.messages, {"role": "user", "content": question}]
        try:
            said = self._both(asked) if self.compares else self.tuned.answer(asked, self.settings, _say)
        except AitrainError as error:
            _say(f"{error}\n")
            return
        _say("" if self.compares else "\n")
        self.messages = [*asked, {"role": "assistant", "content": said}]

    def _both(self, asked: list[dict[str, str]]) -> str:
        self._base = self._base or self.base()
        speakers, width = (self._base, self.tuned), shutil.get_terminal_size().columns
        if not can_move(sys.stdout) or width < SIDE_BY_SIDE:
            said = ""
            for speaker in speakers:
                _say(f"{speaker.name}: ")
                said = speaker.answer(asked, self.settings, _say)
                _say("\n")
            return said
        answers = [speaker.answer(asked, self.settings, lambda _: None) for speaker in speakers]
        names = [speaker.name for speaker in speakers]
        _say("\n".join(side_by_side(names, answers, width)) + "\n")
        return answers[1]


def side_by_side(names: list[str], texts: list[str], width: int) -> list[str]:
    """Return two texts as lines of two columns with their names above them.

    Args:
        names: Name of each.
        texts: The texts.
        width: Columns of the terminal.
    """
    each = (width - 3) // 2
    columns = []
    for name, text in zip(names, texts, strict=True):
        lines = [part for line in text.splitlines() or [""] for part in textwrap.wrap(line, each) or [""]]
        columns.append([name, "-" * min(each, len(name)), *lines])
    height = max(map(len, columns))
    left, right = (column + [""] * (height - len(column)) for column in columns)
    return [f"{a:<{each}} | {b}".rstrip() for a, b in zip(left, right, strict=True)]


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def chat(talk: Chat) -> None:
    """Read and answer lines until the input ends.

    Args:
        talk: The conversation.
    """
    for line in _lines(talk.tuned.name):
        if not talk.take(line):
            return


def _lines(name: str) -> Iterator[str]:
    """Yield the lines of the user: with a prompt in a terminal, without one from a pipe."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    _say(f"{name}. /help lists the commands, /quit leaves.\n")
    while True:
        try:
            yield input("> ")
        except EOFError:
            _say("\n")
            return
        except KeyboardInterrupt:
            _say("\n/quit leaves\n")


def open_chat(target: str, settings: Settings, checkpoint: str = "newest", template: str | None = None) -> Chat:
    """Load a model to talk to.

    Args:
        target: A run directory, a model folder, a `.gguf` file or `asset:NAME`.
        settings: Generation settings.
        checkpoint: Of a run: `newest`, `best` or a step.
        template: Chat template by name, for a model that has none.

    Raises:
        AitrainError: There is no such model, or it cannot talk.
    """
    if (Path(target) / "run.yaml").is_file():
        if template is not None:
            raise AitrainError(f"--template {template} has no effect on a run, which has its own: remove it")
        return _of_run(RunDirectory.open(Path(target)), settings, checkpoint)
    if checkpoint != "newest":
        raise AitrainError(f"--checkpoint {checkpoint} has no effect on {target}, which is not a run: remove it")
    located = locate(Model(path=target, chat_template=template))
    speaker = _speaker(target, located)

    def none() -> Speaker:
        raise AitrainError(f"{target} is not a run, so there is no base model to compare with")

    return Chat(speaker, none, settings)


def _of_run(directory: RunDirectory, settings: Settings, checkpoint: str) -> Chat:
    config = directory.config()
    if not isinstance(config.task, (Sft, Preference)):
        raise AitrainError(
            f"{directory.path} did not train a chat model (task={type(config.task).__name__.lower()}): use "
            f"`aitrain predict {directory.path} FILE`"
        )
    if settings.system is None:
        settings = replace(settings, system=config.task.system_prompt)
    located = locate(config.model)
    exported = directory.export / "model"
    if checkpoint == "newest" and exported.is_dir() and directory.is_finished:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(exported, local_files_only=True, dtype=_dtype())
            tokenizer = AutoTokenizer.from_pretrained(exported, local_files_only=True)
        tuned = Speaker("tuned", torch.nn.Module.to(model, _device()).eval(), tokenizer)
    else:
        chosen = store.choose(directory.checkpoints(config), checkpoint)
        task = task_of(config)
        tuned = Speaker("tuned", model_of(task, chosen, directory), load_tokenizer(located))
    return Chat(tuned, lambda: _speaker("base", located), settings)


def _speaker(name: str, located: Located) -> Speaker:
    tokenizer = load_tokenizer(located)
    if not tokenizer.chat_template:
        raise ModelError(
            f"{located.model.path} has no chat template (it is a base model): choose one with --template NAME "
            f"({choice()}; chatml if in doubt), or talk to an instruction-tuned model"
        )
    model = torch.nn.Module.to(build_model(located, dtype=_dtype()), _device()).eval()
    return Speaker(name, model, tokenizer)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32
