"""Plants bugs in a copy of the package, one at a time, and lets one test look at each.

As a program (`python mutate.py REQUEST ANSWER`) it loads torch once and then forks a child per bug; the child is the
first to import aitrain, and imports it from the copy.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import json
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
LONGEST_S = 60
"""Seconds after which a test with a bug planted is stopped."""

PRELOADED = (
    "pytest",
    "pytest_timeout",
    "numpy",
    "torch",
    "torch._dynamo",
    "torch._functorch.aot_autograd",
    "triton",
    "triton.language",
)


@dataclass(frozen=True)
class Outcome:
    """How some tests ended."""

    exit_code: int = 0
    """Of pytest: 0 all passed, 1 some failed."""

    passed: list[str] = field(default_factory=list)
    """The tests that passed, as asked for."""

    said: str = ""
    """End of what pytest printed."""


def read(path: Path) -> list[Any]:
    """Return the mutants that a `mutants.py` lists.

    Args:
        path: The file.
    """
    spec = importlib.util.spec_from_file_location(f"mutants_of_{path.parent.name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.MUTANTS)


def judge(mutants: Sequence[Any], root: Path = ROOT) -> list[str | None]:
    """Return, for each mutant, what is wrong with it or with the test that should notice it; None = it was noticed.

    Args:
        mutants: Bugs to plant.
        root: Folder with `aitrain/` and `tests/`.
    """
    faults: list[str | None] = [_misplaced(mutant, root) for mutant in mutants]
    sound = [mutant for mutant, fault in zip(mutants, faults, strict=True) if fault is None]
    outcomes = iter(_run(sound, root)) if sound else iter(())
    return [
        fault if fault is not None else _verdict(mutant, *next(outcomes))
        for mutant, fault in zip(mutants, faults, strict=True)
    ]


def _misplaced(mutant: Any, root: Path) -> str | None:
    path = root / mutant.file
    if not path.is_file():
        return f"{mutant.file} is not there"
    count = path.read_text(encoding="utf-8").count(mutant.old)
    if mutant.old == mutant.new:
        return "it changes nothing"
    return None if count == 1 else f"{mutant.file} holds its old text {count} times instead of once: {mutant.old!r}"


def _verdict(mutant: Any, before: Outcome, after: Outcome) -> str | None:
    if mutant.test not in before.passed:
        return f"{mutant.test} does not pass without the bug, so it proves nothing:\n{before.said}"
    if after.exit_code == 1:
        return None
    if after.exit_code == 0:
        return f"survived: {mutant.test} passes with {mutant.new!r} in place of {mutant.old!r}"
    return f"{mutant.test} did not fail, it broke off ({after.exit_code}): plant a bug that lets it run\n{after.said}"


def _run(mutants: Iterable[Any], root: Path) -> list[tuple[Outcome, Outcome]]:
    """Return per mutant how its test ended without the bug and with it."""
    places = [str(root / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # those of other packages take a second per bug
    with tempfile.TemporaryDirectory(prefix="aitrain-mutants-") as folder:
        shutil.copytree(root / "aitrain", Path(folder, "aitrain"), ignore=shutil.ignore_patterns("__pycache__"))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, *places]))
        asked, answered = Path(folder, "request.json"), Path(folder, "answer.json")
        request = {"root": str(root), "copy": folder, "mutants": [asdict(mutant) for mutant in mutants]}
        asked.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, str(Path(__file__).resolve()), str(asked), str(answered)]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"planting ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        answer = json.loads(answered.read_text(encoding="utf-8"))
    return [(Outcome(**before), Outcome(**after)) for before, after in answer]


def _main(asked: Path, answered: Path) -> None:
    request = json.loads(asked.read_text(encoding="utf-8"))
    copy, root = Path(request["copy"]), Path(request["root"])
    sys.path.remove(str(Path(__file__).resolve().parent))
    for module in PRELOADED:
        with contextlib.suppress(ImportError):  # without Triton, tests that need it do not pass, and that is told
            importlib.import_module(module)
    gc.freeze()
    tests = list(dict.fromkeys(mutant["test"] for mutant in request["mutants"]))
    together = _in_a_child(lambda: _pytest(tests, root, copy), LONGEST_S * max(1, len(tests)))
    before = {test: together for test in tests}
    if together.exit_code not in (0, 1):  # one test that is not there, and pytest runs none
        before = {test: _in_a_child(lambda test=test: _pytest([test], root, copy), LONGEST_S) for test in tests}
    answer = []
    for mutant in request["mutants"]:
        path = copy / mutant["file"]
        sound = path.read_text(encoding="utf-8")
        path.write_text(sound.replace(mutant["old"], mutant["new"]), encoding="utf-8")
        words = [mutant["test"]]
        answer.append(
            (
                asdict(before[mutant["test"]]),
                asdict(_in_a_child(lambda words=words: _pytest(words, root, copy), LONGEST_S)),
            )
        )
        path.write_text(sound, encoding="utf-8")
    answered.write_text(json.dumps(answer), encoding="utf-8")


def _in_a_child(work: Callable[[], Outcome], seconds: float) -> Outcome:
    """Do something in a fork of this process."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        os.setsid()
        try:
            outcome = work()
        except BaseException as error:  # nothing may return into the code of the parent
            outcome = Outcome(exit_code=-1, said=repr(error))
        with open(send, "wb") as stream:
            stream.write(pickle.dumps(outcome))
        os._exit(0)
    os.close(send)
    late = time.monotonic() + seconds
    chunks = []
    with open(receive, "rb", buffering=0) as stream:
        while True:
            if not select.select([stream], [], [], max(0.0, late - time.monotonic()))[0]:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return Outcome(exit_code=-2, said=f"stopped after {seconds:.0f} seconds")
            chunk = stream.read(1 << 16)
            if not chunk:
                break
            chunks.append(chunk)
    os.waitpid(child, 0)
    if not chunks:
        return Outcome(exit_code=-3, said="its process ended without a word")
    return pickle.loads(b"".join(chunks))


def _pytest(tests: list[str], root: Path, copy: Path) -> Outcome:
    import pytest

    class Notes:
        """Hears of every test that passed."""

        def __init__(self) -> None:
            self.bad: set[str] = set()
            self.good: set[str] = set()

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed or report.skipped:
                self.bad.add(report.nodeid)
            elif report.when == "call":
                self.good.add(report.nodeid)

    notes, said = Notes(), io.StringIO()
    options = ["-q", "--no-header", "--tb=short", "--assert=plain", *(["-x"] if len(tests) == 1 else [])]
    options += ["-p", "pytest_timeout", "-p", "no:cacheprovider", "-p", "no:unraisableexception"]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = int(pytest.main([*options, f"--rootdir={root}", *tests], plugins=[notes]))
    there = sys.modules.get("aitrain")
    if there is not None and not str(there.__file__).startswith(str(copy)):
        return Outcome(exit_code=-4, said=f"the test imported {there.__file__} instead of the copy")
    good = notes.good - notes.bad

    def passed(test: str) -> bool:
        mine = [node for node in notes.good | notes.bad if node == test or node.startswith(f"{test}[")]
        return bool(mine) and all(node in good for node in mine)

    return Outcome(exit_code=code, passed=[test for test in tests if passed(test)], said=said.getvalue()[-3000:])


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
