"""Written files get the permissions of the umask."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from aitrain.models.permissions import share_files


@pytest.mark.parametrize(("mask", "mode"), [(0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_modes_follow_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in/file"
    file.touch()
    file.chmod(0o400)
    before = os.umask(mask)
    try:
        share_files(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == mode
