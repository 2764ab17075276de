"""A search as an estimator of scikit-learn: fit on texts and labels, predict labels.

::

    from autoft.sklearn import TextClassifier

    classifier = TextClassifier("distilbert/distilbert-base-uncased", time="30m", model_size="70MB")
    classifier.fit(texts, labels).score(more_texts, more_labels)
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from autoft.api import Run, search
from autoft.artifact import LoadedModel, load

__all__ = ["TextClassifier"]

_PICKLED = ("best", "report.html", "report.md", "report.json")
"""What of a temporary run folder goes along when an estimator is pickled."""


class TextClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A classifier of texts that is found by a search within a budget.

    ``fit`` is a whole search of the task text-classification: it cuts validation and test rows from what it is given
    (``validation_size``, ``test_size``), tries configurations for ``time``, and keeps the best model within the limits.
    One label a row; for several, or pairs of texts, call :func:`autoft.search`.

    Args:
        model: a hub id, a folder or ``package://module/path``, or a list of them to search.
        time: of the whole fit, as ``"10m"`` or ``"4x"``: four default trainings.
        trials: at most so many configurations.
        model_size: limit on all files of the model, as ``"25MB"``.
        latency: limit on the median time of one request, as ``"5ms"``.
        inference_memory: limit on the memory of a process that serves the model, as ``"1GB"``.
        effort: ``quick``, ``balanced`` or ``best``.
        validation_size: a share of the rows or a number of them, by which configurations are compared; default: 15 %.
        test_size: likewise, for the figures of the report, read once at the end; default: 15 %. A model that is scored
            outside, as by ``cross_val_score``, needs few.
        recipe: further keys of a recipe, as ``{"compress": ["none", "onnx-int8"]}``.
        run: the run folder, kept; by default a temporary one that goes when the estimator does. Fitting again on the same
            rows goes on there; other rows need another folder, so that cross-validation has to be without.
        device: where predictions are computed: ``cpu``, ``cuda``, ``mps``; default: the best there is.
        batch_size: rows a forward pass of predictions.
        random_state: the seed of splits, sampling and training.

    Attributes:
        classes_: the labels, sorted, of the type they were given in; ``(classes,)``.
        run_: the run, with ``run_.report``, ``run_.summary`` and ``run_.record``.
    """

    def __init__(
        self,
        model: str | Sequence[str],
        *,
        time: str = "10m",
        trials: int | None = None,
        model_size: str | None = None,
        latency: str | None = None,
        inference_memory: str | None = None,
        effort: str = "balanced",
        validation_size: float | int | None = None,
        test_size: float | int | None = None,
        recipe: Mapping[str, Any] | None = None,
        run: str | Path | None = None,
        device: str | None = None,
        batch_size: int = 32,
        random_state: Any = 0,
    ) -> None:
        self.model = model
        self.time = time
        self.trials = trials
        self.model_size = model_size
        self.latency = latency
        self.inference_memory = inference_memory
        self.effort = effort
        self.validation_size = validation_size
        self.test_size = test_size
        self.recipe = recipe
        self.run = run
        self.device = device
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> TextClassifier:
        """Search for a classifier of these rows.

        Args:
            X: texts: a list, an array or a Series, ``(rows,)``, or a column of them, ``(rows, 1)``.
            y: a label a row: texts, whole numbers or booleans, ``(rows,)``.

        Raises:
            ValueError: X holds no texts, y no classes, or they differ in length.
            AutoftError: as :func:`autoft.search` does.
        """
        if y is None:
            raise ValueError("TextClassifier requires y to be passed, but the target y is None")
        texts = _texts(X)
        labels = _labels(y)
        check_consistent_length(texts, labels)
        if not texts:
            raise ValueError("TextClassifier needs rows, and X holds none")
        check_classification_targets(labels)
        classes, numbers = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"TextClassifier needs rows of at least two classes, and all are of the class {classes[0]!r}"
            )
        names = [str(name) for name in classes.tolist()]
        rows = [{"text": text, "label": names[number]} for text, number in zip(texts, numbers, strict=True)]
        self._drop()
        if self.run is None:
            folder = self._temporary()
            try:
                found = search(self._recipe(rows), run=folder)
            except BaseException:
                # Whatever it is, an interruption too, goes on its way; a temporary folder without a model is of no use.
                self._drop()
                raise
        else:
            found = search(self._recipe(rows), run=self.run)
        self.run_, self.classes_ = found, classes
        return self

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return a label a row, of the type that ``fit`` was given, ``(rows,)``."""
        said = self._said(X)
        place = self._places()
        return np.asarray(self.classes_[np.asarray([place[one["label"]] for one in said], dtype=np.intp)])

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Return the probability of each class, in the order of ``classes_``, ``(rows, classes)``.

        A class of which no row was left for training has probability 0.
        """
        said = self._said(X)
        place = self._places()
        figures = np.zeros((len(said), len(self.classes_)))
        if said:
            columns = [place[name] for name in self._loaded().context.labels]
            figures[:, columns] = [one["scores"] for one in said]
        return figures

    def _said(self, X: Any) -> list[Any]:
        check_is_fitted(self)
        texts = _texts(X)
        return list(self._loaded().predict([{"text": text} for text in texts], self.batch_size)) if texts else []

    def _places(self) -> dict[str, int]:
        """Return the place of each label in ``classes_``, by the name that the model knows it by."""
        return {str(name): number for number, name in enumerate(self.classes_.tolist())}

    def _loaded(self) -> LoadedModel:
        known: LoadedModel | None = self.__dict__.get("_model")
        if known is None:
            known = self._model = load(self.run_.path, device=self.device)
        return known

    def _recipe(self, rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        further = dict(self.recipe or {})
        own = {"time": self.time, "trials": self.trials, "model_size": self.model_size, "latency": self.latency}
        own["inference_memory"] = self.inference_memory
        budget = {**{key: value for key, value in own.items() if value is not None}, **further.pop("budget", {})}
        sizes = {"validation_size": self.validation_size, "test_size": self.test_size}
        data = {"train": rows, **{key: size for key, size in sizes.items() if size is not None}}
        seed = self.random_state
        if not isinstance(seed, int):
            seed = int(check_random_state(seed).randint(2**31 - 1))
        return {
            "task": "text-classification",
            "name": "text-classifier",
            "model": self.model if isinstance(self.model, str) else list(self.model),
            "effort": self.effort,
            **further,
            "data": {**data, **further.get("data", {})},
            "budget": budget,
            "search": {"seed": seed, **further.get("search", {})},
        }

    def _temporary(self) -> Path:
        """Make a folder that is deleted with the estimator."""
        folder = Path(tempfile.mkdtemp(prefix="autoft-"))
        self._cleanup = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def _drop(self) -> None:
        """Forget an earlier fit."""
        for name in ("run_", "classes_", "_model"):
            self.__dict__.pop(name, None)
        cleanup = self.__dict__.pop("_cleanup", None)
        if cleanup is not None:
            cleanup()

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and joblib keep; of a temporary folder the model and the report."""
        state: dict[str, Any] = {**super().__getstate__()}
        state.pop("_model", None)
        if state.pop("_cleanup", None) is not None and "run_" in state:
            state["_files"] = _files(state.pop("run_").path)
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        """Take back what ``__getstate__`` returned."""
        state = dict(state)
        files = state.pop("_files", None)
        super().__setstate__(state)
        if files is not None:
            folder = self._temporary()
            for name, content in files.items():
                path = (folder / name).resolve()
                if not path.is_relative_to(folder.resolve()):
                    raise ValueError(f"the pickled estimator names a file outside its folder: {name!r}")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self.run_ = Run(folder)

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn has to know: texts, one a row."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        return tags


def _files(folder: Path) -> dict[str, bytes]:
    """Return the files of a run that a model needs, by their path in it."""
    kept = [folder / name for name in _PICKLED]
    found = [path for top in kept for path in (sorted(top.rglob("*")) if top.is_dir() else [top]) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def _labels(y: Any) -> npt.NDArray[Any]:
    """Return labels as an array of their own type, ``(rows,)``."""
    _check_present(y)
    # scikit-learn makes floats of pandas' own types, as Int64 and boolean; as arrays they are integers and booleans.
    labels: npt.NDArray[Any] = column_or_1d(np.asarray(y) if hasattr(y, "__array__") else y, warn=True)
    return labels


def _check_present(y: Any) -> None:
    """Raise ValueError where a label is missing: scikit-learn sorts labels, and cannot place None or NA among texts."""
    for number, label in enumerate(np.asarray(y, dtype=object).ravel()):
        # As its own checks tell pandas' NA and NaT, without pandas.
        if (
            label is None
            or type(label).__name__ in {"NAType", "NaTType"}
            or (isinstance(label, float) and label != label)
        ):
            raise ValueError(f"y needs a label a row, and that of row {number} is missing ({label!r})")


def _texts(X: Any) -> list[str]:
    if isinstance(X, str | bytes):
        raise ValueError("X is one text; give a list of texts")
    if hasattr(X, "tocsr"):  # as every sparse matrix of scipy
        raise ValueError("X is a sparse matrix; sparse input is not supported, give texts")
    array = np.asarray(X, dtype=object)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(
            f"X needs one text a row, of shape (rows,) or (rows, 1), given an array of shape {array.shape}"
        )
    for number, text in enumerate(array):
        if not isinstance(text, str):
            raise ValueError(f"X needs texts, and row {number} is {text!r} of the type {type(text).__name__}")
    return [str(text) for text in array]
