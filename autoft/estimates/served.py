"""One model that is written, loaded and served for real: what its process has at its peak.

``python -m autoft.estimates.served`` reads a setting as JSON from standard input, and prints bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from autoft.errors import AutoftError, ModelError
from autoft.estimates.setting import Setting, Work, longest_rows
from autoft.processes import thread_environment

__all__ = ["main", "served_bytes"]

POOL = {False: 64, True: 1000}
"""Validation rows that a search reads to measure requests: more where it looks for rows of a length."""


def served_bytes(setting: Setting, variant: str, batch_size: int, *, chosen: bool, timeout: float = 600.0) -> int:
    """Return ``inference_memory_bytes`` of an untrained model, measured as a search measures it.

    Args:
        setting: ``length`` is that of all rows, in tokens.
        variant: a compressor's name, or ``none``.
        batch_size: rows a request.
        chosen: the rows are those nearest to a length (``request.length``).
        timeout: seconds after which the process is stopped.

    Raises:
        ModelError: the model could not be made or served.
    """
    request = {"setting": setting.to_json(), "variant": variant, "batch_size": batch_size, "chosen": chosen}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "autoft.estimates.served"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env=thread_environment(setting.threads),
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"{variant}: serving took more than {timeout:.0f} s") from None
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"the process ended with {done.returncode}"]
        raise ModelError(f"{variant}: could not be served: {reason[0]}")
    return int(done.stdout.strip().splitlines()[-1])


def write(setting: Setting, variant: str, folder: Path) -> Work:
    """Write the untrained model of a setting, compressed, into a folder, and return what it was made of."""
    from autoft.artifact import save_artifact
    from autoft.plugins import load_plugins

    catalog = load_plugins()
    work = Work.of(setting, catalog)
    target = work.target
    model = work.task.load_model(target.source, target.context).eval()
    writer = None
    if variant != "none":
        compressor = catalog.compressors[variant]
        params = {name: domain.default for name, domain in compressor.space.items()}
        model, target = compressor.transform(model, target, list(work.task.demo_rows()), params)
        if compressor.yields not in {"dense", "sparse"} or compressor.writes_itself:
            writer = compressor
    save_artifact(folder, model, target, writer=writer, variant=variant, objective="")
    return work


def main() -> int:
    """Read a setting, write its model and serve it, and print the peak of the process that does."""
    from autoft.evaluation import MeasureError, measure_served_in_process, start_measuring
    from autoft.processes import silence_libraries

    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.read())
    setting = Setting.from_json(request["setting"])
    silence_libraries()
    start_measuring()
    with tempfile.TemporaryDirectory() as folder:
        try:
            work = write(setting, request["variant"], Path(folder))
            long, _ = longest_rows(work.task, work.target.context, setting.rows)
            costs = measure_served_in_process(
                Path(folder),
                [dict(long)] * POOL[request["chosen"]],
                batch_size=request["batch_size"],
                length=setting.length if request["chosen"] else None,
                device=setting.device,
                threads=setting.threads,
            )
        except (AutoftError, MeasureError) as error:
            sys.exit(str(error))
    out.write(f"{costs['inference_memory_bytes']:.0f}\n")
    out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
