# python benchmarks/time_left.py RUN...
"""Replay finished runs: the time left that a search shows at the end of each trial, against what it was.

Needs run folders whose files have the times at which the search wrote them, so no copies, and whose search was one call.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

from autoft.listener import Listener
from autoft.plans.plan import Plan
from autoft.plugins import load_plugins
from autoft.rundir import RunDir, read_json
from autoft.search import Interruption, Search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--every", type=int, default=1, help="Of so many trials, one; the first is counted.")
    options = parser.parse_args()
    rows = [row for run in options.runs for row in replayed(run, options.every)]
    print(f"{len({row['run'] for row in rows})} runs, {len(rows)} points")
    for name in ("budget", "expected"):
        wrong = [row[name] - row["was"] for row in rows]
        share = [abs(one) / row["took"] for one, row in zip(wrong, rows, strict=True)]
        own = [abs(one) / max(10.0, row["was"]) for one, row in zip(wrong, rows, strict=True)]
        print(
            f"{name:>9}: mean error {statistics.fmean(wrong):+.0f} s; of the whole run, median {statistics.median(share):.1%}, "
            f"9 of 10 within {sorted(share)[math.ceil(0.9 * len(share)) - 1]:.1%}; of what was left, median "
            f"{statistics.median(own):.1%}"
        )


def replayed(path: Path, every: int) -> list[dict[str, object]]:
    """Return, for the end of each trial, the seconds left by the budget, as expected, and as they were."""
    run = RunDir(path)
    plan = Plan.model_validate(read_json(run.plan))
    probed = read_json(path / "forecast.json")["models"]
    took = float(read_json(path / "time.json")["seconds"])
    # A later call that finds all done writes the rest again.
    end = (path / "final.json").stat().st_mtime
    results = run.results()
    begun = {r.number: (run.trial(r.number) / "config.json").stat().st_mtime for r in results}
    results.sort(key=lambda result: begun[result.number])
    ends = [begun[r.number] + r.seconds["total"] for r in results]
    rows = []
    for place, result in list(enumerate(results))[::every]:
        with tempfile.TemporaryDirectory() as folder:
            there = RunDir(folder)
            there.create()
            for one in results[: place + 1]:
                there.trial(one.number).mkdir()
                there.result(one.number).write_text(json.dumps(one.model_dump(mode="json")))
            spent = took - (end - ends[place])
            search = Search(
                there, plan, load_plugins(), Listener(), Interruption(), started=time.monotonic() - spent, used=0.0
            )
            for name, figures in probed.items():
                search.pace.seconds_per_sample.setdefault(name, figures["seconds_per_sample"])
                search.pace.validate_per_row.setdefault(name, figures["validate_seconds_per_row"])
            budget, expected = search.seconds_left(), search.expected_left()
        rows.append(
            {"run": str(path), "trial": result.number, "took": took, "budget": budget, "expected": expected}
            | {"was": end - ends[place]}
        )
    return rows


if __name__ == "__main__":
    main()
