"""Words in, exit code out: the command line. Heavy imports stand inside the commands that need them."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aitrain import __version__
from aitrain.dist import early_signals
from aitrain.errors import EXIT_DONE, EXIT_USER, AitrainError
from aitrain.io.home import ensure_home
from aitrain.io.terminal import speak_anywhere

FILE_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".onnx", ".zip", ".tar", ".gz", ".tgz")
"""Ends of names that no folder has by intent."""

OVERRIDES = "group=option or key=value, for instance optim=muon trainer.max_steps=100"


@dataclass(frozen=True)
class Command:
    """One command of the command line."""

    does: str
    """What it does, in one line."""

    arguments: Callable[[argparse.ArgumentParser], None]
    """Declares its words."""

    run: Callable[[argparse.Namespace], int]
    """Does it, and returns the exit code."""

    passes_on: bool = False
    """Whether the words after the first are read by somebody else."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after `aitrain`; those of this process when absent.

    Returns:
        The exit code: 0 done, 2 the user can fix it, 3 the data was refused, 4 a guard stopped the run, 75 stopped
        with a good checkpoint, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    speak_anywhere()
    ensure_home()
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return EXIT_DONE if words else EXIT_USER
    if words[0] == "--version":
        print(f"aitrain {__version__}")
        return EXIT_DONE
    before = signal.signal(signal.SIGTERM, _leave) if threading.current_thread() is threading.main_thread() else None
    try:
        return _dispatch(words)
    except AitrainError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough, as in `aitrain show optim | head`
        sys.stderr.close()
        return EXIT_DONE
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _leave(number: int, _frame: object) -> None:
    """End as after Ctrl-C, so that nothing half-written stays; a training answers with a checkpoint instead."""
    raise SystemExit(128 + number)


def _dispatch(words: list[str]) -> int:
    command = COMMANDS.get(words[0])
    if command is None:
        from aitrain.config.values import nearest

        guess = nearest(words[0], COMMANDS)
        hint = f"did you mean {guess}?" if guess else f"there are {', '.join(COMMANDS)}"
        raise AitrainError(f"aitrain {words[0]} is no command: {hint}")
    parser = argparse.ArgumentParser(prog=f"aitrain {words[0]}", description=command.does, allow_abbrev=False)
    command.arguments(parser)
    parse = parser.parse_args if command.passes_on else parser.parse_intermixed_args
    return command.run(parse(words[1:]))


def _overview() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {command.does}" for name, command in COMMANDS.items())
    return (
        "usage: aitrain COMMAND ...\n\nTrains models from short recipes, on a laptop or on many GPUs.\n\n"
        f"{rows}\n\n`aitrain COMMAND --help` tells more; `aitrain show optim.lr` explains a key."
    )


def _takes_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="name of a recipe, or path of a YAML file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help=OVERRIDES)


def _takes_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="run directory")


def _run_directory(path: Path) -> Path:
    """Return a run directory, or refuse a folder that is none."""
    if (path / "run.yaml").is_file():
        return path
    why = "holds no run.yaml, so it is no run directory" if path.is_dir() else "does not exist"
    raise AitrainError(f"{path} {why}: `aitrain runs` lists the runs here")


def _recipes_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="one recipe in full")


def _recipes(args: argparse.Namespace) -> int:
    from aitrain.config.source import find, header, names, task_of

    if args.name:
        print(find(args.name).read_text(encoding="utf-8"), end="")
        return EXIT_DONE
    listed = names()
    width = max(map(len, listed))
    for name in listed:
        title, *rest = header(find(name)) or ["(no description)"]
        print(f"{name:<{width}}  {title}")
        for line in [f"task: {task_of(find(name))}", *rest]:
            print(f"{'':<{width}}  {line}")
    return EXIT_DONE


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", metavar="GROUP[.key]", nargs="?", help="for instance optim, optim=muon or optim.lr")
    parser.add_argument("name", metavar="NAME", nargs="?", help="with `cluster`: the profile of one cluster")


