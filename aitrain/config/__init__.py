"""Typed configuration: one file per Hydra group, one dataclass per option, no torch."""

from aitrain.config.root import GROUPS, OPTION_OF, RunConfig

__all__ = ["GROUPS", "OPTION_OF", "RunConfig"]
