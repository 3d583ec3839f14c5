"""Writes the generated pages of the documentation: every recipe and every configuration key."""

from __future__ import annotations

import re
import sys
from dataclasses import MISSING as DATACLASS_MISSING
from dataclasses import fields, is_dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

from omegaconf import MISSING

from aitrain.config import GROUPS, RunConfig
from aitrain.config.manual import KeyRow, all_keys, class_doc, field_docs
from aitrain.config.source import header
from aitrain.config.values import format_value, type_name
from aitrain.launch.choices import Address, Confidence, Container, DeviceFlag, Kind, Network, Runtime, Tasks
from aitrain.launch.clusters import Cluster, warning
from aitrain.launch.clusters import load as load_cluster
from aitrain.launch.clusters import names as cluster_names
from aitrain.launch.job import amount
from aitrain.launch.profile import Evidence, Limits, Profile
from aitrain.launch.ready import READY, ready_job, ready_script
from aitrain.launch.times import slurm_time

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Written by docs/generate.py from {source}. Change that, then run `make docs`. -->\n"
HEAD = "| key | value | default | meaning |\n|---|---|---|---|"

KEYS_INTRO = """# Every key

Set a key in a recipe, or after any command that takes keys: `aitrain train sft_lora optim.lr=1e-4`.
`aitrain show optim.lr` prints the same text in a terminal. `null` means that aitrain derives the value.

A group with options is chosen by its name alone (`adapter=lora`); the keys of the option follow with a dot
(`adapter.rank=8`).
"""

ADD_YOUR_SITE = """# Add your site

A cluster profile is one YAML file of facts. `aitrain show cluster` lists those that come with aitrain, and
`aitrain show cluster NAME` prints one with the source of each value. Your own files are in
`~/.config/aitrain/clusters/` (or anywhere: `--cluster ./site.yaml`). Nothing else has to be written for a new site.

## Change a profile

A file with the name of a shipped profile changes that one. Write only what differs; `null` removes a value.

```yaml
# ~/.config/aitrain/clusters/lumi_g.yaml
account: project_465000001             # every job of yours is billed here
partition: small-g
fabric:
  environment: {NCCL_DEBUG: INFO, NCCL_NET_GDR_LEVEL: null}
```

## Write a profile

A new name is a new profile, on its own or on a `base`; `generic`, `dgx_h200` and `gb200_nvl72` are meant for that.

```yaml
# ~/.config/aitrain/clusters/our_cluster.yaml
base: dgx_h200
kind: site
title: Our cluster
partition: h200
partitions: {h200: {max_hours: 48, max_nodes: 16}}
account_required: true
internet: {login: open, compute: closed}
software: {modules: [Python/3.12.3], container: apptainer, container_command: apptainer exec --nv}
storage: {areas: {scratch: {path: /scratch, purge_days: 30}}}
evidence:
  - {keys: [partitions, storage], confidence: documented, source: https://wiki.example.org/slurm}
```

```bash
aitrain show cluster our_cluster
aitrain submit sft_lora --cluster our_cluster --account a model.path=MODEL_FOLDER data.path=chats.jsonl --dry-run
```

A misspelt key, a wrong type or an unknown base is refused with its line and a suggestion.

What to look up in your site's documentation, in this order: the partition and its limits, how GPUs are requested, cores
per GPU, whether accounts and QoS are mandatory, whether compute nodes reach the internet, which network variables are
prescribed, and which file systems are purged.

## Every key of a profile
"""

RECIPES_INTRO = """# Recipes

A recipe is one short file. Run it by name (`aitrain train NAME`) or by path, change any key on the command line,
and check before you start with `aitrain check NAME`. [Every key](keys.md) explains the keys.
"""


