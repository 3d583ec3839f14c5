"""Loads the trained tensors of a checkpoint into a rebuilt model: weights and persistent buffers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from aitrain.errors import ModelError


def with_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], path: str | None = None) -> nn.Module:
    """Load trained tensors into a model and return it in evaluation mode.

    Args:
        model: A model as it was trained.
        weights: Trained tensors, named as in `named_parameters()`, and persistent buffers, as in `named_buffers()`.
        path: `model.path`, for messages.

    Raises:
        ModelError: A name is missing, unknown or of another shape.
    """
    what = "the model" if path is None else f"the model of model.path={path}"
    parameters, kept = dict(model.named_parameters()), model.state_dict(keep_vars=True)
    own = parameters | {name: buffer for name, buffer in model.named_buffers() if name in kept}
    unknown = sorted(set(weights) - set(own))
    missing = sorted(name for name, weight in parameters.items() if weight.requires_grad and name not in weights)
    if unknown or missing:
        kind, names = ("unknown to", unknown) if unknown else ("missing for", missing)
        raise ModelError(
            f"{len(names)} trained tensors are {kind} {what}, first {names[0]}: the checkpoint belongs to another "
            "model or adapter"
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            if tensor.shape != own[name].shape:
                raise ModelError(
                    f"{name} has shape {tuple(tensor.shape)} in the checkpoint, but {tuple(own[name].shape)} in "
                    f"{what}: the checkpoint belongs to another model or adapter"
                )
            own[name].copy_(tensor)
    return model.eval()
