"""Trained models in formats that other programs load: written, loaded back, and compared with what they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoft.artifact import ENSEMBLE, MANIFEST, LoadedModel, check_links, load, read_manifest
from autoft.card import write_settings
from autoft.contracts import Exporter, PostTrainingQuantizer, Task
from autoft.data.prepared import open_data
from autoft.errors import ExportMismatch, ModelError, PluginError, RunFolderError, unknown_name
from autoft.evaluation import judged
from autoft.formats.agreement import Agreement, compare, shown_rows
from autoft.formats.base import Format, Origin, Tolerance, is_generative
from autoft.formats.graphs import OnnxFormat, OnnxHalf, OnnxInteger, OpenVino
from autoft.formats.readme import write_readme
from autoft.formats.weights import AdapterFiles, Safetensors
from autoft.plugins import Catalog, load_plugins
from autoft.rundir import RunDir, RunRecord, read_run, replacing_folder, write_json

__all__ = ["CHECKED", "FORMATS", "Exported", "export_format", "find_origin"]

FORMATS: Mapping[str, Format] = {
    one.name: one for one in (Safetensors(), AdapterFiles(), OnnxFormat(), OnnxHalf(), OnnxInteger(), OpenVino())
}
"""By the name that ``--format`` takes."""

CHECKED = "checked.json"
"""What was found when the exported files were compared with the model."""


@dataclass(frozen=True)
class Exported:
    """A model in another format.

    Attributes:
        path: the folder.
        format: its name.
        trial: that the model comes from, where it is known.
        variant: how it was compressed before.
        files: bytes of each file, by its path in the folder.
        agreement: how its answers compare with the model's own.
    """

    path: Path
    format: str
    trial: int | None
    variant: str
    files: Mapping[str, int]
    agreement: Agreement

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())


def export_format(
    model: str | Path,
    format: str,
    *,
    output: str | Path | None = None,
    trial: int | None = None,
    variant: str | None = None,
) -> Exported:
    """Write a model in another format, load it back, compare, and move it into place.

    Args:
        model: a run folder, or the folder of a model that autoft wrote.
        format: one of :data:`FORMATS`.
        output: the folder; default: ``exports/`` in the run folder, or beside the model's.
        trial: of the run; default: the chosen one.
        variant: of the trial; default: the one that suits the format, uncompressed where it is made anew.

    Raises:
        ModelError: the format does not suit the model, or a package is missing.
        RunFolderError: what it would be made from is not there, or ``output`` is something else.
        ExportMismatch: the exported files do not answer as the model does.
    """
    if format not in FORMATS:
        raise ModelError(f"--format: {unknown_name('format', format, FORMATS)}")
    wanted, catalog = FORMATS[format], load_plugins()
    origin = find_origin(model, wanted, catalog, trial=trial, variant=variant)
    wanted.check(origin.task)
    folder = Path(output).absolute() if output else _default_folder(origin, format)
    if folder.exists() and not (folder / CHECKED).is_file():
        raise RunFolderError(f"{folder}: is there already, and holds no exported model; give --output another folder")
    if folder.resolve().is_relative_to(origin.folder.resolve()):
        raise RunFolderError(f"{folder}: is the model's own folder or lies in it; give --output another folder")
    with replacing_folder(folder) as partial:
        wanted.write(origin, partial)
        agreement = _finished(wanted, origin, partial, folder.name)
    return Exported(folder, format, origin.trial, origin.variant, _sizes(folder), agreement)


def _finished(wanted: Format, origin: Origin, folder: Path, name: str) -> Agreement:
    """Add what goes with the model's files, read them back, and return how they compare.

    Raises:
        ExportMismatch: they do not answer as the model does.
    """
    origin.context.processor.save_pretrained(folder)
    if wanted.loads_as is not None and not is_generative(origin):
        update = {"variant": f"{origin.variant} as {wanted.name}"}
        update |= {"format": wanted.loads_as} if wanted.loads_as else {}
        manifest = origin.loaded.manifest.model_copy(update=update)
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    elif wanted.loads_as == "":
        (folder / MANIFEST).write_text(origin.loaded.manifest.model_dump_json(indent=1), encoding="utf-8")
    write_settings(origin.task, origin.loaded.manifest, folder)
    agreement = compare(origin, wanted.read(folder, origin), origin.reread(folder), shown_rows(origin))
    _verify(agreement, wanted.tolerance, wanted.name)
    write_json(folder / CHECKED, {"format": wanted.name, **agreement.figures()})
    write_readme(origin, wanted, folder, name, agreement)
    return agreement


def _verify(found: Agreement, tolerance: Tolerance, name: str) -> None:
    where = f"--format {name}: the exported files do not answer as the model does: "
    if found.agreement < tolerance.agreement and not _as_good(found, tolerance):
        pair = next(iter(found.differing), None)
        example = f"; first difference: {pair[0]!r:.100} became {pair[1]!r:.100}" if pair else ""
        raise ExportMismatch(
            f"{where}the same answer to {found.agreement:.1%} of {found.rows} rows (needed {tolerance.agreement:.0%})"
            f"{example}. Nothing was written"
        )
    if tolerance.difference is not None and not found.difference <= tolerance.difference:
        raise ExportMismatch(
            f"{where}scores differ by up to {found.difference:.3g} (allowed {tolerance.difference:g}). Nothing was written"
        )


def _as_good(found: Agreement, tolerance: Tolerance) -> bool:
    """Say whether the answers, though others, are about as good."""
    if tolerance.quality is None or not found.metric:
        return False
    allowed = tolerance.quality * max(1.0, abs(found.quality))
    return abs(found.exported_quality - found.quality) <= allowed


def find_origin(
    path: str | Path, wanted: Format, catalog: Catalog, *, trial: int | None = None, variant: str | None = None
) -> Origin:
    """Return the model that a format is made from.

    Raises:
        RunFolderError: it is not there, or not of a kind that the format is made from.
        ModelError: the folder holds no model.
    """
    folder = Path(path).absolute()
    if (folder / MANIFEST).is_file():
        if trial is not None or variant is not None:
            raise RunFolderError(f"{folder}: is one model; --trial and --variant choose in the folder of a run")
        return _loaded(folder, wanted, catalog, None, read_manifest(folder).variant, _run_around(folder))
    record = read_run(folder)
    if trial is None:
        if record.selection is None:
            raise RunFolderError(
                f"{folder}: the search has chosen no model yet; give --trial, or let it come to its end"
            )
        trial = record.selection.trial
    numbers = [result.number for result in record.trials]
    if trial not in numbers:
        raise RunFolderError(f"{folder}: has no trial {trial}; it has {_listed(numbers)}")
    run = RunDir(folder)
    kept = {one.name: run.inside(one.folder) for one in record.trial(trial).variants if one.folder}
    kept = {name: place for name, place in kept.items() if (place / MANIFEST).is_file()}
    if variant is not None:
        if variant not in kept:
            raise RunFolderError(
                f"{folder}: the files of trial {trial}, {variant}, are not kept; kept are {_listed(kept) or 'none'}"
            )
        return _loaded(kept[variant], wanted, catalog, trial, variant, record)
    chosen = record.selection.variant if record.selection and record.selection.trial == trial else ""
    formats = {name: read_manifest(place).format for name, place in kept.items()}
    fitting = [name for name in kept if formats[name] in wanted.reads]
    # Pruned like the chosen one first; then as plain as there is; then in the order in which the format is made from things.
    pruned = _pruned(chosen, catalog)
    fitting.sort(
        key=lambda name: (_pruned(name, catalog) != pruned, name.count("+"), wanted.reads.index(formats[name]))
    )
    if not fitting:
        raise RunFolderError(_missing(record, run, wanted, trial, formats))
    return _loaded(kept[fitting[0]], wanted, catalog, trial, fitting[0], record)


def _pruned(variant: str, catalog: Catalog) -> list[str]:
    """Return the steps of a chain that change the network itself, and not only how its weights are stored."""
    stores = Exporter | PostTrainingQuantizer
    steps = [step for step in variant.split("+") if step not in {"", "none"}]
    return [step for step in steps if not isinstance(catalog.compressors.get(step.split("(")[0]), stores)]


def _missing(record: RunRecord, run: RunDir, wanted: Format, trial: int, formats: Mapping[str, str]) -> str:
    """Return what to say where a trial's files are of no use for a format."""
    possible = [one.name for one in FORMATS.values() if set(one.reads) & set(formats.values())]
    others = [
        f"{result.number} ({one.name})"
        for result in record.trials
        for one in result.variants
        if result.number != trial and one.folder and one.name == "none"
    ]
    said = f"{run.path}: {wanted.name} is made from the trained weights, and those of trial {trial} are not kept"
    said += f"; kept of it are {_listed(formats)}" if formats else ", nor is anything else of it"
    said += f", which can become {_listed(possible)}" if possible else ""
    said += f". Trials whose weights are kept: {_listed(others)}" if others else ""
    return f"{said}. More storage.weights in the recipe keeps more"