def row_line(row: KeyRow) -> str:
    """Return one key as a line of a Markdown table.

    Args:
        row: The key.
    """
    default = "*you give it*" if row.default == MISSING else f"`{row.default}`"
    cells = (f"`{row.key}`", row.type, default, row.doc)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def group_section(group: str, rows: list[KeyRow]) -> list[str]:
    """Return the section of one group: what all options share first, then what each option adds or changes.

    Args:
        group: Name of the group.
        rows: Its keys, those of one option together.
    """
    out = [f"## {group}\n"]
    if group not in GROUPS:
        about = [] if group == "seed" else [class_doc(get_type_hints(RunConfig)[group]) + "\n"]
        return [*out, *about, HEAD, *map(row_line, rows), ""]
    of_option = {option: [row for row in rows if row.option == option] for option in GROUPS[group]}
    text = {option: [row_line(row) for row in of_option[option]] for option in of_option}
    shared = [line for line in next(iter(text.values())) if all(line in lines for lines in text.values())]
    out.append(class_doc(get_type_hints(RunConfig)[group]) + "\n")
    if shared:
        out += [HEAD, *shared, ""]
    known: dict[tuple[str, ...], str] = {}
    for option, cls in GROUPS[group].items():
        out += [f"### {group}={option}\n", class_doc(cls) + "\n"]
        own = tuple(line for line in text[option] if line not in shared)
        if own and own in known:
            out.append(f"Its keys are those of `{group}={known[own]}`.\n")
        elif own:
            known[own] = option
            out += [HEAD, *own, ""]
    return out


def keys_page() -> str:
    """Return `docs/keys.md`: every key of every group, from the dataclasses in `aitrain/config/`."""
    rows = {group: list(found) for group, found in groupby(all_keys(), key=lambda row: row.key.split(".")[0])}
    out = [NOTE.format(source="aitrain/config/ and configs/"), KEYS_INTRO]
    for field in fields(RunConfig):
        out += group_section(field.name, rows.get(field.name, []))
    return "\n".join(out).rstrip() + "\n"


def recipes_page() -> str:
    """Return `docs/recipes.md`: the comment at the head of each recipe, and its keys."""
    out = [NOTE.format(source="recipes/*.yaml"), RECIPES_INTRO]
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        about = header(path)
        body = "\n".join(path.read_text(encoding="utf-8").splitlines()[len(about) :]).strip("\n")
        # an indented line continues the line above
        first, *others = re.sub(r"\n +", " ", "\n".join(about)).split("\n")
        points = [f"- **{word}**: {text}" for word, text in (line.split(": ", 1) for line in others) if word != "Short"]
        code = f'```yaml title="recipes/{path.name}"\n{body}\n```\n'
        out += [f"## {path.stem}\n", first + "\n", "\n".join(points) + "\n", code]
    return "\n".join([*out, *measured_costs()]).rstrip() + "\n"


def measured_costs() -> list[str]:
    """Return the section on what the recipes cost, from the newest table in `tests/bench/results`."""
    newest = max((ROOT / "tests/bench/results").glob("recipes-cost-*.md"))
    _, table = newest.read_text(encoding="utf-8").split("\n\n", 1)
    return ["## Time, memory and loss\n", table]


def first_job(cluster: Cluster) -> list[str]:
    """Return the shell lines of a first job.

    Args:
        cluster: The cluster.
    """
    profile = cluster.profile
    words = [f"--cluster {cluster.name}"]
    if profile.account_required:
        words.append("--account ACCOUNT")
    if profile.qos_required and not profile.qos:
        words.append("--qos QOS")
    hours = min(1.0, profile.limits(profile.partition, profile.qos).max_hours or 1.0)
    words.append(f"--time {slurm_time(int(60 * hours))}")
    train = "model.path=MODEL_FOLDER data.path=chats.jsonl"
    if profile.device.runtime is Runtime.rocm:
        train += " \\\n  cluster.container=IMAGE.sif cluster.venv=inside"
    if profile.device.runtime is Runtime.cpu:
        train += " trainer.precision=fp32"
    effect = "without it, the job is submitted"
    if profile.kind is Kind.placeholder:
        effect = "nothing can be submitted yet"
    return [
        "source .venv/bin/activate   # made by `make venv` in the folder of aitrain",
        f"aitrain submit sft_lora {' '.join(words)} \\\n  {train} \\",
        f"  --dry-run   # prints the script; {effect}",
        "squeue --me",
        "aitrain runs",
    ]


