"""The contract of a task: what a plugin implements so that the engine can train, score and export for it.

Rows reach a task with its own column *roles* as keys (``text``, ``label``); the user's column names are mapped before.
Nothing here imports torch: a task imports it inside the methods that need it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from autoft.space import SearchSpace
from autoft.tokenization import checked_tokenizer

if TYPE_CHECKING:
    import torch

__all__ = [
    "Baseline",
    "Chart",
    "Column",
    "Detail",
    "Examples",
    "ExportSpec",
    "Mark",
    "MarkedText",
    "Matrix",
    "ModelSource",
    "Option",
    "Output",
    "Picture",
    "Pictures",
    "Prediction",
    "Row",
    "Series",
    "Table",
    "Task",
    "TaskCard",
    "TaskContext",
]

Row = Mapping[str, Any]
"""One example, keyed by column role."""

Prediction = Mapping[str, Any]
"""What a model says about one row: plain JSON values."""


@dataclass(frozen=True)
class Column:
    """A column that a task reads.

    Attributes:
        role: the name under which the task sees it.
        kind: what it holds: ``text``, ``label``, ``labels``, ``tokens``, ``tags``, ``span``, ``image`` ...;
            augmenters declare which kinds they may rewrite and which they leave valid.
        summary: one line for the documentation and for error messages.
        target: it is what the model has to find; absent when predicting.
        required: training needs it.
        guesses: names that users often give this column, tried in order where the recipe maps nothing.
        of: of a ``span``, the role of the text that its places count characters of; a text that is changed outside of
            these places can then keep its spans, with the places counted anew.
        looks_like: where ``kind`` is the plugin's own, the kind by whose values ``autoft init`` knows such a column:
            ``text``, ``texts``, ``label``, ``labels``, ``number``, ``tokens``, ``tags``, ``span``, ``image``, ``audio``
            or ``messages``. Empty: it is known by its name alone.
    """

    role: str
    kind: str
    summary: str
    target: bool = False
    required: bool = True
    guesses: tuple[str, ...] = ()
    of: str = ""
    looks_like: str = ""


@dataclass(frozen=True)
class Option:
    """A setting of the task itself (``task_options`` in a recipe); never searched."""

    name: str
    summary: str
    default: str | int | float | bool | None
    choices: tuple[str | int | float | bool | None, ...] | None = None


@dataclass(frozen=True)
class Output:
    """A part of a prediction, for the documentation of a served model.

    Attributes:
        name: the key under which a prediction has it.
        type: what stands there, as ``str``, ``list[float]``, ``Literal["yes", "no"]`` or ``dict[str, Any]``: any type of
            plain JSON that pydantic knows.
        summary: one line.
        required: every prediction has it.
    """

    name: str
    type: Any
    summary: str
    required: bool = True


@dataclass(frozen=True)
class TaskCard:
    """What a task is, for the plan, the documentation and the error messages.

    Attributes:
        name: as in ``task:`` of a recipe.
        summary: one line.
        columns: what it reads.
        metrics: names of quality metrics; the first is the objective unless the recipe says otherwise.
        architecture: the kind of model, as ``sequence-classification``.
        options: settings of the task.
        ignores: which of ``train.dropout``, ``train.label_smoothing``, ``train.class_weights`` and ``train.loss`` the
            task makes no use of; they are not searched for it.
        hub_pipeline: the transformers pipeline that serves its models, for the model card; empty where there is none.
        notice: what everybody who meets a model of this task has to read first, as that it is not for clinical use; it
            stands at the top of reports and model cards.
        untrained: a base model does this task without training (a causal language model does); the untouched model then
            stands among the baselines, unless it is an encoder that a new decoder is put to.
        generates: predictions are written token by token, so that a predicted row takes many times what a trained one does.
        alternatives: sets of roles that are not required one by one, of which rows need one whole set, the usual first;
            ``autoft init`` maps the first that the data has.
        models: hub ids to begin with, the smallest first; ``autoft init`` names one where nothing installed suits.
        windows: inputs beyond ``train.max_length`` are read in several windows, so that nothing of them is cut off.
    """

    name: str
    summary: str
    columns: tuple[Column, ...]
    metrics: tuple[str, ...]
    architecture: str
    options: tuple[Option, ...] = ()
    ignores: tuple[str, ...] = ()
    hub_pipeline: str = ""
    notice: str = ""
    untrained: bool = False
    generates: bool = False
    alternatives: tuple[tuple[str, ...], ...] = ()
    models: tuple[str, ...] = ()
    windows: bool = False

    def column(self, role: str) -> Column:
        """Return the column of this role."""
        return next(column for column in self.columns if column.role == role)

    @property
    def inputs(self) -> tuple[Column, ...]:
        """The columns that a prediction may use."""
        return tuple(column for column in self.columns if not column.target)

    @property
    def targets(self) -> tuple[Column, ...]:
        """The columns that a prediction must not see."""
        return tuple(column for column in self.columns if column.target)


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        name: as the recipe names it.
        path: a local folder, or a hub id.
        revision: of the hub repository.
        load_kwargs: passed on to ``from_pretrained``; the door through which a quantizer comes.
        trust_remote_code: from the recipe; off by default.
        finished: the files are those of a model that autoft wrote, whose weights all have to be there: none is new.
    """

    name: str
    path: str
    revision: str | None = None
    load_kwargs: Mapping[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False
    finished: bool = False

    def from_pretrained_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments that every ``from_pretrained`` of this source takes."""
        kwargs: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        if self.revision is not None:
            kwargs["revision"] = self.revision
        return kwargs


@dataclass(frozen=True)
class TaskContext:
    """What a task knows while it works.

    Attributes:
        facts: what :meth:`Task.facts` learned from the training rows (plain JSON), as the label names.
        options: the task's options, defaults filled in.
        params: the trial's parameters (``train.dropout``, ``train.label_smoothing``, the task's own).
        max_length: tokens after which inputs are cut.
        device: ``cpu``, ``cuda`` or ``mps``.
        seed: of the trial.
        processor: tokenizer or image processor; None until :meth:`Task.load_processor` has run.
        reserved: positions of the model that an adapter takes for itself. ``max_length`` leaves them free; a task that
            asks the model for its positions has to take them off.
    """

    facts: Mapping[str, Any]
    options: Mapping[str, Any]
    params: Mapping[str, Any]
    max_length: int
    device: str = "cpu"
    seed: int = 0
    processor: Any = None
    reserved: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The label names, in the order of the model's outputs; empty for tasks without labels."""
        return tuple(self.facts.get("labels", ()))


