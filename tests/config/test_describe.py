"""The table of what will run."""

from aitrain.config.describe import describe
from aitrain.recipe import compose


def test_the_table_says_what_decides_a_run() -> None:
    words = ["model.path=m", "data.path=d.jsonl", "data.validation_samples=9", "trainer.devices=2", "logger=wandb"]
    words += ["trainer.max_epochs=3", "trainer.global_batch_samples=32", "trainer.precision=bf16"]
    text = describe(compose("sft_lora", [*words, "evaluate.every_steps=5", "checkpoint.every_steps=50"]))
    for part in (
        "sft_lora in runs/sft_lora-<time>, seed 0",
        "sft on records",
        "lora rank=16",
        "d.jsonl",
        "9 samples of data.path",
        "3 epochs",
        "32 sequences per step over all devices",
        "adamw lr=2e-4",
        "devices=2, bf16",
        "every 5 steps and after the last",
        "every 30 minutes, every 50 steps, at the end; newest 2 kept",
        "wandb project=aitrain mode=offline",
        "adapter merged",
    ):
        assert part in text, text
    assert max(map(len, text.splitlines())) < 120


def test_what_is_chosen_later_is_said() -> None:
    text = describe(compose("sft_lora", ["model.path=m", "data.path=[a.csv,b.csv]"]))
    for part in (
        "a.csv, b.csv",
        "epochs chosen from the data",
        "global batch chosen from the data",
        "bf16 on GPUs, fp32 on CPUs",
        "a tenth of",
    ):
        assert part in text, text


def test_keys_for_submit_are_said_to_be_for_submit_only() -> None:
    words = ["model.path=m", "data.path=d.jsonl"]
    assert "cluster" not in describe(compose("sft_lora", words))
    text = describe(compose("sft_lora", [*words, "cluster.name=lumi_g", "cluster.account=a"]))
    (line,) = [line for line in text.splitlines() if line.startswith("cluster")]
    assert "name=lumi_g account=a restarts=3 practice_env=false; only `aitrain submit` reads this" in line