def limits_table(title: str, known: dict[str, Limits]) -> list[str]:
    """Return the limits of partitions or QoS as a table.

    Args:
        title: What they are.
        known: Limits by name.
    """
    if not known:
        return []
    rows = [f"| {title} | hours | nodes | devices | whole nodes | |", "|---|---|---|---|---|---|"]
    for name, limits in known.items():
        nodes = "-" if limits.max_nodes is None else str(limits.max_nodes)
        nodes = f"{limits.min_nodes} to {nodes}" if limits.min_nodes else nodes
        hours = "-" if limits.max_hours is None else f"{limits.max_hours:g}"
        devices = "-" if limits.max_devices is None else str(limits.max_devices)
        whole = {None: "", True: "yes", False: "no"}[limits.whole_nodes]
        rows.append(f"| `{name}` | {hours} | {nodes} | {devices} | {whole} | {limits.note or ''} |")
    return [*rows, ""]


def site_facts(cluster: Cluster) -> list[str]:
    """Return what a user should know about a cluster, as a list.

    Args:
        cluster: The cluster.
    """
    profile = cluster.profile
    device, node, words = profile.device, profile.node, []
    memory = f" of {device.memory_gb:g} GB" if device.memory_gb else ""
    words.append(
        f"A node: {device.per_node} x {device.model or 'GPU'}{memory}, {node.cores_per_device} cores for each, "
        f"{node.arch.name}."
    )
    network = {"open": "yes", "closed": "no", "unknown": "not known, so aitrain takes it for no"}
    words.append(
        f"Internet: login nodes {network[profile.internet.login.name]}; compute nodes "
        f"{network[profile.internet.compute.name]}."
    )
    if profile.software.container_images:
        words.append(f"Images of the centre: `{profile.software.container_images}` (`cluster.container=...`).")
    elif profile.software.container.name != "none":
        words.append(f"Containers: {profile.software.container.value} (`cluster.container=...`).")
    if profile.software.modules:
        words.append(f"Modules that a job loads: `{' '.join(profile.software.modules)}`.")
    if profile.account_example:
        words.append(f"Account: {profile.account_example}.")
    if profile.qos_example:
        words.append(f"QoS: {profile.qos_example}.")
    if profile.billing.unit:
        rate = profile.billing.per_device_hour
        price = f"{amount(rate, profile.billing.unit)} for one device and hour" if rate else profile.billing.unit
        words.append(f"Billing: {price}{f'; {profile.billing.note}' if profile.billing.note else ''}.")
    if profile.energy.source:
        words.append(f"Energy of a job: {profile.energy.source}.")
    if profile.fabric.environment_practice:
        listed = ", ".join(f"`{name}`" for name in profile.fabric.environment_practice)
        words.append(f"Projects also set {listed}; `cluster.practice_env=true` does so.")
    return [f"- {word}" for word in words]


def areas_table(profile: Profile) -> list[str]:
    """Return the file systems as a table.

    Args:
        profile: The profile.
    """
    if not profile.storage.areas:
        return []
    rows = ["| folder | quota | files | deleted after | |", "|---|---|---|---|---|"]
    for area in profile.storage.areas.values():
        quota = "-" if area.quota_gb is None else f"{area.quota_gb:,.0f} GB"
        files = "-" if area.quota_files is None else f"{area.quota_files:,}"
        purge = "-" if area.purge_days is None else f"{area.purge_days} days"
        rows.append(f"| `{area.path}` | {quota} | {files} | {purge} | {area.note or ''} |")
    return [*rows, ""]


