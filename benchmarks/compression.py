# python benchmarks/compression.py --seeds 0 1 2
"""Size, latency, memory and quality of each compression, beside the plain fine-tune of the same run.

With seeds: for each, the plain default fine-tune is trained once (a search of one trial, movie review sentences,
BERT-tiny, 3 epochs at 2e-4), and every compressor at its defaults and every chain is made of it, those that train again
too. Prints the mean difference of validation accuracy from the uncompressed model of the same seed with its standard
error over seeds, and the median ratios of size and latency. A seed decides the splits, too. Latencies of a seed are
measured one after the other: where they matter, take the second way.

With the folder of a finished search: its trial 0 is compressed by every installed compressor that trains nothing. Then
the variants take turns in being measured, each in a process of its own, for some rounds: what disturbs the machine
disturbs all of them. Ratios are taken within a round.

    python benchmarks/compression.py runs/quickstart --rounds 5
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from reviews import DATA, MODEL, difference

from autoft.api import search
from autoft.artifact import load, save_artifact
from autoft.contracts import Compressor, Target
from autoft.evaluation import measure_in_process, start_measuring
from autoft.hardware import Hardware
from autoft.plans.efforts import EFFORTS
from autoft.plans.plan import Plan, plan_of
from autoft.plans.targets import plan_target
from autoft.plugins import load_plugins
from autoft.processes import silence_libraries
from autoft.quantities import format_bytes
from autoft.rundir import RunDir, VariantResult, read_json, read_run

CHAINS = (
    "layer-pruning+onnx-int8",
    "ffn-pruning+onnx-int8",
    "vocabulary-pruning+onnx-int4",
    "layer-pruning+ffn-pruning+onnx-int8",
)
"""Beside those of ``effort: best``."""


def compressed(run: RunDir, plan: Plan, folder: Path) -> dict[str, tuple[Path, float]]:
    """Write every variant of trial 0 into the folder; return the place of each and the seconds that it took."""
    catalog = load_plugins()
    plain = run.trial(0) / "variants" / "none"
    loaded = load(plain, catalog=catalog)
    model = plan.model(loaded.manifest.model)
    target = plan_target(plan, loaded.task, model, params=loaded.manifest.params, processor=loaded.context.processor)
    rows = [{c.role: row[c.role] for c in loaded.task.card.columns if c.role in row} for row in loaded.task.demo_rows()]
    variants = {"none": (plain, 0.0)}
    for name, compressor in sorted(catalog.compressors.items()):
        refusal = compressor.check(target)
        if refusal:
            print(f"{name} is left out: {refusal.reason}")
            continue
        params = {parameter: domain.default for parameter, domain in compressor.space.items()}
        if compressor.trains(params):
            print(f"{name} is left out: it trains again; give --seeds and no folder")
            continue
        begin = time.monotonic()
        write(folder / name, *compressor.transform(loaded.model, target, rows, params), compressor, name)
        variants[name] = (folder / name, time.monotonic() - begin)
    return variants


def write(folder: Path, model: Any, target: Target, compressor: Compressor, name: str) -> None:
    plain = compressor.yields in {"dense", "sparse"} and not compressor.writes_itself
    writer = None if plain else compressor
    save_artifact(folder, model, target, writer=writer, variant=name, objective="")


def table(rounds: list[dict[str, dict[str, Any]]], seconds: dict[str, float], objective: str) -> str:
    """Return the medians over rounds as a Markdown table."""

    def column(name: str, figure: str) -> list[float]:
        return [round_[name]["costs"][figure] for round_ in rounds]

    def ratio(name: str, figure: str) -> str:
        each = [plain / own for plain, own in zip(column("none", figure), column(name, figure), strict=True)]
        return f"÷{statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})"

    lines = [
        f"| variant | size | of plain | p50 | of plain | p95 | of plain | memory | validation {objective} | seconds |",
        "| --- " * 10 + "|",
    ]
    for name in seconds:
        size = column(name, "model_size_bytes")[0]
        lines.append(
            f"| {name} | {format_bytes(size)} | ÷{column('none', 'model_size_bytes')[0] / size:.2f} "
            f"| {statistics.median(column(name, 'latency_p50_ms')):.2f} ms | {ratio(name, 'latency_p50_ms')} "
            f"| {statistics.median(column(name, 'latency_p95_ms')):.2f} ms | {ratio(name, 'latency_p95_ms')} "
            f"| {format_bytes(statistics.median(column(name, 'inference_memory_bytes')))} "
            f"| {rounds[0][name]['validation'][objective]:.4f} | {seconds[name]:.1f} |"
        )
    return "\n".join(lines)


def over_seeds(given: argparse.Namespace) -> str:
    """Return what each compressor and chain does to models of several seeds as a Markdown table."""
    best = [name for names in EFFORTS["best"]["compress"] for name in names.split("|")]
    names = [*load_plugins().compressors, *best, *CHAINS]
    wanted = [*dict.fromkeys(["none", *(given.only or names)])]
    variants: dict[int, dict[str, VariantResult]] = {}
    for seed in given.seeds:
        recipe = {
            "task": "text-classification",
            "name": f"compression-{seed}",
            "model": given.model,
            "data": {
                "train": DATA,
                "where": {"source": "rotten_tomatoes"},
                "limit": given.rows + given.validation + 200,
                "validation_size": given.validation,
                "test_size": 200,
            },
            # One trial, and as long as all its variants take.
            "budget": {"time": "24h", "trials": 1},
            "pipelines": ["full"],
            "compress": wanted,
            "augment": ["none"],
            "regularize": ["none"],
            "space": {
                "full.learning_rate": given.learning_rate,
                "train.epochs": given.epochs,
                **{name: yaml.safe_load(value) for name, _, value in (one.partition("=") for one in given.space)},
            },
            "search": {"seed": seed},
            "executor": {"threads": given.threads},
        }
        record = read_run(search(recipe, run=given.runs / f"compression-{seed}").path)
        variants[seed] = {variant.name: variant for trial in record.trials for variant in trial.variants}
        objective = plan_of(record).objective
        for name, one in variants[seed].items():
            print(f"seed {seed}, {name}: {one.validation.get(objective, one.reason)}", file=sys.stderr, flush=True)
    plain = [variants[seed]["none"] for seed in given.seeds]
    lines = [f"| compression | validation {objective} | difference | size | latency p50 |", "| --- " * 5 + "|"]
    for name in wanted:
        each = [variants[seed].get(name) for seed in given.seeds]
        done = [one for one in each if one is not None and one.validation]
        if len(done) < len(given.seeds):
            reasons = {one.reason for one in each if one is not None and one.reason}
            print(f"{name} is left out: {'; '.join(sorted(reasons)) or 'refused by the plan'}", file=sys.stderr)
            continue
        figures = [one.validation[objective] for one in done]
        ratios = (
            statistics.median(own.costs[cost] / one.costs[cost] for own, one in zip(plain, done, strict=True))
            for cost in ("model_size_bytes", "latency_p50_ms")
        )
        apart = "" if name == "none" else difference(figures, [one.validation[objective] for one in plain])
        lines.append(
            f"| `{name}` | {statistics.mean(figures):.3f} | {apart} | {' | '.join(f'÷{one:.2f}' for one in ratios)} |"
        )
    return "\n".join(lines)


def in_turns(arguments: argparse.Namespace) -> None:
    run = RunDir(arguments.run)
    plan = Plan.model_validate(read_json(run.plan))
    with tempfile.TemporaryDirectory() as folder:
        variants = compressed(run, plan, Path(folder))
        rounds: list[dict[str, dict[str, Any]]] = []
        for number in range(arguments.rounds):
            rounds.append({})
            for name, (place, _) in variants.items():
                rounds[-1][name] = measure_in_process(
                    place,
                    run.data,
                    validation=number == 0,
                    batch_size=plan.request["batch_size"],
                    length=plan.request["length"],
                    device=plan.device,
                    threads=plan.threads,
                )
        hardware = Hardware.probe()
        print(
            f"{plan.model(plan.models[0].name).name}, batch {plan.request['batch_size']}, about "
            f"{rounds[0]['none']['length']} tokens, {hardware.cpu}, {plan.threads} threads, {plan.device}, "
            f"{arguments.rounds} rounds; seconds are those of compressing and writing\n"
        )
        print(table(rounds, {name: seconds for name, (_, seconds) in variants.items()}, plan.objective))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a finished search")
    parser.add_argument("--rounds", type=int, default=5, help="of the second way")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--validation", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--space", nargs="+", default=[], help="others than defaults: layer-pruning.keep=0.34")
    parser.add_argument("--only", nargs="+", default=[], help="chains beside the uncompressed model")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs of the seeds go")
    arguments = parser.parse_args()
    silence_libraries()
    start_measuring()
    if arguments.run:
        in_turns(arguments)
    else:
        print(over_seeds(arguments))


if __name__ == "__main__":
    main()
