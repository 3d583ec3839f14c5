"""The data audit of `aitrain check`: what will be trained, counted and shown."""

from __future__ import annotations

import sys

from aitrain.config import RunConfig
from aitrain.data.batches import total_steps
from aitrain.dist.group import Group
from aitrain.dist.ranks import Ranks
from aitrain.models.load import load_tokenizer
from aitrain.trainer.samples import prepare_samples


def audit(config: RunConfig, show: int) -> None:
    """Prepare the data and print what it holds.

    Args:
        config: A checked configuration.
        show: Samples to print with their trained tokens coloured.

    Raises:
        DataError: The data is refused.
    """
    from aitrain.data.prepare import sample_text

    tokenizer = load_tokenizer(config.model)
    data = prepare_samples(config, tokenizer, Group(Ranks(), "cpu"))
    print(data.report.text())
    batch = config.trainer.global_batch_sequences
    steps, samples = total_steps(len(data.train), batch, config.trainer.max_steps, config.trainer.max_epochs)
    print(f"{steps} steps of {batch} sequences: {samples:,} samples, {samples / len(data.train):.2f} epochs")
    for index in range(min(show, len(data.train))):
        ids, trained = data.train[index]
        coloured = sys.stdout.isatty()
        how = "coloured" if coloured else "in [[ ]]"
        print(f"\nsample {index}, its trained tokens {how}:\n{sample_text(tokenizer, ids, trained, coloured)}")
