"""Compiles kernels ahead of time for GPUs that are not here, and reads from the machine code what their speed rests on.

As a program (`python aot.py REQUEST`) it compiles; as a module it starts itself without `TRITON_INTERPRET`, under which
Triton would not compile.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
PROCESSES = 2
LARGEST_BLOCK = 1024
"""Threads that one block may have, on AMD's GPUs and on NVIDIA's."""

TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "gfx90a": ("hip", "gfx90a", 64),
}
"""Name -> backend, architecture, threads of a warp: A100, H100 and H200, MI250X (LUMI)."""

WIDE_LOAD = re.compile(r"\bLD(?:G|GSTS)\.[\w.]*\b128\b")
WIDE_STORE = re.compile(r"\bSTG\.[\w.]*\b128\b")
SPILL = re.compile(r"\b(?:LDL|STL)\b")
AMD_WIDE_LOAD = re.compile(r"\b(?:global|buffer|flat)_load_(?:dwordx4|b128)\b")
AMD_WIDE_STORE = re.compile(r"\b(?:global|buffer|flat)_store_(?:dwordx4|b128)\b")


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one kernel for one target."""

    error: str | None = None
    """Why it did not compile."""

    wide_loads: int = 0
    """Instructions that load 16 bytes per thread."""

    wide_stores: int = 0
    spills: int = 0
    """Instructions (NVIDIA) or registers (AMD) that hold what did not fit into registers."""

    registers: int = 0
    """Per thread."""

    threads: int = 0
    """Per block."""


def specimens(only: Sequence[str] = ()) -> dict[str, Any]:
    """Return every specimen of `tests/ops/*/specimens.py` as `op/name`.

    Args:
        only: Ops to read; all when empty.
    """
    found: dict[str, Any] = {}
    for path in sorted((TESTS / "ops").glob("*/specimens.py")):
        op = path.parent.name
        if only and op not in only:
            continue
        for specimen in importlib.import_module(f"ops.{op}.specimens").SPECIMENS:
            name = f"{op}/{specimen.name}"
            assert name not in found, f"two specimens are called {name}"
            found[name] = specimen
    return found


def compile_all(pairs: Iterable[tuple[Any, str]]) -> list[Compiled]:
    """Compile specimens, each for a target, in a process of its own.

    Args:
        pairs: Specimen and name of its target.
    """
    request = [{**_plain(asdict(specimen)), "target": target} for specimen, target in pairs]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    places = [environment.get("PYTHONPATH", ""), str(TESTS), str(TESTS.parent)]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    with tempfile.TemporaryDirectory(prefix="aitrain-aot-") as folder:
        asked, answered = Path(folder, "request.json"), Path(folder, "answer.json")
        asked.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, str(Path(__file__).resolve()), str(asked), str(answered)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"the compiling process ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return [Compiled(**entry) for entry in json.loads(answered.read_text(encoding="utf-8"))]


def faults(specimen: Any, target: str, found: Compiled) -> list[str]:
    """Return what is wrong with a compiled kernel.

    Args:
        specimen: What was compiled.
        target: For which GPU.
        found: What became of it.
    """
    if found.error is not None:
        return [f"does not compile:\n{found.error}"]
    wrong = []
    if specimen.wide_loads and not found.wide_loads:
        wrong.append("no load of 16 bytes: are pointers and strides named in `divisible`?")
    if specimen.wide_stores and not found.wide_stores:
        wrong.append("no store of 16 bytes: are pointers and strides named in `divisible`?")
    if found.spills:
        wrong.append(f"{found.spills} spills: a smaller block, or more warps")
    if TARGETS[target][0] == "cuda" and found.registers > specimen.max_registers:  # a lane of gfx90a has 512
        wrong.append(f"{found.registers} registers, at most {specimen.max_registers}")
    if found.threads > LARGEST_BLOCK:
        wrong.append(f"{found.threads} threads in a block, at most {LARGEST_BLOCK} on {target}")
    return wrong


