"""`aitrain bench train`: a bare PyTorch loop, aitrain and TRL on the same weights, data and batches, in turn."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aitrain.bench.comparison import Rounds, Row, judge, step_seconds, table
from aitrain.bench.interleaved import Player, play
from aitrain.bench.job import Account
from aitrain.bench.workload import RANDOM_MODELS, Request, build_job, step_tokens
from aitrain.errors import EXIT_DONE, EXIT_GUARD, AitrainError
from aitrain.io import write_text

COMMANDS: dict[str, list[str]] = {
    "bare": ["aitrain.bench.bare", "{job}", "{account}", "trained"],
    "bare, all logits": ["aitrain.bench.bare", "{job}", "{account}", "all"],
    "aitrain": ["aitrain.bench.ours", "{job}", "{account}"],
    "trl": ["aitrain.bench.sft_trainer", "{job}", "{account}"],
}
"""Provider -> module to run in a process of its own, and its words. The first is the reference."""

ALWAYS = ("bare", "aitrain")
"""Providers without which there is nothing to compare."""

RIVALS = {"bare": ["bare, all logits"], "trl": ["trl"]}
"""Word of `--rivals` -> providers in addition to the reference and aitrain, which always run."""


def main(argv: Sequence[str]) -> int:
    """Measure, print the table and write it down.

    Args:
        argv: Words after `aitrain bench train`.

    Returns:
        Exit code 0; 4 when aitrain's losses differ from those of the bare loop.

    Raises:
        AitrainError: A word cannot be used, or a provider failed.
    """
    args = _parser().parse_args(list(argv))
    request = _request(args)
    providers, missing = _providers(args.rivals)
    with tempfile.TemporaryDirectory(prefix="aitrain-bench-") as folder:
        job = build_job(request, Path(folder))
        job.write(Path(folder, "job.json"))
        tokens = step_tokens(job)
        sizes = f"{job.micro_batch} sequences x {job.accumulation}, {sum(tokens) / len(tokens):,.0f} tokens per step"
        print(f"{request.model} on {_device_name(request.device)}, {job.precision}, {sizes}", flush=True)
        rounds, loads, failed = _measure(providers, Path(folder), args)
        missing += failed
    rows = judge(rounds, tokens, args.warm_up, job.precision)
    print(f"\n{table(rows)}")
    for line in missing:
        print(line)
    if args.out is not None:
        result = {**_circumstances(args, request, rounds[0]), "load_per_round": loads, "not_run": missing}
        print(f"\n{_write(result, rows, rounds, args.out, request.device)}")
    return EXIT_DONE if all(row.right for row in rows if row.provider == "aitrain") else EXIT_GUARD


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aitrain bench train", description=__doc__, allow_abbrev=False)
    random = ", ".join(RANDOM_MODELS)
    parser.add_argument("--model", metavar="PATH", help=f"folder, .gguf, asset:NAME, or random weights: {random}")
    parser.add_argument("--steps", metavar="N", type=int, default=20, help="steps per process (default 20)")
    parser.add_argument("--warm-up", metavar="N", type=int, default=5, help="untimed steps among them (default 5)")
    parser.add_argument("--rounds", metavar="N", type=int, default=3, help="rounds in which each one runs (default 3)")
    turns = (
        "alternate after each step, or give each a process of its own (default: step; on a GPU: process, because one "
        "alone may fill its memory)"
    )
    parser.add_argument("--turns", choices=("step", "process"), help=turns)
    parser.add_argument("--sequence-tokens", metavar="N", type=int, help="join verses to samples of up to N tokens")
    parser.add_argument("--micro-batch", metavar="N", type=int, help="micro-batch (default: 4, on a GPU 8)")
    parser.add_argument("--accumulation", metavar="N", type=int, help="micro-batches per step (default: 1, on a GPU 2)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: fp32, on a GPU bf16")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--rivals", metavar="NAMES", default="bare,trl", help="default bare,trl")
    parser.add_argument("--out", metavar="DIR", type=Path, help="write train-DEVICE-DATE.json there")
    return parser


def _request(args: argparse.Namespace) -> Request:
    import torch

    for name in ("steps", "warm_up", "rounds", "micro_batch", "accumulation"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise AitrainError(f"--{name.replace('_', '-')} {value} must be at least 1")
    if args.warm_up >= args.steps:
        raise AitrainError(f"--warm-up {args.warm_up} must be less than --steps {args.steps}")
    device = args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise AitrainError("--device cuda, but torch sees no GPU: write --device cpu")
    gpu = device == "cuda"
    args.turns = args.turns or ("process" if gpu else "step")
    sequence_tokens = args.sequence_tokens
    if args.model is None and sequence_tokens is None:
        sequence_tokens = 2048 if gpu else 256
    return Request(
        model=args.model or ("llama-460m" if gpu else "llama-15m"),
        steps=args.steps,
        sequence_tokens=sequence_tokens,
        micro_batch=args.micro_batch or (8 if gpu else 4),
        accumulation=args.accumulation or (2 if gpu else 1),
        precision=args.precision or ("bf16" if gpu else "fp32"),
        device=device,
    )


def _providers(words: str) -> tuple[list[str], list[str]]:
    """Return the providers that run, in the order of the table, and a line for each that cannot."""
    chosen, missing = [*ALWAYS], []
    for word in filter(None, words.split(",")):
        if word not in RIVALS:
            raise AitrainError(f"--rivals {word} is not known: write {','.join(RIVALS)}, or one of them")
        if word == "trl" and importlib.util.find_spec("trl") is None:
            missing.append("TRL did not run: it is not installed (pip install 'aitrain[bench]')")
            continue
        chosen += RIVALS[word]
    return [name for name in COMMANDS if name in chosen], missing


def _measure(providers: list[str], folder: Path, args: argparse.Namespace) -> tuple[Rounds, list[float], list[str]]:
    """Run all providers, round by round.

    A rival that cannot run here is reported and left out of the rest; the reference and aitrain must run.
    """
    found: Rounds = []
    loads: list[float] = []
    failed: list[str] = []
    for number in range(args.rounds):
        shift = number % len(providers)
        loads.append(round(os.getloadavg()[0], 2))
        order = providers[shift:] + providers[:shift]
        for group in [order] if args.turns == "step" else [[name] for name in order]:
            failed += _run(group, folder, args.steps, number == 0)
        providers = [name for name in providers if _account_of(name, folder).is_file()]
        found.append({name: Account.read(_account_of(name, folder)) for name in providers})
        print(f"round {number + 1} of {args.rounds} done", file=sys.stderr, flush=True)
    return found, loads, failed


def _account_of(provider: str, folder: Path) -> Path:
    return folder / f"account-{list(COMMANDS).index(provider)}.json"


def _run(names: list[str], folder: Path, steps: int, may_fail: bool) -> list[str]:
    """Start providers one after the other, let them take their steps in turn, and return why a rival did not start."""
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "AITRAIN_CACHE": str(folder / "cache")}
    players: list[Player] = []
    failed = []
    try:
        for name in names:
            account = _account_of(name, folder)
            account.unlink(missing_ok=True)
            words = [word.format(job=folder / "job.json", account=account) for word in COMMANDS[name]]
            player = Player(name, [sys.executable, "-m", *words], {**os.environ, **offline})
            players.append(player)
            try:
                player.wait_for_step()
            except AitrainError as error:
                if name in ALWAYS or not may_fail:
                    raise
                failed.append(str(error))
                players.remove(player)
        play(players, steps)
    finally:
        for player in players:
            player.kill()
    return failed


def _device_name(device: str) -> str:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _circumstances(args: argparse.Namespace, request: Request, accounts: dict[str, Account]) -> dict[str, Any]:
    versions: dict[str, str] = {"python": platform.python_version()}
    for account in accounts.values():
        versions.update(account.versions)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": _device_name(request.device),
        "cores": os.cpu_count(),
        "threads": {name: account.threads for name, account in accounts.items()},
        "versions": versions,
        "request": asdict(request),
        "rounds": args.rounds,
        "turns": args.turns,
        "warm_up_steps": args.warm_up,
    }


def _write(result: dict[str, Any], rows: list[Row], rounds: Rounds, out: Path, device: str) -> Path:
    result["table"] = [asdict(row) for row in rows]
    result["step_ms_per_round"] = {
        name: [[round(1e3 * seconds, 3) for seconds in step_seconds(entry[name], 1)] for entry in rounds]
        for name in rounds[0]
    }
    result["losses"] = {name: account.losses for name, account in rounds[0].items()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"train-{device}-{result['date']}.json"
        write_text(path, json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise AitrainError(f"--out {out} cannot be written ({error.strerror}): give another folder") from None
    return path
