"""The command line: parses the arguments, runs the command and returns the exit code. Commands import heavy packages
themselves.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence

from aitrain import __version__
from aitrain.commands import COMMANDS
from aitrain.errors import EXIT_DONE, EXIT_USER, AitrainError
from aitrain.io.home import ensure_home
from aitrain.io.terminal import speak_anywhere


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after `aitrain`; those of this process when absent.

    Returns:
        The exit code: 0 done, 2 the user can fix it, 3 the data was refused, 4 a guard stopped the run, 75 stopped
        with a good checkpoint, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    speak_anywhere()
    ensure_home()
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return EXIT_DONE if words else EXIT_USER
    if words[0] == "--version":
        print(f"aitrain {__version__}")
        return EXIT_DONE
    before = signal.signal(signal.SIGTERM, _leave) if threading.current_thread() is threading.main_thread() else None
    try:
        return _dispatch(words)
    except AitrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough, as in `aitrain show optim | head`
        sys.stderr.close()
        return EXIT_DONE
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _leave(number: int, _frame: object) -> None:
    """End as after Ctrl-C, so that nothing half-written is left; a training run saves a checkpoint instead."""
    raise SystemExit(128 + number)


def _dispatch(words: list[str]) -> int:
    command = COMMANDS.get(words[0])
    if command is None:
        from aitrain.config.values import nearest

        guess = nearest(words[0], COMMANDS)
        hint = f"did you mean {guess}?" if guess else f"choose from {', '.join(COMMANDS)}"
        raise AitrainError(f"Unknown command '{words[0]}': {hint}")
    parser = argparse.ArgumentParser(prog=f"aitrain {words[0]}", description=command.does, allow_abbrev=False)
    command.arguments(parser)
    parse = parser.parse_args if command.passes_on else parser.parse_intermixed_args
    args = parse(words[1:])
    if getattr(args, "config_dir", None):
        from aitrain.config import own_options

        os.environ[own_options.VARIABLE] = os.path.abspath(args.config_dir)
    if command.is_watched:
        from aitrain.trainer import supervised

        if supervised.is_wanted():
            return supervised.supervise(words)
    return command.run(args)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {command.does}" for name, command in COMMANDS.items())
    return (
        "usage: aitrain COMMAND ...\n\nFine-tune models from short recipes, on a laptop or on many GPUs.\n\n"
        f"{rows}\n\n`aitrain COMMAND --help` shows its options; `aitrain show optim.lr` explains a key."
    )