@dataclass(frozen=True)
class Baseline:
    """A cheap predictor that shows what the transformer buys.

    Attributes:
        name: as the report shows it.
        predict: rows without targets in, one prediction a row out, as :meth:`Task.predict`.
        trivial: it learns nothing (majority class, first sentences, a copy of the source); one of a task must be trivial.
    """

    name: str
    predict: Callable[[Sequence[Row]], list[Prediction]]
    trivial: bool = False


@dataclass(frozen=True)
class ExportSpec:
    """How to trace a model for export.

    Attributes:
        inputs: example tensors by argument name, each ``(batch, seq)`` with batch and seq of at least 2.
        dynamic: per input, the axes that vary and their names, as ``{0: "batch", 1: "seq"}``.
        outputs: names of the outputs, as attributes of the model's output object.
    """

    inputs: Mapping[str, torch.Tensor]
    dynamic: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...] = ("logits",)


@dataclass(frozen=True)
class Table:
    """A table of the report, as figures per class. Cells are strings, numbers or None."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Matrix:
    """A labelled square of counts, as a confusion matrix: ``values[i][j]`` of true i, predicted j."""

    title: str
    labels: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Examples:
    """Rows worth reading, as the most confident errors: plain JSON cells under ``columns``."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Mark:
    """A stretch of a text: characters ``start`` to ``end``, what it is, and whether the model is right about it.

    Attributes:
        start: of the first character.
        end: after the last character.
        label: what stands there, as ``person``.
        verdict: ``right``; ``wrong``, where the model says it and it is not so; ``missed``, where the model does not.
    """

    start: int
    end: int
    label: str
    verdict: Literal["right", "wrong", "missed"]


@dataclass(frozen=True)
class MarkedText:
    """Texts with marks in them, as found and missed entities: each row is a heading, the text and its marks."""

    title: str
    rows: tuple[tuple[str, str, tuple[Mark, ...]], ...]


@dataclass(frozen=True)
class Picture:
    """A picture with lines of text beside it.

    Attributes:
        image: of at most some ten kilobytes, as ``data:image/jpeg;base64,...``: it becomes a part of the report.
        lines: each a name and a text, as ``("predicted", "a dog on a beach")``.
    """

    image: str
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Pictures:
    """A page of pictures."""

    title: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Chart:
    """A line chart, as a reliability diagram; ``diagonal`` adds the line of equal axes."""

    title: str
    caption: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    diagonal: bool = False


Detail = Table | Matrix | Examples | MarkedText | Pictures | Chart
"""What a task's own section of the report is made of."""


