"""A user without a home and without an entry in the password file gets caches, and a word about where they are."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from aitrain.io.home import user_path

CODE = """
import getpass, os, sys, tempfile
from aitrain.io.home import ensure_home
if sys.argv[1:]:
    os.setuid(int(sys.argv[1]))
ensure_home()
print(os.environ.get("HOME"), getpass.getuser())
"""


HOMES = ("HOME", "USER", "LOGNAME", "AITRAIN_CACHE")


def as_nobody(tmp_path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run as a number that no password file knows, without HOME and USER."""
    environment = {name: value for name, value in os.environ.items() if name not in HOMES}
    return subprocess.run(
        [sys.executable, "-c", CODE, "54321"],
        env={**environment, "TMPDIR": str(tmp_path), **more},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become a user without a name")
def test_nobody_without_a_home(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        if folder.stat().st_uid == os.getuid() and folder.is_relative_to(tempfile.gettempdir() + "/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    done = as_nobody(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{tmp_path}/aitrain-home-54321", "user54321"]
    assert done.stderr.startswith("there is no home directory for user id 54321")
    assert (tmp_path / "aitrain-home-54321").stat().st_mode & 0o777 == 0o700
    assert as_nobody(tmp_path, AITRAIN_CACHE="/somewhere").stderr == ""


def test_a_home_is_left_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "HOME": "/home/ann"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[0] == "/home/ann" and done.stderr == ""


def test_paths_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert user_path("~/a") == Path("/home/ann/a") and user_path("a/~") == Path("a/~")
    assert user_path("~no-such-user/a") == Path("~no-such-user/a")
