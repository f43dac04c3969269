"""Recipes of several phases: read one, and run it.

    from abi_train import recipes
    recipe = recipes.load("abbey-tiny")
    result = recipes.run(recipe)

A recipe without `phases` is one run (`RunSpec.load`). Importing this loads neither engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .listener import Listener
from .places import shipped, shipped_recipe
from .recipe import Phase, PhaseData, Recipe, Rows, from_dict, load, read

if TYPE_CHECKING:
    from .runner import RecipeResult, run

__all__ = [
    "Listener",
    "Phase",
    "PhaseData",
    "Recipe",
    "RecipeResult",
    "Rows",
    "from_dict",
    "load",
    "read",
    "run",
    "shipped",
    "shipped_recipe",
]


def __getattr__(name: str) -> Any:
    """What runs a recipe is loaded when it is asked for: reading one needs no engine."""
    if name in ("RecipeResult", "run"):
        from . import runner

        return getattr(runner, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
