"""What an exported model is compared by."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autoft.artifact import load, save_artifact
from autoft.errors import ModelError
from autoft.formats.agreement import compare, shown_rows
from autoft.formats.base import Origin
from autoft.plugins import load_plugins
from autoft.testing.workbench import Workbench


def test_without_rows_there_is_nothing_to_compare_by(tmp_path):
    catalog = load_plugins()
    bench = Workbench(catalog.task("text-classification"), catalog)
    save_artifact(tmp_path / "m", bench.load_model(), bench.target, writer=None, variant="none", objective="")
    loaded = load(tmp_path / "m", catalog=catalog, device="cpu")
    origin = Origin(tmp_path / "m", loaded, catalog, "none")
    assert compare(origin, loaded.model, loaded.context, shown_rows(origin)).agreement == 1
    task = type("Silent", (type(loaded.task),), {"demo_rows": lambda self: []})()
    with pytest.raises(ModelError, match="there are 0 demo rows of the task"):
        shown_rows(replace(origin, loaded=replace(loaded, task=task)))
