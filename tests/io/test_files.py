"""A reader sees the old content, or the whole new one: processes are killed and disks are full in the middle."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest

from aitrain.errors import AitrainError, DataError
from aitrain.io.files import (
    ABANDONED_S,
    append_line,
    discard,
    new_directory,
    remove_leftovers,
    sync_directory,
    sync_file,
    write_text,
    writing,
)


def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, with words as its arguments."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *words], capture_output=True, text=True, check=False
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_text_replaces_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    write_text(path, "a longer content\nthan the new one\n")
    write_text(path, "Grüße\n")
    assert path.read_bytes() == "Grüße\n".encode()
    assert names(tmp_path) == ["notes.txt"]


def test_killed_before_the_rename_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("old")
    done = run(
        """
        import os, signal, sys
        from pathlib import Path
        from aitrain.io import files
        files.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        files.write_text(Path(sys.argv[1]), "new" * 1000)
        """,
        str(path),
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from aitrain.io import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # the write past it fails, as on a full disk
place = Path(sys.argv[1])
"""


def test_full_disk_leaves_the_old_text_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("old")
    done = run(FULL_DISK + "files.write_text(place, 'x' * 100_000)", str(path))
    assert "OSError" in done.stderr
    assert path.read_text() == "old"
    assert names(tmp_path) == ["run.yaml"]


def test_full_disk_leaves_no_directory(tmp_path: Path) -> None:
    code = "with files.new_directory(place) as part:\n    (part / 'big').write_bytes(bytes(100_000))\n"
    done = run(FULL_DISK + code, str(tmp_path / "new"))
    assert "OSError" in done.stderr
    assert names(tmp_path) == []


def test_a_line_that_does_not_fit_leaves_no_half(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    code = "for number in range(99):\n    files.append_line(place, 'x' * 99)\n"
    done = run(FULL_DISK + code, str(path))
    assert "OSError: [Errno 28] No space left on device" in done.stderr
    assert path.read_text() == ("x" * 99 + "\n") * 40


def test_append_line_adds_whole_lines_of_several_writers(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    code = """
    import sys
    from pathlib import Path
    from aitrain.io import append_line
    for number in range(2000):
        append_line(Path(sys.argv[1]), sys.argv[2] * 300)
    """
    writers = [subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(path), word]) for word in "abcd"]
    assert [writer.wait() for writer in writers] == [0] * 4
    lines = path.read_text().splitlines()
    counts = Counter(lines)  # the lines themselves would fill pages of a failure
    assert counts == {word * 300: 2000 for word in "abcd"}, f"{len(lines)} lines, {counts['']} of them empty"
    append_line(path, "ü")
    assert path.read_text().endswith(f"{lines[-1]}\nü\n")


def test_a_line_that_a_crash_has_cut_stays_apart_from_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    append_line(path, '{"step": 2}')
    append_line(path, '{"step": 3}')
    assert path.read_text().splitlines() == ['{"step": 1}', '{"st', '{"step": 2}', '{"step": 3}']


