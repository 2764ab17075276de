"""Commands on this machine: hardware."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from autoft.cli.common import AsJson, app, told


@app.command()
@told
def hardware(
    measure: Annotated[
        Path | None,
        typer.Option(help="Time this machine and write its profile there, for budget.target of a search elsewhere."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that serve a model; default: one a core.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what this machine has, as searches see it, or measure it for searches on other machines."""
    from autoft.hardware import Hardware

    if measure is not None:
        from autoft import api
        from autoft.device import dump_profile
        from autoft.rundir import write_text

        profile = api.measure_device(threads)
        write_text(measure, dump_profile(profile))
        print(profile.model_dump_json(indent=1) if as_json else f"Written: {measure}")
        return
    from autoft.plugins import load_plugins

    probed = Hardware.probe()
    checked = {name: metric.check(probed.device, 1) for name, metric in load_plugins().cost_metrics.items()}
    reasons = {name: refusal.reason for name, refusal in checked.items() if refusal is not None}
    if as_json:
        print(
            json.dumps(
                {**probed.to_json(), "measured": sorted(checked.keys() - reasons), "not_measured": reasons}, indent=1
            )
        )
        return
    print(probed)
    print(f"measured of models: {', '.join(name for name in checked if name not in reasons)}")
    for name, reason in reasons.items():
        print(f"not measured: {name}: {reason}")