def _show(args: argparse.Namespace) -> int:
    from aitrain.config.manual import manual, overview

    if args.name is not None and args.topic != "cluster":
        raise AitrainError(f"aitrain show {args.topic} {args.name}: only `cluster` takes a name: leave {args.name} out")
    if args.topic == "cluster":
        from aitrain.launch.show import listing, profile_text

        print(profile_text(args.name) if args.name else f"{manual('cluster')}\n\n{listing()}")
        return EXIT_DONE
    print(manual(args.topic) if args.topic else overview())
    return EXIT_DONE


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    _takes_recipe(parser)
    parser.add_argument("-m", "--multirun", action="store_true", help="check every combination of lists and ranges")
    parser.add_argument("--no-data", action="store_true", help="do not read the data: only recipe, machine and files")
    parser.add_argument("--show", metavar="N", type=int, default=1, help="samples to show with their trained tokens")


def _check(args: argparse.Namespace) -> int:
    from aitrain.preflight import refuse_faults
    from aitrain.recipe import compose, describe
    from aitrain.sweep import refuse_shared_directories, sweep

    combinations = sweep(args.overrides) if args.multirun else [args.overrides]
    configs = [compose(args.recipe, words) for words in combinations]
    refuse_shared_directories(configs)
    for config in configs:
        print(describe(config), flush=True)
        refuse_faults(config)
        if not args.no_data:
            from aitrain.trainer.inspection import audit

            audit(config, args.show)
        print("\nNothing is wrong." if not args.no_data else "\nNothing is wrong; the data was not read.")
    return EXIT_DONE


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    _takes_recipe(parser)
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="run every combination of lists and ranges in turn"
    )
    parser.add_argument(
        "--or-resume",
        action="store_true",
        help="continue the run in run.dir if there is one; RECIPE may be its run.yaml",
    )


def _train(args: argparse.Namespace) -> int:
    early_signals.hold()
    if args.multirun and args.or_resume:
        raise AitrainError("--or-resume continues one run, but -m starts many: give one of the two")
    if args.multirun:
        from aitrain.sweep import train_each

        return train_each(args.recipe, args.overrides)
    from aitrain.trainer.start import train, train_or_resume

    return train_or_resume(args.recipe, args.overrides) if args.or_resume else train(args.recipe, args.overrides)


def _submit_arguments(parser: argparse.ArgumentParser) -> None:
    _takes_recipe(parser)
    parser.add_argument("--cluster", metavar="NAME", help="profile, or its path (`aitrain show cluster` lists them)")
    parser.add_argument("--nodes", metavar="N", type=int, help="nodes; default: trainer.nodes, else 1")
    parser.add_argument("--time", metavar="H:MM:SS", help="time limit of the job, as Slurm writes it")
    parser.add_argument("--account", help="account that pays")
    parser.add_argument("--partition", help="partition, where not that of the profile")
    parser.add_argument("--qos", help="QoS, where not that of the profile")
    parser.add_argument("--dry-run", action="store_true", help="print the job script and submit nothing")


def _submit(args: argparse.Namespace) -> int:
    from aitrain.launch.submit import Flags, submit

    flags = Flags(args.cluster, args.nodes, args.time, args.account, args.partition, args.qos)
    return submit(args.recipe, args.overrides, flags, args.dry_run)


def _resume_arguments(parser: argparse.ArgumentParser) -> None:
    _takes_run(parser)
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="length, devices, logging, checkpoints")
    _takes_checkpoint(parser)
    _takes_changed_inputs(parser)
    parser.add_argument(
        "--changed-rate", action="store_true", help="go on although the new length makes the learning rate jump"
    )


def _takes_changed_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--changed-inputs", action="store_true", help="go on although model or data are not what the run began with"
    )


def _resume(args: argparse.Namespace) -> int:
    early_signals.hold()
    run, checkpoint = _run_directory(args.run), _checkpoint(args)
    from aitrain.trainer.resume_options import ResumeOptions
    from aitrain.trainer.start import resume

    return resume(run, args.overrides, ResumeOptions(checkpoint, args.changed_inputs, args.changed_rate))


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    _takes_run(parser)
    parser.add_argument("--to", metavar="DIR", type=Path, required=True, help="model folder to write; must not exist")
    parser.add_argument("--adapter-only", action="store_true", help="write the adapter, not merged into the weights")
    _takes_checkpoint(parser)
    _takes_changed_inputs(parser)


