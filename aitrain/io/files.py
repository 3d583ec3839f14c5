"""Writes files and folders atomically: a reader sees either nothing or everything."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from aitrain.errors import AitrainError

PART = ".part"
"""What the name of something half-written ends with."""

ABANDONED_S = 24 * 3600.0
"""Seconds after which a half-written file of another machine counts as abandoned."""

CUT_LINE_LOOKS = 20
CUT_LINE_PAUSE_S = 0.02
"""How often, and with which pauses, to look at a last line without its end before it counts as cut by a crash."""


def _beside(path: Path) -> Path:
    """Name the temporary twin of a path: two nodes, or two containers, may have processes of the same number."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{_process_space()}.{os.getpid()}{PART}")


def _process_space() -> str:
    """Return the number of the space in which process numbers are unique: a container has its own."""
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return "0"


def remove_leftovers(folder: Path, exclusive: bool) -> list[Path]:
    """Remove half-written files of killed writers.

    Args:
        folder: Folder to look in, not below it; may not exist.
        exclusive: Whether no other process can be writing there now, as in a run directory at its start. Else a thing
            goes only when its process is gone, or, if that was on another machine, when it was not touched for a day.

    Returns:
        What was removed.
    """
    removed = []
    for path in sorted(folder.glob(f".*{PART}")) if folder.is_dir() else []:
        if not exclusive and not _is_abandoned(path):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):  # another user's, in a shared cache: theirs to remove
                path.unlink(missing_ok=True)
        if not path.exists():
            removed.append(path)
    return removed


def discard(folder: Path) -> None:
    """Delete a folder in one step, as readers see it: a crash leaves it under a name that `remove_leftovers` knows.

    Args:
        folder: A folder that exists.
    """
    beside = _beside(folder)
    os.rename(folder, beside)
    shutil.rmtree(beside)


def _is_abandoned(path: Path) -> bool:
    *_, host, space, process = path.name.removesuffix(PART).rsplit(".", 3)
    if host == socket.gethostname() and space == _process_space() and process.isdigit():
        return not Path(f"/proc/{process}").exists()
    try:
        newest = max(entry.stat().st_mtime for entry in [path, *(path.iterdir() if path.is_dir() else ())])
    except FileNotFoundError:  # its writer is finishing it at this moment
        return False
    return time.time() - newest > ABANDONED_S


def sync_directory(path: Path) -> None:
    """Make the names inside a directory durable.

    Args:
        path: An existing directory.

    Source: fsync(2): syncing a file does not make its entry in the directory durable.
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make the content of a file durable.

    Args:
        path: An existing file.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Replace a file's content in one step: a crash leaves the old content or the new, never a mixture.

    Args:
        path: File to write; its folder must exist.
        text: The whole content, written as UTF-8.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content in one step, as `write_text` does.

    Args:
        path: File to write; its folder must exist.
        content: The whole content.
    """
    beside = _beside(path)
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    sync_directory(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add one line to a file in a single write, so that lines of several writers do not mix.

    Args:
        path: File to extend; made when absent.
        line: Text without its line end.

    Raises:
        OSError: The line did not fit on the disk; what was written of it is taken back.
    """
    data = line.encode() + b"\n"
    with open(path, "ab+", buffering=0) as file:
        if not _ends_with_a_whole_line(file):  # a crash cut the last line: the new one must not become part of it
            data = b"\n" + data
        written = file.write(data)
        if written < len(data):  # a disk that fills up within the line takes a part and says nothing
            file.truncate(file.tell() - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _ends_with_a_whole_line(file: FileIO) -> bool:
    """Return whether the last line is complete, after giving another writer time to finish it.

    While a line is being copied, another process can see a part of it: the size of a file grows page by page. No lock,
    because a writer that was stopped, or whose machine is lost, would keep it.
    """
    for attempt in range(CUT_LINE_LOOKS):
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return True
        if attempt + 1 < CUT_LINE_LOOKS:
            time.sleep(CUT_LINE_PAUSE_S)
    return False


@contextmanager
def writing(what: str, advice: str) -> Iterator[None]:
    """Turn what a full disk, a quota or a permission answers into one sentence; other faults pass.

    Args:
        what: Key or path that is being written, as the user knows it.
        advice: What to do about it.

    Yields:
        Nothing; write in the block.

    Raises:
        AitrainError: The operating system refused a write.
    """
    try:
        yield
    except OSError as error:
        raise AitrainError(f"{what} cannot be written ({error.strerror or error}): {advice}") from error
    except Exception as error:
        # libraries written in Rust (safetensors, tokenizers) have errors of their own, with the system's text in them
        if "os error" not in str(error).lower():
            raise
        raise AitrainError(f"{what} cannot be written ({str(error).splitlines()[0]}): {advice}") from error


@contextmanager
def new_directory(final: Path) -> Iterator[Path]:
    """Fill a directory under a temporary name next to its destination and rename it if the block succeeds.

    Every file is fsynced before the rename, and the parent after it. When the block raises, the temporary
    directory is removed and `final` never exists.

    Args:
        final: Where the directory shall stand; its parent is made when absent.

    Yields:
        The temporary directory to write into.

    Raises:
        FileExistsError: `final` exists already.
    """
    if final.exists():
        raise FileExistsError(f"{final} exists already")
    final.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(final)
    if beside.exists():
        shutil.rmtree(beside)
    beside.mkdir()
    try:
        yield beside
        for root, _, names in os.walk(beside):
            for name in names:
                sync_file(Path(root, name))
            sync_directory(Path(root))
        os.rename(beside, final)
        sync_directory(final.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def file_digest(path: Path) -> str:
    """Return the SHA-256 checksum of a file, in hexadecimal.

    Args:
        path: The file.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