def site_page(name: str) -> str:
    """Return `docs/sites/NAME.md`: the first job on a cluster, and what is known about it.

    Args:
        name: Name of a shipped profile.
    """
    cluster = load_cluster(name, {})
    profile = cluster.profile
    doubtful = [
        ".".join(keys)
        for keys, evidence in cluster.origins.items()
        if evidence.confidence is Confidence.unverified and keys[0] not in ("title", "docs", "note")
    ]
    out = [NOTE.format(source=f"launch/cluster/{name}.yaml"), f"# {profile.where}\n"]
    out += [f"**{text}**\n" for text in (warning(profile),) if text]
    out += [f"{profile.note[0].upper()}{profile.note[1:]}.\n"] if profile.note else []
    out += ["## First job\n", "```bash", *first_job(cluster), "```\n"]
    if profile.device.runtime is Runtime.rocm:
        made = "[Your software](../jobs.md#your-software) explains how to create the environment `inside`."
        out.append(f"The image contains torch for these GPUs; {made}\n")
    if name in READY:
        sbatch = f"sbatch {ready_job(name).usage_flags}launch/{name}.sbatch sft_lora"
        out += ["Or with plain `sbatch` and the ready script in `launch/`:\n", "```bash"]
        out += [f"{sbatch} \\\n  model.path=MODEL_FOLDER data.path=chats.jsonl", "```\n"]
    out += ["[Jobs in detail](../jobs.md) describes what `aitrain submit` writes and checks.\n"]
    out += ["## Facts\n", *site_facts(cluster), ""]
    out += limits_table("partition", profile.partitions) + limits_table("QoS", profile.qos_limits)
    out += areas_table(profile)
    if profile.docs:
        out.append(f"The centre's own documentation: <{profile.docs}>.")
    out.append(f"`aitrain show cluster {name}` prints every value with its source.\n")
    if doubtful:
        out.append(f"Not verified: {', '.join(f'`{key}`' for key in doubtful)}. Check these with the site.\n")
    return "\n".join(out).rstrip() + "\n"


def add_your_site_page() -> str:
    """Return `docs/add-your-site.md`: how a profile is written, and every key of it."""
    out = [NOTE.format(source="docs/generate.py and aitrain/launch/profile.py"), ADD_YOUR_SITE]
    out += profile_keys(Profile, "")
    out += ["### What the words mean\n"]
    for choice in (Kind, Runtime, DeviceFlag, Tasks, Address, Network, Container):
        out += [*(f"- `{each.name}`: {each.value}" for each in choice), ""]
    out += ["### Words of `evidence`\n", HEAD]
    out += [row_line(row) for row in _profile_rows(Evidence, "evidence[].")]
    out += ["", "Confidence is one of:\n", *(f"- `{each.name}`: {each.value}" for each in Confidence), ""]
    return "\n".join(out).rstrip() + "\n"


def profile_keys(cls: type, prefix: str) -> list[str]:
    """Return the tables of the keys of a profile: its own first, then those of each group.

    Args:
        cls: Dataclass of the profile or of a group.
        prefix: Prefix of its keys, ending with a dot.
    """
    out = [f"### {prefix.rstrip('.') or 'At the top'}\n", class_doc(cls) + "\n", HEAD]
    out += [row_line(row) for row in _profile_rows(cls, prefix)] + [""]
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint):
            out += profile_keys(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif get_origin(hint) is dict and is_dataclass(get_args(hint)[1]):
            out += profile_keys(get_args(hint)[1], f"{prefix}{name}.NAME.")
    return out


def _profile_rows(cls: type, prefix: str) -> list[KeyRow]:
    rows = []
    for each in fields(cls):
        hint = get_type_hints(cls)[each.name]
        if is_dataclass(hint) or (get_origin(hint) is dict and is_dataclass(get_args(hint)[1])):
            continue
        default = each.default_factory() if each.default is DATACLASS_MISSING else each.default  # type: ignore[misc]
        kind = "table of texts" if get_origin(hint) is dict else type_name(hint)
        rows.append(
            KeyRow(
                prefix + each.name,
                None,
                kind,
                format_value(None if default in ("", [], {}) else default),
                field_docs(cls)[each.name],
            )
        )
    return rows


PAGES = {
    "keys.md": keys_page,
    "recipes.md": recipes_page,
    "add-your-site.md": add_your_site_page,
    **{f"sites/{name}.md": partial(site_page, name) for name in cluster_names({})},
}


def main() -> int:
    """Write the pages that differ from their source and say which."""
    written = []
    scripts = {f"../launch/{name}.sbatch": partial(ready_script, name) for name in READY}
    for name, page in {**PAGES, **scripts}.items():
        path, text = ROOT / "docs" / name, page()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            written.append(name)
    print(f"docs: {', '.join(written) or 'nothing'} rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
