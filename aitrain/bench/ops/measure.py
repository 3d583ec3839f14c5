"""One case: every provider is checked against the exact answer; correct ones are timed side by side."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from aitrain.bench.ops.case import TOLERANCE, Case, Function, Inputs, Outputs, Provider, gradients, own_inputs, try_out
from aitrain.bench.ops.ceilings import Ceilings
from aitrain.bench.ops.gate import largest_error
from aitrain.bench.ops.peak import peak_bytes
from aitrain.bench.ops.stopwatch import Launch, Times, interleave, quantile
from aitrain.bench.ops.tables import Row

OURS = "ours"


@dataclass(frozen=True)
class Bench:
    """Where and how a case is measured."""

    device: torch.device
    ceilings: Ceilings
    wanted: Callable[[Provider], str | None]
    """Why a provider is left out, or None."""

    seconds: float = 3.0
    """Per mode."""


@dataclass(frozen=True)
class _Ready:
    """A correct provider."""

    provider: Provider
    function: Function
    inputs: Inputs
    error: float


def run_case(case: Case, bench: Bench) -> list[Row]:
    """Return a row for each provider and mode.

    Args:
        case: What to compare.
        bench: Where and how.
    """
    torch._dynamo.reset()  # else the shapes of earlier cases count towards its limit of recompilations
    shared = case.inputs(bench.device)
    exact = case.exact(shared)
    ready: list[_Ready] = []
    rows: list[Row] = []
    for provider in case.providers:
        verdict = _examine(case, provider, shared, exact, bench)
        if isinstance(verdict, Row):
            rows.append(verdict)
        else:
            ready.append(verdict)
    del exact
    for mode in case.work:
        rows += _time(case, mode, ready, shared, bench)
    del shared, ready
    _free(bench.device)
    return rows


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _examine(case: Case, provider: Provider, shared: Inputs, exact: Outputs, bench: Bench) -> _Ready | Row:
    """Return the provider, ready to be timed, or why it is not."""
    row = Row(case.op, case.shape, "-", provider.name, "left out")
    why = bench.wanted(provider)
    if why is not None:
        return replace(row, note=why)
    dtype = next(value.dtype for value in shared.values() if value.is_floating_point())
    tolerance = provider.tolerance or TOLERANCE[dtype]
    try:
        function = provider.load()
        mine = own_inputs(case, shared, tuple(shared) if case.trial else provider.overwrites)
        error = largest_error(try_out(case, function, mine), exact)
        del mine
        if error > tolerance:
            return replace(row, verdict="WRONG", relative_error=error, note=f"at most {tolerance:g} is right")
        function = provider.load() if case.trial else function  # a trial leaves its own states
        return _Ready(provider, function, own_inputs(case, shared, provider.overwrites), error)
    except ImportError as fault:
        return replace(row, verdict="absent", note=str(fault))
    except Exception as fault:  # a rival may fail in any way: that is its result here
        if provider.name == OURS and bench.device.type == "cpu":
            raise
        return replace(row, verdict="failed", note=_in_short(fault))
    finally:
        _free(bench.device)


def _in_short(fault: Exception) -> str:
    first = (str(fault).strip() or "no message").splitlines()[0]
    return f"{type(fault).__name__}: {first[:160]}"


def _launch(case: Case, mode: str, who: _Ready, shared: Inputs) -> Launch:
    """Return the timed function, and its setup."""

    def refill() -> None:
        for name in who.provider.overwrites:
            who.inputs[name].data.copy_(shared[name])  # past the version counter: nothing is saved for a backward yet

    def step(_: object) -> Outputs:
        return who.function(who.inputs)

    def forward(_: object) -> Outputs:
        with torch.no_grad():
            return who.function({name: value.detach() for name, value in who.inputs.items()})

    def both(_: object) -> Outputs:
        outputs = who.function(who.inputs)
        return (*outputs, *gradients(case, who.inputs, outputs))

    def until_backward() -> Outputs:
        refill()
        return who.function(who.inputs)

    def backward(outputs: Outputs) -> Outputs:
        return gradients(case, who.inputs, outputs)

    if mode == "backward":
        return Launch(backward, until_backward)
    return Launch({"both": both, "forward": forward, "step": step}[mode], refill)


def _time(case: Case, mode: str, ready: list[_Ready], shared: Inputs, bench: Bench) -> list[Row]:
    rows: list[Row] = []
    launches: dict[str, Launch] = {}
    peaks: dict[str, int] = {}
    for who in ready:
        name = who.provider.name
        launch = _launch(case, mode, who, shared)
        try:
            launch.run(launch.prepare())  # what is built on the first call is no part of the peak
            peaks[name] = peak_bytes(partial(launch.run, launch.prepare()), bench.device)
            launches[name] = launch
        except Exception as fault:  # as in the gate
            rows.append(Row(case.op, case.shape, mode, name, "failed", who.error, note=_in_short(fault)))
            _free(bench.device)
    if not launches:
        return rows
    times = interleave(launches, bench.device, bench.seconds)
    errors = {who.provider.name: who.error for who in ready}
    return _rows(case, mode, times, errors, peaks, bench.ceilings) + rows


def _rows(
    case: Case,
    mode: str,
    times: Mapping[str, Times],
    errors: Mapping[str, float],
    peaks: Mapping[str, int],
    ceilings: Ceilings,
) -> list[Row]:
    work = case.work[mode]
    middle = {name: quantile(entry.seconds, 0.5) for name, entry in times.items()}
    least = ceilings.least_s(work)
    return [
        Row(
            case.op,
            case.shape,
            mode,
            name,
            "right",
            relative_error=errors[name],
            median_ms=1e3 * middle[name],
            p20_ms=1e3 * quantile(entry.seconds, 0.2),
            p80_ms=1e3 * quantile(entry.seconds, 0.8),
            launches=len(entry.seconds),
            host_us=None if entry.host_s is None else 1e6 * entry.host_s,
            gb_per_s=work.bytes / middle[name] / 1e9 if work.bytes else None,
            tflops=work.flops / middle[name] / 1e12 if work.flops else None,
            share_of_limit=least / middle[name] if least else None,
            to_ours=middle[name] / middle[OURS] if OURS in middle else None,
            peak_mib=peaks[name] / 2**20,
        )
        for name, entry in times.items()
    ]
