"""Keeps transformers quiet while it loads: no progress bars, no advice; the caller checks what matters."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from transformers.utils import logging


@contextmanager
def drawn_on_the_host() -> Iterator[None]:
    """Initialise random weights on the CPU inside the block, so that they are the same on every device type.

    Under ZeRO-3 nothing changes: there each weight is sharded while it is created, on its device.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        yield
        return
    import torch

    with torch.device("cpu"):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers inside the block and restore its verbosity after it."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # some bars know no switch
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind when it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
