"""One step of AdamW over the parameters of a real model: ours, torch, torchao, bitsandbytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from aitrain.bench.ops.case import Case, Function, Inputs, Outputs, Provider, Work

LR, BETAS, EPS, DECAY = 1e-3, (0.9, 0.95), 1e-8, 0.1
TRIAL_STEPS = 3
CLIP = 1.0

Make = Callable[[list[torch.nn.Parameter]], Any]


def llama_1b() -> list[tuple[int, ...]]:
    """Return the shapes of the 146 parameters of Llama 3.2 1B, 1.24 billion numbers."""
    width, inner, narrow = 2048, 8192, 512
    attention = [(width, width), (narrow, width), (narrow, width), (width, width)]
    layer = [*attention, (inner, width), (inner, width), (width, inner), (width,), (width,)]
    return [(128256, width), *(layer * 16), (width,)]


def many_small() -> list[tuple[int, ...]]:
    """Return the shapes of 2000 parameters as a deep vision transformer has them, 295 million numbers."""
    width = 384
    vector = (width,)
    layer = [vector, vector, (3 * width, width), (3 * width,), (width, width), vector, vector, vector]
    layer += [(4 * width, width), (4 * width,), (width, 4 * width), vector]
    return (layer * 167)[:2000]


def cases(small: bool) -> Iterator[Case]:
    """Yield the cases, headline shapes first.

    Args:
        small: Shapes for a CPU.
    """
    if small:
        few = [(512, 512)] * 4 + [(512,)] * 4
        yield _case("8 tensors", few, torch.float32, 28.0, _fp32())
        yield _case("8 tensors, clipped", few, torch.float32, 32.0, _clipped(), CLIP)
        return
    yield _case("Llama 1B, fp32", llama_1b(), torch.float32, 28.0, _fp32())
    yield _case("Llama 1B, bf16, 8-bit states", llama_1b(), torch.bfloat16, 10.06, _eight_bit())
    yield _case("Llama 1B, bf16, bf16 states", llama_1b(), torch.bfloat16, 14.0, _bf16())
    yield _case("Llama 1B, fp32, clipped", llama_1b(), torch.float32, 32.0, _clipped(), CLIP)
    yield _case("2000 tensors, fp32", many_small(), torch.float32, 28.0, _fp32())


def _case(
    name: str,
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    bytes_each: float,
    providers: Sequence[Provider],
    clip: float | None = None,
) -> Case:
    count = sum(torch.Size(shape).numel() for shape in shapes)
    return Case(
        op="adamw",
        shape=name,
        inputs=partial(_inputs, shapes, dtype),
        exact=partial(_exact, clip=clip),
        providers=providers,
        work={"step": Work(bytes=bytes_each * count)},
        trial=_trial,
    )


def _inputs(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> Inputs:
    """Parameters of the size of a step: so that what a step changes shows in them, whatever type they have."""
    found = {}
    for number, shape in enumerate(shapes):
        found[f"p{number}"] = 1e-3 * torch.randn(shape, device=device, dtype=dtype)
        found[f"g{number}"] = 1e-2 * torch.randn(shape, device=device, dtype=dtype)
    return found


def _pairs(inputs: Inputs) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(inputs[f"p{number}"], inputs[f"g{number}"]) for number in range(len(inputs) // 2)]


def _next_gradient(gradient: torch.Tensor) -> torch.Tensor:
    """Another gradient for the next step of a trial: equal ones would hide wrong moments."""
    return gradient.roll(1) * 0.5


def _trial(function: Function, inputs: Inputs) -> Outputs:
    gradients = [gradient.clone() for _, gradient in _pairs(inputs)]  # clipping overwrites what it is given
    outputs = function(inputs)
    for _ in range(TRIAL_STEPS - 1):
        gradients = [_next_gradient(gradient) for gradient in gradients]
        for (_, gradient), value in zip(_pairs(inputs), gradients, strict=True):
            gradient.copy_(value)
        outputs = function(inputs)
    return tuple(output.detach() for output in outputs)


def _exact(inputs: Inputs, clip: float | None) -> Outputs:
    """AdamW in float64, tensor by tensor."""
    pairs = _pairs(inputs)
    scales, gradients = [], [gradient for _, gradient in pairs]
    for _ in range(TRIAL_STEPS):
        norm = sum(float(gradient.double().square().sum()) for gradient in gradients) ** 0.5
        scales.append(1.0 if clip is None else min(1.0, clip / (norm + 1e-6)))
        gradients = [_next_gradient(gradient) for gradient in gradients]
    found = []
    for parameter, gradient in pairs:
        p = parameter.double()
        m, v = torch.zeros_like(p), torch.zeros_like(p)
        for step, scale in enumerate(scales, 1):
            g = gradient.double() * scale
            p.mul_(1 - LR * DECAY)
            m.lerp_(g, 1 - BETAS[0])
            v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            p.addcdiv_(m / (1 - BETAS[0] ** step), (v / (1 - BETAS[1] ** step)).sqrt_().add_(EPS), value=-LR)
            gradient = _next_gradient(gradient)
        found.append(p)
    return tuple(found)


def _stepper(make: Make, clip: float | None = None) -> Function:
    """Return a function that takes one step on the parameters it is given; its states live with it."""
    held: list[Any] = []

    def run(inputs: Inputs) -> Outputs:
        if not held:
            parameters = [torch.nn.Parameter(parameter) for parameter, _ in _pairs(inputs)]
            for parameter, (_, gradient) in zip(parameters, _pairs(inputs), strict=True):
                parameter.grad = gradient
            held.extend((parameters, make(parameters)))
        parameters, optimizer = held
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        return tuple(parameters)

    return run


def _fp32() -> list[Provider]:
    return [
        Provider("ours", partial(_ours, "fp32")),
        Provider("torch fused", partial(_torch, fused=True)),
        Provider("torch foreach", partial(_torch, foreach=True)),
        Provider("bitsandbytes", partial(_bitsandbytes, "AdamW"), "bitsandbytes"),
    ]


def _bf16() -> list[Provider]:
    tolerance = 5e-2  # moments of 8 bits: three steps of rounding to 2^-8
    return [
        Provider("ours", partial(_ours, "bf16"), tolerance=tolerance),
        Provider("torch fused", partial(_torch, fused=True), tolerance=tolerance),
    ]


def _eight_bit() -> list[Provider]:
    tolerance = 1e-1  # codes of 8 bits for both moments: a step is off by some percent, and unbiased
    return [
        Provider("ours", partial(_ours, "8bit"), tolerance=tolerance),
        Provider("torchao", _torchao, "torchao", tolerance=tolerance, compiles=True),
        Provider("bitsandbytes", partial(_bitsandbytes, "AdamW8bit"), "bitsandbytes", tolerance=tolerance),
    ]


def _clipped() -> list[Provider]:
    return [
        Provider("ours", partial(_ours, "fp32", CLIP)),
        Provider("torch fused", partial(_torch, CLIP, fused=True)),
        Provider("torch foreach", partial(_torch, CLIP, foreach=True)),
    ]


def _ours(states: str, clip: float | None = None) -> Function:
    from aitrain.optim.fused_adamw import FusedAdamW

    def make(parameters: list[torch.nn.Parameter]) -> Any:
        return FusedAdamW(parameters, LR, BETAS, EPS, DECAY, states=states, max_grad_norm=clip)

    return _stepper(make)


def _torch(clip: float | None = None, **how: bool) -> Function:
    return _stepper(lambda parameters: torch.optim.AdamW(parameters, LR, BETAS, EPS, DECAY, **how), clip)


def _torchao() -> Function:
    from torchao.optim import AdamW8bit

    def make(parameters: list[torch.nn.Parameter]) -> Any:
        return AdamW8bit(parameters, LR, BETAS, EPS, DECAY, bf16_stochastic_round=True)

    return _stepper(make)


def _bitsandbytes(kind: str) -> Function:
    import bitsandbytes

    return _stepper(lambda parameters: getattr(bitsandbytes.optim, kind)(parameters, LR, BETAS, EPS, DECAY))
