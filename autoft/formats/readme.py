"""The card of an exported model: what it is, how it was checked, and how to load it without autoft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoft.bill import models_behind, write_bill
from autoft.card import front_matter, templates, usage
from autoft.formats.agreement import Agreement
from autoft.formats.base import EXACT, Format, Origin
from autoft.plans.plan import plan_of
from autoft.quantities import format_bytes

__all__ = ["write_readme"]


def write_readme(origin: Origin, wanted: Format, folder: Path, name: str, agreement: Agreement) -> None:
    """Write the card of an exported folder, and beside it the bill of materials where the run is known.

    Args:
        origin: the model that was exported.
        wanted: the format.
        folder: with all other files.
        name: that the folder will have.
        agreement: how the files compare with the model.
    """
    record, manifest = origin.record, origin.loaded.manifest
    plan = plan_of(record) if record else None
    result = record.trial(origin.trial) if record and origin.trial is not None else None
    if result is not None and not manifest.measured:
        own = next(one.validation for one in result.variants if one.name == origin.variant)
        manifest = manifest.model_copy(update={"measured": {"validation": own}})
    told = manifest
    if wanted.tolerance is not EXACT and manifest.format != wanted.name:
        # The figures are those of the model before it was rounded; of these files only the comparison's are known.
        own = {agreement.metric: agreement.exported_quality} if agreement.metric else {}
        told = manifest.model_copy(update={"measured": {"validation": own}})
    if plan is not None:
        others = (
            models_behind(plan, origin.catalog.strategies, record.trials, origin.trial, origin.variant)
            if record and origin.trial is not None
            else []
        )
        write_bill(folder, plan, [manifest.model, *others])
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    text = (
        templates()
        .get_template("exported.md.j2")
        .render(
            front=front_matter(origin.task.card, told, plan, library=wanted.library, name=name),
            task=origin.task.card,
            origin=origin,
            result=result,
            format=wanted,
            agreement=agreement,
            files={str(path.relative_to(folder)): format_bytes(path.stat().st_size) for path in files},
            measured=manifest.measured,
            **_usage(origin, wanted, folder, name),
        )
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _usage(origin: Origin, wanted: Format, folder: Path, name: str) -> dict[str, Any]:
    found = usage(origin.task, origin.loaded.manifest, folder, name, of=wanted.usage) or {}
    if wanted.usage == "adapter":
        # The files have no config.json, and that of the base names the class without a head.
        model = origin.loaded.model
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        found["model_class"] = type(plain).__name__
    return found
