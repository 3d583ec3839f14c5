"""The rules of the house: mirror of the tests, sizes, names, torch-free start, README pointers, documentation."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from aitrain.cli import COMMANDS
from aitrain.config import GROUPS
from aitrain.config.manual import all_keys
from aitrain.recipe import compose

ROOT = Path(__file__).resolve().parent.parent
LARGEST_FILE = 400
LONGEST_FUNCTION = 60
FEW_STATEMENTS = 10  # a module with fewer of them in all its functions needs no test of its own

TESTED_ELSEWHERE = {
    # module -> the test that runs it, where a test at the mirrored place would only repeat that one
    "aitrain/__main__.py": "tests/test_cli.py",
    **{f"aitrain/{name}.py": "tests/test_cli.py" for name in ("command", "model_commands")},
    # the providers of a benchmark, which run as processes of their own and must agree with each other
    **{f"aitrain/bench/{name}.py": "tests/bench/test_train.py" for name in ("bare", "job", "ours", "sft_trainer")},
    # what is compared, and by whom: every part runs on the CPU, and its large cases are built without memory
    "aitrain/bench/ops/case.py": "tests/bench/ops/test_measure.py",
    **{
        f"aitrain/bench/ops/parts/{path.name}": "tests/bench/ops/test_command.py"
        for path in (ROOT / "aitrain/bench/ops/parts").glob("[a-z]*.py")
    },
    # what a recipe names, found and told
    "aitrain/data/source.py": "tests/tasks/test_data_files.py",
    # parts of one replacement, which only a whole fused model shows
    **{f"aitrain/models/{name}.py": "tests/models/test_fuse.py" for name in ("fused_head", "fused_adapter")},
    # parts of every text task
    **{
        f"aitrain/{name}.py": "tests/tasks/test_classify_text.py"
        for name in (
            *("data/labels", "data/columns", "data/text_account", "models/encoders", "tasks/text_encoder"),
            *("tasks/class_metrics", "tasks/classifier", "tasks/pretrained"),
        )
    },
    **{
        f"aitrain/{name}.py": "tests/tasks/test_classify_image.py"
        for name in ("data/images", "data/image_account", "models/image_processor", "models/frozen_norm")
    },
    **{
        f"aitrain/{name}.py": "tests/tasks/test_embeddings.py"
        for name in ("data/pairs", "tasks/retrieval_metrics", "models/sentence_folder")
    },
    **{
        f"aitrain/{name}.py": "tests/tasks/test_preference.py"
        for name in ("data/preferences", "tasks/preference_losses")
    },
    **{
        f"aitrain/{name}.py": "tests/tasks/test_forecast.py"
        for name in (
            *("data/series", "data/series_account", "data/time_grid", "data/windows", "models/patch_transformer"),
            *(f"tasks/forecast_{part}" for part in ("baselines", "data", "export", "metrics", "picture")),
        )
    },
    "aitrain/data/cached.py": "tests/data/test_prepare.py",
    # a checkpoint's weights in a model, which exports show
    "aitrain/models/weights.py": "tests/models/test_export.py",
    # classes in files of the user's, which only a file outside the tree proves
    **{
        f"aitrain/{name}.py": "tests/e2e/test_custom_task.py"
        for name in (
            *("config/custom", "config/own_options", "io/user_code", "tasks/user_code"),
            "trainer/callbacks",
        )
    },
    "aitrain/composition.py": "tests/test_recipe.py",
    # parts of one kernel
    "aitrain/ops/cross_entropy/upstream.py": "tests/ops/cross_entropy/test_dispatch.py",
    # the seam, which only tasks show
    "aitrain/tasks/task.py": "tests/tasks/test_causal_lm.py",
    "aitrain/data/token_samples.py": "tests/data/test_batches.py",
    # one look at a model folder
    "aitrain/models/weight_files.py": "tests/models/test_folder.py",
    # talking to Slurm, which only a real one proves
    **{f"aitrain/launch/{name}.py": "tests/e2e/test_slurm.py" for name in ("local_nodes", "local_site", "slurm")},
    "aitrain/trainer/supervised.py": "tests/e2e/test_slurm.py",
    "aitrain/doctor/job.py": "tests/e2e/test_slurm.py",
    "aitrain/doctor/finding.py": "tests/doctor/test_judge.py",
    # a hub over real HTTP, and a run that uses what came from it
    **{f"aitrain/{name}.py": "tests/e2e/test_fetch.py" for name in ("fetching", "models/store")},
    # parts of one thing
    **{
        f"aitrain/dist/{name}.py": "tests/dist/test_supervisor.py" for name in ("heartbeat", "lifeline", "rank_process")
    },
    "aitrain/launch/hand_in.py": "tests/launch/test_submit.py",
    "aitrain/commands.py": "tests/test_cli.py",
    # whole runs, which only whole runs prove
    "aitrain/trainer/fit.py": "tests/e2e/test_equality.py",
    # the rules of a group show only in the sentence a user reads, so they are tested through the door
    **{
        f"aitrain/config/{path.stem}.py": "tests/test_recipe.py"
        for path in (ROOT / "configs").iterdir()
        if path.is_dir()
    },
    **{
        f"aitrain/config/{group}.py": "tests/test_recipe.py"
        for group in ("checkpoint", "cluster", "evaluate", "export", "model")
    },
    **{f"aitrain/config/{group}.py": "tests/test_recipe.py" for group in ("cluster", "root", "run", "trainer")},
}
OF_THE_HOUSE = {
    # tests of something that is no module of the package
    "tests/test_architecture.py": "this file",
    "tests/ops/test_aot.py": "what compilers make of all kernels",
    "tests/ops/test_mutants.py": "the tests of all ops: they find planted bugs",
    "tests/launch/test_wheel.py": "what an installed wheel carries",
    "tests/config/test_recipes.py": "the shipped recipes and options, which are YAML",
}
LONG_FOR_A_REASON: dict[str, str] = {
    # "aitrain/room/module.py" or "aitrain/room/module.py: function" -> why it is longer than the budget
    "aitrain/ops/rms_norm/kernel.py: _backward": "one Triton kernel: what is loaded, reduced and kept is one loop",
    "aitrain/ops/adamw/kernel.py: _step": "one Triton kernel: a block of parameters stays in registers for the step",
    "aitrain/ops/rope/kernel.py: _rotate": "one Triton kernel: the cosines of a position serve all of its heads",
}
HEAVY = ("torch", "lightning", "pytorch_lightning", "deepspeed", "transformers", "peft", "accelerate")
TORCH_FREE = ("aitrain.cli", "aitrain.recipe", "aitrain.preflight", "aitrain.config", "aitrain.errors", "aitrain.io")
TORCH_FREE += ("aitrain.watch", "aitrain.dist.supervisor", "aitrain.trainer.supervised")
TORCH_FREE += ("aitrain.launch.submit", "aitrain.launch.show", "aitrain.trainer.run_directory")
TORCH_FREE += ("aitrain.models.folder", "aitrain.models.assets", "aitrain.report.runs", "aitrain.dist.ranks")


def modules() -> list[Path]:
    """Return every module of the package; the links to configs, recipes and launch files are no code of it."""
    found = (ROOT / "aitrain").rglob("*.py")
    return sorted(path for path in found if not {"_configs", "_recipes", "_launch"} & set(path.parts))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def has_logic(path: Path) -> bool:
    """Whether the functions of a module hold enough statements to go wrong."""
    bodies = [node for _, node in functions(ast.parse(path.read_text(encoding="utf-8")))]
    return sum(isinstance(node, ast.stmt) for body in bodies for node in ast.walk(body)) - len(bodies) >= FEW_STATEMENTS


def functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every function below a node with its dotted name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            dotted = f"{inside}{node.name}"
            if not isinstance(node, ast.ClassDef):
                yield dotted, node
            yield from functions(node, dotted + ".")
        else:
            yield from functions(node, inside)


def test_every_test_has_its_module() -> None:
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if name(path) not in OF_THE_HOUSE]
    own = {"bench", "e2e", "gpu"}  # benchmarks of whole commands, and whole runs: they mirror no single module
    lost = []
    for path in tests:
        inside = path.relative_to(ROOT / "tests")
        module = ROOT / "aitrain" / inside.parent / inside.name.removeprefix("test_")
        if inside.parts[0] not in own and not module.is_file():
            lost.append(f"{name(path)} tests no {name(module)}")
    assert not lost, "\n".join(lost)


def test_every_module_has_its_test() -> None:
    bare = []
    for path in modules():
        inside = path.relative_to(ROOT / "aitrain")
        test = ROOT / "tests" / inside.parent / f"test_{inside.name}"
        elsewhere = TESTED_ELSEWHERE.get(name(path))
        if path.name == "__init__.py" or not has_logic(path):
            continue
        if elsewhere is not None:
            assert (ROOT / elsewhere).is_file(), f"{name(path)} is said to be tested by {elsewhere}, which is not there"
        elif not test.is_file():
            bare.append(f"{name(path)} has no {name(test)}")
    assert not bare, "\n".join(bare)


def test_exceptions_still_exist() -> None:
    for entry in [*TESTED_ELSEWHERE, *OF_THE_HOUSE, *LONG_FOR_A_REASON]:
        assert (ROOT / entry.split(": ")[0]).is_file(), f"{entry} is an exception for a file that is gone"


def test_init_modules_only_export() -> None:
    busy = [
        name(path)
        for path in modules()
        if path.name == "__init__.py"
        and any(
            not isinstance(node, ast.Import | ast.ImportFrom | ast.Expr | ast.Assign)
            for node in ast.parse(path.read_text()).body
        )
    ]
    assert not busy, f"logic in {busy}: move it into a module with a name"


def test_files_and_functions_are_small() -> None:
    large = []
    for path in modules():
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > LARGEST_FILE and name(path) not in LONG_FOR_A_REASON:
            large.append(f"{name(path)}: {lines} lines, at most {LARGEST_FILE}: is it still one subject?")
        for dotted, node in functions(ast.parse(text)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > LONGEST_FUNCTION and f"{name(path)}: {dotted}" not in LONG_FOR_A_REASON:
                large.append(f"{name(path)}: {dotted}: {lines} lines, at most {LONGEST_FUNCTION}")
    assert not large, "\n".join(large)


def test_the_trainer_knows_no_task() -> None:
    """What trains, keeps, shards and reports must not know what is trained."""
    own = re.compile(r"CausalLM|causal_lm|[Tt]okenizer\b|Sft\b|Pretrain\b|perplexity|sequence_tokens")
    told = [
        f"{name(path)}:{number}: {line.strip()}"
        for path in modules()
        if path.relative_to(ROOT / "aitrain").parts[0] in ("trainer", "checkpoint", "strategy", "report")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if own.search(line)
    ]
    assert not told, "\n".join(told)


def test_no_room_for_odds_and_ends() -> None:
    vague = {"utils", "util", "common", "helpers", "helper", "misc"}
    found = [name(path) for path in modules() if vague & {*path.parts[:-1], path.stem}]
    assert not found, f"{found}: name the subject instead"


def test_recipe_check_loads_no_torch() -> None:
    there = [module for module in TORCH_FREE if importlib.util.find_spec(module)]
    assert len(there) == len(TORCH_FREE), f"gone: {set(TORCH_FREE) - set(there)}"
    code = f"""
