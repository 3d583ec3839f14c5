"""Checks of the Python files that a recipe names, before a run starts."""

from __future__ import annotations

from aitrain.config import OPTION_OF, RunConfig
from aitrain.config.custom import UserClass, typed_options
from aitrain.config.optim import CustomOptim
from aitrain.config.schedule import CustomSchedule
from aitrain.config.strategy import Ddp
from aitrain.config.task import CustomTask
from aitrain.data.own_records import reader_of
from aitrain.errors import RecipeError
from aitrain.io.user_code import load_class
from aitrain.optim.build import own_optimizer
from aitrain.optim.schedule import own_schedule
from aitrain.tasks.registry import class_of


def faults(config: RunConfig) -> list[str]:
    """Return what is wrong with the user's Python files, one sentence each; they are run to find out.

    Args:
        config: A checked configuration.
    """
    found: list[str] = []
    for check in (_own_task, _own_optimizer, _own_schedule, _own_data, _own_callbacks):
        try:
            check(config)
        except RecipeError as error:
            found += error.faults
    return found


def _own_task(config: RunConfig) -> None:
    if isinstance(config.task, CustomTask):
        typed_options(class_of(config), config.task.options, "task.options.")


def _own_optimizer(config: RunConfig) -> None:
    if isinstance(config.optim, CustomOptim):
        made, _ = own_optimizer(config.optim)
        if not isinstance(config.strategy, Ddp) and not getattr(made, "elementwise", False):
            raise RecipeError(
                f"optim.class={config.optim.class_} would get sharded weights from strategy="
                f"{OPTION_OF[type(config.strategy)]}: write strategy=ddp, or `elementwise = True` in the class if "
                "it updates each element from its own gradient alone"
            )


def _own_schedule(config: RunConfig) -> None:
    if isinstance(config.schedule, CustomSchedule):
        own_schedule(config.schedule)


def _own_data(config: RunConfig) -> None:
    if isinstance(config.data, UserClass):
        reader_of(config.data)


def _own_callbacks(config: RunConfig) -> None:
    for word in config.trainer.callbacks:
        file, _, name = word.rpartition(":")
        load_class(file, name, "trainer.callbacks")
