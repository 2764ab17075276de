from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autoft.errors import RecipeError
from autoft.recipe import (
    Recipe,
    _StrictLoader,
    dump_recipe,
    load_recipe,
    recipe_from_mapping,
    recipe_from_text,
    recipe_schema,
    set_key,
    yaml_of,
)

GOOD = {"task": "text-classification", "model": "some/model", "data": "train.csv"}


def test_three_keys_are_a_recipe_and_the_rest_has_defaults():
    recipe = recipe_from_mapping(GOOD, name="mine")
    assert recipe.model == ["some/model"]
    assert recipe.data.train == "train.csv"
    assert recipe.name == "mine"
    assert recipe.budget.time == "1h"
    assert not recipe.trust_remote_code


def test_a_recipe_survives_its_resolved_copy(tmp_path):
    given_recipe = {**GOOD, "budget": {"time": "2h", "latency": {"p95": "20ms", "batch_size": 8}, "energy": "3J"}}
    recipe = recipe_from_mapping(given_recipe, ["space.train.epochs=[2, 3]", "space.lora.rank={low: 4, high: 8}"])
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert recipe.space == {"train.epochs": [2, 3], "lora.rank": {"low": 4, "high": 8}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.validation_size", ".nan"),
        ("search.tolerance", ".inf"),
        ("search.seed", "99999999999"),
        ("auxiliary", "[{task: t, data: d.csv, weight: .inf}]"),
    ],
)
def test_a_number_that_nothing_can_be_done_with_is_a_fault(key, value):
    with pytest.raises(RecipeError) as caught:
        recipe_from_mapping(GOOD, [f"{key}={value}"])
    assert key in str(caught.value)


def test_latency_as_a_duration_is_the_median():
    recipe = recipe_from_mapping({**GOOD, "budget": {"latency": "3ms"}})
    assert recipe.budget.latency.p50 == "3ms"
    assert recipe.budget.latency.batch_size == 1


def test_numbers_in_scientific_notation_are_numbers(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("task: t\nmodel: m\ndata: d.csv\nspace: {full.learning_rate: [1e-4, 5E-5, 2.5e-5]}\n")
    assert load_recipe(path).space["full.learning_rate"] == [1e-4, 5e-5, 2.5e-5]


def test_merged_sections_are_read_as_yaml_has_them(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "task: t\nmodel: m\ndata: &own {train: a.csv, columns: {text: body}}\n"
        "auxiliary:\n  - {task: t, data: {<<: *own, train: b.csv}}\n"
    )
    (auxiliary,) = load_recipe(path).auxiliary
    assert (auxiliary.data.train, auxiliary.data.columns) == ("b.csv", {"text": "body"})


@pytest.mark.parametrize(
    "text",
    ["yes", "NO", "on", "Off", "017", "-0_7", "1:30", "1:30:00.5", "00.5", "01e3", "2024-01-01", "2024-13-41", "0o17"],
)
def test_words_codes_times_and_dates_are_texts(text):
    recipe = recipe_from_text(
        f"task: t\nmodel: m\ndata:\n  train: a.csv\n  where:\n    {text}: {text}\n  columns:\n    text: {text}\n"
    )
    assert recipe.data.where == {text: text}
    assert recipe.data.columns == {"text": text}
    assert yaml.safe_load(dump_recipe(recipe))["data"]["where"] == {text: text}
    with pytest.raises(RecipeError, match=r"search.seed: needs a whole number"):
        recipe_from_text(f"task: t\nmodel: m\ndata: a.csv\nsearch:\n  seed: {text}\n")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("1_000", 1000),
        ("0x1F", 31),
        ("-3", -3),
        ("0", 0),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1e-3", 1e-3),
        ("5.", 5.0),
    ],
)
def test_numbers_and_truths_are_what_they_look_like(text, value):
    recipe = recipe_from_text(f"task: t\nmodel: m\ndata: {{train: a.csv, where: {{a: {text} }} }}")
    assert recipe.data.where == {"a": value}
    assert type(recipe.data.where["a"]) is type(value)


