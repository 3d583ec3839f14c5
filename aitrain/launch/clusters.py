"""Finds cluster profiles, merges a user's or a site's file with a shipped one, and records the origin of each value."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from aitrain.config.source import key_lines
from aitrain.config.values import Faults, Key, convert, nearest
from aitrain.errors import RecipeError
from aitrain.io.home import user_path
from aitrain.launch.choices import Confidence, Kind
from aitrain.launch.profile import Evidence, Profile

SHIPPED = Path(__file__).parents[1] / "_launch" / "cluster"
"""Profiles that come with aitrain, in a source checkout and in a wheel."""

Keys = tuple[str, ...]
"""Words of a key, for instance `("fabric", "environment", "NCCL_NET")`."""


@dataclass
class Layer:
    """One profile file: its values and their sources."""

    path: Path
    values: dict[Keys, Any] = field(default_factory=dict)
    evidence: list[Evidence] = field(default_factory=list)
    base: str | None = None


@dataclass
class Cluster:
    """A profile by name, with the origin of each of its values."""

    name: str
    """Name, as in `--cluster NAME`."""

    profile: Profile
    """The facts."""

    origins: dict[Keys, Evidence]
    """Where each value that a file sets comes from."""

    files: list[Path]
    """The files it was made of, the deepest base first."""


def own_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Return the folder of the user's own profiles: `clusters/` in `XDG_CONFIG_HOME/aitrain` or `~/.config/aitrain`.

    Args:
        environment: Variables; `os.environ` when absent.
    """
    env = os.environ if environment is None else environment
    home = env.get("XDG_CONFIG_HOME") or user_path(env.get("HOME", "~")) / ".config"
    return Path(home) / "aitrain" / "clusters"


def names(environment: Mapping[str, str] | None = None) -> list[str]:
    """Return the names of the shipped profiles and of the user's own.

    Args:
        environment: Variables; `os.environ` when absent.
    """
    folders = (SHIPPED, own_folder(environment))
    return sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")})


def load(cluster: str, environment: Mapping[str, str] | None = None) -> Cluster:
    """Read a profile with everything it is based on.

    Args:
        cluster: Name of a profile, or path of a YAML file. A file of the user's with the name of a shipped profile
            changes that one.
        environment: Variables; `os.environ` when absent.

    Raises:
        RecipeError: There is no such profile, or every fault in its files: keys, types, bases, broken rules.
    """
    faults = Faults()
    layers = _layers(_find(cluster, environment), environment, faults, ())
    values: dict[Keys, Any] = {}
    origins: dict[Keys, Evidence] = {}
    for layer in layers:
        for keys, value in layer.values.items():
            for inside in [old for old in values if old[: len(keys)] == keys and (value is None or old == keys)]:
                del values[inside], origins[inside]
            values[keys], origins[keys] = value, _origin(layer, keys)
    profile = _build(Profile, values, ())
    broken = [f"{layers[-1].path}: {fault}" for fault in profile.faults() if not faults.mention(fault)]
    if faults.lines or broken:
        raise RecipeError(list(dict.fromkeys([*faults.lines, *broken])))
    name = cluster if "/" not in cluster and not cluster.endswith((".yaml", ".yml")) else Path(cluster).stem
    kept = {keys: origin for keys, origin in origins.items() if values[keys] is not None}
    return Cluster(name, profile, kept, [layer.path for layer in layers])


def _find(cluster: str, environment: Mapping[str, str] | None) -> Path:
    """Return the file of a profile; the user's own goes before a shipped one."""
    if "/" in cluster or cluster.endswith((".yaml", ".yml")):
        path = user_path(cluster).absolute()
        if path.is_file():
            return path
        raise RecipeError(
            f"cluster {cluster} {'is a folder' if path.is_dir() else 'does not exist'}: name a YAML file, or one of "
            + ", ".join(names(environment))
        )
    for folder in (own_folder(environment), SHIPPED):
        if (folder / f"{cluster}.yaml").is_file():
            return folder / f"{cluster}.yaml"
    known = names(environment)
    guess = nearest(cluster, known)
    raise RecipeError(
        f"cluster {cluster} is not known: "
        + (f"did you mean {guess}? " if guess else "")
        + f"Choose from {', '.join(known)}; for another, write {own_folder(environment)}/{cluster}.yaml"
    )


