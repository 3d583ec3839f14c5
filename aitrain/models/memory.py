"""Estimates how many sequences fit into memory at once. No torch."""

from __future__ import annotations

from aitrain.models.folder import ModelFacts

PER_WIDTH = 14
PER_MLP_WIDTH = 6
"""Kept for the backward pass of one block, per token: numbers of the width of the residual stream and of the MLP.

Residual stream, both norms with their float32 copies, queries, attention output, gate, up, activation and product, with
room for the gradients that are alive at once. Fitted to Llama blocks: the peaks measured by torch's profiler in float32
and under bfloat16 autocast are 65 to 100 % of the estimate (tests/models/test_memory.py).
"""

LOGIT_COPIES = 3
"""Copies of the logits alive at once in the loss, of 4 bytes each: float32 logits, log-probabilities, gradient."""


def activation_bytes(facts: ModelFacts, sequence_tokens: int, precision_bytes: int, checkpointing: bool) -> int:
    """Estimate the bytes that one sequence needs in addition to weights and optimizer state.

    ``tokens * (layers * kept + logits)`` with ``kept = bytes * (14 * width + 2 * key_value_width + 6 * mlp)`` per
    block, or ``bytes * width`` per block and one whole block when activations are recomputed;
    ``logits = vocab * (bytes + 3 * 4)``.
    Attention scores are not kept (scaled dot-product attention recomputes them).

    Args:
        facts: Sizes of the model.
        sequence_tokens: Length of the sequence, in tokens.
        precision_bytes: Bytes of one activation: 4 in fp32, 2 in bf16.
        checkpointing: Whether activations are recomputed in the backward pass.

    Returns:
        Bytes; 0 when the model's sizes are not known.

    Source: Korthikanti et al., arXiv:2205.05198, section 4, with a gated MLP and measured constants.
    """
    width, layers, vocab, mlp = facts.hidden_size, facts.layers, facts.vocab_size, facts.intermediate_size
    if width is None or layers is None or vocab is None or mlp is None:
        return 0
    block = precision_bytes * (PER_WIDTH * width + 2 * facts.key_value_share * width + PER_MLP_WIDTH * mlp)
    blocks = layers * precision_bytes * width + block if checkpointing else layers * block
    logits = vocab * (precision_bytes + 4 * LOGIT_COPIES)
    return int(sequence_tokens * (blocks + logits))


def micro_batch_estimate(
    facts: ModelFacts,
    sequence_tokens: int,
    bytes_free: int,
    trainable_share: float,
    precision_bytes: int,
    checkpointing: bool,
    per_rank_state_bytes: int,
) -> int:
    """Estimate how many sequences fit at once; an estimate, not a promise.

    Args:
        facts: Sizes of the model.
        sequence_tokens: Length of the longest sequence, in tokens.
        bytes_free: Memory of the device that may be used before the model is loaded, in bytes.
        trainable_share: Trained share of the weights; below 1 the adapter's own activations are added (an eighth).
        precision_bytes: Bytes of one activation: 4 in fp32, 2 in bf16.
        checkpointing: Whether activations are recomputed in the backward pass.
        per_rank_state_bytes: Weights, gradients and optimizer state on one rank, in bytes.

    Returns:
        Sequences, 0 when not even one fits; 1 when the model's sizes are not known.
    """
    one = activation_bytes(facts, sequence_tokens, precision_bytes, checkpointing)
    if one == 0:
        return 1
    if trainable_share < 1:
        one += one // 8
    left = bytes_free - per_rank_state_bytes
    if precision_bytes < 4:
        # the forward pass works on a copy of the weights in the lower precision
        left -= precision_bytes * (facts.parameters or 0)
    return max(0, left // one)
