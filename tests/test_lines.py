"""A fault of a recipe shows the line that it is about."""

from __future__ import annotations

import re

import pytest
import yaml

from autoft.errors import DataError, RecipeError
from autoft.recipe import Recipe, load_recipe

TEXT = """\
# what came of it: 0.91
task: text-classification
model:
  - one/model
  - two/model
data:
  train: reviews.csv
  columns: {text: comment}
  test_size: 1.5

budget:
  time: soon  # not yet
  latency: {p51: 3ms}
effort: fast
space: {train: {epochs: three}, lora.rank: 0}
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def faults(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return caught.value.faults


def shown(fault):
    """The stretch of the line that is underlined."""
    line, marks = fault.excerpt.splitlines()
    start = marks.index("^")
    return line[start : start + marks.count("^")]


def test_each_fault_has_its_line_and_what_is_meant_underlined(path):
    found = {fault.where: (fault.line, shown(fault)) for fault in faults(path)}
    lines = TEXT.splitlines()
    assert found == {
        "data": (lines.index("data:") + 1, "data"),
        "budget.time": (lines.index("  time: soon  # not yet") + 1, "time: soon"),
        "budget.latency.p51": (lines.index("  latency: {p51: 3ms}") + 1, "p51: 3ms"),
        "effort": (lines.index("effort: fast") + 1, "effort: fast"),
    }


def test_the_message_names_file_and_line_and_shows_the_line(path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    told = str(caught.value).splitlines()
    place = next(i for i, line in enumerate(told) if f"{path}:12: budget.time: " in line)
    assert told[place + 1].endswith("12 |   time: soon  # not yet")
    assert re.fullmatch(r" +\| {3}\^{10}", told[place + 2])
    assert [fault.line for fault in caught.value.faults] == sorted(fault.line for fault in caught.value.faults)


def test_what_an_override_gave_shows_the_override_and_no_line(path):
    path.write_text(TEXT.replace("soon", "5m").replace("fast", "quick").replace("p51", "p50").replace("1.5", "0.5"))
    (fault,) = faults(path, "budget.time=later")
    assert (fault.where, fault.line, fault.excerpt) == ("budget.time", 0, "--set budget.time=later")
    (fault,) = faults(path, "budget.tme=5m", "search.seed=1", "storage.weights=lots")
    assert fault.excerpt == "--set storage.weights=lots"


def test_a_section_that_an_override_replaced_shows_the_override(path):
    path.write_text("task: x\nmodel: a/b\ndata: c\nbudget: {time: 5m}\n")
    (fault,) = faults(path, "budget={time: later}")
    assert (fault.where, fault.line, fault.excerpt) == ("budget.time", 0, "--set budget={time: later}")


def test_a_missing_key_shows_the_section_that_lacks_it(path):
    path.write_text("task: x\nmodel: a/b\ndata:\n  limit: 3\n")
    (fault,) = faults(path)
    assert (fault.where, fault.line) == ("data.train", 3)


@pytest.mark.parametrize("text", ["task: x\nmodel: [a, b\ndata: c\n", "task: x\n\tmodel: y\n", "task: 'x\n", "a: b: c"])
def test_what_is_no_yaml_shows_the_place_that_the_parser_names(path, text):
    with pytest.raises(yaml.YAMLError) as named:
        yaml.safe_load(text)
    path.write_text(text)
    (fault,) = faults(path)
    mark = named.value.problem_mark
    assert fault.line == min(mark.line + 1, len(text.splitlines()))
    assert fault.excerpt.splitlines()[1].index("^") - len("       | ") == mark.column


@pytest.mark.parametrize("value", ["!!timestamp 2024-13-45", "!!int x"])
def test_a_value_that_only_looks_like_a_date_or_a_number_shows_its_place(path, value):
    path.write_text(f"task: x\nmodel: a/b\ndata: c\nname: {value}\n")
    (fault,) = faults(path)
    assert fault.line == 4
    assert "in quotes" in fault.message


def test_of_a_line_without_end_what_is_around_the_fault_is_shown(tmp_path):
    path = tmp_path / "recipe.yaml"
    data = f"{{train: {'x' * 3000}, nonsense: {'9' * 3000}}}"
    path.write_text(f"task: t\nmodel: m\ndata: {data}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    (fault,) = caught.value.faults
    line, marks = fault.excerpt.splitlines()
    assert len(line) < 300
    assert line[marks.index("^") :].startswith("nonsense: 999")
    assert marks.rstrip().endswith("^")


@pytest.mark.parametrize("value", ["&a [*a]", "[" * 3000 + "]" * 3000], ids=["an alias in itself", "deep"])
def test_what_has_no_end_or_no_bottom_is_a_fault(path, value):
    path.write_text(f"task: x\nmodel: {value}\ndata: c\n")
    (fault,) = faults(path)
    assert "nested too deeply" in fault.message


@pytest.mark.parametrize("entry", ["[{}]", "{{<<: [{}]}}"], ids=["lists", "merged keys"])
def test_aliases_of_aliases_are_not_written_out(path, entry):
    # Ten billion values from a few hundred letters ("billion laughs").
    levels = ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {entry.format(', '.join([f'*a{i - 1}'] * 10))}" for i in range(1, 11))]
    path.write_text("\n".join(["task: x", "model: a/b", "data: c", *levels]))
    (fault,) = faults(path)
    assert "its aliases stand for" in fault.message


def test_an_error_of_the_data_shows_the_line_too(path):
    path.write_text(TEXT.replace("soon", "5m").replace("fast", "quick").replace("p51", "p50").replace("1.5", "0.5"))
    recipe = load_recipe(path)
    told = str(recipe.located(DataError("data.columns.text: data.train has no such column: unknown column 'comment'.")))
    assert told.startswith(f"{path}:8: data.columns.text: data.train has no such column")
    assert "{text: comment}" in told
    other = DataError("/a/file.csv: line 3 has 2 values for 3 columns")
    assert recipe.located(other) is other


def test_where_a_recipe_stands_is_no_part_of_what_it_says(path):
    path.write_text("task: x\nmodel: a/b\ndata: c\nname: r\n")
    other = path.with_name("other.yaml")
    other.write_text("# moved\n\n" + path.read_text())
    assert load_recipe(path) == load_recipe(other)
    assert set(load_recipe(path).model_dump()) == set(Recipe.model_fields)


@pytest.mark.parametrize(
    ("line", "meant", "column"),
    [
        ("budget: {time: soon}", "time: soon", 9),
        ("budget: {'a\tb': 1, time: soon}", "time: soon", 9 + len("'a    b': 1, ")),
        ("budget: {评论: 1, time: soon}", "time: soon", 9 + len("xxxx: 1, ")),
        ("budget: {'e\u0301': 1, time: soon}", "time: soon", 9 + len("'e': 1, ")),
        ("budget: {time: 很快}", "time: xxxx", 9),
    ],
)
def test_the_marks_stand_below_what_is_meant_where_characters_are_of_other_widths(line, meant, column, path):
    path.write_text(f"task: x\nmodel: a/b\ndata: c\n{line}\n", encoding="utf-8")
    fault = next(fault for fault in faults(path) if fault.where == "budget.time")
    shown_line, marks = fault.excerpt.splitlines()
    assert "\t" not in fault.excerpt
    start = len("     4 | ")
    assert (marks.index("^") - start, marks.count("^")) == (column, len(meant))
    assert marks.strip(" |") == "^" * len(meant)
    assert shown_line.partition(" | ")[2] == line.replace("\t", "    ")


def test_a_tab_where_yaml_allows_none_is_shown_in_its_place(path):
    path.write_text("task: x\nbudget:\n\ttime: 5m\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    line, marks = caught.value.faults[0].excerpt.splitlines()
    assert line.endswith("|     time: 5m")
    assert marks.index("^") == line.index("|") + 2
