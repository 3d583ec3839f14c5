"""The micro-batch divides and fits; the formulas are worked out by hand."""

from __future__ import annotations

import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch

from aitrain.config.trainer import Precision
from aitrain.dist.group import Group
from aitrain.dist.processes import run_ranks
from aitrain.dist.ranks import Ranks
from aitrain.errors import RecipeError
from aitrain.models.folder import inspect
from aitrain.models.memory import activation_bytes
from aitrain.tasks.registry import task_of
from aitrain.tasks.task import Task
from aitrain.trainer import resources
from aitrain.trainer.resources import micro_batch, peak_flops

from .conftest import Compose

ALONE = Ranks()
PAIR = Ranks(0, 2, 0, 2, "127.0.0.1", 1, "torchrun")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Set the free host memory with `free.bytes(n)`."""

    def set_bytes(available: float) -> None:
        monkeypatch.setattr(resources.psutil, "virtual_memory", lambda: SimpleNamespace(available=available))

    monkeypatch.bytes = set_bytes  # type: ignore[attr-defined]
    return monkeypatch


def found(small: Compose, *words: str, ranks: Ranks = ALONE) -> int:
    config = small("trainer.micro_batch_samples=null", *words)
    return micro_batch(task_of(config), ranks, "cpu", Group(ALONE, "cpu"))


def needed(small: Compose, rows: int, held: float) -> float:
    """Return the free memory at which so many sequences just fit beside so many bytes per weight."""
    facts = inspect(small().model)
    assert facts.parameters
    one = activation_bytes(facts, small().data.sequence_tokens, 4, checkpointing=False)
    return (rows * one + held * facts.parameters) / resources.HOST_SHARE


def test_the_recipes_own_is_taken_whatever_the_memory(small: Compose, free) -> None:
    free.bytes(0)
    assert micro_batch(task_of(small("trainer.micro_batch_samples=4")), ALONE, "cpu", Group(ALONE, "cpu")) == 4


# weights, gradients, two moments: 16 bytes per weight on one rank
@pytest.mark.parametrize(("fits", "batch", "rows"), [(1, 12, 1), (2, 12, 2), (3, 12, 3), (5, 12, 4), (7, 12, 6)])
def test_the_most_that_fits_and_divides(small: Compose, free, fits: int, batch: int, rows: int) -> None:
    free.bytes(needed(small, fits, held=16) + 10)
    assert found(small, f"trainer.global_batch_samples={batch}") == rows
    free.bytes(needed(small, fits, held=16) - 10)
    if fits > 1:
        assert found(small, f"trainer.global_batch_samples={batch}") <= fits - 1


def test_no_more_than_is_useful_on_a_cpu(small: Compose, free) -> None:
    free.bytes(1e15)
    assert found(small, "trainer.global_batch_samples=64") == Task.most_on_cpu
    assert found(small, "trainer.global_batch_samples=6") == 6
    assert found(small, "trainer.global_batch_samples=7") == 7
    assert found(small, "trainer.global_batch_samples=22", ranks=PAIR) == 1, "11 is prime and more than 8"


@pytest.mark.parametrize(
    ("strategy", "held"),
    # per weight: fp32 weights 4, gradients 4, moments 8, and under ZeRO 1 and 2 a sharded fp32 copy 4
    [
        ("ddp", 16),
        ("fsdp", 8),
        ("deepspeed_zero1", 8 + 12 / 2),
        ("deepspeed_zero2", 8 + 12 / 2),
        ("deepspeed_zero3", 8),
    ],
)
def test_ranks_of_one_machine_share_its_memory(small: Compose, free, strategy: str, held: float) -> None:
    for rows in (3, 4):
        free.bytes(2 * needed(small, rows, held) + 10)
        assert found(small, "trainer.global_batch_samples=24", f"strategy={strategy}", ranks=PAIR) == rows


def test_adapters_need_less(small: Compose, free) -> None:
    free.bytes(needed(small, 3, held=16) - 10)
    assert found(small, "trainer.global_batch_samples=12") == 2
    assert found(small, "trainer.global_batch_samples=12", "adapter=lora") > 2


def test_checkpointing_needs_less(small: Compose, free) -> None:
    free.bytes(needed(small, 2, held=16) + 10)
    more = found(small, "trainer.global_batch_samples=12", "trainer.activation_checkpointing=true")
    assert found(small, "trainer.global_batch_samples=12") == 2 < more


def test_nothing_fits(small: Compose, free) -> None:
    free.bytes(needed(small, 1, held=16) - 10)
    with pytest.raises(
        RecipeError,
        match="exceeds the .*strategy=ddp.*sequence_tokens=128.*activation_checkpointing=true",
    ):
        found(small)


def test_a_batch_that_does_not_divide_is_refused(small: Compose) -> None:
    with pytest.raises(RecipeError, match="global_batch_samples=5 is not a multiple of 2 devices"):
        found(small, "trainer.global_batch_samples=5", ranks=PAIR)


def test_the_smallest_answer_of_all_ranks_counts(small: Compose, capfd: pytest.CaptureFixture[str]) -> None:
    config = small("trainer.micro_batch_samples=null", "trainer.global_batch_samples=24")
    code = f"""
    import os
    from types import SimpleNamespace
    from aitrain.dist.group import Group
    from aitrain.dist.ranks import detect
    from aitrain.recipe import compose
    from aitrain.tasks.registry import task_of
    from aitrain.trainer import resources
    ranks = detect()
    free = [{2 * needed(small, 6, 16) + 10}, {2 * needed(small, 3, 16) + 10}][ranks.rank]
    resources.psutil.virtual_memory = lambda: SimpleNamespace(available=free)
    words = ["model.path=asset:tiny-llama", "data.path={config.data.path}", "data.sequence_tokens=256",
        "trainer.micro_batch_samples=null", "trainer.global_batch_samples=24", "trainer.precision=fp32"]
    group = Group(ranks, "cpu", timeout_min=1.0)
    rows = resources.micro_batch(task_of(compose("sft_full", words)), ranks, "cpu", group)
    os.write(1, f"{{rows}}\\n".encode())
    group.close()
    """
    assert run_ranks([sys.executable, "-c", textwrap.dedent(code)], 2) == 0
    assert capfd.readouterr().out.split() == ["3", "3"]


def test_peak_is_told_only_where_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops("cpu", Precision.bf16) is None
    assert peak_flops("cuda", Precision.fp32) is None
    names = {"NVIDIA H200": 989e12, "NVIDIA A100-SXM4-80GB": 312e12, "AMD Instinct MI250X": 191.5e12, "Other": None}
    for name, peak in {**names, "NVIDIA GH200 480GB": 989e12}.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert peak_flops("cuda", Precision.bf16) == peak
