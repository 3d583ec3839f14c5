"""Next-token training of a causal language model: supervised fine-tuning and continued pretraining share this task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from aitrain.config import RunConfig
from aitrain.config.adapter import Lora, Qlora
from aitrain.config.data import Sequences
from aitrain.config.strategy import DeepspeedZero3
from aitrain.config.task import Preference, Sft
from aitrain.data.prepare import tokenizer_content
from aitrain.data.records import read_records
from aitrain.data.samples import Samples, Splits
from aitrain.data.token_samples import IGNORED, TokenSamples, pad_token_id
from aitrain.dist.group import Group
from aitrain.errors import DataError, RecipeError
from aitrain.models.digest import model_digests, text_digest
from aitrain.models.fused_check import FusedCheck
from aitrain.models.fused_head import counted_loss, summed_loss
from aitrain.models.load import Located, load_tokenizer, template_tokens
from aitrain.models.memory import micro_batch_estimate
from aitrain.tasks import prompts
from aitrain.tasks.data_files import source_to_predict
from aitrain.tasks.task import ExportJob, Measured, Note, Room, Task, Watch, unwatched
from aitrain.tasks.token_data import account_of, prepared_tokens, sample_for_people

if TYPE_CHECKING:
    from aitrain.models.fuse import FuseReport

# Shapes: B = sequences of a micro-batch, L = positions, K = positions kept, V = vocabulary.


class CausalLM(Task):
    """A causal language model in training; see `Task`."""

    weight_unit = "tokens"

    @property
    def talks(self) -> bool:  # type: ignore[override]
        """Whether it was trained on conversations."""
        return isinstance(self.config.task, (Sft, Preference))

    def __init__(self, config: RunConfig, accelerator: str = "cpu", located: Located | None = None) -> None:
        super().__init__(config, accelerator, located)
        assert located is not None, "a causal language model starts from a model folder"
        assert isinstance(config.data, Sequences), "the recipe was checked"
        self.located: Located = located
        self.sequence_tokens = config.data.sequence_tokens
        self.tokenizer = load_tokenizer(located)
        self.fused: FuseReport | None = None
        self._fused = False
        self._questions: list[prompts.Question] = []

    # ---------------------------------------------------------------- before training

    def facts(self) -> dict[str, Any]:
        """Return checksums of model, tokenizer and chat template."""
        template = self.tokenizer.chat_template
        return {
            "model": model_digests(self.located.folder),
            "tokenizer": text_digest(tokenizer_content(self.tokenizer)),
            "chat_template": None if template is None else text_digest(template),
        }

    def samples(self, group: Group, watch: Watch = unwatched) -> Splits:
        """Tokenise and mask the data, or find it in the cache; see `Task.samples`.

        Args:
            group: The ranks.
            watch: Called between groups of records.
        """
        found = prepared_tokens(self.config, self.tokenizer, group, watch)
        pad = pad_token_id(self.tokenizer)
        held_out = None if found.validation is None else TokenSamples(found.validation, pad)
        if found.validation is not None and isinstance(self.config.task, Sft):
            context = self.located.facts.context_tokens
            self._questions = prompts.of_held_out(self.config, self.tokenizer, found.validation, context)
        return Splits(TokenSamples(found.train, pad), held_out, found.report, account_of(found))

    def refuse_late(self, splits: Splits) -> None:
        """Refuse a prompt that is too long or cannot be written.

        Args:
            splits: The samples.

        Raises:
            RecipeError: There is one.
        """
        sharded = isinstance(self.config.strategy, DeepspeedZero3) and isinstance(self.config.adapter, Lora)
        if sharded and template_tokens(self.located).trained:
            raise RecipeError(
                f"model.chat_template={self.config.model.chat_template} needs tokens that are trained together with "
                "the adapter, which peft cannot do under strategy=deepspeed_zero3: write strategy=deepspeed_zero2, or "
                "model.chat_template=zephyr, which adds none"
            )
        room, longest = self.located.facts.context_tokens, self.config.evaluate.max_new_tokens
        for prompt in self.config.evaluate.prompts:
            tokens = len(prompts.prompt_ids(prompt, self.tokenizer, self.config)) + longest
            if room is not None and tokens > room:
                raise RecipeError(
                    f"evaluate.prompts: {prompt[:40]!r} and an answer of evaluate.max_new_tokens={longest} need "
                    f"{tokens} tokens, but the model's context has {room}: shorten one of them"
                )

    def remarks(self) -> list[str]:
        """Report the tokens that a template adds, and that they are trained."""
        found, words = template_tokens(self.located), []
        if found.added:
            words.append(f"added to the tokenizer and trained: {', '.join(found.added)}")
        known = [str(self.tokenizer.convert_ids_to_tokens(token)) for token in found.trained]
        others = ", ".join(token for token in known if token not in found.added)
        if others and isinstance(self.config.adapter, Lora):
            words.append(f"trained together with the adapter, because the base model has not learned them: {others}")
        return [f"chat template {self.config.model.chat_template}: {'; '.join(words)}"] if words else []

    def dry_build(self) -> None:
        """Build model and adapter without weights."""
        from aitrain.models.dry_build import dry_build

        dry_build(self.located, self.config.adapter)

    def shown_sample(self, samples: Samples, index: int) -> str:
        """Return a sample with its trained tokens marked.

        Args:
            samples: From `samples`.
            index: Number of the sample.
        """
        assert isinstance(samples, TokenSamples), "samples of this task"
        return sample_for_people(self.tokenizer, samples.tokens, index)

    def parameters(self) -> int | None:
        """Return the number of weights."""
        return self.located.facts.parameters

    def fitting(self, room: Room) -> int | None:
        """Estimate how many sequences fit into memory at once.

        Args:
            room: The memory.
        """
        return micro_batch_estimate(
            self.located.facts,
            self.sequence_tokens,
            bytes_free=room.bytes_free,
            trainable_share=0.01 if isinstance(self.config.adapter, Lora) else 1.0,
            precision_bytes=room.precision_bytes,
            checkpointing=self.config.trainer.activation_checkpointing,
            per_rank_state_bytes=0,
        )

    def smaller(self) -> list[str]:
        """Return how to reduce the memory of a sequence."""
        return [f"data.sequence_tokens={self.sequence_tokens // 2}"]

    def flops_per_unit(self) -> float | None:
        """Estimate the operations of forward and backward per token: 6 per weight, 4 where the weights are frozen.

        Source: Kaplan et al., arXiv:2001.08361, section 2.1 (2 per weight forward, 4 backward; attention not counted);
        with frozen weights the backward pass has no gradient of the weights, which is half of it.
        """
        return (4.0 if isinstance(self.config.adapter, Lora) else 6.0) * (self.located.facts.parameters or 0)

    # ---------------------------------------------------------------- the model

    def build(self) -> nn.Module:
        """Load the model and put the adapter on."""
        from aitrain.models.adapters import apply_adapter
        from aitrain.models.load import build_model

        built = build_model(self.located, isinstance(self.config.adapter, Qlora), torch.float32)
        return apply_adapter(built, self.config.adapter, trained_tokens=template_tokens(self.located).trained)

    def finish(self, model: nn.Module) -> None:
        """Apply aitrain's fused ops, and recompute activations if the recipe says so.

        Args:
            model: What `build` returned.
        """
        if self.config.model.fused_ops.holds(self.accelerator):
            from aitrain.models.fuse import fuse, has_fused_loss

            self.fused = fuse(model)
            self._fused = has_fused_loss(model)
        if self.config.trainer.activation_checkpointing:
            enable: Any = model.gradient_checkpointing_enable
            enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def starting_notes(self, model: nn.Module, device: torch.device) -> Iterator[Note]:
        """Check a fused model, and report what is fused.

        Args:
            model: The model.
            device: Where it is.
        """
        if self.fused is None:
            return
        check = self._check_fused(model, device)
        facts = {"replaced": self.fused.replaced, "left": self.fused.left}
        kept = check is None or check.agrees
        told = "; ".join(self.fused.lines()) if kept else "turned off, see the warning above"
        yield Note("fused", facts | {"check": None if check is None else asdict(check)}, f"fused ops: {told}")

    def _check_fused(self, model: nn.Module, device: torch.device) -> FusedCheck | None:
        """Compare the fused model with its unfused version on a few tokens; None if no loss is fused."""
        if not self._fused:
            return None
        ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
        # through the model's own call, where a sharding strategy has its hooks
        model(input_ids=ids, use_cache=False, fused_targets=ids)
        from aitrain.models.fuse import causal_model

        loss: Any = causal_model(model).fused_loss
        return cast(FusedCheck, loss.check)

    # ---------------------------------------------------------------- steps

    def loss_sum(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the sum of the losses over the trained tokens.

        Args:
            model: The model.
            batch: `input_ids` and `labels`, int64 `(B, L)`, and `predicting`, int64 `(K,)`: the positions.
        """
        return self._losses(model, batch, summed_loss)

    def measure(self, model: nn.Module, batch: Mapping[str, Any]) -> Measured:
        """Measure one batch of held-out data.

        Args:
            model: The model.
            batch: As in `loss_sum`.

        Returns:
            Sum of the losses, trained tokens, tokens predicted rightly.
        """
        loss, right, tokens = self._losses(model, batch, counted_loss)
        return Measured(torch.stack([loss, tokens, right]))

    def metrics(self, found: Measured) -> dict[str, float]:
        """Return loss (mean negative log-likelihood in nats), perplexity and the token accuracy.

        Args:
            found: Sums over all batches.
        """
        total, tokens, right = found.sums.tolist()
        loss = total / tokens
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "token_accuracy": right / tokens}

    def sentence(self, metrics: Mapping[str, float]) -> str:
        """Return metrics in readable form.

        Args:
            metrics: From `metrics`.
        """
        return (
            f"loss {metrics['loss']:.4f}, perplexity {metrics['perplexity']:.2f}, "
            f"token accuracy {100 * metrics['token_accuracy']:.1f} %"
        )

    def _losses(
        self,
        model: nn.Module,
        batch: Mapping[str, Any],
        of_logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Run the model down to its losses: through its fused loss if it has one, else through logits."""
        if not self._fused:
            return of_logits(*self.trained_logits(model, batch))
        given, targets = self._kept(batch)
        out: torch.Tensor = model(**given, fused_targets=targets, valid_rows=batch.get("trained_tokens"))
        return out

    def trained_logits(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the model and return logits only where some sequence of the micro-batch has a trained next token.

        Args:
            model: The model.
            batch: As in `loss_sum`.

        Returns:
            Logits `(B, K, V)` and the tokens they should predict, `(B, K)`, `-100` where there is no loss.
        """
        given, targets = self._kept(batch)
        return model(**given).logits, targets

    def _kept(self, batch: Mapping[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
        """Return the model's arguments and the targets at the positions that some sequence is trained on.

        The head is most of a small model's work, and a prompt's logits are never used. Sequences are padded on the
        right, where causal attention never looks, so no attention mask is needed.
        """
        positions = batch["predicting"]
        targets = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)[:, positions]
        return {"input_ids": batch["input_ids"], "logits_to_keep": positions, "use_cache": False}, targets

    def answers(self, model: nn.Module, device: torch.device, stop: Callable[[], bool]) -> list[dict[str, str]]:
        """Complete the recipe's prompts, with greedy decoding.

        Args:
            model: The model.
            device: Where it is.
            stop: Whether to end at the next token.
        """
        questions = [*prompts.asked(self.config, self.tokenizer), *self._questions]
        return prompts.generate(model, self.tokenizer, self.config, questions, device, stop)

    # ---------------------------------------------------------------- afterwards

    def trained_model(self, weights: Mapping[str, torch.Tensor]) -> nn.Module:
        """Build the model and load the trained tensors.

        Args:
            weights: Trained tensors of a checkpoint.
        """
        from aitrain.models.export import trained_model

        return trained_model(self.config, self.located, weights)

    def export(self, weights: Mapping[str, torch.Tensor], job: ExportJob) -> None:
        """Write a Hugging Face folder.

        Args:
            weights: Trained tensors of a checkpoint.
            job: Destination, and facts for its model card.
        """
        from aitrain.models.export import Card, export_folder

        card = Card(job.run, step=job.step, tokens=job.units, loss_before=job.before, loss_after=job.after)
        ends = prompts.end_tokens(self.config, self.tokenizer)
        job.go_on()
        model: Any = self.trained_model(weights)
        export_folder(self.config, self.located, model, job.to, job.merge, card, job.go_on, job.flat, ends)

    def predictions(self, model: nn.Module, path: Path, device: torch.device) -> Iterator[dict[str, Any]]:
        """Yield the model's answer to the `prompt` of each record of a file.

        Args:
            model: From `trained_model`.
            path: A file of records with a prompt.
            device: Where the model is.

        Raises:
            DataError: A record has no prompt.
        """
        for where, record in read_records(source_to_predict(path, self.config.data, "prompt")):
            if isinstance(record, DataError):
                raise record
            prompt = record.get("prompt")
            if not isinstance(prompt, str):
                raise DataError(f"{where}: no key 'prompt' with a text (keys here: {', '.join(map(repr, record))})")
            question = prompts.Question(prompt, prompts.prompt_ids(prompt, self.tokenizer, self.config))
            yield from prompts.generate(model, self.tokenizer, self.config, [question], device)

    def harness_model(self, harness: Any, model: nn.Module) -> Any:
        """Return the model wrapped for the LM evaluation harness.

        Args:
            harness: The package `lm_eval`.
            model: From `trained_model`.
        """
        return harness.models.huggingface.HFLM(pretrained=model, tokenizer=self.tokenizer)
