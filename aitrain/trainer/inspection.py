"""The audit of `aitrain check`: what `train` would refuse is found without loading weights, and the data is shown."""

from __future__ import annotations

import sys
from typing import Any

from aitrain.config import RunConfig
from aitrain.data.batches import total_steps
from aitrain.data.prepare import sample_text
from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.models.dry_build import dry_build
from aitrain.models.load import load_tokenizer
from aitrain.preflight import usable_devices
from aitrain.trainer.fit import choose_accelerator
from aitrain.trainer.late_faults import refuse_late_faults
from aitrain.trainer.resources import micro_batch
from aitrain.trainer.samples import prepare_samples


def audit(config: RunConfig, show: int) -> None:
    """Build what can be built without weights, prepare the data and print what it holds.

    Args:
        config: A configuration whose recipe, machine and files were checked.
        show: Samples to print with their trained tokens coloured.

    Raises:
        RecipeError: The run could not be trained as asked.
        ModelError: The model or its tokenizer cannot be used.
        DataError: The data is refused.
    """
    accelerator = choose_accelerator(config)
    tokenizer = load_tokenizer(config.model)
    dry_build(config.model, config.adapter)
    count = usable_devices(config)
    _audit_data(config, tokenizer, show)
    micro_batch(config, Ranks(world=count, local_world=count), accelerator, Group(Ranks(), "cpu"))


def _audit_data(config: RunConfig, tokenizer: Any, show: int) -> None:
    found = prepare_samples(config, tokenizer, Group(Ranks(), "cpu"))
    print(found.report.text())
    batch = config.trainer.global_batch_sequences
    steps, samples = total_steps(len(found.train), batch, config.trainer.max_steps, config.trainer.max_epochs)
    print(f"{steps} steps of {batch} sequences: {samples:,} samples, {samples / len(found.train):.2f} epochs")
    refuse_late_faults(config, tokenizer, steps)
    for index in range(min(show, len(found.train))):
        ids, trained = found.train[index]
        coloured = sys.stdout.isatty()
        how = "coloured" if coloured else "in [[ ]]"
        print(f"\nsample {index}, its trained tokens {how}:\n{sample_text(tokenizer, ids, trained, coloured)}")
