"""TextClassifier as scikit-learn uses its estimators, on a tiny model."""

from __future__ import annotations

import copy
import gc
import pickle
import random
from contextlib import nullcontext

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

import autoft
from autoft.errors import RecipeError
from autoft.sklearn import TextClassifier, _labels

QUICK = {
    "compress": ["none"],
    "space": {"full.learning_rate": 5e-3, "train.epochs": 6, "train.batch_size": 8},
    "search": {"finalist_seeds": 0},
}


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """Return sentences in words of the tiny model; one of them decides the label."""
    rng = random.Random(seed)
    telling = {"positive": ["good", "great", "lovely", "superb"], "negative": ["bad", "dull", "awful", "weak"]}
    rows = []
    for _ in range(count):
        label = rng.choice(sorted(telling))
        words = rng.choices(["the", "film", "plot", "a", "is", "was", "very", "and", "story"], k=rng.randint(3, 12))
        words.insert(rng.randrange(len(words)), rng.choice(telling[label]))
        rows.append((" ".join(words), label))
    return rows


MORE = sentences(60, seed=9)
TEXTS = [text for text, _ in MORE]
LABELS = [label for _, label in MORE]


def quick(model, **changes) -> TextClassifier:
    return TextClassifier(
        str(model),
        **{"trials": 1, "effort": "quick", "recipe": QUICK, "validation_size": 40, "test_size": 20, **changes},
    )


@pytest.fixture(scope="module")
def rows():
    pairs = sentences(260, seed=0)
    return [text for text, _ in pairs], [label for _, label in pairs]


@pytest.fixture(scope="module")
def fitted(tiny_model, rows):
    """Fitted on a list of texts and labels that are whole numbers, of which 7 is the good ones."""
    texts, labels = rows
    return quick(tiny_model).fit(texts, [7 if label == "positive" else 3 for label in labels])


def numbers(labels):
    return np.asarray([7 if label == "positive" else 3 for label in labels])


def test_labels_come_back_as_they_were_given(fitted):
    assert fitted.classes_.tolist() == [3, 7]
    said = fitted.predict(TEXTS)
    assert said.shape == (60,)
    assert np.issubdtype(said.dtype, np.integer)
    # One telling word decides the label: a model that learns is far above chance.
    assert accuracy_score(numbers(LABELS), said) > 0.8
    assert fitted.score(TEXTS, numbers(LABELS)) == accuracy_score(numbers(LABELS), said)


@pytest.mark.parametrize(
    ("kind", "values", "dtype"),
    [
        ("Int64", [3, 7], np.int64),
        ("UInt8", [3, 7], np.uint8),
        ("boolean", [False, True], np.bool_),
        ("Float64", [1.0, 2.0], np.float64),
        ("string", ["a", "b"], np.object_),
        ("category", ["a", "b"], np.object_),
        ("int8", [3, 7], np.int8),
    ],
)
def test_labels_of_pandas_types_keep_them(kind, values, dtype):
    pandas = pytest.importorskip("pandas")
    labels = pandas.Series(values * 2, dtype=kind)
    for given, warns in ((labels, False), (labels.to_frame(), True)):
        with pytest.warns(DataConversionWarning) if warns else nullcontext():
            found = _labels(given)
        assert (found.dtype, found.tolist()) == (dtype, values * 2)


def test_probabilities_are_in_the_order_of_the_classes(fitted):
    figures = fitted.predict_proba(TEXTS)
    assert figures.shape == (60, 2)
    assert figures.sum(1) == pytest.approx(np.ones(60), abs=1e-5)
    assert fitted.classes_[figures.argmax(1)].tolist() == fitted.predict(TEXTS).tolist()
    # What the model says itself, by the names of the labels.
    model = fitted.run_.best
    said = model.predict(TEXTS[:5])
    place = list(model.context.labels).index("7")
    assert figures[:5, 1] == pytest.approx([one["scores"][place] for one in said], abs=1e-5)


def test_texts_may_come_as_an_array_a_column_or_a_series(fitted):
    pandas = pytest.importorskip("pandas")
    said = fitted.predict(TEXTS).tolist()
    series = pandas.Series(TEXTS, index=range(100, 160))
    for given in (
        np.asarray(TEXTS),
        np.asarray(TEXTS, dtype=object)[:, None],
        series,
        series.to_frame(),
        tuple(TEXTS),
        series.astype("category"),
    ):
        assert fitted.predict(given).tolist() == said
    assert fitted.predict([]).shape == (0,)
    assert fitted.predict_proba([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("one text", "X is one text"),
        ([[1.0, 2.0]], r"shape \(1, 2\)"),
        (["fine", 3], "row 1 is 3 of the type int"),
        (["fine", None], "row 1 is None"),
        ([float("nan")], "row 0 is nan"),
    ],
)
def test_what_is_no_text_is_told(fitted, given, message):
    with pytest.raises(ValueError, match=message):
        fitted.predict(given)


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["a", "b"], None, "the target y is None"),
        (["a", "b"], ["x"], "inconsistent numbers of samples"),
        (["a", "b"], ["x", "x"], "at least two classes"),
        (["a", "b"], [0.5, 1.25], "continuous"),
        ([], [], "X holds none"),
        (["a", "b"], [["x"], ["y", "z"]], "."),
        (["a", "b", "c"], ["x", None, "y"], "that of row 1 is missing"),
        (["a", "b", "c"], ["x", "y", float("nan")], "that of row 2 is missing"),
    ],
)
def test_what_cannot_be_fitted_is_told_before_any_search(tiny_model, texts, labels, message):
    with pytest.raises(ValueError, match=message):
        quick(tiny_model).fit(texts, labels)