def test_a_word_in_place_of_true_or_false_is_told_with_its_line():
    with pytest.raises(RecipeError, match=r"recipe:3: data.deduplicate: needs true or false, given 'no'"):
        recipe_from_text("task: t\nmodel: m\ndata: {train: a.csv, deduplicate: no}")


@pytest.mark.parametrize(
    "text", ["1e3", "1E-4", "+2e5", "no", "017", "1:30", "null", "1", "a: b", "#x", "2024-01-01", "", "é\n"]
)
def test_a_line_of_yaml_is_read_as_the_value_that_it_was_made_of(text):
    value = {"data.columns": {"text": text, text: "label"}, "space.train.epochs": [1e-4, 3, True, None]}
    assert yaml.load(yaml_of(value), Loader=_StrictLoader) == value
    assert "\n" not in yaml_of(value)


def test_a_mapping_that_stands_in_itself_is_one_fault():
    space = {"lora": {}}
    space["lora"]["rank"] = space
    with pytest.raises(RecipeError, match="stands in itself"):
        recipe_from_mapping({"task": "text-classification", "model": "m", "data": "rows.csv", "space": space})


def test_nested_and_dotted_spaces_mean_the_same():
    nested = recipe_from_mapping({**GOOD, "space": {"train": {"epochs": 3, "warmup": {"low": 0.0, "high": 0.1}}}})
    dotted = recipe_from_mapping({**GOOD, "space": {"train.epochs": 3, "train.warmup": {"low": 0.0, "high": 0.1}}})
    assert nested.space == dotted.space


@pytest.mark.parametrize(
    ("override", "where", "value"),
    [
        ("budget.time=5m", ("budget", "time"), "5m"),
        ("budget={time: 5m, trials: 3}", ("budget", "trials"), 3),
        ("data.limit=100", ("data", "limit"), 100),
        ("model=[a/b, c/d]", ("model",), ["a/b", "c/d"]),
        ("space.train.epochs=3", ("space", "train.epochs"), 3),
        ("search.seed=7", ("search", "seed"), 7),
    ],
)
def test_an_override_reaches_its_key(override, where, value):
    found = recipe_from_mapping(GOOD, [override]).model_dump()
    for part in where:
        found = found[part]
    assert found == value


def test_an_override_leaves_the_given_mapping_alone():
    given_recipe = {**GOOD, "budget": {"time": "1h"}}
    before = json.dumps(given_recipe)
    set_key(given_recipe, "budget.time=5m")
    assert json.dumps(given_recipe) == before


def test_all_faults_come_at_once():
    with pytest.raises(RecipeError) as caught:
        recipe_from_mapping({"tsk": "x", "effort": "fast", "budget": {"time": "soon"}, "data": {}}, ["nothing"])
    places = {fault.where for fault in caught.value.faults}
    assert places == {"--set nothing", "tsk", "task", "model", "effort", "budget.time", "data.train"}


json_like = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
keys = st.sampled_from([*Recipe.model_fields, "modle", "x"])


@given(st.dictionaries(keys, json_like, max_size=6))
def test_whatever_a_recipe_holds_it_is_read_or_refused_with_a_place(value):
    try:
        recipe = recipe_from_mapping(value)
    except RecipeError as error:
        faults = error.faults
    else:
        faults = ()
        assert recipe.task
    assert all(fault.message for fault in faults)


@given(st.text(max_size=60))
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("recipes") / "r.yaml"
    path.write_text(text, encoding="utf-8", errors="ignore")
    with pytest.raises(RecipeError):
        load_recipe(path)


def test_the_schema_describes_every_field_and_accepts_good_recipes():
    schema = recipe_schema()
    sections = {"Recipe": schema, **schema["$defs"]}
    for name, section in sections.items():
        for key, field in section.get("properties", {}).items():
            assert field.get("description"), f"{name}.{key} has no description"
    assert set(Recipe.model_fields) == set(schema["properties"])
    assert {"type": "string"} in schema["properties"]["data"]["anyOf"]


def test_no_code_comes_out_of_a_recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("task: !!python/object/apply:os.system ['touch hacked']\nmodel: m\ndata: d\n")
    with pytest.raises(RecipeError, match="is not YAML"):
        load_recipe(path)
    assert not (tmp_path / "hacked").exists()
