"""What a format is, what it is made from, and how far it may differ from that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from autoft.artifact import LoadedModel
from autoft.contracts import ModelSource, Row, Target, Task, TaskContext
from autoft.errors import ModelError
from autoft.hardware import Hardware
from autoft.plugins import Catalog
from autoft.rundir import RunDir, RunRecord

__all__ = ["EXACT", "HALF", "INTEGER", "Format", "Origin", "Tolerance", "is_generative"]


@dataclass(frozen=True)
class Tolerance:
    """How far the answers of exported files may be from the model's own.

    Attributes:
        agreement: share of rows with the same answer, at least.
        difference: of any score of these rows, at most; None where rounding may move scores as far as it likes.
        quality: instead of ``agreement``, how much worse the objective may be, in units of the larger of 1 and itself.
    """

    agreement: float
    difference: float | None = None
    quality: float | None = None


EXACT = Tolerance(agreement=0.99, difference=2e-3)
"""For weights as they are: another order of sums moves scores a little, and an answer that hangs in the balance."""
HALF = Tolerance(agreement=0.97, difference=3e-2, quality=0.01)
INTEGER = Tolerance(agreement=0.9, quality=0.03)


@dataclass(frozen=True)
class Origin:
    """The model that is exported.

    Attributes:
        folder: its files.
        loaded: the model.
        catalog: what plugins offer.
        variant: how it was compressed.
        trial: its trial, where it comes from a run.
        run: the run folder, where it is known.
        record: what the run folder says.
    """

    folder: Path
    loaded: LoadedModel
    catalog: Catalog
    variant: str
    trial: int | None = None
    run: RunDir | None = None
    record: RunRecord | None = None

    @property
    def task(self) -> Task:
        """The task."""
        return self.loaded.task

    @property
    def context(self) -> TaskContext:
        """What the task knows."""
        return self.loaded.context

    @property
    def target(self) -> Target:
        """What compressors work upon."""
        manifest = self.loaded.manifest
        # Graphs that the search has traced already serve here, too.
        cache = self.run.cache if self.run else None
        return Target(self.task, self.source(self.folder), manifest.config, self.context, Hardware.probe(), cache)

    def source(self, folder: Path) -> ModelSource:
        """Return a folder as the place of the model."""
        return ModelSource(name=self.loaded.manifest.model, path=str(folder))

    def reread(self, folder: Path) -> TaskContext:
        """Return the context with the processor of an exported folder."""
        return replace(self.context, processor=self.task.load_processor(self.source(folder), self.context))

    def calibration_rows(self, count: int) -> Sequence[Row]:
        """Return training rows of the run, or demo rows."""
        from autoft.data.prepared import open_data

        return open_data(self.run.data).train[:count] if self.run else self.task.demo_rows()


class Format(ABC):
    """A way to write a trained model for programs that know nothing of autoft.

    Attributes:
        name: as in ``--format``.
        summary: one line.
        reads: ``format`` of the manifests that it is made from, the best first.
        needs: packages.
        extra: of autoft, that installs them.
        tolerance: how far its answers may be off.
        loads_as: ``format`` of the manifest by which autoft itself loads the files; None where it does not.
        library: name that a model hub gives to what loads it.
        usage: which code of the card shows its use, where the files do not tell.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ("transformers",)
    needs: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    tolerance: ClassVar[Tolerance] = EXACT
    loads_as: ClassVar[str | None] = None
    library: ClassVar[str]
    usage: ClassVar[str] = ""

    def check(self, task: Task) -> None:
        """Refuse where packages are missing, or a kind of model that the format has no place for.

        Raises:
            ModelError: it does, and why.
        """
        for package in self.needs:
            if find_spec(package) is None:
                install = f"pip install 'autoft[{self.extra}]'" if self.extra else f"pip install {package}"
                raise ModelError(f"--format {self.name}: needs {package}, which is not installed; {install}")

    @abstractmethod
    def write(self, origin: Origin, folder: Path) -> None:
        """Write the files of the model (not the processor's) into the folder."""

    @abstractmethod
    def read(self, folder: Path, origin: Origin) -> Any:
        """Return what :meth:`write` wrote as something that the task can predict with."""


def is_generative(origin: Origin) -> bool:
    """Say whether the model writes token after token, and no single graph holds what it does."""
    model = origin.loaded.model
    can = getattr(model, "can_generate", None)
    traced = origin.task.export_inputs(origin.context) is not None
    return not traced and callable(can) and bool(can())
