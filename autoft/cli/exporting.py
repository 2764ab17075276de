"""Commands that take a model elsewhere: export, push."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from autoft.cli.common import AsJson, app, console, shown, told


@app.command()
@told
def export(
    model: Annotated[Path, typer.Argument(help="A run folder, or a model that autoft wrote.", show_default=False)],
    format: Annotated[
        str,
        typer.Option(
            "--format", help="safetensors, adapter, onnx, onnx-fp16, onnx-int8 or openvino.", show_default=False
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="Where to; default: exports/ in the run folder.")] = None,
    trial: Annotated[int | None, typer.Option(help="Of the run; default: the chosen one.")] = None,
    variant: Annotated[str | None, typer.Option(help="Of the trial; default: what suits the format.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a model in a format that other programs load, and compare its answers with the model's own."""
    from autoft import api
    from autoft.processes import silence_libraries

    silence_libraries()
    done = api.export(model, format, output=output, trial=trial, variant=variant)
    found = done.agreement
    if as_json:
        print(json.dumps(_as_json(done)))
        return
    console().print(_table(done))
    print(
        f"The same answer to {found.agreement:.1%} of {found.rows} rows ({found.source}); scores differ by at most "
        f"{found.difference:.2g}."
    )
    if found.metric:
        print(f"{found.metric} on these rows: {found.exported_quality:.4f}, of the model {found.quality:.4f}.")
    print(
        f"One request: {found.exported_latency_ms:.2f} ms, of the model {found.latency_ms:.2f} ms (median, this process)."
    )
    print(f"Model:  {shown(done.path)}  (README.md shows how to load it without autoft)")


def _table(done: Any) -> Any:
    from rich.table import Column, Table

    from autoft.quantities import format_bytes

    whence = done.variant if done.trial is None else f"trial {done.trial}, {done.variant}"
    table = Table(f"{done.format}, from {whence}", Column("size", justify="right"))
    for name, size in done.files.items():
        table.add_row(name, format_bytes(size))
    table.add_section()
    table.add_row("all files", format_bytes(done.size_bytes))
    return table


def _as_json(done: Any) -> dict[str, Any]:
    return {
        "path": str(done.path),
        "format": done.format,
        "trial": done.trial,
        "variant": done.variant,
        "size_bytes": done.size_bytes,
        "files": dict(done.files),
        "agreement": done.agreement.figures(),
    }


@app.command()
@told
def push(
    model: Annotated[
        Path, typer.Argument(help="A run folder, whose best/ is taken, or an exported model.", show_default=False)
    ],
    repo: Annotated[str, typer.Argument(help="As owner/name.", show_default=False)],
    public: Annotated[bool, typer.Option("--public", help="Everybody may see it; default: only its owner.")] = False,
) -> None:
    """Upload a model with its card to a hub, private unless --public; the token is read from HF_TOKEN alone."""
    from autoft import api

    print(api.push(model, repo, public=public))
