"""Python files of the user's: found on disk, run once per process, and known again by their content."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from functools import cache
from pathlib import Path
from types import ModuleType

from aitrain.errors import RecipeError
from aitrain.io.home import user_path


def load_class(file: str, name: str, key: str) -> type:
    """Return a class of a user's file. The file is run once per process; it may import modules next to it.

    Args:
        file: Path of a Python file.
        name: Name of the class.
        key: What names them in the recipe, for messages: `task.file` and `task.class`, say `task`.

    Raises:
        RecipeError: The file is absent, cannot be run, or has no such class.
    """
    path = user_path(file).absolute()
    if not path.is_file():
        raise RecipeError(f"{key}.file={file} does not exist: name your Python file")
    module = _module(path, key)
    found = getattr(module, name, None)
    if not isinstance(found, type):
        own = [word for word, value in vars(module).items() if isinstance(value, type) and _is_of(value, module)]
        raise RecipeError(f"{key}.class={name} is not a class in {file}: it has {', '.join(own) or 'none'}")
    return found


def _is_of(value: type, module: ModuleType) -> bool:
    return value.__module__ == module.__name__


@cache
def _module(path: Path, key: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}", path
    )
    assert spec is not None and spec.loader is not None, f"{path} ends with .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass inside looks itself up there
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except RecipeError:
        raise
    except Exception as error:
        del sys.modules[spec.name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"{path}:{line}" if line else str(path)
        raise RecipeError(f"{key}.file: {where}: {type(error).__name__}: {error}: fix the file") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def digests(file: str) -> dict[str, str]:
    """Return checksums of a user's file and of the modules next to it that it imported.

    Args:
        file: Path of a Python file that was loaded.
    """
    path = user_path(file).absolute()
    beside = {
        Path(origin)
        for module in list(sys.modules.values())
        if (origin := getattr(module, "__file__", None)) and Path(origin).parent == path.parent
    }
    return {
        each.name: hashlib.sha256(each.read_bytes()).hexdigest()
        for each in sorted({path, *beside})
        if each.suffix == ".py" and each.is_file()
    }
