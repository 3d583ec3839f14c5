"""A command that is no training and is asked to stop ends at once and leaves nothing half-written."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

EXPORT = """
import os, signal, sys, threading, time
from aitrain import cli
from aitrain.models import export

def slowly(model, folder):
    print("writing", flush=True)
    time.sleep(60)

export._write_model = slowly
sys.exit(cli.main(sys.argv[1:]))
"""


def test_an_export_that_is_terminated(tmp_path: Path) -> None:
    words = ["model.path=asset:tiny-llama", "data.path=asset:verses-en-nl/train.jsonl", "data.sequence_tokens=256"]
    words += ["trainer.accelerator=cpu", "trainer.precision=fp32", "trainer.max_steps=1", "export.at_end=false"]
    from aitrain import cli

    assert cli.main(["train", "sft_full", *words, f"run.dir={tmp_path}/run"]) == 0
    command = [sys.executable, "-c", EXPORT, "export", f"{tmp_path}/run", "--to", f"{tmp_path}/model"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143 and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "not even a hidden half of it"
    print(f"{time.monotonic() - began:.1f} s")