def _layers(path: Path, environment: Mapping[str, str] | None, faults: Faults, above: tuple[Path, ...]) -> list[Layer]:
    """Read a profile file and what it is based on, the deepest first."""
    layer = _read(path, faults)
    base = layer.base
    shipped = SHIPPED / path.name
    if base is None and path.parent != SHIPPED and shipped.is_file():
        below = shipped  # a file with the name of a shipped profile changes that one
    elif base is None:
        return [layer]
    else:
        try:
            below = shipped if base == path.stem and shipped.is_file() else _base(base, path, environment)
        except RecipeError as error:
            faults.add(f"{path}: base: {error}")
            return [layer]
    if below in (*above, path):
        faults.add(f"{path}: base: {base} is based on itself: name another profile, or remove the line")
        return [layer]
    return [*_layers(below, environment, faults, (*above, path)), layer]


def _base(base: str, path: Path, environment: Mapping[str, str] | None) -> Path:
    beside = path.with_name(f"{base}.yaml")
    return beside if "/" not in base and beside.is_file() else _find(base, environment)


def _read(path: Path, faults: Faults) -> Layer:
    """Read one file; faults are recorded with their line."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: broken YAML: {error.problem or error.context}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not isinstance(node, yaml.MappingNode):
        raise RecipeError(
            f"{path} is not a cluster profile, because it holds no keys with values: begin with `base: NAME` and add "
            "what differs, for instance `account: my-project`"
        )
    layer = Layer(path)
    reader = _Reader(path, dict(key_lines(node, "")), faults)
    base = content.pop("base", None)
    layer.base = None if base is None else str(base)
    layer.evidence = reader.evidence(content.pop("evidence", None))
    layer.values = reader.read(Profile, content, ())
    reader.refuse_stray(layer)
    return layer


@dataclass
class _Reader:
    """Turns the content of one file into typed values, key by key."""

    path: Path
    lines: dict[str, int]
    faults: Faults

    def read(self, cls: type, content: dict[Any, Any], above: Keys) -> dict[Keys, Any]:
        """Return the typed value of every key below a dataclass; faults are noted."""
        hints, defaults = get_type_hints(cls), {each.name: _default(each) for each in fields(cls)}
        found: dict[Keys, Any] = {}
        for word, value in content.items():
            keys = (*above, str(word))
            if word not in hints:
                self._refuse(cls, keys)
            elif is_dataclass(hints[word]) or get_origin(hints[word]) is dict:
                if value is None:
                    continue  # all of its keys are commented out
                if not isinstance(value, dict):
                    self._note(keys, f"{'.'.join(keys)}={value} is a group of keys: write them below it, indented")
                elif is_dataclass(hints[word]):
                    found |= self.read(hints[word], value, keys)  # type: ignore[arg-type]
                else:
                    found |= self._entries(get_args(hints[word])[1], value, keys, cls)
            else:
                self._scalar(found, Key(".".join(keys), hints[word], defaults[word], cls), value, keys)
        return found

    def evidence(self, entries: Any) -> list[Evidence]:
        """Return the sources that a file names; faults are noted."""
        if entries is None:
            return []
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            example = "- {keys: [account], confidence: documented, source: ADDRESS}"
            self._note(("evidence",), f"evidence must be a list of sources: write for instance `{example}` below it")
            return []
        found = [self.read(Evidence, entry, ("evidence",)) for entry in entries]
        return [_build(Evidence, {keys[1:]: value for keys, value in values.items()}, ()) for values in found]

    def refuse_stray(self, layer: Layer) -> None:
        """Record every source of a value that the file does not set: it would be ignored silently."""
        there = [".".join(keys) for keys in layer.values]
        for key in [key for evidence in layer.evidence for key in evidence.keys]:
            if not any(_covers(key, name) for name in there):
                guess = nearest(key, {name for each in there for name in (each, each.split(".")[0])})
                hint = f"did you mean {guess}?" if guess else "remove it, or set the value"
                self._note(("evidence",), f"evidence is given for {key}, which this file does not set: {hint}")

    def _entries(self, kind: Any, content: dict[Any, Any], above: Keys, owner: type) -> dict[Keys, Any]:
        """Return the values of a table whose words the user chooses; null removes what the base has."""
        found: dict[Keys, Any] = {}
        for word, value in content.items():
            keys = (*above, str(word))
            if value is None:
                found[keys] = None
            elif is_dataclass(kind):
                if not isinstance(value, dict):
                    self._note(keys, f"{'.'.join(keys)}={value} is a group of keys: write {{}} when none is known")
                    continue
                found[keys] = {}  # it exists, even when nothing is known about it
                found |= self.read(kind, value, keys)  # type: ignore[arg-type]
            else:
                self._scalar(found, Key(".".join(keys), kind, "TEXT", owner), value, keys)
        return found

    def _scalar(self, found: dict[Keys, Any], key: Key, value: Any, keys: Keys) -> None:
        try:
            found[keys] = convert(key, value)
        except RecipeError as error:
            self._note(keys, str(error))

    def _refuse(self, cls: type, keys: Keys) -> None:
        *above, word = keys
        known = [each.name for each in fields(cls)]
        elsewhere = [key for key in _every_key(Profile, "") if key.rsplit(".", 1)[-1] == word]
        guess = elsewhere[0] if elsewhere else nearest(word, known)
        inside = f" of {'.'.join(above)}" if above else ""
        hint = f"did you mean {guess}?" if guess else f"choose from {', '.join(known)}"
        self._note(keys, f"{'.'.join(keys)} is not a key{inside or ' of a cluster profile'}: {hint}")

    def _note(self, keys: Keys, fault: str) -> None:
        name = ".".join(keys)
        line = f":{self.lines[name]}" if name in self.lines else ""
        self.faults.add(f"{self.path}{line}: {fault}", name)


def _every_key(cls: type, prefix: str) -> Iterator[str]:
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint):
            yield from _every_key(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield prefix + name


def _default(each: Any) -> Any:
    value = each.default_factory() if each.default_factory is not NO_DEFAULT else each.default
    return None if value in ("", {}) else value


def _build(cls: Any, values: dict[Keys, Any], above: Keys) -> Any:
    """Return a dataclass with the values below a key; what no file sets has its default."""
    given: dict[str, Any] = {}
    depth = len(above)
    for name, hint in get_type_hints(cls).items():
        keys = (*above, name)
        if is_dataclass(hint):
            given[name] = _build(hint, values, keys)
        elif get_origin(hint) is dict:
            kind = get_args(hint)[1]
            inside = [old for old in values if len(old) == depth + 2 and old[: depth + 1] == keys]
            there = [old for old in inside if values[old] is not None]
            given[name] = {old[-1]: _build(kind, values, old) if is_dataclass(kind) else values[old] for old in there}
        elif keys in values:
            given[name] = values[keys]
    return cls(**given)


def _origin(layer: Layer, keys: Keys) -> Evidence:
    """Return the evidence of one value: that with the longest matching key in the file that sets it."""
    name, best, length = ".".join(keys), Evidence(source=str(layer.path)), -1
    for evidence in layer.evidence:
        for key in evidence.keys:
            if _covers(key, name) and len(key) > length:
                best, length = evidence, len(key)
    return best


def _covers(key: str, name: str) -> bool:
    """Return whether a value is the one that a key of `evidence` names, or lies below it."""
    return name == key or name.startswith(f"{key}.")


def unsourced(cluster: Cluster) -> list[str]:
    """Return the values of a shipped profile that name no source.

    Args:
        cluster: A profile.
    """
    return [".".join(keys) for keys, origin in cluster.origins.items() if origin.confidence is Confidence.yours]


def warning(profile: Profile) -> str | None:
    """Return a warning for a profile that is not a real cluster, or `None`.

    Args:
        profile: A profile.
    """
    return None if profile.kind is Kind.site else f"{profile.title}: {profile.kind.value}"
