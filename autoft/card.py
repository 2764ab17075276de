"""What goes beside a model for people and programs without autoft.

Its labels and preprocessing as JSON, the code that loads and asks it, and the head of its card as hubs read it.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from autoft.artifact import Manifest, context_of, processing
from autoft.contracts import ModelSource, Task, TaskCard, TaskContext
from autoft.errors import without_controls
from autoft.lines import read_yaml
from autoft.paths import public_name
from autoft.plans.plan import Plan
from autoft.rundir import Interval, write_json

__all__ = [
    "LABELS",
    "PREPROCESSING",
    "front_matter",
    "library_licenses",
    "license_of",
    "public_model",
    "stated_license",
    "templates",
    "usage",
    "write_settings",
]

LABELS = "labels.json"
PREPROCESSING = "preprocessing.json"
EXAMPLES = 2
"""Inputs that the code of a card shows."""
ASKED = (
    ("labels", "sequence-classification", {"text"}),
    ("tags", "token-classification", {"tokens"}),
    ("answers", "question-answering", {"question", "context"}),
)
"""Which lines of code fit which kind of model, by what rows have; others show scores alone."""
GRAPHS = ("model.onnx", "decoder.onnx")

HUB_TASKS = {
    "text-classification": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "translation": "translation",
    "summarization": "summarization",
    "generation": "text-generation",
    "image-captioning": "image-to-text",
}
"""Names that the hub has for what a task does; medical tasks have none of their own."""
HUB_METRICS = {
    "accuracy": "accuracy",
    "f1_macro": "f1",
    "entity_f1": "seqeval",
    "qa_f1": "f1",
    "exact_match": "exact_match",
}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def front_matter(card: TaskCard, manifest: Manifest, plan: Plan | None, *, library: str, name: str) -> str:
    """Return the YAML head of a model card, without the lines around it.

    Args:
        card: of the task.
        manifest: of the model; its measured figures are told.
        plan: of the run, where it is known: where model and data come from.
        library: that loads the files.
        name: of the model.
    """
    from huggingface_hub import EvalResult, ModelCardData

    pipeline = HUB_TASKS.get(card.name)
    measured = manifest.measured.get("test") or {}
    split = "test" if measured else "validation"
    figures = {metric: _value(value) for metric, value in (measured or manifest.measured.get("validation", {})).items()}
    data = _data(plan)
    results = [
        EvalResult(
            task_type=pipeline or card.name,
            dataset_type=data or "custom",
            dataset_name=data or f"own data, {split} split",
            dataset_split=split,
            metric_type=HUB_METRICS.get(metric, metric),
            metric_name=metric,
            metric_value=round(value, 6),
        )
        for metric, value in figures.items()
        if math.isfinite(value)
    ]
    hub = manifest.model if HUB_ID.fullmatch(manifest.model) else None
    found = ModelCardData(
        base_model=hub,
        library_name=library,
        pipeline_tag=pipeline,
        license=license_of(manifest.model, plan),
        datasets=data,
        metrics=sorted({HUB_METRICS.get(metric, metric) for metric in figures}) or None,
        tags=["autoft", card.name],
        model_name=name if results else None,
        eval_results=results or None,
    )
    yaml: str = found.to_yaml(line_break="\n")
    return yaml.strip()


def license_of(model: str, plan: Plan | None) -> str | None:
    """Return the licence of a base model, by its name in the recipe or its public one, as the card beside its weights says it.

    None where none does.
    The licence of a Python package is that of its code: one that carries MiniLM's weights (Apache-2.0) says MIT.
    """
    planned = [one for one in plan.models if model in {one.name, public_name(one.name, one.path)}] if plan else []
    cards = [Path(one.path) / "README.md" for one in planned]
    # Folders whose last part is the same may be of several licences.
    stated = {stated_license(card) if card.is_file() else None for card in cards}
    return stated.pop() if len(stated) == 1 else None


def public_model(model: str, plan: Plan) -> str:
    """Return what others may read of the name of a model: see :func:`autoft.paths.public_name`.

    Args:
        model: as the recipe or a parameter of a strategy names it.
        plan: of the run.
    """
    return public_name(model, next((one.path for one in plan.models if one.name == model), model))


def stated_license(card: Path) -> str | None:
    """Return the licence that the head of a card of a model or of data states; None where it states none, or is no card."""
    import yaml

    with card.open(encoding="utf-8", errors="replace") as file:
        head = re.match(r"\s*---\s*\n(.*?)\n---\s*\n", file.read(LONGEST_HEAD), re.DOTALL)
    try:
        known, _ = read_yaml(head[1]) if head else (None, None)
    except (yaml.YAMLError, RecursionError):
        # A page that is no card.
        return None
    said = known.get("license") if isinstance(known, dict) else None
    return ", ".join(map(str, said)) if isinstance(said, list) else str(said) if said else None


LONGEST_HEAD = 1_000_000
"""Characters of a card that are read: its head is at the top."""


def library_licenses(versions: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return distributions with their version and their licence, as its metadata here state it, else an empty text.

    Args:
        versions: by distribution; ``python`` is none.
    """
    found = []
    for name, version in versions.items():
        try:
            about = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            found.append((name, version, "PSF-2.0" if name == "python" else ""))
            continue
        if "License-Expression" in about:
            stated = about["License-Expression"]
        elif "License" in about and 0 < len(about["License"]) < LONG_LICENSE:
            stated = about["License"]
        else:
            classified = (one for one in about.get_all("Classifier", []) if one.startswith("License ::"))
            stated = ", ".join(one.rpartition(" :: ")[2] for one in classified)
        found.append((name, version, stated))
    return found


