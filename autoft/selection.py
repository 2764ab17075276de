"""Which variant of which trial is shipped: feasible, on the front, as good as the best, and cheap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from autoft.errors import NothingFeasible
from autoft.plans.budgets import keeps, unmeasured, violations
from autoft.plans.plan import Plan
from autoft.rundir import Candidate, Selection, TrialResult, VariantResult

__all__ = ["best_trials", "best_variant", "candidates", "dominates", "knees", "select", "weights_to_keep"]

COST_COLUMNS = ("model_size_bytes", "latency_p50_ms")
ABOUT_EQUAL = 1.10
"""Costs, size times latency, within this factor count as equal."""
LATENCY_NOISE = 1.15
"""Latencies of models of one size within this factor count as equal: pairs of measurements differ by less in 98 of 100 cases,
as docs/log.md says."""


def candidates(plan: Plan, results: Sequence[TrialResult]) -> list[Candidate]:
    """Return every scored variant of every trial, judged by the budget of the plan as it is now.

    Figures of further seeds and of further folds are those of the trial that they repeat. A mean over seeds is of whole trainings:
    one that the time cut short says nothing of another seed.
    """
    offered = {variant.name for variant in plan.every_variant}
    found: dict[tuple[int, str], Candidate] = {}
    for result in results:
        # Of the pruned only those have variants that fell behind at a further fold.
        if result.config.repeats or result.state == "pruned":
            continue
        for variant in result.variants:
            value = variant.validation.get(plan.objective, math.nan)
            if variant.name not in offered or math.isnan(value):
                continue
            found[result.number, variant.name] = Candidate(
                trial=result.number,
                variant=variant.name,
                objective=value,
                seeds=[value],
                folds=[value],
                costs=variant.costs,
                violations={**violations(variant.costs, plan.budget), **unmeasured(variant.costs, plan.budget)},
            )
    short = {result.number for result in results if result.cut_short is not None}
    for result in results:
        if not result.config.repeats or result.config.parent is None:
            continue
        if result.config.kind == "seed" and not short.isdisjoint({result.number, result.config.parent}):
            continue
        for variant in result.variants:
            candidate = found.get((result.config.parent, variant.name))
            value = variant.validation.get(plan.objective, math.nan)
            if candidate is not None and not math.isnan(value):
                figures = candidate.seeds if result.config.kind == "seed" else candidate.folds
                figures.append(value)
                candidate.objective = sum(figures) / len(figures)
    _mark_front(_comparable([candidate for candidate in found.values() if not candidate.violations]), plan)
    return list(found.values())


def _mark_front(pool: Sequence[Candidate], plan: Plan) -> None:
    """Set ``front`` of those that none of the pool dominates.

    As :func:`dominates` says, of all pairs. What one that is left dominates is left out at once, so that each is compared
    with the front alone: of many candidates few are on it.
    """
    left = np.arange(len(pool))
    vectors = np.array([_vector(candidate, plan) for candidate in pool])
    at = 0
    while at < len(left):
        vector, others = vectors[left[at]], vectors[left]
        behind = (vector <= others).all(axis=1) & (vector != others).any(axis=1)
        # Those before this one that it takes out move it forward.
        at += 1 - int(behind[:at].sum())
        left = left[~behind]
    front = set(left.tolist())
    for place, candidate in enumerate(pool):
        candidate.front = place in front


def _comparable(pool: Sequence[Candidate]) -> list[Candidate]:
    """Return those that were validated on the most folds: means over different rows are not compared."""
    most = max((len(candidate.folds) for candidate in pool), default=0)
    return [candidate for candidate in pool if len(candidate.folds) == most]


def best_variant(plan: Plan, result: TrialResult) -> VariantResult | None:
    """Return the variant of a trial with the best objective: of those that fit the budget, else of all; None without a figure."""
    sign = 1 if plan.higher_is_better else -1
    scored = [v for v in result.variants if math.isfinite(v.validation.get(plan.objective, math.nan))]
    fitting = [v for v in scored if keeps(v.costs, plan.budget)]
    return max(fitting or scored, key=lambda v: sign * v.validation[plan.objective], default=None)


def dominates(one: Candidate, other: Candidate, plan: Plan, *, mean: bool = False) -> bool:
    """Say whether ``one`` is at least as good in quality, size and latency, and better in one of them.

    Quality is the figure of the very models, or the ``mean`` over seeds.
    """
    mine, theirs = _vector(one, plan, mean), _vector(other, plan, mean)
    return all(a <= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs


def select(plan: Plan, results: Sequence[TrialResult], quality: float | None = None) -> Selection:
    """Choose what is shipped.

    Among the feasible variants whose objective is within ``tolerance`` of the best (its share, for a best above 1), the
    cheapest by size times latency is taken; where several cost about the same, the best objective; and where these tie, the
    default. With several folds the means over them are compared, among the trials that were validated on the most. Where the trial so chosen was trained with further seeds, means decide, among the trials that have them;
    a trial that a later call found has to be trained with further seeds itself before it is compared by them.

    Args:
        plan: with objective, budget and tolerance.
        results: of all trials.
        quality: takes the place of the tolerance: the cheapest whose objective is at least as good as this is taken, and the
            mean over its seeds, too.

    Raises:
        NothingFeasible: no scored variant fits the budget, or is as good as asked.
    """
    everything = candidates(plan, results)
    weights = {(r.number, v.name) for r in results for v in r.variants if v.folder}
    feasible = _comparable([c for c in everything if not c.violations and (c.trial, c.variant) in weights])
    if not feasible:
        raise NothingFeasible(_nothing(plan, everything, results))
    if quality is not None:
        chosen, why = _choice(plan, _as_good(plan, feasible, quality), quality)
        return Selection(
            trial=chosen.trial, variant=chosen.variant, objective=plan.objective, reason=why, candidates=everything
        )
    # Means and single figures are not compared: the best of many single figures is partly luck.
    single = [c if len(c.folds) > 1 else c.model_copy(update={"objective": c.seeds[0]}) for c in feasible]
    chosen, why = _choice(plan, single)
    finalists = [c for c in feasible if len(c.seeds) > 1]
    if any(c.trial == chosen.trial for c in finalists):
        chosen, why = _choice(plan, finalists)
    return Selection(
        trial=chosen.trial, variant=chosen.variant, objective=plan.objective, reason=why, candidates=everything
    )


def _as_good(plan: Plan, pool: Sequence[Candidate], quality: float) -> list[Candidate]:
    """Return those that reach a quality, by the figure of the very model and by the mean over its seeds.

    Raises:
        NothingFeasible: none does.
    """
    sign = 1 if plan.higher_is_better else -1
    # Over several folds only the mean is compared.
    reached = [min(sign * v for v in ([c.objective] if len(c.folds) > 1 else [c.objective, c.seeds[0]])) for c in pool]
    good = [c for c, value in zip(pool, reached, strict=True) if value >= sign * quality - 1e-9]
    if not good:
        raise NothingFeasible(
            f"the best {plan.objective} within these limits is {sign * max(reached):.4f}, and {quality:g} was asked for"
        )
    return good


def _choice(plan: Plan, pool: Sequence[Candidate], quality: float | None = None) -> tuple[Candidate, str]:
    """Return the cheapest of those that are about as good as the best of the pool, and why it is the one."""
    sign = 1 if plan.higher_is_better else -1
    best = max(sign * c.objective for c in pool)
    # Means of shares are rarely exact: what is one rounding error outside is inside.
    slack = plan.tolerance * max(1.0, abs(best)) if quality is None else best - sign * quality
    near = [c for c in pool if sign * c.objective >= best - slack - 1e-9]
    cheapest = min(near, key=_cost)
    equal = [c for c in near if _cost(c) <= _cost(cheapest) * _noise(c, cheapest)]
    chosen = max(equal, key=lambda c: (sign * c.objective, c.trial == 0, -c.trial))
    seeds = min(len(c.seeds) for c in pool)
    why = f"validation {plan.objective} {chosen.objective:.4f}"
    if len(chosen.folds) > 1:
        why += f" (mean of {len(chosen.folds)} folds)"
    elif seeds > 1:
        why += f" (mean of {len(chosen.seeds)} seeds)"
    top = next(c for c in pool if sign * c.objective == best)
    if (top.trial, top.variant) != (chosen.trial, chosen.variant):
        why += (
            f", within {slack:.3g} of the best ({top.objective:.4f}, trial {top.trial} {top.variant}), "
            f"and the cheapest of the {len(near)} variants there by size and latency"
        )
    elif seeds > 1:
        why += f", the best of the {len(pool)} variants of trials that were trained with further seeds"
    else:
        why += f", the best of {len(pool)} feasible variants" if len(pool) > 1 else ", the only feasible variant"
    return chosen, why


def knees(plan: Plan, front: Sequence[Candidate]) -> dict[str, Candidate]:
    """Return by cost column the point of a front from where on less cost is paid with most quality.

    It is the point furthest above the line between the best and the cheapest, with quality and the logarithm of the cost
    from 0 to 1 each (Das 1999, doi:10.1007/BF01195985). A front of fewer than three points, or one below its line, has none.

    Args:
        plan: with the objective.
        front: feasible candidates.
    """
    sign = 1 if plan.higher_is_better else -1
    found = {}
    for column in COST_COLUMNS:
        points = [(math.log(c.costs[column]), sign * c.objective, c) for c in front if c.costs.get(column, 0) > 0]
        points = [p for p in points if not any(_ahead(other, p) for other in points)]
        points.sort(key=lambda point: point[:2])
        if len(points) < 3:
            continue
        (cheap, worst, _), (dear, best, _) = points[0], points[-1]
        height = {
            (c.trial, c.variant): (quality - worst) / (best - worst) - (cost - cheap) / (dear - cheap)
            for cost, quality, c in points
        }
        top = max(points, key=lambda point: height[point[2].trial, point[2].variant])[2]
        if height[top.trial, top.variant] > 0:
            found[column] = top
    return found


def _ahead(one: tuple[float, float, Candidate], other: tuple[float, float, Candidate]) -> bool:
    """Say whether ``one`` costs at most as much and is at least as good; of equal ones, whether it came first."""
    if one[:2] == other[:2]:
        return (one[2].trial, one[2].variant) < (other[2].trial, other[2].variant)
    return one[0] <= other[0] and one[1] >= other[1]


def weights_to_keep(
    plan: Plan,
    results: Sequence[TrialResult],
    sizes: Mapping[tuple[int, str], int],
    adapters: Mapping[int, int] | None = None,
) -> set[tuple[int, str]]:
    """Return which variants' files stay: the default's as the yardstick, the chosen one, and the front as space allows.

    Last come the uncompressed weights of the chosen trial, from which `autoft export` makes other formats.

    The own fronts of the default and of the finalists come before that of all: further seeds may show that what beat them was luck.

    Args:
        plan: with the storage limit.
        results: of all trials.
        sizes: bytes of the files that there are, by trial and variant.
        adapters: bytes of what trials keep of their adapters as long as one of their variants stays, by trial.
    """
    yardstick = (0, "none")
    keep = {yardstick} & set(sizes)
    there = [c for c in candidates(plan, results) if not c.violations and (c.trial, c.variant) in sizes]
    chosen = select(plan, results) if there else None
    # These are trained with further seeds, by whose means any variant of them may be the one.
    known = [0, *([chosen.trial] if chosen else ()), *(c.trial for c in there if len(c.seeds) > 1)]
    finalists = list(dict.fromkeys(known))
    own = [[c for c in there if c.trial == number] for number in finalists]
    own = [
        [c for c in one if not all(any(dominates(o, c, plan, mean=mean) for o in one) for mean in (False, True))]
        for one in own
    ]
    # A trial whose folds are not all done has not shown yet what it is worth.
    most = max((len(c.folds) for c in there), default=0)
    front = [c for c in there if (c.front or len(c.folds) < most) and c.trial not in finalists]
    sign = 1 if plan.higher_is_better else -1
    for part in (*own, front):
        part.sort(key=lambda c: (len(c.folds) == most, -sign * c.objective))
    wanted = [(c.trial, c.variant) for part in (*own, front) for c in part]
    if chosen is not None:
        # Also where it is on no front: its mean over seeds may be less than one figure of a trial that has no more.
        wanted = [(chosen.trial, chosen.variant), *wanted]
    wanted += [*_to_compress(plan, results, sizes), *_to_average(plan, results, sizes)]
    if wanted and (wanted[0][0], "none") in sizes:
        # What other formats of the chosen model are made from.
        wanted.append((wanted[0][0], "none"))
    beside = dict(adapters or {})
    used = sum(sizes[key] + beside.pop(key[0], 0) for key in keep)
    for position, key in enumerate(wanted):
        if key in keep:
            continue
        more = sizes[key] + beside.get(key[0], 0)
        if position == 0 or used + more <= plan.storage_bytes:
            keep.add(key)
            beside.pop(key[0], None)
            used += more
    return keep


def best_trials(plan: Plan, results: Sequence[TrialResult]) -> list[TrialResult]:
    """Return the trials that were trained to their end, the one with the best variant first; further seeds left out."""
    sign = 1 if plan.higher_is_better else -1
    found = [r for r in results if r.state == "complete" and not r.config.derived]
    reached = {
        result.number: max(
            (
                sign * value
                for variant in result.variants
                if math.isfinite(value := variant.validation.get(plan.objective, math.nan))
            ),
            default=-math.inf,
        )
        for result in found
    }
    return sorted(found, key=lambda result: (-reached[result.number], result.number))


def _to_compress(
    plan: Plan, results: Sequence[TrialResult], sizes: Mapping[tuple[int, str], int]
) -> list[tuple[int, str]]:
    """Return which files a variant that trains again starts from, and which models teach it."""
    best = best_trials(plan, results)
    if not best or not plan.trained_again(best[0]):
        return []
    return [(result.number, "none") for result in best[: plan.teachers] if (result.number, "none") in sizes]


def _to_average(
    plan: Plan, results: Sequence[TrialResult], sizes: Mapping[tuple[int, str], int]
) -> list[tuple[int, str]]:
    """Return which files the best trials are averaged from."""
    if plan.ensemble < 2:
        return []
    best = [result.number for result in best_trials(plan, results)[: plan.ensemble]]
    return [key for number in best for key in sizes if key[0] == number]


def _vector(candidate: Candidate, plan: Plan, mean: bool = False) -> tuple[float, ...]:
    """Return what a candidate costs and lacks: of the quality its own figure, for a mean over seeds is not compared with single ones."""
    own = candidate.objective if mean or len(candidate.folds) > 1 or not candidate.seeds else candidate.seeds[0]
    return (-own if plan.higher_is_better else own, *(candidate.costs.get(column, math.inf) for column in COST_COLUMNS))


def _cost(candidate: Candidate) -> float:
    return math.prod(candidate.costs.get(column, math.inf) for column in COST_COLUMNS)


def _noise(one: Candidate, other: Candidate) -> float:
    """Return the factor within which the costs of two count as equal: where sizes are, only latencies can differ."""
    sizes = (candidate.costs.get("model_size_bytes", 1.0) for candidate in (one, other))
    # Settings written beside the weights differ in some bytes.
    return LATENCY_NOISE if math.isclose(*sizes, rel_tol=1e-3) else ABOUT_EQUAL


def _nothing(plan: Plan, everything: Sequence[Candidate], results: Sequence[TrialResult]) -> str:
    limits = ", ".join(f"{limit.key} {limit.given}" for limit in plan.budget) or "none"
    if not results:
        return "no trial was finished; the same command goes on where it stopped, or, if its time is used up, with more budget.time"
    if not everything and not any(result.variants for result in results):
        reasons = sorted({result.reason or result.state for result in results})
        return f"no trial left a model: {'; '.join(reasons)}"
    known = {column for candidate in everything for column in candidate.costs}
    unknown = [limit.key for limit in plan.budget if everything and limit.column not in known]
    why = (
        f"; {' and '.join(unknown)} was measured of none: it is where the recipe's budget limits it" if unknown else ""
    )
    return f"nothing that was tried fits the budget ({limits}){why}"
