"""The real recipes on one GPU: the same losses as on the CPU and under every strategy, bf16, memory, resume."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from device_runs import DEVICE, FP32, Ended, aitrain, train

from aitrain.models.assets import resolve

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

CONSTANT = ("trainer.precision=fp32", "schedule=constant", "schedule.warmup_steps=0")
ON_GPU = pytest.mark.skipif(DEVICE == "cpu", reason="has no meaning on a CPU")
SHARDED = ("deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3", "fsdp")


def close(losses: list[float]) -> object:
    # fp32 sums in another order differ by 1e-7 each and AdamW's first steps turn that into about 1e-5 of the loss;
    # a wrong scale or a lost micro-batch shows at 1e-2. TF32, were it on, would show at 1e-3.
    return pytest.approx(losses, rel=1e-4)


def test_losses_equal_those_of_the_cpu(tmp_path: Path, reference: Ended) -> None:
    on_cpu = train(tmp_path / "run", *FP32, device="cpu")
    assert reference.losses == close(on_cpu.losses)
    assert [r["grad_norm"] for r in reference.records] == pytest.approx(
        [r["grad_norm"] for r in on_cpu.records], rel=1e-3
    )


@pytest.mark.parametrize("strategy", SHARDED)
def test_every_strategy_gives_the_losses_of_ddp(tmp_path: Path, reference: Ended, strategy: str) -> None:
    assert train(tmp_path / "run", *FP32, f"strategy={strategy}").losses == close(reference.losses)


@pytest.mark.parametrize("words", [("trainer.micro_batch_samples=8",), ("trainer.activation_checkpointing=true",)])
def test_losses_depend_on_neither_micro_batch_nor_checkpointing(
    tmp_path: Path, reference: Ended, words: tuple[str, ...]
) -> None:
    assert train(tmp_path / "run", *FP32, *words).losses == close(reference.losses)


@pytest.fixture
def few_verses(tmp_path: Path) -> str:
    """16 verses: seen again and again they are memorised, so the loss must fall whatever the batch."""
    lines = resolve("asset:verses-en-nl/train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text("".join(lines[:16]), encoding="utf-8")
    return f"data.path={tmp_path / 'few.jsonl'}"


@pytest.mark.parametrize("strategy", ["ddp", *SHARDED])
def test_bf16_trains_and_the_loss_falls(tmp_path: Path, few_verses: str, strategy: str) -> None:
    words = ("trainer.precision=bf16", "trainer.max_steps=40", f"strategy={strategy}")
    run = train(tmp_path / "run", *words, few_verses)
    losses = run.losses
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), losses
    if DEVICE == "cuda":
        assert all(record["memory_peak_gb"] > 0 for record in run.records)
        import torch

        known = any(word in torch.cuda.get_device_name() for word in ("H100", "H200", "A100", "B200", "MI"))
        assert all((record["mfu"] is not None) == known for record in run.records)
        assert not known or all(0 < record["mfu"] < 1 for record in run.records)


def test_lora_trains_in_bf16(tmp_path: Path, few_verses: str) -> None:
    words = ("trainer.precision=bf16", "trainer.max_steps=40", "optim.lr=5e-3")
    losses = train(tmp_path / "run", *words, few_verses, recipe="sft_lora").losses
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5]), losses


@ON_GPU
def test_micro_batch_is_found_from_memory(tmp_path: Path, reference: Ended) -> None:
    run = train(tmp_path / "run", *FP32, "trainer.micro_batch_samples=null")
    assert run.losses == close(reference.losses)
    assert "micro-batch 8, gradient accumulation 1" in run.said, "a million weights fit beside 8 sequences on any GPU"


@ON_GPU
@pytest.mark.parametrize(
    ("recipe", "words"),
    [("sft_full", ("optim=adamw_8bit", "optim.fused=never")), ("sft_qlora", ("trainer.precision=bf16",))],
)
def test_eight_and_four_bits_run_or_name_the_package(tmp_path: Path, recipe: str, words: tuple[str, ...]) -> None:
    run = train(tmp_path / "run", *words, "trainer.max_steps=5", recipe=recipe)
    if find_spec("bitsandbytes") is None:
        assert run.code == 2
        assert "bitsandbytes" in run.said and "aitrain[qlora]" in run.said and "Traceback" not in run.said
    else:
        assert len(run.losses) == 5


@ON_GPU
def test_out_of_memory_names_the_keys(tmp_path: Path) -> None:
    # 16384 sequences are 1.3 million tokens, and one tensor of 256 channels for them is 1.3 GB; more sequences would
    # break limits of the kernels first. With fused ops that fits on a GPU of 141 GB, so most of it is taken here.
    import torch

    taken = torch.empty(torch.cuda.mem_get_info()[0] - (8 << 30), dtype=torch.uint8, device="cuda")
    size = (
        "trainer.global_batch_samples=16384",
        "trainer.micro_batch_samples=16384",
        *FP32[:1],
        "trainer.max_steps=1",
    )
    run = train(tmp_path / "run", *size, "trainer.precision=fp32")
    del taken
    torch.cuda.empty_cache()
    assert run.code == 2, run.said
    assert "out of memory" in run.said and "Traceback" not in run.said
    for advice in ("trainer.micro_batch_samples=8192", "trainer.activation_checkpointing=true"):
        assert advice in run.said
    assert "data.sequence_tokens=128" in run.said


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed_zero2"])
def test_resume_continues_as_if_never_stopped(tmp_path: Path, strategy: str) -> None:
    words = (*CONSTANT, f"strategy={strategy}")
    run = train(tmp_path / "run", *words, "trainer.max_steps=3")
    whole = train(tmp_path / "whole", *words, "trainer.max_steps=6")
    assert len(run.losses) == 3
    done = aitrain("resume", str(run.path), "trainer.max_steps=6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [record["step"] for record in run.records] == [1, 2, 3, 4, 5, 6]
    assert run.losses == close(whole.losses)


@ON_GPU
def test_a_checkpoint_goes_from_the_gpu_to_the_cpu(tmp_path: Path) -> None:
    run = train(tmp_path / "run", *CONSTANT, "trainer.max_steps=3")
    whole = train(tmp_path / "whole", *CONSTANT, "trainer.max_steps=6")
    assert len(run.losses) == 3
    done = aitrain("resume", str(run.path), "trainer.max_steps=6", "trainer.accelerator=cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert run.losses == close(whole.losses)
