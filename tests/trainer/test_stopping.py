"""Signals set a flag; a second Ctrl-C ends at once; all ranks agree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import lightning.pytorch as pl
import pytest

from aitrain.dist.group import Group
from aitrain.dist.processes import run_ranks
from aitrain.dist.ranks import Ranks
from aitrain.trainer.stopping import SIGNALS, Stopper, own_signals

ALONE = Group(Ranks(), "cpu")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_until_the_step_edge(number: signal.Signals) -> None:
    with Stopper(ALONE) as stopper:
        assert not stopper.agreed() and stopper.reason is None
        os.kill(os.getpid(), number)
        assert stopper.agreed() and stopper.reason == number.name


def test_handlers_of_before_come_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ZeroDivisionError), Stopper(ALONE):
        assert [signal.getsignal(number) for number in SIGNALS] != before
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("first", SIGNALS)
def test_ctrl_c_after_any_signal_ends_at_once(first: signal.Signals) -> None:
    with pytest.raises(SystemExit) as ended, Stopper(ALONE):
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGINT)
    assert ended.value.code == 130


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGUSR1])
def test_a_second_signal_of_the_queue_is_patient(second: signal.Signals) -> None:
    """Slurm sends SIGTERM to what has got SIGUSR1 before; the step must still end."""
    with Stopper(ALONE) as stopper:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), second)
        assert stopper.agreed()


def test_all_ranks_stop_when_one_was_asked(capfd: pytest.CaptureFixture[str]) -> None:
    code = """
    import os, signal
    from aitrain.dist.group import Group
    from aitrain.dist.ranks import detect
    from aitrain.trainer.stopping import Stopper
    group = Group(detect(), "cpu", timeout_min=1.0)
    with Stopper(group) as stopper:
        before = stopper.agreed()
        if not group.ranks.is_first:
            os.kill(os.getpid(), signal.SIGTERM)
        os.write(1, f"{group.ranks.rank} {before} {stopper.agreed()} {stopper.reason}\\n".encode())
    """
    assert run_ranks([sys.executable, "-c", textwrap.dedent(code)], 2) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["0 False True another rank", "1 False True SIGTERM"]


def test_lightning_leaves_our_handlers_alone() -> None:
    """In a process of its own, because Lightning's handlers would stay."""
    code = """
    import os, signal
    import lightning.pytorch as pl
    from lightning.pytorch.demos.boring_classes import BoringModel
    from aitrain.dist.group import Group
    from aitrain.dist.ranks import Ranks
    from aitrain.trainer.stopping import Stopper, own_signals

    class Edge(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_steps=5, limit_val_batches=0, callbacks=[Edge()], **quiet)
    own_signals(trainer)
    with Stopper(Group(Ranks(), "cpu")) as stopper:
        trainer.fit(BoringModel())
        print(trainer.global_step, stopper.reason)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["5 SIGTERM"], done.stderr


def test_another_lightning_is_told() -> None:
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    own_signals(trainer)
    del trainer._signal_connector
    with pytest.raises(AttributeError):
        own_signals(trainer)
