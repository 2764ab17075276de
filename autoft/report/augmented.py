"""What augmentation did: to the score of the trials that had it, and to some of the training rows."""

from __future__ import annotations

import itertools
import math

from autoft.plans.plan import Plan
from autoft.report.views import TableView, figure_text
from autoft.rundir import AugmentedValue, RunRecord, TrialResult

__all__ = ["augmentation_table", "changed_rows"]

SAMPLES = 10
"""Changed training rows that are shown."""

EXCERPT = 240
"""Characters of each that are shown at most."""


def augmentation_table(record: RunRecord, plan: Plan) -> TableView:
    """Return what the best trial with each augmenter scored, and by how much that is above the best one without."""
    scores: dict[str, list[tuple[float, int]]] = {}
    for trial in record.trials:
        value = trial.validation.get(plan.objective, math.nan)
        if not trial.config.derived and math.isfinite(value):
            scores.setdefault(str(trial.config.params.get("augment", "none")), []).append((value, trial.number))
    sign = 1 if plan.higher_is_better else -1
    best = {name: max(found, key=lambda one: sign * one[0]) for name, found in scores.items()}
    order = sorted(best, key=lambda name: (name != "none", -sign * best[name][0]))
    plain = best["none"][0] if "none" in best else None
    rows = [
        (
            name,
            str(len(scores[name])),
            figure_text(best[name][0]),
            str(best[name][1]),
            "–" if plain is None or name == "none" else f"{best[name][0] - plain:+.4f}",
        )
        for name in order
    ]
    titles = ("augmentation", "trials", f"best validation {plan.objective}", "of trial", "against none")
    direction = "" if plan.higher_is_better else "Lower is better. "
    note = (
        f"{direction}The best of few trials on one validation split, before compression; other parameters differ between "
        "them too, so small differences are chance."
    )
    return TableView("What augmentation bought", titles, tuple(rows), note=note)


def changed_rows(record: RunRecord, plan: Plan) -> tuple[TableView | None, list[dict[str, str]]]:
    """Return some training rows before and after, in turn of each augmenter tried; the chosen one comes first."""
    sign = 1 if plan.higher_is_better else -1
    chosen = record.selection.trial if record.selection else None

    def rank(trial: TrialResult) -> tuple[bool, float]:
        value = trial.validation.get(plan.objective, math.nan)
        return trial.number != chosen, -sign * value if math.isfinite(value) else math.inf

    by_name: dict[str, list[tuple[str, AugmentedValue]]] = {}
    for trial in sorted((trial for trial in record.trials if trial.number in record.augmented), key=rank):
        kept = record.augmented[trial.number]
        by_name.setdefault(kept.augment, [(kept.augment, one) for one in kept.samples])
    turns = itertools.zip_longest(*by_name.values())
    shown = [one for turn in turns for one in turn if one is not None][:SAMPLES]
    # In the order of the augmenters, which reads better than in turns.
    shown.sort(key=lambda one: list(by_name).index(one[0]))
    pictures = [{"augment": name, **one.model_dump()} for name, one in shown if one.before.startswith("data:image/")]
    rows = [
        (name, one.role, *_excerpts(one.before, one.after))
        for name, one in shown
        if not one.before.startswith("data:image/")
    ]
    titles = ("augmentation", "column", "before", "after")
    view = TableView("Training rows, before and after", titles, tuple(rows), left=frozenset(range(4)))
    return view if rows else None, pictures


def _excerpts(before: str, after: str) -> tuple[str, str]:
    """Return the stretch of two texts where they begin to differ."""
    same = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    start = 0 if max(len(before), len(after)) <= EXCERPT else max(0, same - EXCERPT // 4)
    cut = [text[start : start + EXCERPT] for text in (before, after)]
    ends = ["…" if len(text) > start + EXCERPT else "" for text in (before, after)]
    first, second = (("…" if start else "") + text + end for text, end in zip(cut, ends, strict=True))
    return first, second
