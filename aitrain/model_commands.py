"""The commands that use a trained model: export, evaluate, predict, chat. Heavy imports are inside the functions."""

from __future__ import annotations

import argparse
from pathlib import Path

from aitrain.command import Command, checkpoint_of, run_directory, takes_run, takes_state
from aitrain.errors import EXIT_DONE, AitrainError
from aitrain.io.imports import without_collection

FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".zip", ".tar", ".gz", ".tgz")
"""File endings that a user would not give to a folder."""

_READING = "how FILE is read where it differs from the training data, for instance data.header_row=1"


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    takes_run(parser)
    where = "model folder to write, or NAME.gguf for llama.cpp and Ollama; must not exist"
    parser.add_argument("--to", metavar="DIR|FILE.gguf", type=Path, required=True, help=where)
    kinds = "f16 (default), q8_0 (half the size), bf16 or f32"
    parser.add_argument(
        "--gguf-type", metavar="TYPE", choices=["f32", "f16", "bf16", "q8_0"], help=f"of a .gguf: {kinds}"
    )
    parser.add_argument("--adapter-only", action="store_true", help="write the adapter, not merged into the weights")
    takes_state(parser)


def _export(args: argparse.Namespace) -> int:
    run, checkpoint = run_directory(args.run), checkpoint_of(args)
    if args.to.exists():
        raise AitrainError(f"--to {args.to} exists already: choose a new folder")
    is_gguf = args.to.suffix.lower() == ".gguf"
    if args.gguf_type and not is_gguf:
        raise AitrainError(f"--gguf-type {args.gguf_type} needs a file: write for instance --to {args.to}.gguf")
    if is_gguf and args.adapter_only:
        raise AitrainError("--adapter-only has no effect on a .gguf file, which holds the whole model: remove it")
    if args.to.suffix.lower() in FILE_SUFFIXES:
        raise AitrainError(
            f"--to {args.to} names a file, but a Hugging Face folder is written: "
            f"write for instance --to {args.to.with_suffix('')}"
        )
    with without_collection():
        from aitrain.trainer.export import Wanted, export, export_gguf

    if is_gguf:
        export_gguf(
            run, args.to, args.gguf_type or "f16", Wanted(True, checkpoint, True, changed_inputs=args.changed_inputs)
        )
        print(args.to)
        return EXIT_DONE
    export(run, args.to, Wanted(not args.adapter_only, checkpoint, flat=True, changed_inputs=args.changed_inputs))
    return EXIT_DONE


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN|MODEL", help="run directory; or a model folder, .gguf file or asset:NAME")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help=f"with a model: keys of its recipe; with a run: {_READING}"
    )
    parser.add_argument("--data", metavar="FILE", help="held-out data; default: that of the run")
    parser.add_argument("--base", action="store_true", help="measure the base model of the run, untrained")
    parser.add_argument("--recipe", metavar="NAME", default="sft_full", help="with a model: its task; default sft_full")
    parser.add_argument("--lm-eval", metavar="TASKS", help="comma-separated lm-eval benchmarks (extra `lm-eval`)")
    takes_state(parser)


def _evaluate(args: argparse.Namespace) -> int:
    checkpoint = checkpoint_of(args)
    is_run = (Path(args.run) / "run.yaml").is_file()
    if not is_run and args.data is None:
        if not Path(args.run).exists():
            run_directory(Path(args.run))
        raise AitrainError(f"{args.run} is not a run directory: to measure a model alone, add --data FILE")
    if is_run and args.lm_eval and args.data is not None:
        raise AitrainError(
            f"--data {args.data} has no effect with --lm-eval, which has its own data: remove one of them"
        )
    if is_run and args.overrides and args.data is None:
        raise AitrainError(f"{args.overrides[0]} has no effect on a run's own data: remove it")
    if not is_run or args.base:
        what = "the base model" if is_run else "a model alone"
        if args.lm_eval or checkpoint != "newest" or args.changed_inputs:
            word = "--lm-eval" if args.lm_eval else "--checkpoint" if checkpoint != "newest" else "--changed-inputs"
            raise AitrainError(f"{word} has no effect on {what}: remove it")
        with without_collection():
            from aitrain.trainer.base_model import evaluate_base, evaluate_model

        if is_run:
            evaluate_base(Path(args.run), args.data, args.overrides)
        else:
            evaluate_model(args.run, args.data, args.recipe, args.overrides)
        return EXIT_DONE
    run = run_directory(Path(args.run))
    with without_collection():
        from aitrain.trainer.evaluation import evaluate_run

    evaluate_run(run, args.data, args.lm_eval, checkpoint, args.changed_inputs, args.overrides)
    return EXIT_DONE


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    takes_run(parser)
    parser.add_argument("file", metavar="FILE", type=Path, help="records as in training, without the answers")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help=_READING)
    parser.add_argument(
        "--to", metavar="FILE", type=Path, help="JSON Lines, or a table NAME.csv, to write; default: standard output"
    )
    takes_state(parser)


def _predict(args: argparse.Namespace) -> int:
    run, checkpoint = run_directory(args.run), checkpoint_of(args)
    with without_collection():
        from aitrain.trainer.prediction import predict

    predict(run, args.file, args.to, checkpoint, args.changed_inputs, args.overrides)
    return EXIT_DONE


def _chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN|MODEL", help="run directory, model folder, .gguf file or asset:NAME")
    parser.add_argument("--system", metavar="TEXT", help="system message; default: that of the run")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, default=512, help="per answer; default 512")
    parser.add_argument(
        "--temperature", metavar="T", type=float, default=0.0, help="0 (default) = always the same answer"
    )
    parser.add_argument("--compare", action="store_true", help="show the answers of the base model side by side")
    parser.add_argument("--template", metavar="NAME", help="chat template of a base model, for instance chatml")
    parser.add_argument("--checkpoint", metavar="STEP|best|newest", default="newest", help="of a run; default newest")


def _chat(args: argparse.Namespace) -> int:
    checkpoint = checkpoint_of(args)
    if args.max_new_tokens < 1:
        raise AitrainError(f"--max-new-tokens {args.max_new_tokens} must be at least 1")
    if args.temperature < 0:
        raise AitrainError(f"--temperature {args.temperature:g} must be 0 or more")
    with without_collection():
        from aitrain.chat.talk import Settings, chat, open_chat

    settings = Settings(args.system, args.max_new_tokens, args.temperature, args.compare)
    chat(open_chat(args.model, settings, checkpoint, args.template))
    return EXIT_DONE


MODEL_COMMANDS: dict[str, Command] = {
    "export": Command("write a run's model as a Hugging Face folder or a .gguf file", _export_arguments, _export),
    "evaluate": Command("measure a run's model, or any model, on held-out data", _evaluate_arguments, _evaluate),
    "predict": Command("let a run's model answer the records of a file", _predict_arguments, _predict),
    "chat": Command("talk to a run's model, or to any chat model, in the terminal", _chat_arguments, _chat),
}
