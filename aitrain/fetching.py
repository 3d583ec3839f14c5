"""`aitrain fetch RECIPE`: downloads the model and data of a recipe, so that its jobs need no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aitrain.config.paths import listed
from aitrain.errors import DataError, ModelError
from aitrain.models import assets, store
from aitrain.models.folder import HUB_NAME
from aitrain.preflight import data_faults, look_at_model
from aitrain.recipe import compose


def fetch_recipe(recipe: str, overrides: Sequence[str]) -> None:
    """Fetch what a recipe names and is not here yet, and say where everything is.

    Args:
        recipe: Name or path of a recipe.
        overrides: Words `key=value`.

    Raises:
        ModelError: The model cannot be fetched.
        DataError: A data file is missing; data of your own is not fetched.
    """
    config = compose(recipe, overrides)
    held_out = config.data.validation_path
    for given in (config.model.path, *listed(config.data.path), *([] if held_out is None else listed(held_out))):
        if given is not None and given.startswith("asset:"):
            assets.fetch(given.removeprefix("asset:").partition("/")[0])
    found = look_at_model(config)
    named = found.kind.name == "hub" or store.find(config.model) is not None
    if named and HUB_NAME.fullmatch(str(config.model.path)):
        stored = store.fetch(config.model, Path.cwd())
        print(f"{store.LOCK} in this folder records the revision: commit it together with your recipe")
        print(f"model  {stored.folder}")
    else:
        if found.faults:
            raise ModelError("\n".join(found.faults))
        print(f"model  {found.path}")
    faults = data_faults(config)
    if faults:
        raise DataError("\n".join(faults))
    print(f"data   {', '.join(listed(config.data.path))}")
