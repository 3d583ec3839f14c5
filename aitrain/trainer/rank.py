"""Entry point of a rank that aitrain itself started on this machine: `python -m aitrain.trainer.rank RUN_DIR`."""

from __future__ import annotations

import argparse
import ctypes
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from aitrain.dist import early_signals
from aitrain.dist.ranks import detect
from aitrain.errors import AitrainError
from aitrain.io.home import ensure_home
from aitrain.io.imports import without_collection
from aitrain.io.terminal import speak_anywhere
from aitrain.trainer.run_directory import RunDirectory

_PR_SET_PDEATHSIG = 1
"""prctl(2): the signal this process gets when its parent dies."""


def main(words: Sequence[str]) -> int:
    """Train as one rank.

    Args:
        words: The run directory, frozen already, and the words of `ResumeOptions`.

    Returns:
        The exit code.
    """
    early_signals.hold()
    ensure_home()
    speak_anywhere()
    # a killed launcher must not leave ranks running
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--checkpoint", default="newest")
    for flag in ("--changed-inputs", "--changed-rate"):
        parser.add_argument(flag, action="store_true")
    args = parser.parse_args(words)
    with without_collection():
        from aitrain.trainer.fit import fit
    from aitrain.trainer.resume_options import ResumeOptions

    ranks = detect()
    try:
        options = ResumeOptions(args.checkpoint, args.changed_inputs, args.changed_rate)
        return fit(RunDirectory.open(args.run), ranks, options=options)
    except AitrainError as error:
        if ranks.is_first or "out of memory" in str(error):
            print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
