"""Adapted queries, keys and values, and an adapted MLP: ours, peft, the plain way, and the frozen layers alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from aitrain.bench.ops.case import Case, Function, Inputs, Outputs, Provider, Work, exact_by_autograd, plain

SHAPES = tuple((8192, 4096, 4096, 1024, 14336, rank) for rank in (16, 64, 8))
"""Tokens, width, width of the queries, of keys and values, of the MLP, rank; the last but for the rank: Llama 8B."""

SMALL_SHAPES = ((256, 256, 256, 64, 512, 8),)
SCALING = 2.0


@dataclass(frozen=True)
class Setting:
    """Layers, each with its inputs and outputs, and how they are adapted."""

    tokens: int
    layers: dict[str, tuple[int, int]]
    rank: int
    """0 = frozen layers without adapters."""

    @property
    def is_mlp(self) -> bool:
        """Whether the layers are a gated MLP, or projections of the same input."""
        return "down" in self.layers

    @property
    def leaves(self) -> tuple[str, ...]:
        """Inputs that want gradients."""
        adapters = tuple(f"{part}_{name}" for name in self.layers for part in "ab") if self.rank else ()
        return ("x", *adapters)

    @property
    def upstream(self) -> tuple[str, ...]:
        """Gradients of the outputs."""
        return ("above_down",) if self.is_mlp else tuple(f"above_{name}" for name in self.layers)


def cases(small: bool) -> Iterator[Case]:
    """Yield the cases, headline shapes first; layers without adapters show the cost of the adapters.

    Args:
        small: Shapes for a CPU.
    """
    alone: set[tuple[int, ...]] = set()
    for tokens, width, queries, keys, inner, rank in SMALL_SHAPES if small else SHAPES:
        attention = {"q": (width, queries), "k": (width, keys), "v": (width, keys)}
        mlp = {"gate": (width, inner), "up": (width, inner), "down": (inner, width)}
        sizes = (tokens, width, queries, keys, inner)
        for layers in (attention, mlp):
            yield _case(Setting(tokens, layers, rank), sizes)
        if sizes not in alone:
            alone.add(sizes)
            for layers in (attention, mlp):
                yield _case(Setting(tokens, layers, 0), sizes)


def _case(setting: Setting, sizes: Sequence[int]) -> Case:
    formula = partial(_formula, setting)
    tokens, width, queries, keys, inner = sizes
    shape = f"{tokens}x{width} to {inner}" if setting.is_mlp else f"{tokens}x{width} to {queries}+{keys}+{keys}"
    providers = [Provider("ours", partial(_ours, setting)), *plain(formula)]
    return Case(
        op=f"{'lora' if setting.rank else 'frozen'} {'mlp' if setting.is_mlp else 'qkv'}",
        shape=f"{shape}, rank {setting.rank}" if setting.rank else shape,
        inputs=partial(_inputs, setting),
        exact=exact_by_autograd(formula, setting.leaves, setting.upstream),
        providers=[*providers, Provider("PEFT", partial(_peft, setting))] if setting.rank else providers,
        work=_work(setting),
        leaves=setting.leaves,
        upstream=setting.upstream,
    )


def _work(setting: Setting) -> dict[str, Work]:
    """Return the products: of frozen layers two (output, dx), of adapters two forward and four backward."""
    base = sum(2 * setting.tokens * k * n for k, n in setting.layers.values())
    adapters = sum(2 * setting.tokens * setting.rank * (k + n) for k, n in setting.layers.values())
    forward, backward = base + adapters, base + 2 * adapters
    return {
        "forward": Work(flops=forward),
        "backward": Work(flops=backward),
        "both": Work(flops=forward + backward),
    }


def _inputs(setting: Setting, device: torch.device) -> Inputs:
    """All of them normal, scaled so that outputs are about 1."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype) * shape[-1] ** -0.5

    width = next(iter(setting.layers.values()))[0]
    found = {"x": torch.randn(setting.tokens, width, device=device, dtype=dtype)}
    for name, (k, n) in setting.layers.items():
        found[f"weight_{name}"] = drawn(n, k)
        if setting.rank:
            found |= {f"a_{name}": drawn(setting.rank, k), f"b_{name}": drawn(n, setting.rank)}
        if f"above_{name}" in setting.upstream:
            found[f"above_{name}"] = torch.randn(setting.tokens, n, device=device, dtype=dtype)
    return found


def _through(setting: Setting, inputs: Inputs, layer: Any) -> Outputs:
    """Return the outputs, from the output of each layer."""
    if not setting.is_mlp:
        return tuple(layer(name, inputs["x"]) for name in setting.layers)
    return (layer("down", F.silu(layer("gate", inputs["x"])) * layer("up", inputs["x"])),)


def _formula(setting: Setting, inputs: Inputs) -> Outputs:
    """What peft's layers compute."""

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        out = F.linear(x, inputs[f"weight_{name}"])
        if not setting.rank:
            return out
        return out + F.linear(F.linear(x, inputs[f"a_{name}"]), inputs[f"b_{name}"]) * SCALING

    return _through(setting, inputs, layer)


def _ours(setting: Setting) -> Function:
    from aitrain.ops.lora.gated import lora_mlp
    from aitrain.ops.lora.op import lora_linears
    from aitrain.ops.lora.projection import Projection

    def run(inputs: Inputs) -> Outputs:
        given = [
            Projection(inputs[f"weight_{name}"], None, inputs.get(f"a_{name}"), inputs.get(f"b_{name}"), SCALING)
            for name in setting.layers
        ]
        if not setting.is_mlp:
            return lora_linears(inputs["x"], given)
        gate, up, down = given
        return (lora_mlp(inputs["x"], gate, up, down),)

    return run


def _peft(setting: Setting) -> Function:
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear

    options: dict[str, Any] = {"r": setting.rank, "lora_alpha": SCALING * setting.rank}
    layers: dict[str, Any] = {}
    for name, (k, n) in setting.layers.items():
        base = torch.nn.Linear(k, n, bias=False, device="meta")
        base.weight.requires_grad_(False)
        made = Linear(base, "default", config=LoraConfig(**options), **options)
        for inside in (base, made.lora_A["default"], made.lora_B["default"]):
            del inside.weight  # tensors of the benchmark take its place, so that their gradients can be asked for
        layers[name] = made

    def run(inputs: Inputs) -> Outputs:
        for name, made in layers.items():
            made.base_layer.weight = inputs[f"weight_{name}"]
            made.lora_A["default"].weight, made.lora_B["default"].weight = inputs[f"a_{name}"], inputs[f"b_{name}"]
        return _through(setting, inputs, lambda name, x: layers[name](x))

    return run
