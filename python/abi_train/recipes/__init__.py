"""Recipes of several phases: read one, and run it.

    from abi_train import recipes
    recipe = recipes.load("abbey-tiny")
    result = recipes.run(recipe)

A recipe without `phases` is one run (`RunSpec.load`). Importing this loads neither engine.
"""

from __future__ import annotations

from .places import shipped, shipped_recipe
from .recipe import Phase, PhaseData, Recipe, Rows, from_dict, load, read

__all__ = [
    "Phase",
    "PhaseData",
    "Recipe",
    "Rows",
    "from_dict",
    "load",
    "read",
    "shipped",
    "shipped_recipe",
]
