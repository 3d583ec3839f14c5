"""`logs/rank-N.log`: messages, warnings and errors of a rank; libraries log there, and not to the user's terminal."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from aitrain.dist.ranks import Ranks
from aitrain.io import writing
from aitrain.trainer.run_directory import RunDirectory

OURS = "aitrain"
"""Root of our own loggers: their warnings reach the terminal too."""

_SPEAKS_BY_ITSELF = ("DeepSpeed", "wandb")
"""Loggers of libraries that bring handlers of their own for the terminal."""


class _RankFile(logging.FileHandler):
    """A log file that reports its own failure once and never ends a run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Report once that the log cannot be continued.

        Args:
            record: What could not be written.
        """
        self._report(sys.exc_info()[1])

    def close(self) -> None:
        """Close the file. On a full disk this fails again, because unwritten lines are still in its buffer."""
        try:
            super().close()
        except OSError as error:
            self._report(error)

    def _report(self, error: BaseException | None) -> None:
        if self.level <= logging.CRITICAL:
            self.setLevel(logging.CRITICAL + 1)
            print(f"{self.baseFilename} cannot be written any more ({error})", file=sys.stderr)


@contextmanager
def rank_log(directory: RunDirectory, ranks: Ranks) -> Iterator[None]:
    """Keep a log of this rank inside the block, with the warnings of every library and the traceback of a failure.

    Args:
        directory: The run.
        ranks: This process's place.

    Yields:
        Nothing.

    Raises:
        AitrainError: The log cannot be opened.
    """
    os.environ["WANDB_SILENT"] = "true"
    path = directory.logs / f"rank-{ranks.rank}.log"
    with writing(str(path), f"free space there, then continue with `aitrain resume {directory.path}`"):
        directory.logs.mkdir(exist_ok=True)
        file = _RankFile(path, encoding="utf-8")
    file.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith(OURS))
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"))
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.WARNING)
    terminal.setFormatter(logging.Formatter("%(message)s"))
    root, ours = logging.getLogger(), logging.getLogger(OURS)
    level = ours.level
    root.addHandler(file)
    ours.addHandler(terminal)
    ours.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        hush_libraries()
        yield
    except Exception:
        logging.getLogger(f"{OURS}.run").info("ended with", exc_info=True)
        raise
    finally:
        logging.captureWarnings(False)
        root.removeHandler(file)
        ours.removeHandler(terminal)
        ours.setLevel(level)
        file.close()


def hush_libraries() -> None:
    """Redirect libraries that write to the terminal to the log; to be called after their import."""
    for name in _SPEAKS_BY_ITSELF:
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            if type(handler) is logging.StreamHandler:
                logger.removeHandler(handler)
        logger.propagate = True


def note(text: str) -> None:
    """Write a line into this rank's log.

    Args:
        text: One or more lines.
    """
    logging.getLogger(f"{OURS}.run").info(text.strip())