def test_new_directory_appears_when_the_block_has_ended(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "er" / "step-1"
    with new_directory(final) as part:
        (part / "sub").mkdir()
        (part / "sub" / "file").write_text("content")
        assert not final.exists()
        assert part.parent == final.parent, "a rename is one step only inside one file system"
    assert (final / "sub" / "file").read_text() == "content"
    assert names(final.parent) == ["step-1"]


@pytest.mark.parametrize("fault", [ValueError("stop"), KeyboardInterrupt()])
def test_new_directory_leaves_nothing_when_the_block_raises(tmp_path: Path, fault: BaseException) -> None:
    with pytest.raises(type(fault)), new_directory(tmp_path / "new") as part:
        (part / "file").write_text("half")
        raise fault
    assert names(tmp_path) == []


def test_new_directory_refuses_a_place_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("kept")
    with pytest.raises(FileExistsError, match="there exists already"), new_directory(tmp_path / "there"):
        raise AssertionError("the block must not run")
    assert (tmp_path / "there" / "mine").read_text() == "kept"
    assert names(tmp_path) == ["there"]


def test_new_directory_takes_over_what_a_dead_process_of_its_number_left(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_directory(tmp_path / "new") as part:
        raise RuntimeError
    part.mkdir()
    (part / "left").write_text("by a killed process")
    with new_directory(tmp_path / "new") as part:
        (part / "file").write_text("")
    assert names(tmp_path / "new") == ["file"]


def test_new_directory_killed_in_the_middle_is_not_at_its_place(tmp_path: Path) -> None:
    code = """
    import os, signal, sys
    from pathlib import Path
    from aitrain.io import new_directory
    with new_directory(Path(sys.argv[1])) as part:
        (part / "file").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(code, str(tmp_path / "new")).returncode == -signal.SIGKILL
    assert not (tmp_path / "new").exists()


def test_every_file_and_folder_is_durable_before_it_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aitrain.io import files

    order: list[str] = []
    fsync, rename = files.os.fsync, files.os.rename

    def watched_fsync(handle: int) -> None:
        order.append("sync " + Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def watched_rename(old: Path, new: Path) -> None:
        order.append("rename")
        rename(old, new)

    monkeypatch.setattr(files.os, "fsync", watched_fsync)
    monkeypatch.setattr(files.os, "rename", watched_rename)
    with new_directory(tmp_path / "new") as part:
        (part / "sub").mkdir()
        (part / "sub" / "inner").write_text("1")
        (part / "outer").write_text("2")
    at = order.index("rename")
    assert set(order[:at]) == {"sync inner", "sync outer", "sync sub", f"sync {part.name}"}
    assert order[at + 1 :] == [f"sync {tmp_path.name}"]


def test_sync_says_when_there_is_nothing_to_sync(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sync_file(tmp_path / "no")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        sync_directory(tmp_path / "file")


def test_writing_makes_one_sentence_of_a_refused_write(tmp_path: Path) -> None:
    said = r"run\.dir=x cannot be written \(No space left on device\): free some"
    with pytest.raises(AitrainError, match=said), writing("run.dir=x", "free some"):
        Path("/dev/full").write_text("content")


def test_writing_knows_what_libraries_in_rust_say(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    said = "a model cannot be written .*os error.*: free some"
    with pytest.raises(AitrainError, match=said), writing("a model", "free some"):
        save_file({}, tmp_path / "no" / "file")


@pytest.mark.parametrize("fault", [ValueError("a bug"), DataError("refused"), KeyboardInterrupt()])
def test_writing_lets_other_faults_pass(fault: BaseException) -> None:
    with pytest.raises(type(fault)) as seen, writing("a", "b"):
        raise fault
    assert seen.value is fault


KILLED = """
import os, signal, sys
from pathlib import Path
from aitrain.io.files import new_directory
with new_directory(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_leaves_goes_at_the_next_start(tmp_path: Path) -> None:
    assert run(KILLED, str(tmp_path / "prepared")).returncode == -signal.SIGKILL
    [left] = names(tmp_path)
    with new_directory(tmp_path / "other"):  # of a writer that lives: this process
        removed = remove_leftovers(tmp_path, exclusive=False)
        assert [path.name for path in removed] == [left] and len(names(tmp_path)) == 1
    assert names(tmp_path) == ["other"]


def test_of_another_machine_only_what_is_old_goes(tmp_path: Path) -> None:
    here = tmp_path / f".a.{socket.gethostname()}.1.1.part"  # the same machine, another container
    there = tmp_path / ".b.node7.4026531836.17.part"
    for folder in (here, there):
        folder.mkdir()
    assert remove_leftovers(tmp_path, exclusive=False) == []
    old = time.time() - ABANDONED_S - 60
    os.utime(there, (old, old))
    assert remove_leftovers(tmp_path, exclusive=False) == [there]
    assert remove_leftovers(tmp_path, exclusive=True) == [here]
    assert remove_leftovers(tmp_path / "nowhere", exclusive=True) == []


def test_a_deletion_that_is_killed_leaves_what_the_next_start_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("x")
    monkeypatch.setattr("shutil.rmtree", lambda _: None)
    discard(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    monkeypatch.undo()
    assert len(remove_leftovers(tmp_path, exclusive=True)) == 1 and names(tmp_path) == []
