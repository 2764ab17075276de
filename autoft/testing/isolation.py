"""Whether a plugin starts fast: it is loaded in a process of its own, and what came with it is looked at.

``python -m autoft.testing.isolation '{"plugin": ..., "module": ...}'``
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

from autoft.contracts import CostMetric, Strategy, Task
from autoft.plugins import GROUP, load_plugins

__all__ = ["HEAVY", "heavy_imports", "main"]

HEAVY = frozenset(
    {
        "accelerate",
        "datasets",
        "evaluate",
        "jax",
        "matplotlib",
        "nltk",
        "onnx",
        "onnxruntime",
        "optuna",
        "pandas",
        "peft",
        "PIL",
        "plotly",
        "sacrebleu",
        "scipy",
        "seqeval",
        "sklearn",
        "spacy",
        "tensorflow",
        "torch",
        "torchvision",
        "transformers",
    }
)
"""What no plugin may import at the top of its modules."""


def heavy_imports(subject: Task | Strategy | CostMetric) -> None:
    """Fail where loading the subject's plugin loads a heavy library, or where a strategy's ``check`` does.

    Raises:
        CheckFailed: it does; the message names the libraries.
        SkipTest: the subject belongs to no module that another process could import.
    """
    from autoft.testing.workbench import expect, fail, skip, subject_name

    module, name = type(subject).__module__, subject_name(subject)
    plugin = _entry_point(type(subject))
    answer = _in_another_process(plugin, "" if plugin else module)
    if answer["error"]:
        fail(f"{name} cannot be loaded by itself: {answer['error']}")
    if answer["absent"]:
        skip(f"the module {module} belongs to no installed plugin, and cannot be imported by its name")
    loaded, planned = answer["loaded"], answer["planned"].get(name, [])
    expect(not loaded, f"loading it imports {', '.join(loaded)}; import these inside of the methods that need them")
    expect(not planned, f"its check() imports {', '.join(planned)}, which slows autoft explain down")


@functools.cache
def _in_another_process(plugin: str | None, module: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps({"plugin": plugin, "module": module})],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"the process ended with {done.returncode}"}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"error": "", **answer}


@functools.cache
def _entry_point(kind: type) -> str | None:
    """Return the name of the entry point whose plugin offers an object of this class, or None."""
    for point in entry_points(group=GROUP):
        catalog = load_plugins([point])
        offered: list[Any] = [*catalog.tasks.values(), *catalog.strategies.values(), *catalog.cost_metrics.values()]
        if any(type(one) is kind for one in offered):
            return point.name
    return None


def main(argument: str) -> None:
    """Load a plugin by its entry point, or a module, and print which heavy libraries came along."""
    from autoft.testing.probe import Praise
    from autoft.testing.workbench import Workbench

    request = json.loads(argument)
    before = set(sys.modules)

    def heavy() -> list[str]:
        return sorted(HEAVY & (set(sys.modules) - before))

    answer: dict[str, Any] = {"absent": False, "loaded": [], "planned": {}}
    if request["plugin"]:
        catalog = load_plugins([point for point in entry_points(group=GROUP) if point.name == request["plugin"]])
        for broken in catalog.broken:
            raise SystemExit(broken.error)
        answer["loaded"] = known = heavy()
        planning = Workbench(Praise(), catalog).planning
        for name, strategy in catalog.strategies.items():
            strategy.check(planning)
            answer["planned"][name] = [library for library in heavy() if library not in known]
            known = heavy()
    else:
        try:
            importlib.import_module(request["module"])
        except ModuleNotFoundError as error:
            if error.name is None or not request["module"].startswith(error.name):
                raise
            answer["absent"] = True
        answer["loaded"] = heavy()
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
