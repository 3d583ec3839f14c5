"""Trackers in addition to `metrics.jsonl`: wandb (offline unless asked) and TensorBoard, through Lightning's
loggers.
"""

from __future__ import annotations

import importlib.util
import secrets
from typing import Any

from lightning.pytorch.loggers import Logger

from aitrain.config import RunConfig
from aitrain.config.frozen import to_plain
from aitrain.config.logger import Tensorboard, Wandb, WandbMode
from aitrain.errors import MissingExtraError
from aitrain.trainer.run_directory import RunDirectory


def build_trackers(config: RunConfig, directory: RunDirectory, step: int = 0) -> list[Logger]:
    """Build the recipe's trackers; called on rank 0 only. A resumed run continues its wandb run and its curves.

    Args:
        config: The run.
        directory: Its directory.
        step: Optimizer steps done before.

    Raises:
        MissingExtraError: The tracker's package is not installed.
    """
    if isinstance(config.logger, Wandb):
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        offline = config.logger.mode is WandbMode.offline
        settings = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False, x_disable_meta=offline)
        tracker = WandbLogger(
            project=config.logger.project,
            entity=config.logger.entity,
            name=config.run.name,
            save_dir=str(directory.path),
            offline=offline,
            config=to_plain(config),
            settings=settings,
            id=_wandb_id(directory),
            resume="allow",
        )
        # Lightning always passes this word on, and wandb warns of it whatever it says
        tracker._wandb_init.pop("anonymous", None)
        return [tracker]
    if isinstance(config.logger, Tensorboard):
        if importlib.util.find_spec("tensorboard") is None:
            raise MissingExtraError(
                "logger=tensorboard needs tensorboard: pip install 'aitrain[tensorboard]', or write logger=jsonl"
            )
        from lightning.pytorch.loggers import TensorBoardLogger

        # steps that are done again after a crash replace those of before
        purge: dict[str, Any] = {"purge_step": step + 1} if step else {}
        return [TensorBoardLogger(save_dir=str(directory.path), name="tensorboard", version="", **purge)]
    return []


def _wandb_id(directory: RunDirectory) -> str:
    """Return the id of the run's wandb run, chosen once."""
    known = directory.last_of("tracker").get("wandb")
    if known:
        return str(known)
    chosen = secrets.token_hex(4)
    directory.event("tracker", wandb=chosen)
    return chosen


def close_trackers(trackers: list[Logger], failed: bool = False) -> None:
    """Write out and close.

    Args:
        trackers: From `build_trackers`.
        failed: Whether the run failed.
    """
    for tracker in trackers:
        tracker.finalize("failed" if failed else "success")
        if type(tracker).__name__ == "WandbLogger":
            import wandb

            wandb.finish(exit_code=int(failed))
