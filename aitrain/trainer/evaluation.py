"""Measuring a model on held-out data and letting it answer prompts, through any strategy."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from aitrain.checkpoint import store
from aitrain.config import RunConfig
from aitrain.config.task import Sft
from aitrain.config.trainer import Accelerator
from aitrain.data.batches import EvaluationBatches, pad_token_id
from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.errors import MissingExtraError, RecipeError
from aitrain.tasks.causal_lm import CausalLM
from aitrain.trainer.samples import prepare_samples


@dataclass(frozen=True)
class Validation:
    """What was measured on the held-out data.

    Attributes:
        loss: Mean negative log-likelihood over the trained tokens, in nats.
        perplexity: Its exponential.
        token_accuracy: Share of trained tokens that were the model's first guess.
        tokens: Trained tokens measured.
    """

    loss: float
    perplexity: float
    token_accuracy: float
    tokens: int

    @classmethod
    def of_sums(cls, sums: torch.Tensor) -> Validation:
        """Make the means from the sums over all ranks.

        Args:
            sums: `(3,)`: losses, tokens predicted rightly, trained tokens.
        """
        loss_sum, right, tokens = sums.tolist()
        loss = loss_sum / tokens
        return cls(loss, math.exp(min(loss, 700.0)), right / tokens, int(tokens))

    def as_metrics(self) -> dict[str, float]:
        """Return the values under their names in `metrics.jsonl`."""
        return {"val_loss": self.loss, "val_perplexity": self.perplexity, "val_token_accuracy": self.token_accuracy}


@contextmanager
def evaluating(trainer: pl.Trainer) -> Iterator[None]:
    """Switch dropout and gradients off inside the block, in the run's precision.

    Args:
        trainer: A trainer whose strategy is set up.
    """
    model = trainer.strategy.model
    assert model is not None, "the strategy is not set up"
    model.eval()
    try:
        with torch.no_grad(), trainer.strategy.precision_plugin.val_step_context():
            yield
    finally:
        model.train()


def validate(trainer: pl.Trainer, loader: DataLoader[dict[str, Any]], group: Group) -> Validation:
    """Measure the model on held-out data; every rank calls this.

    Args:
        trainer: A trainer whose strategy is set up.
        loader: This rank's share of the held-out batches.
        group: The ranks.
    """
    strategy = trainer.strategy
    sums = torch.zeros(3, dtype=torch.float64, device=strategy.root_device)
    with evaluating(trainer):
        for number, batch in enumerate(loader):
            moved = strategy.batch_to_device(batch, dataloader_idx=0)
            step: Any = strategy.validation_step(moved, number)
            sums += step
    return Validation.of_sums(group.sum(sums))


def answers(trainer: pl.Trainer, task: CausalLM, tokenizer: Any, config: RunConfig) -> list[dict[str, str]]:
    """Let the model go on from the recipe's prompts, taking its first guess at each token.

    Every rank generates the same, because under sharded strategies each token needs all of them.

    Args:
        trainer: A trainer whose strategy is set up.
        task: The model under training.
        tokenizer: The model's tokenizer.
        config: The run.

    Returns:
        One `{"prompt", "answer"}` per prompt.
    """
    if not config.evaluate.prompts:
        return []
    with evaluating(trainer):
        return generate(task.model, tokenizer, config, task.device)


def generate(model: Any, tokenizer: Any, config: RunConfig, device: torch.device) -> list[dict[str, str]]:
    """Let a Hugging Face model go on from the recipe's prompts, taking its first guess at each token.

    Args:
        model: A model with `generate`.
        tokenizer: Its tokenizer.
        config: The run.
        device: Where the model is.

    Returns:
        One `{"prompt", "answer"}` per prompt.
    """
    found = []
    for prompt in config.evaluate.prompts:
        text = _as_text(prompt, tokenizer, config) if isinstance(config.task, Sft) else prompt
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=not isinstance(config.task, Sft)).input_ids.to(
            device
        )
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=config.evaluate.max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            synced_gpus=False,
        )
        found.append(
            {"prompt": prompt, "answer": tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()}
        )
    return found


def _as_text(prompt: str, tokenizer: Any, config: RunConfig) -> str:
    assert isinstance(config.task, Sft)
    system = [{"role": "system", "content": config.task.system_prompt}] if config.task.system_prompt else []
    messages = [*system, {"role": "user", "content": prompt}]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def evaluate_run(run: Path, data: str | None, lm_eval: str | None, checkpoint: str) -> None:
    """Measure a checkpoint of a run in one process and print what was found.

    Args:
        run: The run directory.
        data: Held-out file; None = the recipe's own held-out data.
        lm_eval: Tasks of the LM evaluation harness, separated by commas; None = the recipe's own measure.
        checkpoint: `newest`, `best` or a step.

    Raises:
        RecipeError: There is no held-out data to measure.
        MissingExtraError: The harness is asked and not installed.
    """
    from aitrain.models.export import trained_model
    from aitrain.models.load import load_tokenizer
    from aitrain.trainer.run_directory import RunDirectory

    directory = RunDirectory.open(run)
    config = directory.config()
    chosen = store.choose(directory.checkpoints(config), checkpoint)
    harness = _harness() if lm_eval is not None else None
    config = _measuring(config, data) if lm_eval is None else config
    model = trained_model(config, {name: chosen.read("weights", name) for name in chosen.names("weights")})
    torch.nn.Module.to(
        model, "cuda" if torch.cuda.is_available() and config.trainer.accelerator is not Accelerator.cpu else "cpu"
    )
    model.eval()
    tokenizer = load_tokenizer(config.model)
    print(f"{chosen.path} (step {chosen.step})")
    if harness is not None:
        assert lm_eval is not None
        wrapped = harness.models.huggingface.HFLM(pretrained=model, tokenizer=tokenizer)
        found = harness.simple_evaluate(model=wrapped, tasks=lm_eval.split(","))
        print(harness.utils.make_table(found))
        return
    group = Group(Ranks(), "cpu")
    samples = prepare_samples(config, tokenizer, group)
    assert samples.validation is not None, "the recipe was checked to have held-out data"
    rows = config.evaluate.micro_batch_sequences or config.trainer.micro_batch_sequences or 1
    task = CausalLM(config, build=lambda: model, adapt=lambda built: built, world=1, accumulation=1)
    task.model = model
    sums = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        batches = EvaluationBatches(samples.validation, rows, 0, 1, pad_token_id(tokenizer))
        for number, batch in enumerate(batches[k] for k in range(len(batches))):
            moved = {key: value.to(model.device) if torch.is_tensor(value) else value for key, value in batch.items()}
            sums += task.validation_step(moved, number).cpu()
        told = generate(model, tokenizer, config, model.device)
    measured = Validation.of_sums(sums)
    print(
        f"loss {measured.loss:.4f}, perplexity {measured.perplexity:.2f}, "
        f"token accuracy {100 * measured.token_accuracy:.1f} %, over {measured.tokens:,} tokens"
    )
    for entry in told:
        print(f"prompt  {entry['prompt']}\n  answer  {entry['answer']}")
    directory.event("evaluated", step=chosen.step, data=data or config.data.validation_path, **measured.as_metrics())


def _measuring(config: RunConfig, data: str | None) -> RunConfig:
    """Return the configuration with the held-out data to measure."""
    if data is not None:
        kind = replace(config.data, path=data, validation_path=data, validation_samples=None, max_overlap=1.0)
        if not Path(data).is_file():
            raise RecipeError(f"--data {data} does not exist: name a file like those of data.path")
        return replace(config, data=kind)
    if not config.has_validation:
        raise RecipeError("the run's recipe names no held-out data: give some with --data FILE")
    return config


def _harness() -> Any:
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError("--lm-eval needs the LM evaluation harness: pip install 'aitrain[lm-eval]'")
    import lm_eval
    import lm_eval.models.huggingface
    import lm_eval.utils

    return lm_eval
