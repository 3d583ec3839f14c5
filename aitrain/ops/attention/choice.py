"""Which backend attends, and why each better one was passed over."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import torch

from aitrain.errors import RecipeError
from aitrain.ops.attention import flex, sdpa, varlen
from aitrain.ops.attention.documents import Documents
from aitrain.ops.attention.pattern import Pattern
from aitrain.ops.backend import triton_fault

_log = logging.getLogger(__name__)
SWITCH = "AITRAIN_ATTENTION"
"""Environment variable: `auto` (the default) or the name in `FORCED` of the one backend that may run."""

HALF = (torch.float16, torch.bfloat16)
Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Documents, Pattern], torch.Tensor]


@dataclass(frozen=True)
class Request:
    """What a choice rests on: nothing here changes from step to step."""

    device: str
    dtype: torch.dtype
    heads: int
    key_heads: int
    width: int
    value_width: int
    windowed: bool = False
    softcap: bool = False
    scaled: bool = False
    dropout: bool = False
    capability: tuple[int, int] | None = None
    """Of an NVIDIA GPU: (9, 0) is Hopper."""

    amd: bool = False


@dataclass(frozen=True)
class Backend:
    """A way to attend, and on what conditions."""

    name: str
    run: Run
    function: tuple[str, str] | None = None
    """Module and name of the function it calls; None = always there."""

    gpu_only: bool = False
    dtypes: tuple[torch.dtype, ...] | None = None
    oldest: tuple[int, int] | None = None
    """Least compute capability of an NVIDIA GPU."""

    newest: tuple[int, int] | None = None
    amd: bool = True
    """Whether AMD's GPUs are served."""

    width_step: int = 1
    """Heads are a multiple of this wide."""

    least_width: int = 1
    most_width: int | None = None
    one_width: bool = False
    """Whether values must be as wide as keys."""

    dropout: bool = True
    options: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """What the request may ask -> parameters the function must have for it, or none it could have."""

    needs_triton: bool = False


NEVER = ("",)
FLASH_OPTIONS = (("windowed", ("window_size",)), ("softcap", ("softcap",)))
BACKENDS = (
    Backend(
        "flash-attn 3",
        partial(varlen.flash, 3),
        varlen.FLASH[3],
        gpu_only=True,
        dtypes=HALF,
        oldest=(9, 0),
        newest=(9, 0),
        amd=False,
        width_step=8,
        most_width=256,
        one_width=True,
        dropout=False,
        options=FLASH_OPTIONS,
    ),
    Backend(
        "flash-attn 2",
        partial(varlen.flash, 2),
        varlen.FLASH[2],
        gpu_only=True,
        dtypes=HALF,
        oldest=(8, 0),
        width_step=8,
        most_width=256,
        one_width=True,
        options=FLASH_OPTIONS,
    ),
    Backend(
        "varlen",
        varlen.torchs,
        varlen.TORCHS,
        gpu_only=True,
        dtypes=HALF,
        oldest=(8, 0),
        amd=False,
        width_step=8,
        most_width=256,
        one_width=True,
        dropout=False,
        options=(
            ("windowed", ("window_size",)),
            ("grouped", ("enable_gqa",)),
            ("scaled", ("scale",)),
            ("softcap", NEVER),
        ),
    ),
    Backend(
        "flex",
        flex.attend,
        gpu_only=True,
        dtypes=(*HALF, torch.float32),
        oldest=(7, 0),
        least_width=16,
        dropout=False,
        needs_triton=True,
    ),
    Backend("sdpa", sdpa.in_batches),
    Backend("documents", sdpa.one_by_one),
)
"""Best first. The last is never chosen unasked: the one before serves everything."""

FORCED = {
    "flash": ("flash-attn 3", "flash-attn 2"),
    "varlen": ("varlen",),
    "flex": ("flex",),
    "sdpa": ("sdpa",),
    "documents": ("documents",),
}


@dataclass(frozen=True)
class Choice:
    """The backend that attends."""

    backend: Backend
    passed_over: tuple[tuple[str, str], ...]
    """Better ones, and why not."""

    @property
    def name(self) -> str:
        """Name of the backend."""
        return self.backend.name


