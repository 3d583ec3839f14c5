"""Entry of one rank that aitrain itself started on this machine: `python -m aitrain.trainer.rank RUN_DIR`."""

from __future__ import annotations

import ctypes
import signal
import sys
from pathlib import Path

from aitrain.dist.ranks import detect
from aitrain.errors import AitrainError
from aitrain.trainer.run_directory import RunDirectory

_PR_SET_PDEATHSIG = 1
"""prctl(2): the signal this process gets when its parent dies."""


def main(run: str) -> int:
    """Train as one rank.

    Args:
        run: The run directory, frozen already.

    Returns:
        The exit code.
    """
    # a launcher that was killed must not leave ranks behind
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    from aitrain.trainer.fit import fit

    ranks = detect()
    try:
        return fit(RunDirectory.open(Path(run)), ranks)
    except AitrainError as error:
        if ranks.is_first or "out of memory" in str(error):
            print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
