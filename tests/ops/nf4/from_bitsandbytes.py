"""Asks bitsandbytes for 4-bit weights and what they stand for; as a program it writes the answers into a file.

Made with bitsandbytes 0.50.2 on a CPU: `pip install bitsandbytes==0.50.2`, then `python -m ops.nf4.from_bitsandbytes`
in the folder `tests`. The tests read the file, and where bitsandbytes is installed they ask it again as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

FILE = Path(__file__).with_suffix(".safetensors")


@dataclass(frozen=True)
class Wish:
    """A weight to quantise."""

    shape: tuple[int, ...]
    kind: str
    nested: bool
    dtype: str
    block: int


WISHES = [
    Wish((100, 100), "nf4", True, "bfloat16", 32),  # 313 scales: more than one nested block, and a broken last one
    Wish((33, 20), "nf4", False, "float16", 64),
    Wish((7, 9), "nf4", True, "float32", 64),  # an odd number of weights
    Wish((16, 24), "fp4", True, "bfloat16", 128),
    Wish((5, 9), "fp4", False, "float32", 64),
]


def ask(wish: Wish, seed: int) -> tuple[Any, torch.Tensor]:
    """Return bitsandbytes' parameter and its answer."""
    import bitsandbytes
    from bitsandbytes import functional

    torch.manual_seed(seed)
    weight = torch.randn(wish.shape, dtype=getattr(torch, wish.dtype), device="cpu")
    packed, state = functional.quantize_4bit(
        weight, blocksize=wish.block, compress_statistics=wish.nested, quant_type=wish.kind
    )
    parameter = bitsandbytes.nn.Params4bit(packed, quant_state=state, requires_grad=False, quant_type=wish.kind)
    return parameter, functional.dequantize_4bit(packed, state)


def write() -> None:
    """Write the answers to all wishes."""
    from safetensors.torch import save_file

    tensors, words = {}, {}
    for number, wish in enumerate(WISHES):
        parameter, answer = ask(wish, number)
        state = parameter.quant_state
        found = {"packed": parameter.detach().as_subclass(torch.Tensor), "absmax": state.absmax, "code": state.code}
        if state.nested:
            found |= {"inner": state.state2.absmax, "table": state.state2.code, "offset": state.offset}
        tensors |= {f"{number}.{name}": value.clone() for name, value in {**found, "answer": answer}.items()}
        words[str(number)] = json.dumps(asdict(wish) | {"inner": state.state2.blocksize if state.nested else 0})
    save_file(tensors, FILE, metadata=words)


def stored() -> Iterator[tuple[Any, torch.Tensor]]:
    """Yield what `ask` returned when the file was written; the parameter only looks like theirs."""
    from safetensors import safe_open

    with safe_open(FILE, "pt") as file:
        for number, text in sorted(file.metadata().items()):
            words = json.loads(text)
            held = {
                name.split(".", 1)[1]: file.get_tensor(name).to(torch.get_default_device())
                for name in file.keys()  # noqa: SIM118
                if name.startswith(f"{number}.")
            }
            inner = SimpleNamespace(absmax=held.get("inner"), code=held.get("table"), blocksize=words["inner"])
            state = SimpleNamespace(
                absmax=held["absmax"],
                code=held["code"],
                shape=torch.Size(words["shape"]),
                dtype=getattr(torch, words["dtype"]),
                blocksize=words["block"],
                quant_type=words["kind"],
                nested=words["nested"],
                offset=held.get("offset"),
                state2=inner if words["nested"] else None,
            )
            weight = torch.nn.Parameter(held["packed"], requires_grad=False)
            weight.quant_state = state
            yield weight, held["answer"]


if __name__ == "__main__":
    write()