def request_of(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pattern: Pattern) -> Request:
    """Sum up what is asked.

    Args:
        q: Queries, shape (T, H, D).
        k: Keys, shape (T, Hk, D).
        v: Values, shape (T, Hk, Dv).
        pattern: What a query sees.

    Returns:
        What `backend_for` decides on.
    """
    amd = q.is_cuda and torch.version.hip is not None
    return Request(
        q.device.type,
        q.dtype,
        q.shape[1],
        k.shape[1],
        q.shape[2],
        v.shape[2],
        windowed=pattern.window is not None,
        softcap=pattern.softcap is not None,
        scaled=pattern.scale is not None,
        dropout=pattern.dropout > 0,
        capability=torch.cuda.get_device_capability(q.device) if q.is_cuda and not amd else None,
        amd=amd,
    )


def backend_for(request: Request) -> Choice:
    """Choose the best backend that is there; `AITRAIN_ATTENTION` may ask for one. Said once in the log.

    Args:
        request: What is asked.

    Returns:
        The backend and why better ones were passed over.

    Raises:
        RecipeError: `AITRAIN_ATTENTION` has an unknown value, or names a backend that cannot do this here.
    """
    return _chosen(request, os.environ.get(SWITCH, "auto"))


@cache
def _chosen(request: Request, wanted: str) -> Choice:
    if wanted != "auto" and wanted not in FORCED:
        raise RecipeError(f"{SWITCH}={wanted} is unknown: write auto, {', '.join(FORCED)}")
    allowed = None if wanted == "auto" else FORCED[wanted]
    passed_over: list[tuple[str, str]] = []
    for backend in BACKENDS:
        if allowed is not None and backend.name not in allowed:
            continue
        fault = next(faults(backend, request), None)
        if fault is None:
            choice = Choice(backend, tuple(passed_over))
            _say(choice.name, choice.passed_over, wanted)
            return choice
        passed_over.append((backend.name, fault))
    why = "; ".join(f"{name}: {fault}" for name, fault in passed_over)
    raise RecipeError(f"{SWITCH}={wanted} cannot be used here ({why}): remove {SWITCH}, or write {SWITCH}=sdpa")


@cache  # once for each different sentence, not for each shape
def _say(name: str, passed_over: tuple[tuple[str, str], ...], wanted: str) -> None:
    why = f"{SWITCH}={wanted}" if wanted != "auto" else "; ".join(f"not {other}: {f}" for other, f in passed_over)
    _log.info("attention of packed sequences: %s%s", name, f" ({why})" if why else "")


def faults(backend: Backend, request: Request) -> Iterator[str]:
    """Say what keeps a backend from serving a request, the plainest reason first.

    Args:
        backend: One of `BACKENDS`.
        request: What is asked.

    Yields:
        One condition that does not hold.
    """
    if backend.gpu_only and request.device != "cuda":
        yield f"needs a GPU, and this is the {request.device}"
    if request.amd and not backend.amd:
        yield "not made for AMD GPUs"
    if request.capability is not None:
        if backend.oldest is not None and request.capability < backend.oldest:
            yield f"needs compute capability {_version(backend.oldest)}, this GPU has {_version(request.capability)}"
        elif backend.newest is not None and request.capability > backend.newest:
            yield f"made for compute capability {_version(backend.newest)}, this GPU has {_version(request.capability)}"
    if backend.dtypes is not None and request.dtype not in backend.dtypes:
        yield f"cannot compute in {str(request.dtype).removeprefix('torch.')}"
    yield from _shape_faults(backend, request)
    if request.dropout and not backend.dropout:
        yield "has no dropout"
    if backend.needs_triton and (fault := triton_fault()) is not None:
        yield fault
    if backend.function is not None:
        function, why = varlen.found(*backend.function)
        if function is None:
            yield why
            return
        asked = {
            "windowed": request.windowed,
            "softcap": request.softcap,
            "grouped": request.heads != request.key_heads,
            "scaled": request.scaled,
        }
        for option, parameters in backend.options:
            if asked[option] and not varlen.takes(function, *parameters):
                yield f"has no {MEANING[option]}"


MEANING = {
    "windowed": "sliding window",
    "softcap": "cap on the scores",
    "grouped": "shared key heads",
    "scaled": "scale of its own",
}


def _shape_faults(backend: Backend, request: Request) -> Iterator[str]:
    width = request.width
    if width % backend.width_step:
        yield f"needs heads of a multiple of {backend.width_step}, these are {width} wide"
    if width < backend.least_width:
        yield f"needs heads of at least {backend.least_width}, these are {width} wide"
    if backend.most_width is not None and width > backend.most_width:
        yield f"takes heads up to {backend.most_width}, these are {width} wide"
    if backend.one_width and width != request.value_width:
        yield f"needs values as wide as keys, these are {request.value_width} and {width} wide"


def _version(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
