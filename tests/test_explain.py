"""What explain says of time, which takes a few real steps, and of serving, which compresses the untrained model."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import yaml
from rich.console import Console

from autoft.display import costs_table
from autoft.plans.plan import BudgetLimit


def explained(folder, model, option, **changes):
    """What explain prints of a recipe over a few rows; nothing may be left behind."""
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(120):
            file.write(json.dumps({"text": f"film {number}", "label": "good" if number % 2 else "bad"}) + "\n")
    recipe = {
        "task": "text-classification",
        "model": str(model),
        "data": {"train": "rows.jsonl", "validation_size": 20, "test_size": 20},
        "effort": "quick",
        **changes,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "autoft", "explain", "recipe.yaml", *option]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["recipe.yaml", "rows.jsonl"], "nothing is left behind"
    return done.stdout


def test_how_long_trials_take_and_how_many_fit(tmp_path, tiny_model):
    budget = {"time": "2h"}
    printed = explained(
        tmp_path, tiny_model, ["--time", "--json"], budget=budget, pipelines=["full", "lora"], compress="none"
    )
    times = json.loads(printed)["times"]
    assert [(one["model"], one["pipeline"]) for one in times] == [(str(tiny_model), name) for name in ("full", "lora")]
    for one in times:
        # Nothing is known of compressing and measuring yet: 20 s are taken for it. The end takes less than five minutes.
        assert 20 < one["seconds"] < 120
        each = one["trials"] / one["workers"]
        assert (7200 - 300) // one["seconds"] <= each <= 7200 // one["seconds"]


def test_what_serving_costs_is_measured_before_anything_is_trained(tmp_path, tiny_model):
    compress = ["none", "onnx-int8", "ffn-pruning+onnx-int8"]
    budget = {"model_size": "60kB", "inference_memory": "8GB"}
    printed = explained(tmp_path, tiny_model, ["--measure", "--json"], budget=budget, compress=compress)
    (costs,) = json.loads(printed)["costs"].values()
    weights = sum(path.stat().st_size for path in tiny_model.glob("*.safetensors"))
    assert set(costs) == set(compress), "what is trained again has its shapes before"
    assert weights < costs["none"]["model_size_bytes"]
    sizes = [costs[name]["model_size_bytes"] for name in compress]
    assert sizes == sorted(sizes, reverse=True)
    assert all(one["latency_p50_ms"] <= one["latency_p95_ms"] for one in costs.values())
    assert all(1e8 < one["inference_memory_bytes"] < 8e9 for one in costs.values())


def test_a_table_says_what_is_over_the_budget():
    costs = {"m": {"none": {"model_size_bytes": 9e7, "latency_p50_ms": 4.0}, "onnx-int8": {"model_size_bytes": 2e7}}}
    limit = BudgetLimit(key="model_size", column="model_size_bytes", limit=5e7, given="50MB")
    console = Console(file=io.StringIO(), width=120)
    console.print(costs_table(costs, [limit]))
    lines = console.file.getvalue().splitlines()
    assert "over model size" in next(line for line in lines if "none" in line)
    assert "fits" in next(line for line in lines if "onnx-int8" in line)
    assert "90 MB" in console.file.getvalue()
