"""Measuring a model on held-out data and letting it answer prompts, through any strategy."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from transformers import StoppingCriteria, StoppingCriteriaList

from aitrain.checkpoint import store
from aitrain.config import RunConfig
from aitrain.config.task import Sft
from aitrain.config.trainer import Accelerator
from aitrain.data.batches import EvaluationBatches, pad_token_id
from aitrain.data.chat_template import ChatTemplate
from aitrain.data.conversation import Conversation
from aitrain.data.token_set import TokenSet
from aitrain.dist import heartbeat
from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.errors import Interrupted, MissingExtraError, RecipeError
from aitrain.models.load import load_tokenizer
from aitrain.tasks.causal_lm import CausalLM
from aitrain.trainer.run_directory import RunDirectory
from aitrain.trainer.samples import prepare_samples
from aitrain.trainer.stopping import Stopper


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


def validate(
    trainer: pl.Trainer, loader: DataLoader[dict[str, Any]], group: Group, stopper: Stopper
) -> Validation | None:
    """Measure the model on held-out data; every rank calls this.

    Args:
        trainer: A trainer whose strategy is set up.
        loader: This rank's share of the held-out batches, as many on every rank.
        group: The ranks.
        stopper: Whether the run was asked to stop, looked at between batches.

    Returns:
        What was measured; None when the run was asked to stop before the end.
    """
    strategy = trainer.strategy
    sums = torch.zeros(3, dtype=torch.float64, device=strategy.root_device)
    with evaluating(trainer):
        for number, batch in enumerate(loader):
            if stopper.agreed():
                return None
            heartbeat.beat("evaluation")
            moved = strategy.batch_to_device(batch, dataloader_idx=0)
            step: Any = strategy.validation_step(moved, number)
            sums += step
    return Validation.of_sums(group.sum(sums))


def answers(
    trainer: pl.Trainer, task: CausalLM, tokenizer: Any, config: RunConfig, stopper: Stopper
) -> list[dict[str, str]]:
    """Let the model go on from the recipe's prompts, taking its first guess at each token.

    Every rank generates the same, because under sharded strategies each token needs all of them.

    Args:
        trainer: A trainer whose strategy is set up.
        task: The model under training.
        tokenizer: The model's tokenizer.
        config: The run.
        stopper: Whether the run was asked to stop, looked at behind every token.

    Returns:
        One `{"prompt", "answer"}` per prompt; none when the run was asked to stop before the last.
    """
    if not config.evaluate.prompts:
        return []
    with evaluating(trainer):
        found = generate(task.model, tokenizer, config, task.device, stopper.agreed)
    return [] if stopper.agreed() else found


def generate(
    model: Any, tokenizer: Any, config: RunConfig, device: torch.device, stop: Callable[[], bool] = lambda: False
) -> list[dict[str, str]]:
    """Let a Hugging Face model go on from the recipe's prompts, taking its first guess at each token.

    Args:
        model: A model with `generate`.
        tokenizer: Its tokenizer.
        config: The run.
        device: Where the model is.
        stop: Whether to end at the next token.

    Returns:
        One `{"prompt", "answer"}` per prompt; fewer when it was to end.
    """
    found: list[dict[str, str]] = []
    known = model.generation_config.eos_token_id
    ends = {*(known if isinstance(known, (list, tuple)) else [known]), *end_tokens(config, tokenizer)} - {None}
    for prompt in config.evaluate.prompts:
        if stop():
            break
        ids = torch.tensor([prompt_ids(prompt, tokenizer, config)], device=device)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=config.evaluate.max_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=sorted(ends) or None,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            synced_gpus=False,
            stopping_criteria=StoppingCriteriaList([_Stop(stop)]),
        )
        found.append(
            {"prompt": prompt, "answer": tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()}
        )
    return found


def end_tokens(config: RunConfig, tokenizer: Any) -> list[int]:
    """Return the ids with which the chat template ends a turn of the assistant; none where the task has no turns.

    Args:
        config: The run.
        tokenizer: The model's tokenizer.
    """
    if not isinstance(config.task, Sft):
        return []
    probe = Conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    spans = ChatTemplate(tokenizer).render(probe, "a conversation of two words").spans
    return [int(tokenizer.convert_tokens_to_ids(span.end_token)) for span in spans]


class _Stop(StoppingCriteria):
    """Ends a generation at the next token when the run is asked to stop."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self.stop(), dtype=torch.bool, device=input_ids.device)


def prompt_ids(prompt: str, tokenizer: Any, config: RunConfig) -> list[int]:
    """Return a prompt as the model reads it: in conversations, with the chat template.

    Args:
        prompt: One of `evaluate.prompts`.
        tokenizer: The model's tokenizer.
        config: The run.

    Returns:
        Token ids, at least one.

    Raises:
        RecipeError: The chat template refuses it, or it has no token.
    """
    text = prompt
    if isinstance(config.task, Sft):
        system = [{"role": "system", "content": config.task.system_prompt}] if config.task.system_prompt else []
        messages = [*system, {"role": "user", "content": prompt}]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise RecipeError(f"evaluate.prompts: the model's chat template refuses {prompt[:40]!r}: {error}") from None
    ids: list[int] = tokenizer(text, add_special_tokens=not isinstance(config.task, Sft)).input_ids
    if not ids:
        raise RecipeError(f"evaluate.prompts: {prompt!r} has no token: write a prompt with words")
    return ids