import sys, {", ".join(there)}
aitrain.cli.main(["--help"])
code = aitrain.cli.main(["check", "quickstart", "model.path=asset:tiny-llama", "--no-data"])
print("loaded:", *[name for name in {HEAVY} if name in sys.modules])
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:", "a login node would wait for these"


def test_readme_pointers_hold() -> None:
    section = (
        (ROOT / "README.md").read_text(encoding="utf-8").split("## Where the training step is")[1].split("\n## ")[0]
    )
    pointers = re.findall(r"`(aitrain/[\w/]+\.py)`: `([\w.]+)`", section)
    assert len(pointers) == len(re.findall(r"^- ", section, re.MULTILINE)) >= 3, "an entry is no `path`: `symbol` pair"
    for path, symbol in pointers:
        assert (ROOT / path).is_file(), f"the README points to {path}, which is not there"
        held = [dotted for dotted, _ in functions(ast.parse((ROOT / path).read_text(encoding="utf-8")))]
        assert symbol in held, f"the README says that {path} holds {symbol}; it holds {', '.join(held)}"


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]

    def files(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            assert isinstance(entry, dict | list)
            for inner in entry.values() if isinstance(entry, dict) else entry:
                yield from files(inner)

    listed = list(files(nav))
    assert sorted(listed) == sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://", "#")):
            continue
        assert (page.parent / target.split("#")[0]).is_file(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_files_named_in_the_docs_exist(page: Path) -> None:
    for target in re.findall(
        r"`((?:aitrain|tests|configs|recipes|docs|launch)/[\w/]+\.(?:py|yaml|md|sbatch|jinja))`",
        page.read_text(encoding="utf-8"),
    ):
        if target != "tests/a/test_b.py" and target != "aitrain/a/b.py":
            assert (ROOT / target).is_file(), f"{page.name} names {target}, which is not there"


def shell_lines(page: Path) -> Iterator[list[str]]:
    """Yield the words of every `aitrain` command in a page's bash blocks."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            at = next((i for i, word in enumerate(words) if word.endswith("aitrain")), None)
            if at is not None:
                yield words[at + 1 :]


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_commands_in_the_docs_are_real(page: Path) -> None:
    for command, *words in shell_lines(page):
        assert command in COMMANDS, f"{page.name}: aitrain {command}"
        if command in ("train", "check", "submit") and "-m" not in words:
            recipe = next(word for word in words if not word.startswith("-"))
            if not recipe.endswith(".yaml"):  # a page's own recipe is run by the test of that page
                compose(recipe, [word for word in words if "=" in word and not word.startswith("-")])
            known = argparse.ArgumentParser()
            COMMANDS[command].arguments(known)
            known.parse_intermixed_args(words)


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_keys_in_the_docs_exist(page: Path) -> None:
    keys, text = {row.key for row in all_keys()}, page.read_text(encoding="utf-8")
    groups = "|".join({key.split(".")[0] for key in keys if "." in key})
    for key in re.findall(rf"(?<![\w/.-])((?:{groups})\.\w+)(?==|`)", text):
        assert key in keys or key == "run.yaml", f"{page.name} names the key {key}, which does not exist"
    options = {f"{group}={option}" for group, found in GROUPS.items() for option in found}
    for choice in re.findall(rf"(?<![\w.-])((?:{'|'.join(GROUPS)})=\w+)", text):
        assert choice in options, f"{page.name} names {choice}, which does not exist"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date() -> None:
    pages = generator().PAGES
    assert {"keys.md", "recipes.md", "add-your-site.md", "sites/lumi_g.md"} <= set(pages)
    for page, text in pages.items():
        written = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert written == text(), f"docs/{page} is behind its source: run `make docs`"


def test_every_message_that_troubleshooting_quotes_exists() -> None:
    said = []
    for node in (node for path in (ROOT / "aitrain").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.JoinedStr):
            said.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            said.append(node.value)
    text = "\n".join(said)
    rows = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 70
    parts = {
        part.strip(" ;:,") for row in rows for part in re.split(r"\.\.\.|\b(?:\d\w*|[A-Z]{4,}|N)\b|'[^']*'|`", row)
    }
    missing = [part for part in parts if len(part) > 7 and part not in text]
    assert not missing, f"troubleshooting.md quotes what no message has: {missing}"


def test_no_page_of_a_site_is_left_over() -> None:
    assert {f"sites/{path.name}" for path in (ROOT / "docs/sites").iterdir()} == {
        page for page in generator().PAGES if page.startswith("sites/")
    }


def test_every_direct_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(need for needs in project["optional-dependencies"].values() for need in needs)]
    lines = [
        line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "a line is no exact version"
    locked = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    wanted = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=! ]", need)[0]).lower() for need in asked} - {"aitrain"}
    assert wanted <= locked, f"not locked: {sorted(wanted - locked)}"
