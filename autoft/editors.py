"""What editors know of recipes: the JSON schema with the names of all that is installed.

The schema of :mod:`autoft.recipe` knows the form alone. Here come the tasks with their roles and options, the chains of
strategies, the parameters with their domains, and the metrics; an editor completes them and marks what is misspelt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from autoft.contracts import Task
from autoft.plans.efforts import AUXILIARY_SPACE, TRAIN_SPACE
from autoft.plugins import Catalog
from autoft.recipe import recipe_schema
from autoft.space import Categorical, Domain, Float

__all__ = ["recipe_schema_of"]

Schema = dict[str, Any]


def recipe_schema_of(catalog: Catalog) -> Schema:
    """Return the JSON schema of recipes for these plugins."""
    schema = recipe_schema()
    properties, parts = schema["properties"], schema["$defs"]
    tasks = {"type": "string", "enum": sorted(catalog.tasks)}
    properties["task"] |= tasks
    parts["AuxiliarySection"]["properties"]["task"] |= tasks
    pipelines = [*catalog.adapters, *(f"{base}+{name}" for base in catalog.quantizers for name in catalog.adapters)]
    _offer(properties["pipelines"], {"enum": sorted(pipelines)})
    chained: dict[str, Iterable[str]] = {
        "compress": catalog.compressors,
        "augment": catalog.augmenters,
        "regularize": catalog.regularizers,
    }
    for key, names in chained.items():
        _offer(properties[key], {"anyOf": [{"enum": ["none", *sorted(names)]}, _chains(names)]})
    metrics = [*catalog.quality_metrics, *(c for metric in catalog.cost_metrics.values() for c in metric.columns)]
    _offer(parts["SearchSection"]["properties"]["objectives"], {"enum": sorted(metrics)})
    budget = parts["BudgetSection"]
    for name, metric in catalog.cost_metrics.items():
        budget["properties"].setdefault(name, {"description": metric.summary, "type": ["string", "number", "object"]})
    budget["additionalProperties"] = False
    properties["space"] |= _space(catalog)
    schema["allOf"] = [_of_task(name, task) for name, task in sorted(catalog.tasks.items())]
    return schema


def _offer(property_: Schema, item: Schema) -> None:
    """Let a key take one or a list of these, and keep what the schema says of it beside."""
    kept = {key: value for key, value in property_.items() if key not in {"anyOf", "type", "items", "minItems", "$ref"}}
    property_.clear()
    property_ |= kept | {"anyOf": [item, {"type": "array", "items": item, "minItems": 1}, {"type": "null"}]}


def _chains(names: Iterable[str]) -> Schema:
    """Return the schema of chains, as ``layer-pruning(layers=3)+onnx-int8``."""
    step = f"(?:{'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})(?:\\([^()]*\\))?"
    # Editors read the patterns of JavaScript, which has no need to escape a hyphen and in part refuses it.
    step = step.replace("\\-", "-")
    return {"type": "string", "pattern": f"^{step}(?:\\+{step})*$"}


def _space(catalog: Catalog) -> Schema:
    """Return the schema of ``space``: each parameter under its whole name, and in the section of its owner."""
    domains: dict[str, Domain] = {**TRAIN_SPACE, **AUXILIARY_SPACE}
    for task in catalog.tasks.values():
        domains.update(task.space())
    for strategy in catalog.strategies.values():
        domains.update({f"{strategy.name}.{name}": domain for name, domain in strategy.space.items()})
    flat = {name: _values(domain) for name, domain in domains.items()}
    sections: dict[str, Schema] = {}
    for name, values in flat.items():
        owner, _, rest = name.partition(".")
        sections.setdefault(owner, {"type": "object", "properties": {}, "additionalProperties": False})
        sections[owner]["properties"][rest] = values
    return {"type": "object", "properties": {**flat, **sections}, "additionalProperties": False}


def _values(domain: Domain) -> Schema:
    """Return the schema of what a recipe may make of a parameter: one value, a list, or a range."""
    told = f"{domain}; default {domain.default}"
    if isinstance(domain, Categorical):
        one: Schema = {} if domain.open else {"enum": list(domain.choices)}
        numbers = all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in domain.choices)
        one = {"type": "number"} if numbers else one
        return {"description": told, "anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}
    number = {"type": "number" if isinstance(domain, Float) else "integer"}
    limits = {
        "type": "object",
        "properties": {"low": number, "high": number, "log": {"type": "boolean"}},
        "required": ["low", "high"],
        "additionalProperties": False,
    }
    return {"description": told, "anyOf": [number, {"type": "array", "items": number, "minItems": 1}, limits]}


def _of_task(name: str, task: Task) -> Schema:
    """Return what the schema says where a recipe is of this task: its options, and the roles of its columns."""
    card = task.card
    options = {
        option.name: {"description": option.summary, "default": option.default}
        | ({} if option.choices is None else {"enum": list(option.choices)})
        for option in card.options
    }
    roles = {column.role: {"description": column.summary, "type": "string"} for column in card.columns}
    columns = {"properties": {"columns": {"properties": roles, "additionalProperties": False}}}
    return {
        "if": {"properties": {"task": {"const": name}}, "required": ["task"]},
        "then": {
            "properties": {
                "task_options": {"properties": options, "additionalProperties": False},
                "data": columns,
            }
        },
    }
