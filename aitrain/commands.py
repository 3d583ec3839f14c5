"""The commands of the command line: their arguments and the functions that run them. Heavy imports are inside the
functions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from aitrain.command import Command, checkpoint_of, run_directory, takes_run, takes_state
from aitrain.dist import early_signals
from aitrain.errors import EXIT_DONE, AitrainError
from aitrain.io.imports import without_collection
from aitrain.model_commands import MODEL_COMMANDS

OVERRIDES = "group=option or key=value, for instance optim=muon trainer.max_steps=100"


def _takes_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="name of a recipe, or path of a YAML file")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help=OVERRIDES)
    parser.add_argument("--config-dir", metavar="DIR", help="your own option files, for instance DIR/optim/gentle.yaml")


def _recipes_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="one recipe in full")


def _recipes(args: argparse.Namespace) -> int:
    from aitrain.config.source import find, model_of, names, short
    from aitrain.io.table import table

    if args.name:
        print(find(args.name).read_text(encoding="utf-8"), end="")
        return EXIT_DONE
    rows = [[name, *short(find(name)), _licence(model_of(find(name)))] for name in names()]
    print(table(["recipe", "you have", "you get", "smallest machine", "model licence"], rows))
    print("\n`aitrain recipes NAME` prints one in full; `aitrain init NAME my-project` starts a project with it.")
    return EXIT_DONE


def _models_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--here", action="store_true", help="only models already on this machine")


def _models(args: argparse.Namespace) -> int:
    from aitrain.io.table import table
    from aitrain.models.catalogue import HEAD, rows

    found = rows(only_here=args.here)
    print(table(HEAD, found) if found else "no models on this machine yet: `aitrain fetch` lists some")
    print("\nMemory is estimated for weights, gradients and optimizer on one device; activations come on top.")
    print("To download a model from a hub: `aitrain fetch RECIPE model.path=NAME model.allow_network=true`.")
    return EXIT_DONE


def _init_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", metavar="[RECIPE] DIR [key=value]", nargs="+", help="RECIPE is asked for if left out")
    parser.add_argument("--data", metavar="FILE", help="your data; default: ten sample records in the right format")
    parser.add_argument("--model", metavar="MODEL", help="model folder, .gguf file or asset:NAME; default: a small one")


def _init(args: argparse.Namespace) -> int:
    from aitrain.project import init

    project = init(args.words, args.data, args.model)
    print((project.folder / "recipe.yaml").read_text(encoding="utf-8"), end="")
    print(f"\nWritten to {project.folder}. Next: aitrain check {project.folder / 'recipe.yaml'}")
    return EXIT_DONE


def _licence(model: str | None) -> str:
    """Return the licence of the model that a recipe starts from."""
    from aitrain.models.assets import ASSETS

    if model is None:
        return "no base model"
    asset = ASSETS.get(model.removeprefix("asset:"))
    return "you choose the model" if asset is None else asset.licence


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
    parser.add_argument("-m", "--multirun", action="store_true", help="check every combination of the listed values")
    parser.add_argument("--no-data", action="store_true", help="check recipe, machine and files only")
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
        closing = "No problems found; the data was not read."
        if not args.no_data:
            with without_collection():
                from aitrain.trainer.inspection import audit

            is_clean = audit(config, args.show)
            closing = "No problems found." if is_clean else "No errors found; see the warning above."
        print(f"\n{closing}")
    return EXIT_DONE


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    _takes_recipe(parser)
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="run every combination of the listed values, one by one"
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

        code, folder = train_each(args.recipe, args.overrides)
        if folder is not None:
            from aitrain.watch import runs_text

            print(f"\n{runs_text(folder)}")
        return code
    from aitrain.trainer.start import train, train_or_resume

    return train_or_resume(args.recipe, args.overrides) if args.or_resume else train(args.recipe, args.overrides)


def _submit_arguments(parser: argparse.ArgumentParser) -> None:
    _takes_recipe(parser)
    parser.add_argument("--cluster", metavar="NAME", help="profile, or its path (`aitrain show cluster` lists them)")
    parser.add_argument("--nodes", metavar="N", type=int, help="nodes; default: trainer.nodes, else 1")
    parser.add_argument("--time", metavar="H:MM:SS", help="time limit of the job, as Slurm writes it")
    parser.add_argument("--account", help="account to charge")
    parser.add_argument("--partition", help="partition; default: that of the profile")
    parser.add_argument("--qos", help="QoS; default: that of the profile")
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="submit every combination of the listed values as one array"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the job script and submit nothing")


def _submit(args: argparse.Namespace) -> int:
    from aitrain.launch.submit import Flags, submit, submit_sweep

    flags = Flags(args.cluster, args.nodes, args.time, args.account, args.partition, args.qos)
    return (submit_sweep if args.multirun else submit)(args.recipe, args.overrides, flags, args.dry_run)


def _resume_arguments(parser: argparse.ArgumentParser) -> None:
    takes_run(parser)
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="length, devices, logging, checkpoints")
    takes_state(parser)
    parser.add_argument(
        "--changed-rate", action="store_true", help="continue although the new length makes the learning rate jump"
    )


def _resume(args: argparse.Namespace) -> int:
    early_signals.hold()
    run, checkpoint = run_directory(args.run), checkpoint_of(args)
    from aitrain.trainer.resume_options import ResumeOptions
    from aitrain.trainer.start import resume

    return resume(run, args.overrides, ResumeOptions(checkpoint, args.changed_inputs, args.changed_rate))


def _runs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, nargs="?", default=Path("runs"), help="default: runs")


def _runs(args: argparse.Namespace) -> int:
    from aitrain.watch import runs_text

    print(runs_text(args.folder))
    return EXIT_DONE


def _status(args: argparse.Namespace) -> int:
    from aitrain.watch import status_text

    print(status_text(run_directory(args.run)))
    return EXIT_DONE


def _logs_arguments(parser: argparse.ArgumentParser) -> None:
    takes_run(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="keep printing new lines until the run ends")
    parser.add_argument("--rank", metavar="N", type=int, help="log of one rank; default: that of the job, or rank 0")


def _logs(args: argparse.Namespace) -> int:
    from aitrain.watch import show_log

    show_log(run_directory(args.run), args.rank, args.follow)
    return EXIT_DONE


def _stop_arguments(parser: argparse.ArgumentParser) -> None:
    takes_run(parser)
    parser.add_argument("--now", action="store_true", help="end it immediately; unsaved steps are lost")


def _stop(args: argparse.Namespace) -> int:
    from aitrain.watch import stop

    print(stop(run_directory(args.run), args.now))
    return EXIT_DONE


def _fetch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="RECIPE|ASSET", nargs="?", help="what to download; default: list assets")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="with a recipe: its keys, usually model.path")


def _fetch(args: argparse.Namespace) -> int:
    from aitrain.models import assets

    if not args.name:
        print(assets.listing())
    elif args.name in assets.ASSETS and not args.overrides:
        print(assets.fetch(args.name))
    else:
        from aitrain.fetching import fetch_recipe

        fetch_recipe(args.name, args.overrides)
    return EXIT_DONE


def _local_slurm_arguments(parser: argparse.ArgumentParser) -> None:
    actions = ["start", "stop", "status", "kill-node", "start-node"]
    parser.add_argument("action", choices=actions, help="kill-node crashes a node, start-node restarts it")
    parser.add_argument("node", metavar="NODE", nargs="?", help="with kill-node and start-node, for instance node2")
    parser.add_argument("--nodes", metavar="N", type=int, default=4, help="nodes; default 4")
    parser.add_argument("--gpus", metavar="N", type=int, default=2, help="simulated GPUs per node; default 2")
    parser.add_argument(
        "--one-host", action="store_true", help="run all nodes directly on this host (always so if you are not root)"
    )
    parser.add_argument("--dir", metavar="DIR", type=Path, help="default ~/.cache/aitrain/local-slurm")


def _local_slurm(args: argparse.Namespace) -> int:
    from aitrain.launch import local_slurm

    print(local_slurm.act(args.action, args.node, args.nodes, args.gpus, args.dir, args.one_host))
    return EXIT_DONE


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--job", action="store_true", help="inside an allocation: measure each of its nodes")
    parser.add_argument("--cluster", metavar="NAME", help="profile to compare with")


def _doctor(args: argparse.Namespace) -> int:
    early_signals.hold()
    import os

    from aitrain.doctor.finding import exit_code, text_of
    from aitrain.launch.clusters import load

    cluster = load(args.cluster) if args.cluster else None
    if args.job:
        from aitrain.doctor.job import examine

        return examine(cluster)
    from aitrain.doctor.login import look

    findings = look(cluster, os.environ)
    print(text_of(findings))
    return exit_code(findings, in_job=False)


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["ops", "train"], help="what to measure")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="options of the benchmark; --help lists them")


def _bench(args: argparse.Namespace) -> int:
    if args.what == "ops":
        from aitrain.bench.ops.command import main as measure
    else:
        from aitrain.bench.train import main as measure
    return measure(args.words)


COMMANDS: dict[str, Command] = {
    "recipes": Command("list recipes; with a name, print one in full", _recipes_arguments, _recipes),
    "models": Command("list models to start from: size, licence, context, memory", _models_arguments, _models),
    "init": Command("start a project: a folder with a recipe, sample data and the commands", _init_arguments, _init),
    "show": Command("explain a group or a key", _show_arguments, _show),
    "check": Command("check recipe, machine and data without training", _check_arguments, _check),
    "train": Command("train on this machine, or as a rank under torchrun or srun", _train_arguments, _train, True),
    "submit": Command("submit a recipe as a Slurm job, or show the job script", _submit_arguments, _submit),
    "resume": Command("continue a run from its newest good checkpoint", _resume_arguments, _resume, True),
    **MODEL_COMMANDS,
    "runs": Command("list the runs in a folder, including queued ones", _runs_arguments, _runs),
    "status": Command("show the state of a run: queue, step, speed, errors", takes_run, _status),
    "logs": Command("print the log of a run", _logs_arguments, _logs),
    "stop": Command("ask a run to save a checkpoint and stop", _stop_arguments, _stop),
    "fetch": Command(
        "download what a recipe needs into the local store, for machines without a network", _fetch_arguments, _fetch
    ),
    "doctor": Command("report problems of this machine, or of the nodes of a job", _doctor_arguments, _doctor, True),
    "local-slurm": Command(
        "run a real Slurm of several nodes on this machine, to try `submit`", _local_slurm_arguments, _local_slurm
    ),
    "bench": Command("benchmark aitrain against other libraries here", _bench_arguments, _bench, passes_on=True),
}