def evaluate_run(
    run: Path, data: str | None, lm_eval: str | None, checkpoint: str, changed_inputs: bool = False
) -> None:
    """Measure a checkpoint of a run in one process and print what was found.

    Args:
        run: The run directory.
        data: Held-out file; None = the recipe's own held-out data.
        lm_eval: Tasks of the LM evaluation harness, separated by commas; None = the recipe's own measure.
        checkpoint: `newest`, `best` or a step.
        changed_inputs: Measure although the model, or the run's own data, is not what the run began with.

    Raises:
        RecipeError: There is no held-out data to measure, or model or data have changed.
        MissingExtraError: The harness is asked and not installed.
    """
    from aitrain.trainer.facts import data_facts, model_facts, refuse_difference

    directory = RunDirectory.open(run)
    config = directory.config()
    chosen = store.choose(directory.checkpoints(config), checkpoint)
    harness = _harness() if lm_eval is not None else None
    config = _measuring(config, data) if lm_eval is None else config
    tokenizer = load_tokenizer(config.model)
    then = {} if changed_inputs else chosen.state.get("facts") or directory.facts()
    refuse_difference(then, model_facts(config, tokenizer), config, directory.path)
    model = _model_of(config, chosen)
    print(f"{chosen.path} (step {chosen.step})")
    if harness is not None:
        assert lm_eval is not None
        wrapped = harness.models.huggingface.HFLM(pretrained=model, tokenizer=tokenizer)
        found = harness.simple_evaluate(model=wrapped, tasks=lm_eval.split(","))
        print(harness.utils.make_table(found))
        return
    group = Group(Ranks(), "cpu")
    samples = prepare_samples(config, tokenizer, group)
    if data is None:
        refuse_difference(then, data_facts(samples), config, directory.path)
    assert samples.validation is not None, "the recipe was checked to have held-out data"
    measured, told = measure(config, model, tokenizer, samples.validation)
    print(
        f"loss {measured.loss:.4f}, perplexity {measured.perplexity:.2f}, "
        f"token accuracy {100 * measured.token_accuracy:.1f} %, over {measured.tokens:,} tokens"
    )
    for entry in told:
        print(f"prompt  {entry['prompt']}\n  answer  {entry['answer']}")
    directory.event("evaluated", step=chosen.step, data=data or config.data.validation_path, **measured.as_metrics())


def _model_of(config: RunConfig, checkpoint: store.Checkpoint) -> Any:
    from aitrain.models.export import trained_model

    model = trained_model(config, {name: checkpoint.read("weights", name) for name in checkpoint.names("weights")})
    on_gpu = torch.cuda.is_available() and config.trainer.accelerator is not Accelerator.cpu
    torch.nn.Module.to(model, "cuda" if on_gpu else "cpu")
    return model.eval()


def measure(
    config: RunConfig, model: Any, tokenizer: Any, held_out: TokenSet, stop: Callable[[], bool] = lambda: False
) -> tuple[Validation, list[dict[str, str]]]:
    """Measure a model on held-out data and let it answer the recipe's prompts, in this process alone.

    Args:
        config: The run.
        model: Its model, in evaluation mode.
        tokenizer: The model's tokenizer.
        held_out: The samples.
        stop: Whether to give up, looked at between batches and tokens.

    Returns:
        What was measured, and the answers.

    Raises:
        Interrupted: It was to give up.
    """
    rows = config.evaluate.micro_batch_sequences or config.trainer.micro_batch_sequences or 1
    task = CausalLM(config, build=lambda: model, adapt=lambda built: built, world=1, accumulation=1)
    task.model = model
    sums = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        batches = EvaluationBatches(held_out, rows, 0, 1, pad_token_id(tokenizer))
        for number, batch in enumerate(batches[k] for k in range(len(batches))):
            if stop():
                raise Interrupted("the evaluation was interrupted")
            moved = {key: value.to(model.device) if torch.is_tensor(value) else value for key, value in batch.items()}
            sums += task.validation_step(moved, number).cpu()
        told = generate(model, tokenizer, config, model.device, stop)
    if stop():
        raise Interrupted("the evaluation was interrupted")
    return Validation.of_sums(sums), told


def measure_late(directory: RunDirectory, step: int, stop: Callable[[], bool]) -> None:
    """Do the last evaluation of a run that was asked to stop in it: its steps are done, so no trainer will do it.

    Args:
        directory: The run.
        step: Its last step.
        stop: Whether to give up.

    Raises:
        Interrupted: It was to give up; the evaluation is still due then.
    """
    config = directory.config()
    done = step in (event.get("step") for event in directory.all_of("evaluated"))
    if not config.has_validation or done:
        return
    chosen = store.choose(directory.checkpoints(config), str(step))
    tokenizer = load_tokenizer(config.model)
    samples = prepare_samples(config, tokenizer, Group(Ranks(), "cpu"))
    assert samples.validation is not None, "the recipe names held-out data"
    found, told = measure(config, _model_of(config, chosen), tokenizer, samples.validation, stop)
    directory.amend_last_metrics(step, found.as_metrics())
    directory.event("evaluated", step=step, **found.as_metrics(), tokens=found.tokens)
    if told:
        directory.event("answers", step=step, answers=told)


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