def _takes_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="STEP|best|newest", default="newest", help="which one; default newest")


def _checkpoint(args: argparse.Namespace) -> str:
    word = str(args.checkpoint)
    if word not in ("best", "newest") and not word.isdigit():
        raise AitrainError(f"--checkpoint {word} is no checkpoint: write a step, best or newest")
    return word


def _export(args: argparse.Namespace) -> int:
    run, checkpoint = _run_directory(args.run), _checkpoint(args)
    if args.to.exists():
        raise AitrainError(f"--to {args.to} exists already: choose a new folder")
    if args.to.suffix.lower() in FILE_SUFFIXES:
        raise AitrainError(
            f"--to {args.to} names a file, but a Hugging Face folder is written: "
            f"write for instance --to {args.to.with_suffix('')}"
        )
    from aitrain.trainer.export import Wanted, export

    export(run, args.to, Wanted(not args.adapter_only, checkpoint, flat=True, changed_inputs=args.changed_inputs))
    return EXIT_DONE


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    _takes_run(parser)
    parser.add_argument("--data", metavar="FILE", help="held-out data; default: that of the run")
    parser.add_argument("--lm-eval", metavar="TASKS", help="benchmarks of lm-eval, with commas (extra `lm-eval`)")
    _takes_checkpoint(parser)
    _takes_changed_inputs(parser)


def _evaluate(args: argparse.Namespace) -> int:
    run, checkpoint = _run_directory(args.run), _checkpoint(args)
    from aitrain.trainer.evaluation import evaluate_run

    evaluate_run(run, args.data, args.lm_eval, checkpoint, args.changed_inputs)
    return EXIT_DONE


def _runs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, nargs="?", default=Path("runs"), help="default: runs")


def _runs(args: argparse.Namespace) -> int:
    from aitrain.report.runs import runs

    found = runs(args.folder)
    if not found:
        print(f"no runs in {args.folder}")
        return EXIT_DONE
    width = max(len(str(run.path)) for run in found)
    print(f"{'run':<{width}}  {'steps':>8}  {'loss':>8}  state")
    for run in found:
        loss = "-" if run.loss is None else f"{run.loss:.4f}"
        print(f"{str(run.path):<{width}}  {run.steps:>8}  {loss:>8}  {run.state}")
    return EXIT_DONE


def _fetch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="asset to fetch; without it they are listed")


def _fetch(args: argparse.Namespace) -> int:
    from aitrain.models import assets

    if args.name:
        print(assets.fetch(args.name))
    else:
        print(assets.listing())
    return EXIT_DONE


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["ops", "train"], help="what is measured")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="words of the benchmark; --help lists them")


def _bench(args: argparse.Namespace) -> int:
    if args.what == "ops":
        from aitrain.bench.ops.command import main as measure
    else:
        from aitrain.bench.train import main as measure
    return measure(args.words)


COMMANDS: dict[str, Command] = {
    "recipes": Command("lists recipes; with a name, one in full", _recipes_arguments, _recipes),
    "show": Command("explains a group or a key", _show_arguments, _show),
    "check": Command("checks recipe, machine and data, says what will run; trains nothing", _check_arguments, _check),
    "train": Command("trains here: this machine, or as a rank under torchrun or srun", _train_arguments, _train),
    "submit": Command("submits a recipe as a Slurm job, or shows the job script", _submit_arguments, _submit),
    "resume": Command("continues a run from its newest good checkpoint", _resume_arguments, _resume),
    "export": Command("writes a run's model as a Hugging Face folder", _export_arguments, _export),
    "evaluate": Command("measures a run's model on held-out data", _evaluate_arguments, _evaluate),
    "runs": Command("lists the runs in a folder", _runs_arguments, _runs),
    "fetch": Command("fetches the real model and data of the quickstart", _fetch_arguments, _fetch),
    "bench": Command("measures here, rivals in the same run", _bench_arguments, _bench, passes_on=True),
}
