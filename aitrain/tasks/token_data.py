"""Token sequences of a run: prepared once by rank 0, then memory-mapped by every rank; and their display."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from aitrain.config import RunConfig
from aitrain.config.data import Sequences
from aitrain.data.prepare import Files, Prepared, open_prepared, prepare, sample_text
from aitrain.data.token_set import TokenSet
from aitrain.dist.group import Group
from aitrain.errors import AitrainError, DataError
from aitrain.io import remove_leftovers
from aitrain.io.terminal import can_move, has_colour
from aitrain.models.assets import cache
from aitrain.tasks.data_files import source_of
from aitrain.tasks.task import Watch, unwatched


def cache_folder() -> Path:
    """Return the folder of prepared data: `prepared/` in the cache."""
    return cache() / "prepared"


def data_files(config: RunConfig) -> Files:
    """Return the recipe's data files.

    Args:
        config: The run.

    Raises:
        DataError: A pattern or a folder holds no file that can be read.
    """
    held_out, data = config.data.validation_path, config.data
    found = source_of(held_out, data, "data.validation_path") if held_out else None
    return Files(source_of(data.path, data), found)


def prepared_tokens(config: RunConfig, tokenizer: Any, group: Group, watch: Watch = unwatched) -> Prepared:
    """Tokenise and mask the data, or find it in the cache; rank 0 works while the others wait.

    Args:
        config: The run.
        tokenizer: The model's tokenizer.
        group: The ranks.
        watch: Called between groups of records.

    Raises:
        DataError: The audit refuses the data; every rank gets the same answer.
    """

    def show(done: int, total: int | None) -> None:
        _show(done, total)
        watch()

    data = _sequences(config)
    found: Prepared | None = None

    def find() -> list[tuple[str, str, int]]:
        nonlocal found
        for path in remove_leftovers(cache_folder(), exclusive=False):
            print(f"removed leftovers of an interrupted preparation: {path}", file=sys.stderr)
        found = prepare(data, config.task, tokenizer, cache_folder(), config.seed, data_files(config), show)
        return _account(found)

    account = group.by_first(find)
    own: AitrainError | None = None
    if found is None:
        try:
            found = _as_on_first(config, tokenizer, [Path(folder) for folder, _, _ in account])
        except AitrainError as error:
            own = error
    # what each rank has must be what rank 0 has: data on a disk of the node may be an older copy
    differs = found is None or [entry[1:] for entry in _account(found)] != [entry[1:] for entry in account]
    if group.any_true(differs) or found is None:
        raise own or DataError(
            "the data is not the same on every node: put data.path, data.validation_path and the model on a shared "
            "file system, or copy them to every node again"
        )
    return found


def _sequences(config: RunConfig) -> Sequences:
    assert isinstance(config.data, Sequences), "the recipe was checked"
    return config.data


def _account(prepared: Prepared) -> list[tuple[str, str, int]]:
    """Return folder, content and size of the prepared files, to compare between ranks."""
    return [
        (str(folder), source.sha256, source.tokens)
        for folder, source in zip(prepared.folders, prepared.report.sources, strict=True)
    ]


def _as_on_first(config: RunConfig, tokenizer: Any, folders: list[Path]) -> Prepared:
    """Open what rank 0 has prepared; if its cache is on a node-local disk, this node prepares its own."""
    if all(folder.is_dir() for folder in folders):
        return open_prepared(folders, _sequences(config), config.seed)
    return prepare(_sequences(config), config.task, tokenizer, cache_folder(), config.seed, data_files(config))


def _show(done: int, total: int | None) -> None:
    if can_move(sys.stderr):
        sys.stderr.write(
            f"\r\033[Kreading data: {done:,}" + (f" of {total:,}" if total else "") + ("\n" if done == total else "")
        )
        sys.stderr.flush()


def account_of(prepared: Prepared) -> dict[str, Any]:
    """Return plain values that identify a run's data; see `Splits.fingerprint`.

    Args:
        prepared: The prepared samples.
    """
    return {
        key: {"file": source.file, "sha256": source.sha256, "samples": source.sequences, "units": source.tokens}
        for key, source in zip(("train", "validation"), prepared.report.sources, strict=False)
    }


def sample_for_people(tokenizer: Any, tokens: TokenSet, index: int) -> str:
    """Return one sample with its trained tokens marked: coloured on a terminal, else in brackets.

    Args:
        tokenizer: The model's tokenizer.
        tokens: The samples.
        index: Number of the sample.
    """
    ids, trained = tokens[index]
    coloured = has_colour(sys.stdout)
    how = "coloured" if coloured else "in [[ ]]"
    return f"sample {index}, its trained tokens {how}:\n{sample_text(tokenizer, ids, trained, coloured)}"
