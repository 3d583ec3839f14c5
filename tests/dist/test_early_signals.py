"""SIGUSR1 while a process is starting waits for the run instead of killing it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

LISTENER = """
import signal, sys, time
assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, []), "the launcher blocks it for its children"
print("up", flush=True)
time.sleep(0.5)  # as if torch were being imported
from aitrain.dist import early_signals
early_signals.hold()
print(early_signals.received(), flush=True)
"""
LAUNCHER = """
import sys
from aitrain.dist.processes import run_ranks
sys.exit(run_ranks(sys.argv[1:], 1))
"""


def test_a_signal_before_the_first_line_of_a_rank_is_kept() -> None:
    listener = [sys.executable, "-c", textwrap.dedent(LISTENER)]
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, *listener], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None and launcher.stdout.readline() == "up\n"
    os.kill(launcher.pid, signal.SIGUSR1)
    rest, _ = launcher.communicate(timeout=60)
    assert rest == "SIGUSR1\n" and launcher.returncode == 0


def test_a_signal_behind_hold_is_remembered() -> None:
    code = "import time\nfrom aitrain.dist import early_signals as e\ne.hold()\nprint(e.received(), flush=True)\n"
    code += "while not e.received(): time.sleep(0.01)\nprint(e.received())"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "None\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    rest, _ = process.communicate(timeout=60)
    assert rest == "SIGUSR1\n" and process.returncode == 0
