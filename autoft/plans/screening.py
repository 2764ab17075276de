"""What fits the budget, by what models cost before anything is trained: costs do not depend on what weights learn."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from autoft.plans.budgets import keeps
from autoft.plans.plan import Plan, VariantPlan

__all__ = [
    "Costs",
    "fits_budget",
    "gentlest_fallback",
    "known_fallbacks",
    "never_fits",
    "too_much",
    "with_fallbacks",
]

Costs = Mapping[str, Mapping[str, float]]
"""What a model costs, by variant and column."""

MARGINS = {"model_size_bytes": 1.005}
"""Size is exact; a time or a memory has to be 25 % over its limit before a variant is given up untrained."""


def too_much(plan: Plan, costs: Costs) -> dict[str, dict[str, float]]:
    """Return the costs of those variants of a model that exceed a limit, whatever is trained."""
    return {
        name: dict(figures)
        for name, figures in costs.items()
        if any(
            figures.get(limit.column, 0.0) > MARGINS.get(limit.column, 1.25) * limit.limit
            for limit in plan.served_limits
        )
    }


def never_fits(plan: Plan, model: str, over: Collection[str]) -> bool:
    """Say whether all variants of a model are among those that exceed a limit, whatever is trained."""
    return all(variant.name in over for variant in plan.variants if variant.takes(model))


def gentlest_fallback(plan: Plan, fits: Callable[[VariantPlan], bool]) -> VariantPlan | None:
    """Return the gentlest fallback that fits, or None where the strongest does not.

    The first that trains nothing, or else the first of those that do, as far as stronger ones fit where gentler ones do.

    Args:
        plan: with the fallbacks in their order.
        fits: says of one whether it does; asked of few, for it may have to be measured.
    """
    known: dict[str, bool] = {}

    def asked(variant: VariantPlan) -> bool:
        if variant.name not in known:
            known[variant.name] = fits(variant)
        return known[variant.name]

    if not plan.fallbacks or not asked(plan.fallbacks[-1]):
        return None
    quick = next((variant for variant in plan.fallbacks if not variant.trains and asked(variant)), None)
    training = [variant for variant in plan.fallbacks if variant.trains]
    return quick or training[bisect_left(training, True, key=asked)]


def fits_budget(plan: Plan, costs: Costs, variant: VariantPlan) -> bool:
    """Say whether a variant was measured and keeps all limits."""
    return variant.name in costs and keeps(costs[variant.name], plan.served_limits)


def known_fallbacks(plan: Plan, costs: Mapping[str, Costs]) -> dict[str, list[str]]:
    """Return the fallbacks that models need by what was measured of them, each with these models."""
    taken: dict[str, list[str]] = {}
    for model in (model.name for model in plan.models if model.name in costs):
        if never_fits(plan, model, too_much(plan, costs[model])):
            found = gentlest_fallback(plan, partial(fits_budget, plan, costs[model]))
            if found is not None:
                taken.setdefault(found.name, []).append(model)
    return taken


def with_fallbacks(plan: Plan, taken: Mapping[str, Sequence[str]]) -> Plan:
    """Return a plan by which some fallbacks are made too, each of the models that need it."""
    models = {variant.name: variant.models for variant in plan.variants if variant.models}
    fallbacks = [
        variant.model_copy(update={"models": found})
        for variant in plan.fallbacks
        if (found := [*models.get(variant.name, []), *taken.get(variant.name, [])])
    ]
    every = [variant for variant in plan.variants if not variant.models]
    return plan.model_copy(update={"variants": [*every, *fallbacks]})