def _loaded(
    folder: Path, wanted: Format, catalog: Catalog, trial: int | None, variant: str, record: RunRecord | None
) -> Origin:
    manifest = read_manifest(folder)
    if manifest.format == ENSEMBLE:
        raise ModelError(
            f"{folder}: averages the predictions of {len(manifest.members)} models, for which there is no format; export "
            "its members one by one, with --trial"
        )
    if manifest.format not in wanted.reads:
        raise RunFolderError(
            f"{folder}: is in the format {manifest.format}, and {wanted.name} is made from {' or '.join(wanted.reads)}; "
            "give the run folder, and the trial whose weights are kept"
        )
    check_links(folder)
    run = RunDir(record.path) if record else None
    if run is not None:
        # Graphs are kept in the run's cache, and the model goes among its exports.
        run.check_links()
    loaded = load(folder, catalog=catalog, device="cpu")
    if loaded.manifest.task not in catalog.tasks:
        raise PluginError(f"{folder}: needs the task {loaded.manifest.task}")
    return Origin(folder, _decided(loaded, trial, record), catalog, variant, trial, run, record)


def _decided(loaded: LoadedModel, trial: int | None, record: RunRecord | None) -> LoadedModel:
    """Return the model with its operating point, which only the chosen model's files hold: a trial's are from before."""
    if record is None or "operating_point" in loaded.manifest.facts:
        return loaded
    task, final = loaded.task, record.final
    if type(task).operating_point is Task.operating_point or (final is not None and not final.operating_point):
        return loaded
    if final is not None and record.selection is not None and record.selection.trial == trial:
        point = final.operating_point
    else:
        rows = open_data(RunDir(record.path).data).validation[:]
        predictions = judged(task, loaded.model, rows, loaded.context)
        point = task.operating_point(rows, predictions, loaded.context)
    if not point:
        return loaded
    facts = {**loaded.manifest.facts, "operating_point": point}
    context = replace(loaded.context, facts={**loaded.context.facts, "operating_point": point})
    return replace(loaded, manifest=loaded.manifest.model_copy(update={"facts": facts}), context=context)


def _run_around(folder: Path) -> RunRecord | None:
    """Return the run that a model's folder lies in, for its rows: ``best/``, ``picks/...`` or a variant of a trial."""
    around = next((place for place in list(folder.parents)[:4] if (place / "plan.json").is_file()), None)
    return read_run(around) if around is not None and (around / "data" / "meta.json").is_file() else None


def _default_folder(origin: Origin, format: str) -> Path:
    if origin.run is None:
        return origin.folder.parent / f"{origin.folder.name}-{format}"
    name = origin.folder.name if origin.trial is None else f"{origin.trial:04d}-{origin.folder.name}"
    return origin.run.path / "exports" / f"{name}-{format}"


def _sizes(folder: Path) -> dict[str, int]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in paths}


def _listed(names: Any) -> str:
    return ", ".join(map(str, names))
