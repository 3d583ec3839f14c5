"""The promise of the global batch: the same losses and weights as an independent loop, however the batch is split."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from aitrain.checkpoint import store
from aitrain.dist.processes import run_ranks
from aitrain.recipe import compose
from aitrain.trainer.run_directory import RunDirectory
from tests.e2e import reference

HERE = Path(__file__).parent
STRATEGIES = ["ddp", "fsdp", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"]
STEPS, FEW = 20, 8

SGD = ["optim=sgd", "optim.lr=0.1", "optim.max_grad_norm=null"]
ADAMW = ["optim=adamw", "optim.lr=1e-3", "optim.max_grad_norm=0.5", "optim.weight_decay=0.1"]
# with SGD: Adam divides the nearly zero gradients of A (while B is zero) by their own size: noise becomes steps
FUSED = "model.fused_ops=on"
LORA = ["adapter=lora", "adapter.rank=4", "optim=sgd", "optim.lr=0.05"]


@dataclass(frozen=True)
class Result:
    """What a run left behind."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, torch.Tensor]
    events: list[dict] = field(default_factory=list)


def read(directory: RunDirectory) -> Result:
    """Read metrics and the newest checkpoint of a run."""
    records = [json.loads(line) for line in directory.metrics_file.read_text().splitlines()]
    events = [json.loads(line) for line in directory.events_file.read_text().splitlines()]
    checkpoint = store.choose(directory.checkpoints(directory.config()), "newest")
    weights = {name: checkpoint.read("weights", name) for name in checkpoint.names("weights")}
    return Result([r["loss"] for r in records], [r["grad_norm"] for r in records], weights, events)


class Runner:
    """Makes run directories and trains them, several per launch."""

    def __init__(self, folder: Path, model: Path, data: Path) -> None:
        self.folder, self.model, self.data = folder, model, data

    def make(self, name: str, *overrides: str) -> RunDirectory:
        """Freeze one run."""
        words = [
            f"model.path={self.model}",
            f"data.path={self.data}",
            "data.sequence_tokens=256",
            "data.shuffle=false",
            "schedule=constant",
            "schedule.warmup_steps=0",
            f"trainer.max_steps={STEPS}",
            "trainer.max_epochs=null",
            "trainer.global_batch_samples=8",
            "trainer.micro_batch_samples=2",
            "trainer.precision=fp32",
            "trainer.accelerator=cpu",
            "export.at_end=false",
            f"run.dir={self.folder / name}",
        ]
        return RunDirectory.create(compose("sft_full", [*words, "data.validation_samples=null", *overrides]))

    def train(self, world: int, directories: dict[str, RunDirectory], mutant: str | None = None) -> dict[str, Result]:
        """Train them all in one launch of so many ranks."""
        how = ["--mutant", mutant] if mutant else []
        command = [sys.executable, str(HERE / "many.py"), *how, *(str(d.path) for d in directories.values())]
        assert run_ranks(command, world) == 0
        return {name: read(directory) for name, directory in directories.items()}


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_data: Path) -> Runner:
    return Runner(tmp_path_factory.mktemp("equality"), tiny_model, tiny_data)


@pytest.fixture(scope="session")
def plain(runner: Runner) -> dict[str, Result]:
    """The independent loop's results."""
    plans = {
        "sgd": reference.Plan(STEPS, 8, "sgd", 0.1, None),
        "adamw": reference.Plan(STEPS, 8, "adamw", 1e-3, 0.5, 0.1),
        "adamw-few": reference.Plan(FEW, 8, "adamw", 1e-3, 0.5, 0.1),
        "epoch": reference.Plan(2, 8, "sgd", 0.1, None, epochs=1.0),
    }
    return {name: Result(*reference.train(runner.model, runner.data, plan)) for name, plan in plans.items()}


@pytest.fixture(scope="session")
def one_rank(runner: Runner) -> dict[str, Result]:
    """Runs on one rank."""
    runs = {
        "sgd-8": runner.make("sgd-8", *SGD, "trainer.micro_batch_samples=8"),
        "sgd-2": runner.make("sgd-2", *SGD),
        "adamw-2": runner.make("adamw-2", *ADAMW),
        "adamw-checkpointing": runner.make("adamw-c", *ADAMW, "trainer.activation_checkpointing=true"),
        "epoch": runner.make("epoch", *SGD, "trainer.max_steps=null", "trainer.max_epochs=1"),
        "lora": runner.make("lora-1", *LORA, "optim.max_grad_norm=0.5", f"trainer.max_steps={FEW}"),
        "fused": runner.make("fused-1", *SGD, FUSED),
        "fused-lora": runner.make("fused-lora-1", *LORA, "optim.max_grad_norm=0.5", FUSED, f"trainer.max_steps={FEW}"),
    }
    return runner.train(1, runs)


