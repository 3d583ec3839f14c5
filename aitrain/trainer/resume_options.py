"""How a user wants a run resumed, apart from its keys: options of `aitrain resume`. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ResumeOptions:
    """How a run is to be resumed."""

    checkpoint: str = "newest"
    """`newest`, or a step to go back to."""

    changed_inputs: bool = False
    """Continue although the model or the data has changed since the run started."""

    changed_rate: bool = False
    """Continue although the new length of the run makes the learning rate jump."""

    def words(self) -> list[str]:
        """Return it as words of a command line, for the ranks."""
        flags = [f"--{name.replace('_', '-')}" for name in ("changed_inputs", "changed_rate") if getattr(self, name)]
        return [*flags, *(["--checkpoint", self.checkpoint] if self.checkpoint != "newest" else [])]
