"""Every adapter over every base on every kind of body, as ``compatibility.json`` says, and as a run finds it.

``AUTOFT_WRITE_DOCS=1 pytest -m slow tests/strategies/test_compatibility.py`` tries all and writes that file and the
table of ``docs/adapters.md`` anew.
"""

from __future__ import annotations

import functools
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from autoft.errors import ModelError
from autoft.plugins import load_plugins
from autoft.strategies import autoft_strategies
from autoft.strategies.compatibility import BODIES, FILE, WORKS, body_of, incompatible, table
from autoft.testing.checks import checks_of
from autoft.testing.models import PLANNED
from autoft.testing.probe import Praise, PraiseHits
from autoft.testing.strategies import Pipeline, merges_and_loads
from autoft.testing.workbench import CheckFailed, Workbench

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"

TASKS = {
    "decoder": "generation",
    "decoder-conv1d": "generation",
    "seq2seq": "translation",
    "vision-to-text": "image-captioning",
}
BASES = ("fp32", "bf16", "int8", "nf4", "nf4 single", "fp4", "fp4 single")
"""``single`` is without double quantization of the scales."""
ADAPTERS = tuple(one for one in autoft_strategies() if one.stage == "adapt")
CELLS = [(one.name, base, body) for one in ADAPTERS for base in BASES for body in BODIES]
DENSE_ONLY = "trains over dense weights only"


@functools.cache
def bench(body: str) -> Workbench:
    catalog = load_plugins()
    if body == "encoder":
        metrics = MappingProxyType({**catalog.quality_metrics, PraiseHits.name: PraiseHits()})
        return Workbench(Praise(), replace(catalog, quality_metrics=metrics), kind="encoder")
    if TASKS[body] not in catalog.tasks:
        pytest.skip(f"needs the plugin of {TASKS[body]}")
    return Workbench(catalog.tasks[TASKS[body]], catalog, kind=body)


@functools.cache
def classifying(body: str) -> Workbench:
    return Workbench(Praise(), load_plugins(), kind=body)


def run(adapter: str, base: str, body: str) -> str:
    """Train, merge, write and load, and return that it works or a short reason why not, free of figures."""
    one = next(one for one in ADAPTERS if one.name == adapter)
    place = bench(body)
    quantizer = place.catalog.quantizers.get(base.split()[0])
    if quantizer and "quantized" not in one.accepts:
        return DENSE_ONLY
    settings = {"double_quantization": False} if base.endswith("single") else {}
    try:
        merges_and_loads(place, Pipeline(one, quantizer), settings=settings, bf16=base == "bf16")
    except CheckFailed as error:
        return "the loss does not fall" if "bring the loss" in str(error) else "merging does not give what was trained"
    except ModelError as error:
        if "Conv1D" in str(error):
            return "PEFT gives it no form for Conv1D layers"
        said = str(error).partition(": ")[2].replace(" of tiny", "").partition(";")[0].partition(", so")[0]
        return re.sub(r"^\w+ has ", "the model has ", said)
    except (AttributeError, RuntimeError, ValueError):
        return "PEFT cannot compute with weights stored so"
    return WORKS


def known(adapter: str, base: str, body: str) -> str:
    return table()[adapter][base][body]


# ------------------------------------------------------------------------------------------------- the file


def test_the_file_has_every_cell():
    assert [(a, b, c) for a, bases in table().items() for b, bodies in bases.items() for c in bodies] == CELLS


def test_every_adapter_works_over_an_encoder_as_the_kit_finds():
    """What ``run`` would do with each here is done in ``test_builtin_strategies.py``: ``check_adapter_trains_and_merges``."""
    assert {one.name: known(one.name, "fp32", "encoder") for one in ADAPTERS} == {one.name: WORKS for one in ADAPTERS}
    checks = {check.name for check in checks_of(ADAPTERS)}
    assert {f"check_adapter_trains_and_merges[{one.name}, encoder]" for one in ADAPTERS} <= checks


