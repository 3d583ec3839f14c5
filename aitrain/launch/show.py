"""A cluster profile as text: every value with its source and reliability."""

from __future__ import annotations

from aitrain.config.values import format_value
from aitrain.errors import RecipeError
from aitrain.launch.choices import Confidence
from aitrain.launch.clusters import Cluster, load, names, warning
from aitrain.launch.job import counted

UNVERIFIED = "?"
"""Mark before a value that is not verified."""


def profile_text(name: str) -> str:
    """Return a profile: every value with its confidence and the number of its source, and the sources.

    Args:
        name: Name or path of a profile.

    Raises:
        RecipeError: There is no such profile, or it has faults.
    """
    cluster = load(name)
    profile = cluster.profile
    lines = [f"{cluster.name}: {profile.where}"]
    lines += [f"  {text}" for text in (profile.docs, warning(profile), profile.note) if text]
    rows, sources = _rows(cluster)
    files = ", ".join(map(str, cluster.files))
    width = max(len(key) for _, key, _, _ in rows)
    lines += ["", *(f"{mark} {key:<{width}}  {value}  [{of}]" for mark, key, value, of in rows)]
    lines += ["", "sources"]
    lines += [f"  {number:>2}  {text}" for text, number in sources.items()]
    doubtful = sum(row[0] == UNVERIFIED for row in rows)
    if doubtful:
        lines += ["", f"Unverified: {counted(doubtful, 'value')}, marked {UNVERIFIED}. Check with the site."]
    lines += ["", f"Change any of them in a file of your own: docs/add-your-site.md. Read from: {files}"]
    return "\n".join(lines)


def _rows(cluster: Cluster) -> tuple[list[tuple[str, str, str, str]], dict[str, int]]:
    """Return mark, key, value and confidence with source number of every value, and the sources by number."""
    rows, sources = [], dict[str, int]()
    for keys, evidence in cluster.origins.items():
        value = _value(cluster, keys)
        if keys[0] in ("title", "docs", "note") or value is None:
            continue
        text = evidence.source + (f" ({evidence.note})" if evidence.note else "")
        number = sources.setdefault(text, len(sources) + 1)
        mark = UNVERIFIED if evidence.confidence is Confidence.unverified else " "
        rows.append((mark, ".".join(keys), value, f"{evidence.confidence.name} {number}"))
    return rows, sources


def _value(cluster: Cluster, keys: tuple[str, ...]) -> str | None:
    """Return a value as text; `None` for an entry with values below it."""
    value: object = cluster.profile
    for word in keys:
        value = value[word] if isinstance(value, dict) else getattr(value, word)
    if hasattr(value, "__dataclass_fields__"):
        return None if any(len(other) > len(keys) and other[: len(keys)] == keys for other in cluster.origins) else "{}"
    return format_value(value)


def listing() -> str:
    """Return the available profiles, one per line."""
    known = names()
    width = max(map(len, known))
    rows = [f"  {name:<{width}}  {_line(name)}" for name in known]
    return "\n".join(["clusters, for --cluster NAME (`aitrain show cluster NAME` shows more)", *rows])


def _line(name: str) -> str:
    """Return a profile in one line; a broken file of the user's must not hide the others."""
    try:
        cluster = load(name)
    except RecipeError as error:
        return f"cannot be used: {error.faults[0]}"
    return f"{cluster.profile.where}: {_hardware(cluster)}"


def _hardware(cluster: Cluster) -> str:
    profile = cluster.profile
    if profile.kind.name == "placeholder":
        return "not built yet"
    memory = f" {profile.device.memory_gb:g} GB" if profile.device.memory_gb else ""
    return f"{profile.device.per_node} x {profile.device.model or profile.device_word}{memory} per node"