@pytest.fixture(scope="session")
def two_ranks(runner: Runner) -> dict[str, Result]:
    """Runs on two ranks, every strategy."""
    few = [f"trainer.max_steps={FEW}"]
    runs: dict[str, RunDirectory] = {}
    for strategy in STRATEGIES:
        for name, words in (
            ("sgd", SGD),
            ("adamw", ADAMW),
            ("lora", [*LORA, "optim.max_grad_norm=0.5", *few]),
            ("fused", [*ADAMW, FUSED, *few]),
        ):
            runs[f"{strategy}-{name}"] = runner.make(f"2-{strategy}-{name}", f"strategy={strategy}", *words)
    epoch = ["trainer.max_steps=null", "trainer.max_epochs=1"]
    runs["ddp-epoch"] = runner.make("2-epoch-ddp", *SGD, *epoch)
    runs["deepspeed_zero3-epoch"] = runner.make("2-epoch-z3", "strategy=deepspeed_zero3", *SGD, *epoch)
    offload = ["strategy.offload_optimizer=true", *few]
    runs["zero2-offload"] = runner.make("2-z2-offload", "strategy=deepspeed_zero2", *offload, *ADAMW)
    runs["zero3-offload"] = runner.make(
        "2-z3-offload", "strategy=deepspeed_zero3", *offload, "strategy.offload_parameters=true", *ADAMW
    )
    return runner.train(2, runs)


def worst(found: list[float], expected: list[float]) -> float:
    """Return the largest relative difference; the lists must be equally long."""
    assert len(found) == len(expected)
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def assert_fused(run: Result) -> None:
    """Check that the run's ops were fused indeed, and agreed with the unfused ones."""
    (told,) = [event for event in run.events if event["event"] == "fused"]
    assert told["left"] == {}
    assert {"LlamaRMSNorm -> rms_norm", "LlamaMLP -> swiglu"} < told["replaced"].keys()
    assert told["check"]["difference"] <= told["check"]["allowed"]


def assert_same(found: Result, expected: Result, tolerance: float = 1e-5) -> None:
    """Compare losses and norms relatively, and weights by their largest difference."""
    assert worst(found.losses, expected.losses) < tolerance
    # a norm is a sum of squares over all weights in another order: its relative error is that of fp32 sums
    assert worst(found.norms, expected.norms) < 10 * tolerance
    assert found.weights.keys() == expected.weights.keys()
    for name, weight in expected.weights.items():
        assert (found.weights[name] - weight).abs().max() < tolerance, name


@pytest.mark.parametrize("run", ["sgd-8", "sgd-2"])
def test_sgd_equals_the_independent_loop_with_and_without_accumulation(one_rank, plain, run):
    assert_same(one_rank[run], plain["sgd"])


@pytest.mark.parametrize("run", ["adamw-2", "adamw-checkpointing"])
def test_adamw_with_clipping_equals_the_independent_loop(one_rank, plain, run):
    assert min(plain["adamw"].norms) > 0.5, "clipping must act, or the test proves nothing"
    assert_same(one_rank[run], plain["adamw"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_with_sgd_equal_the_independent_loop(two_ranks, plain, strategy):
    assert_same(two_ranks[f"{strategy}-sgd"], plain["sgd"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_with_adamw_and_clipping_equal_the_independent_loop(two_ranks, plain, strategy):
    assert_same(two_ranks[f"{strategy}-adamw"], plain["adamw"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_lora_on_two_ranks_equals_one_rank(two_ranks, one_rank, strategy):
    assert one_rank["lora"].losses[-1] < one_rank["lora"].losses[0]
    assert_same(two_ranks[f"{strategy}-lora"], one_rank["lora"])


def test_fused_ops_change_nothing(one_rank, plain):
    assert_fused(one_rank["fused"])
    assert_same(one_rank["fused"], plain["sgd"])
    assert_same(one_rank["fused-lora"], one_rank["lora"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fused_ops_on_two_ranks_equal_the_independent_loop(two_ranks, plain, strategy):
    assert_fused(two_ranks[f"{strategy}-fused"])
    assert_same(two_ranks[f"{strategy}-fused"], plain["adamw-few"])


@pytest.mark.parametrize("run", ["zero2-offload", "zero3-offload"])
def test_offload_changes_nothing(two_ranks, plain, run):
    assert_same(two_ranks[run], plain["adamw-few"])


def test_the_last_batch_of_an_epoch_holds_what_is_left(one_rank, two_ranks, plain):
    for found in (one_rank["epoch"], two_ranks["ddp-epoch"], two_ranks["deepspeed_zero3-epoch"]):
        assert_same(found, plain["epoch"])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_zero2"])
def test_averaging_per_micro_batch_would_be_seen(runner, plain, strategy):
    name = f"mutant-mean-{strategy}"
    runs = {"run": runner.make(name, f"strategy={strategy}", *SGD, "trainer.max_steps=3")}
    found = runner.train(2, runs, mutant="mean_per_micro_batch")["run"]
    assert worst(found.losses, plain["sgd"].losses[:3]) > 1e-5


@pytest.mark.slow
def test_dividing_twice_by_the_accumulation_would_be_seen(runner, plain):
    runs = {"run": runner.make("mutant-double", "strategy=deepspeed_zero2", *SGD, "trainer.max_steps=3")}
    found = runner.train(2, runs, mutant="double_division")["run"]
    assert worst(found.losses, plain["sgd"].losses[:3]) > 1e-5
    assert worst(found.norms[:1], plain["sgd"].norms[:1]) > 0.4