def _plain(specimen: Mapping[str, Any]) -> dict[str, Any]:
    """Return a specimen as JSON takes it: types of Triton by name."""

    def word(value: object) -> object:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return {"dtype": str(value)}

    constants = {key: word(value) for key, value in specimen["constexprs"].items()}
    return {**specimen, "constexprs": constants}


def _main(asked: Path, answered: Path) -> None:
    request = json.loads(asked.read_text(encoding="utf-8"))
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    for module in {entry["module"] for entry in request}:  # once, before the processes part
        with contextlib.suppress(ImportError):  # told where its kernels are compiled
            _load(module)
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        answer = list(pool.map(_compile_or_tell, request))
    answered.write_text(json.dumps([asdict(entry) for entry in answer]), encoding="utf-8")


def _load(module: str) -> Any:
    return importlib.import_module(module)


def _compile_or_tell(entry: dict[str, Any]) -> Compiled:
    try:
        return _compile(entry)
    except Exception as error:  # whatever a compiler raises is its verdict on this kernel
        return Compiled(error=f"{type(error).__name__}: {error}")


def _compile(entry: dict[str, Any]) -> Compiled:
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(_load(entry["module"]), entry["function"])
    while not hasattr(function, "arg_names") or type(function).__name__ in ("Autotuner", "Heuristics"):
        function = function.fn
    unknown = {*entry["signature"], *entry["constexprs"], *entry["divisible"]} - set(function.arg_names)
    lost = set(function.arg_names) - {*entry["signature"], *entry["constexprs"]}
    if unknown or lost:
        raise ValueError(f"arguments without a type: {sorted(lost)}; types without an argument: {sorted(unknown)}")
    constants = {
        key: getattr(tl, value["dtype"].removeprefix("tl.").replace("fp", "float").replace("bf", "bfloat"))
        if isinstance(value, dict)
        else value
        for key, value in entry["constexprs"].items()
    }
    signature = {name: "constexpr" if name in constants else entry["signature"][name] for name in function.arg_names}
    attributes = {(function.arg_names.index(name),): [["tt.divisibility", 16]] for name in entry["divisible"]}
    backend, architecture, warp = TARGETS[entry["target"]]
    warps = (backend == "hip" and entry["amd_num_warps"]) or entry["num_warps"]
    compiled = triton.compile(
        ASTSource(function, signature, constants, attributes),
        target=GPUTarget(backend, architecture, warp),
        options={"num_warps": warps},
    )
    threads = warps * warp
    return _read_nvidia(compiled, threads) if backend == "cuda" else _read_amd(compiled, threads)


def _read_nvidia(compiled: Any, threads: int) -> Compiled:
    import triton.backends.nvidia

    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()

        def ask(*words: str) -> str:
            done = subprocess.run([*words, cubin.name], capture_output=True, text=True, check=True)
            return done.stdout + done.stderr

        usage = ask(str(tools / "cuobjdump"), "-res-usage")
        code = ask(str(tools / "nvdisasm"), "-c")
    registers = re.findall(r"\bREG:(\d+)", usage)
    assert len(registers) == 1, f"cuobjdump says nothing about registers:\n{usage}"
    assert "EXIT" in code, f"nvdisasm shows no code:\n{code[:2000]}"
    return Compiled(
        wide_loads=len(WIDE_LOAD.findall(code)),
        wide_stores=len(WIDE_STORE.findall(code)),
        spills=len(SPILL.findall(code)),
        registers=int(registers[0]),
        threads=threads,
    )


def _read_amd(compiled: Any, threads: int) -> Compiled:
    code = compiled.asm["amdgcn"]

    def number(key: str) -> int:
        found = re.findall(rf"\.{key}:\s+(\d+)", code)
        assert len(found) == 1, f"the metadata has {len(found)} entries {key}"
        return int(found[0])

    return Compiled(
        wide_loads=len(AMD_WIDE_LOAD.findall(code)),
        wide_stores=len(AMD_WIDE_STORE.findall(code)),
        spills=number("vgpr_spill_count") + number("sgpr_spill_count"),
        registers=number("vgpr_count"),
        threads=threads,
    )


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