def test_a_missing_label_of_pandas_is_told_before_any_search(tiny_model):
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match="that of row 1 is missing"):
        quick(tiny_model).fit(["a", "b", "c"], pandas.Series(["x", pandas.NA, "y"], dtype="string"))


def test_a_fault_of_the_recipe_is_told_as_everywhere(tiny_model):
    with pytest.raises(RecipeError, match=r"budget.time"):
        quick(tiny_model, time="soon").fit(["a", "b", "c"], [0, 1, 0])


def test_before_fit_it_says_so(tiny_model):
    with pytest.raises(NotFittedError):
        quick(tiny_model).predict(["fine"])


def test_parameters_are_those_of_the_constructor(tiny_model):
    classifier = quick(tiny_model, latency="5ms")
    params = classifier.get_params()
    assert params["latency"] == "5ms"
    assert TextClassifier(**params).get_params() == params
    assert clone(classifier).get_params() == params
    assert classifier.set_params(latency=None, time="1h") is classifier
    assert (classifier.latency, classifier.time) == (None, "1h")
    with pytest.raises(ValueError, match="Invalid parameter 'latence'"):
        classifier.set_params(latence="5ms")
    assert is_classifier(classifier)


def test_the_recipe_of_a_fit_holds_what_the_constructor_was_given(tiny_model):
    classifier = quick(
        tiny_model, time="4x", model_size="9MB", random_state=5, recipe={"budget": {"train_memory": "2GB"}}
    )
    plan = autoft.explain(classifier._recipe([{"text": "a", "label": "b"}]))
    assert plan.seed == 5
    assert plan.time_multiple == 4
    assert {limit.key for limit in plan.budget} == {"model_size", "train_memory"}
    drawn = [quick(tiny_model, random_state=np.random.RandomState(1))._recipe([])["search"]["seed"] for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_pickled_and_copied_it_predicts_the_same_without_the_first_folder(fitted):
    said = fitted.predict_proba(TEXTS[:8])
    content = pickle.dumps(fitted)
    other = pickle.loads(content)  # noqa: S301 - written on the line above
    assert other.run_.path != fitted.run_.path
    assert other.predict_proba(TEXTS[:8]) == pytest.approx(said, abs=1e-6)
    assert other.run_.report.read_bytes() == fitted.run_.report.read_bytes()
    assert copy.deepcopy(fitted).predict_proba(TEXTS[:8]) == pytest.approx(said, abs=1e-6)
    folder = other.run_.path
    del other
    gc.collect()
    assert not folder.exists()
    assert fitted.run_.path.is_dir()


def test_a_pickle_cannot_write_outside_its_folder(fitted, tmp_path):
    state = fitted.__getstate__()
    state["_files"] = {"../../escaped": b"x"}
    with pytest.raises(ValueError, match="outside its folder"):
        TextClassifier("any").__setstate__(state)


@pytest.mark.slow
def test_a_run_folder_of_ones_own_stays(tiny_model, rows, tmp_path):
    texts, labels = rows
    classifier = quick(tiny_model, run=tmp_path / "kept").fit(np.asarray(texts), np.asarray(labels))
    assert classifier.classes_.tolist() == ["negative", "positive"]
    assert set(classifier.predict(TEXTS)) <= {"negative", "positive"}
    # The recipe that is kept says where the rows came from.
    recipe = (tmp_path / "kept" / "recipe.yaml").read_text()
    assert str(tmp_path / "kept" / "given" / "train-rows-") in recipe
    other = pickle.loads(pickle.dumps(classifier))  # noqa: S301
    assert other.run_.path == tmp_path / "kept"
    del classifier, other
    gc.collect()
    assert (tmp_path / "kept" / "best" / "autoft.json").is_file()


@pytest.mark.slow
def test_it_stands_in_a_pipeline_that_is_cross_validated(tiny_model, rows):
    texts, labels = rows
    loud = [text.upper() for text in texts]
    lower = FunctionTransformer(lambda given: [text.lower() for text in given])
    # The words of the tiny model are lower case: without the step before it, the classifier would see unknown words only.
    scores = cross_val_score(make_pipeline(lower, quick(tiny_model)), loud, labels, cv=2, error_score="raise")
    assert len(scores) == 2
    assert scores.mean() > 0.7


def test_its_parameters_can_be_searched(tiny_model):
    grid = GridSearchCV(quick(tiny_model), {"recipe": [QUICK], "effort": ["quick"]}, cv=2)
    assert clone(grid).estimator.get_params()["effort"] == "quick"


# Those of scikit-learn's checks that need no numbers for X; the others are asked of texts above.
WITHOUT_NUMBERS = (
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
    "check_do_not_raise_errors_in_init_or_set_param",
    "check_estimator_sparse_tag",
)


@pytest.mark.parametrize("name", [name for name in WITHOUT_NUMBERS if hasattr(estimator_checks, name)])
def test_checks_of_scikit_learn(name, tiny_model):
    check = getattr(estimator_checks, name)
    check("TextClassifier", quick(tiny_model))


def test_fit_leaves_the_parameters_alone(fitted, tiny_model):
    assert fitted.get_params() == quick(tiny_model).get_params()