class Task(ABC):
    """Base of all tasks. Five members are a task's own; the rest have defaults that suit text encoders."""

    card: ClassVar[TaskCard]

    @abstractmethod
    def demo_rows(self) -> Sequence[Row]:
        """Return 3 to 8 rows with targets, written for this plugin: for `autoft check`, conformance and docs."""

    @abstractmethod
    def load_model(self, source: ModelSource, context: TaskContext) -> torch.nn.Module:
        """Return the model with a head for this task; honours ``source.load_kwargs``."""

    @abstractmethod
    def encode(self, rows: Sequence[Row], context: TaskContext) -> list[dict[str, Any]]:
        """Return the features of each row, unpadded lists with the targets under ``labels``; cached by the engine."""

    @abstractmethod
    def predict(self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32) -> list[Prediction]:
        """Return one prediction a row, in the rows' order, from rows without targets.

        ``model`` is a torch module or an exported model; both are called with tensors by name and return an object
        with the outputs as attributes.
        """

    @abstractmethod
    def reference(self, row: Row, context: TaskContext) -> Any:
        """Return what the metrics compare a prediction with, as plain JSON."""

    def facts(self, rows: Sequence[Row], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return what has to be learned from the training rows before anything else, as plain JSON.

        Raises:
            DataError: the rows cannot be used for this task (one class only, mixed types ...).
        """
        return {}

    def warnings(self, rows: Sequence[Row], options: Mapping[str, Any]) -> Sequence[str]:
        """Return what users should know of rows that :meth:`facts` takes and reads otherwise than they may be meant.

        Args:
            rows: of all splits, with targets.
            options: the task's options.

        Returns:
            sentences; of one that begins with ``row 3`` users are told where that row is in their data.
        """
        return ()

    def likeness(self, rows: Sequence[Row], options: Mapping[str, Any]) -> float:
        """Return how much rows look as if they were made for this task, from 0 (not at all) to 1; 0.5 says nothing.

        ``autoft init`` asks it of rows whose columns fit and that :meth:`facts` takes, to choose between tasks: whether the
        targets are as long as summaries are, or in another script as translations may be.

        Args:
            rows: some training rows with targets.
            options: the task's options.
        """
        return 0.5

    def stratum(self, row: Row) -> str | None:
        """Return the key by which splits are stratified, or None for plain random splits."""
        return None

    def load_processor(self, source: ModelSource, context: TaskContext) -> Any:
        """Return the tokenizer or processor that goes with the model."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source.path, **source.from_pretrained_kwargs())
        return checked_tokenizer(tokenizer, source.path)

    def collate(self, features: Sequence[Mapping[str, Any]], context: TaskContext) -> dict[str, torch.Tensor]:
        """Return one padded batch, ``(batch, seq)`` per input, from the features of :meth:`encode`.

        One label a row becomes ``labels`` ``(batch,)``; features without labels make a batch without.
        """
        import torch

        inputs = [{name: value for name, value in feature.items() if name != "labels"} for feature in features]
        batch = dict(context.processor.pad(inputs, return_tensors="pt"))
        if "labels" in features[0]:
            batch["labels"] = torch.tensor([feature["labels"] for feature in features])
        return batch

    def length(self, feature: Mapping[str, Any]) -> int:
        """Return the length by which features are grouped into batches, in tokens."""
        return len(feature["input_ids"])

    def loss(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], context: TaskContext) -> torch.Tensor:
        """Return the scalar training loss of a batch."""
        loss: torch.Tensor = model(**batch).loss
        return loss

    def space(self) -> SearchSpace:
        """Return further parameters of this task, each name beginning with ``task.``."""
        return {}

    def baselines(self, rows: Sequence[Row], context: TaskContext) -> Sequence[Baseline]:
        """Return cheap predictors fitted on the training rows, one of them trivial."""
        return ()

    def default_pipelines(self) -> Sequence[str]:
        """Return the pipelines to search where neither recipe nor effort names any; empty means a few of the legal ones."""
        return ()

    def export_inputs(self, context: TaskContext) -> ExportSpec | None:
        """Return how to trace the model for export, or None where this task's models cannot be exported."""
        return None

    def export_settings(self, context: TaskContext) -> dict[str, Any]:
        """Return what a program has to know to use an exported model without this class, as plain JSON; nothing by default.

        It becomes a part of ``preprocessing.json`` beside the model: what is put before a text, thresholds, lengths. Under
        ``example_texts`` may stand the demo rows as the tokenizer is given them, for the card of the model.
        """
        return {}

    def score_targets(
        self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32
    ) -> Sequence[Mapping[str, Any]] | None:
        """Return figures of each row that need its target, as the log-likelihood of a reference; None where none do.

        The core adds them to the predictions that metrics see. A metric that needs nothing else says so with
        ``uses = "targets"``: where it is the objective, nothing has to be generated while training.
        """
        return None

    def member_predictions(
        self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32
    ) -> list[Prediction]:
        """Return what :meth:`combine` has to know of one model; its predictions, unless they leave out too much."""
        return self.predict(model, rows, context, batch_size)

    def combine(self, predictions: Sequence[Sequence[Prediction]], context: TaskContext) -> list[Prediction] | None:
        """Return the predictions of several models together, as the mean of their probabilities; None: not possible.

        Args:
            predictions: of each model, one a row, from :meth:`member_predictions` without an operating point.
            context: of the models, with the operating point where it is known.
        """
        return None

    def operating_point(
        self, rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext
    ) -> dict[str, Any]:
        """Return what the chosen model's validation predictions decide, as a threshold: plain JSON, or nothing.

        Called once, after the selection and before the test split is read. It is kept with the model, and is
        ``context.facts["operating_point"]`` from then on.
        """
        return {}

    def inputs(self, context: TaskContext) -> Sequence[Column]:
        """Return the columns that this model reads, of the card's inputs, for the page of a served model."""
        return self.card.inputs

    def outputs(self, context: TaskContext) -> Sequence[Output]:
        """Return what a prediction consists of, for the page of a served model; empty: it shows what demo rows got."""
        return ()

    def details(self, rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext) -> Sequence[Detail]:
        """Return what the report shows of the chosen model's test predictions beyond the metrics."""
        return ()
