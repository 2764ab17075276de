"""Size, latency, memory and quality of each compression, beside the plain fine-tune of the same run.

The uncompressed model of trial 0 is compressed by every installed compressor with its defaults. Then the variants take
turns in being measured, each in a process of its own, for some rounds: what disturbs the machine disturbs all of them.
Ratios are taken within a round.

    python benchmarks/compression.py runs/quickstart --rounds 5
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from autoft.artifact import load, save_artifact
from autoft.contracts import Compressor, Target
from autoft.evaluation import measure_in_process, start_measuring
from autoft.executors.worker import silence_libraries
from autoft.hardware import Hardware
from autoft.plan import Plan, plan_target
from autoft.plugins import load_plugins
from autoft.quantities import format_bytes
from autoft.rundir import RunDir, read_json


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
        begin = time.monotonic()
        params = {parameter: domain.default for parameter, domain in compressor.space.items()}
        result = compressor.apply(loaded.model, target, rows, params)
        write(folder / name, result, target, compressor, name)
        variants[name] = (folder / name, time.monotonic() - begin)
    return variants


def write(folder: Path, model: Any, target: Target, compressor: Compressor, name: str) -> None:
    writer = compressor if compressor.yields != "sparse" else None
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished search")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    silence_libraries()
    start_measuring()
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


if __name__ == "__main__":
    main()
