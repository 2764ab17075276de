"""What explain says of time, which takes a few real steps."""

from __future__ import annotations

import json
import subprocess
import sys

import yaml


def test_how_long_trials_take_and_how_many_fit(tmp_path, tiny_model):
    with (tmp_path / "rows.jsonl").open("w") as file:
        for number in range(120):
            file.write(json.dumps({"text": f"film {number}", "label": "good" if number % 2 else "bad"}) + "\n")
    recipe = {
        "task": "text-classification",
        "model": str(tiny_model),
        "data": {"train": "rows.jsonl", "validation_size": 20, "test_size": 20},
        "budget": {"time": "2h"},
        "effort": "quick",
        "pipelines": ["full", "lora"],
        "compress": "none",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "autoft", "explain", "recipe.yaml", "--time", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    times = json.loads(done.stdout)["times"]
    assert [(one["model"], one["pipeline"]) for one in times] == [(str(tiny_model), name) for name in ("full", "lora")]
    for one in times:
        # Nothing is known of compressing and measuring yet: 20 s are taken for it. The end takes less than five minutes.
        assert 20 < one["seconds"] < 120
        assert (7200 - 300) // one["seconds"] <= one["trials"] <= 7200 // one["seconds"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml", "rows.jsonl"], "nothing is left behind"
