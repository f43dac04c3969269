"""What a run needs, told before it starts: memory by part, updates, tokens, time, price, disk.

    from abi_train.plan import plan
    print(plan(RunSpec.load("recipe.yaml"), measure=True).phases[0].memory.total)

Importing this loads no engine.
"""

from __future__ import annotations

from .hardware import Flavor, Prices, prices
from .planning import plan
from .results import FlavorPlan, Memory, PhasePlan, Plan, Time

__all__ = [
    "Flavor",
    "FlavorPlan",
    "Memory",
    "PhasePlan",
    "Plan",
    "Prices",
    "Time",
    "plan",
    "prices",
]
