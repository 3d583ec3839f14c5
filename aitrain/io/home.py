"""A cache folder for users without a home directory: containers often run under an unknown user id."""

from __future__ import annotations

import os
import pwd
import sys
import tempfile
from pathlib import Path


def ensure_home() -> None:
    """Make sure that HOME and USER name something; libraries look up both and end with a traceback otherwise.

    Without a home, a private folder in the temporary directory is used, and reported.
    """
    number = os.getuid()
    try:
        entry: pwd.struct_passwd | None = pwd.getpwuid(number)
    except KeyError:
        entry = None
    if entry is None and not (os.environ.get("USER") or os.environ.get("LOGNAME")):
        os.environ["USER"] = f"user{number}"
    if os.environ.get("HOME") or (entry is not None and entry.pw_dir):
        return
    place = Path(tempfile.gettempdir(), f"aitrain-home-{number}")
    place.mkdir(mode=0o700, exist_ok=True)
    os.environ["HOME"] = str(place)
    if "AITRAIN_CACHE" not in os.environ:
        print(
            f"there is no home directory for user id {number} (HOME is not set): caches are kept "
            f"in {place}; set HOME or AITRAIN_CACHE to choose a place",
            file=sys.stderr,
        )


def user_path(text: str | Path) -> Path:
    """Return a path with `~` replaced by the home directory; an unknown user's `~name` stays as it is.

    Args:
        text: What the user wrote.
    """
    return Path(os.path.expanduser(text))
