"""The exceptions: one per kind of fault that a user can fix, with its exit code."""

from __future__ import annotations

from collections.abc import Sequence

EXIT_DONE = 0
EXIT_USER = 2
EXIT_DATA = 3
EXIT_GUARD = 4
EXIT_REQUEUE = 75


class AitrainError(Exception):
    """A fault the user can fix: what (key or path with its value), the rule, what to write instead."""

    exit_code = EXIT_USER


class RecipeError(AitrainError):
    """One or more faults in a recipe or its overrides, all reported together."""

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults: list[str] = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))


class ModelError(AitrainError):
    """A model folder, name or file that cannot be used as asked."""


class ShapeError(AitrainError):
    """A tensor of the wrong shape, dtype or device."""


class DataError(AitrainError):
    """Data that an audit refuses (exit code 3)."""

    exit_code = EXIT_DATA


class CheckpointError(AitrainError):
    """A checkpoint that cannot be written, found or read."""


class LaunchError(AitrainError):
    """Ranks that cannot be started or do not agree."""


class GuardError(AitrainError):
    """A numerical or health guard stopped the run (exit code 4)."""

    exit_code = EXIT_GUARD


class Interrupted(AitrainError):
    """The run was asked to stop before it had anything to save; it should be started again (exit code 75)."""

    exit_code = EXIT_REQUEUE


class MissingExtraError(AitrainError):
    """An optional package is needed; the message names the extra that installs it."""


def of_code(exit_code: int, message: str) -> AitrainError:
    """Return the fault that another rank has reported, from its exit code and message.

    Args:
        exit_code: Its exit code.
        message: What it says.
    """
    kinds: dict[int, type[AitrainError]] = {kind.exit_code: kind for kind in (DataError, GuardError, Interrupted)}
    return kinds.get(exit_code, AitrainError)(message)