LONG_LICENSE = 60
"""Characters from which on the field of a distribution holds the text of its licence, and not its name."""


def _data(plan: Plan | None) -> str | None:
    """Return the hub's name of the data, where it is from there."""
    source = str(plan.data.get("source") or "") if plan else ""
    return source.removeprefix("hub://").split("@")[0].split("#")[0] if source.startswith("hub://") else None


def _value(figure: Any) -> float:
    return float(figure["value"]) if isinstance(figure, dict) else float(figure)


def templates() -> jinja2.Environment:
    """Return the environment in which Markdown is rendered: texts stay texts, but for code, which is marked as safe."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autoft", "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown, not HTML
        finalize=_text,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["python"] = lambda value: Markup(repr(value))
    environment.filters["block"] = _block
    environment.filters["figure"] = _figure
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    return environment


def _text(value: Any) -> Any:
    """Return a text in which Markdown sees neither HTML nor a link: labels, names and licences come from elsewhere."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return without_controls(value).replace("<", "&lt;").replace("](", "]\\(")
    return value


def _block(text: str, language: str = "") -> Markup:
    """Return a text as a block of code that ends where the text does, whatever marks of such ends it holds."""
    marks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Markup(f"{marks}{language}\n{without_controls(text).rstrip()}\n{marks}")


def _figure(figure: float | Interval | Mapping[str, Any]) -> str:
    """Return a quality figure in words, with its interval where it has one, and each as far as it is defined."""
    if isinstance(figure, Mapping):
        figure = Interval.model_validate(figure)
    if not isinstance(figure, Interval):
        return f"{figure:.4f}" if math.isfinite(figure) else "not defined"
    known = [f"n = {figure.n}"]
    if math.isfinite(figure.low) and math.isfinite(figure.high):
        known.insert(0, f"95 % interval {figure.low:.4f} to {figure.high:.4f}")
    return f"{_figure(figure.value)} ({', '.join(known)})"


def write_settings(task: Task, manifest: Manifest, folder: Path, known: Mapping[str, Any] | None = None) -> None:
    """Write ``preprocessing.json``, and ``labels.json`` where a model has labels, into its folder.

    Args:
        task: knows what is done to inputs.
        manifest: of the model.
        folder: with the files of the processor.
        known: what :func:`autoft.artifact.processing` says of the model; without it the processor is loaded here.
    """
    settings = dict((known or _processing(task, manifest, folder))["settings"])
    if point := manifest.facts.get("operating_point"):
        settings["operating_point"] = point
    write_json(folder / PREPROCESSING, settings)
    if labels := context_of(manifest, "cpu").labels:
        write_json(folder / LABELS, {"labels": list(labels)})


def usage(
    task: Task, manifest: Manifest, folder: Path, name: str, *, of: str = "", known: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Return what ``usage.md.j2`` needs to show how a folder is used without autoft; None where it cannot be.

    Args:
        task: of the model.
        manifest: of the model.
        folder: with the model, its processor, and what :func:`write_settings` wrote.
        name: of the folder, in the code that is shown.
        of: ``adapter`` or ``openvino`` for such files; what else is there is told by the files.
        known: as for :func:`write_settings`.
    """
    settings = json.loads((folder / PREPROCESSING).read_text(encoding="utf-8"))
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else dict(manifest.config)
    graphs = any((folder / graph).is_file() for graph in GRAPHS)
    plain = not graphs and any(folder.glob("*.safetensors")) and manifest.format in {"transformers", *BESIDE}
    runtime = of or ("onnx" if graphs else "transformers" if plain else "")
    if not runtime:
        return None
    context = context_of(manifest, "cpu")
    return {
        "name": name,
        "runtime": runtime,
        "kind": _kind(task, (known or _processing(task, manifest, folder))["traced"], config),
        "base": manifest.model,
        "model_class": next(iter(config.get("architectures") or ["AutoModel"])),
        "labels": list(context.labels),
        "multi": context.facts.get("problem") == "multi",
        "settings": settings,
        "target": (folder / "target").is_dir(),
        "beside": (folder / "adapter").is_dir(),
        "examples": _examples(task, context, settings),
    }


BESIDE = ("prompt-tuning", "p-tuning", "prefix-tuning")
"""Adapters that stay beside their base: their files are those of the base, and PEFT's in ``adapter/``."""


def _processing(task: Task, manifest: Manifest, folder: Path) -> dict[str, Any]:
    context = context_of(manifest, "cpu")
    processor = task.load_processor(ModelSource(manifest.model, str(folder)), context)
    return processing(task, manifest, replace(context, processor=processor))


def _kind(task: Task, traced: bool, config: Mapping[str, Any]) -> str:
    """Return which lines of code show how the model is used."""
    if traced:
        roles = {column.role for column in task.card.inputs}
        for kind, architecture, needed in ASKED:
            if task.card.architecture == architecture and needed <= roles:
                return kind
        return "scores"
    if any(column.kind == "image" for column in task.card.inputs):
        return "caption"
    if task.card.architecture in {"causal-lm", "conditional-generation"}:
        return "seq2seq" if config.get("is_encoder_decoder") else "causal"
    return "scores"


def _examples(task: Task, context: TaskContext, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return demo rows as the code of the card writes them, never rows of the user's data."""
    rows = list(task.demo_rows())[:EXAMPLES]
    roles = [column.role for column in task.card.inputs]
    found = [{role: row[role] for role in roles if role in row} for row in rows]
    if context.facts.get("pair") and "text_pair" in roles:
        found = [{**row, "text_pair": row["text"]} for row in found]
    texts = settings.get("example_texts")
    return [{**row, "ready": text} for row, text in zip(found, texts, strict=False)] if texts else found