@pytest.mark.parametrize("base", ["int8", "nf4"])
@pytest.mark.parametrize("adapter", [one.name for one in ADAPTERS])
def test_what_works_over_a_quantized_decoder_works(adapter, base):
    pytest.importorskip("bitsandbytes")
    if known(adapter, base, "decoder") != WORKS:
        pytest.skip(known(adapter, base, "decoder"))
    assert run(adapter, base, "decoder") == WORKS


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "base", "body"), CELLS)
def test_every_cell(adapter, base, body):
    pytest.importorskip("bitsandbytes")
    assert run(adapter, base, body) == known(adapter, base, body)


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("body", list(BODIES))
@pytest.mark.parametrize("quantizer", ["", "int8", "nf4", "fp4"])
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda one: one.name)
def test_a_chain_is_legal_where_the_file_says_so(adapter, quantizer, body):
    # A decoder classifies at its last token, which is lost behind virtual tokens: the file is of what decoders write.
    planning = (classifying(body) if adapter.merges else bench(body)).planning
    target = replace(planning, quantizer=quantizer, hardware=replace(planning.hardware, bf16=True))
    bases = [base for base in BASES if base.split()[0] == quantizer] if quantizer else ["fp32", "bf16"]
    said = {known(adapter.name, base, body) for base in bases}
    refusal = adapter.check(target)
    legal = refusal is None and (not quantizer or "quantized" in adapter.accepts)
    if adapter.name == "head-only":
        # What its models lack is a matter of the task: this one puts a head on every body.
        assert refusal is None
    else:
        assert legal == (said == {WORKS})
    assert refusal is None or (refusal.reason.startswith(adapter.name) and "\n" not in refusal.reason)


def test_what_nobody_tried_is_not_refused():
    planning = classifying("encoder").planning
    assert incompatible("lora", replace(planning, quantizer="another")) is None
    assert incompatible("another", replace(planning, quantizer="nf4")) is None


@pytest.mark.parametrize("body", list(BODIES))
def test_bodies_are_told_from_the_configuration(body):
    assert body_of(PLANNED[body]) == body
    assert body_of(bench(body).config) == body


# --------------------------------------------------------------------------------------------------- the page


def page_table() -> str:
    """Return the table in Markdown: a row an adapter, a column a base, and the reasons below."""
    reasons: list[str] = []
    lines = ["| | after training | " + " | ".join(BASES) + " |", "| --- " * (len(BASES) + 2) + "|"]
    kept = {one.name for one in ADAPTERS if not one.merges}
    for adapter, bases in table().items():
        cells = []
        for base in BASES:
            failed: dict[str, list[str]] = {}
            for body, said in bases[base].items():
                if said != WORKS:
                    failed.setdefault(said, []).append(BODIES[body])
            parts = []
            for said, bodies in failed.items():
                if said not in reasons:
                    reasons.append(said)
                which = "none" if len(bodies) == len(BODIES) else "not " + ", ".join(bodies)
                parts.append(f"{which} ({reasons.index(said) + 1})")
            cells.append("; ".join(parts) or "all")
        after = "kept beside" if adapter in kept else "plain"
        lines.append(f"| `{adapter}` | {after} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{i}. {said}" for i, said in enumerate(reasons, 1)), ""])


def test_the_page_shows_what_the_file_says():
    assert page_table() in PAGE.read_text(encoding="utf-8")


def test_the_page_names_every_adapter_and_its_defaults():
    text = PAGE.read_text(encoding="utf-8")
    for adapter in ADAPTERS:
        assert f"### `{adapter.name}`" in text
        section = " ".join(text.partition(f"### `{adapter.name}`\n")[2].partition("\n##")[0].split())
        for name, domain in adapter.space.items():
            assert f"`{name}` {domain.default}" in section, (adapter.name, name)


@pytest.mark.slow
@pytest.mark.skipif("AUTOFT_WRITE_DOCS" not in os.environ, reason="writes compatibility.json and docs/adapters.md")
def test_write_the_file_and_the_page():
    found: dict[str, dict[str, dict[str, str]]] = {}
    for adapter, base, body in CELLS:
        found.setdefault(adapter, {}).setdefault(base, {})[body] = run(adapter, base, body)
    rows = (
        f"  {json.dumps(adapter)}: {{\n"
        + ",\n".join(f"    {json.dumps(base)}: {json.dumps(bodies)}" for base, bodies in bases.items())
        + "\n  }"
        for adapter, bases in found.items()
    )
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    table.cache_clear()
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + BEGIN + page_table() + END + rest.split(END)[1], encoding="utf-8")
