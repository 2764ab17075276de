from __future__ import annotations

from autoft.errors import MANY, Fault, RecipeError, first_line, unknown_name


def test_few_names_are_all_listed():
    assert unknown_name("pipeline", "lorra", ["lora", "full"]) == (
        "unknown pipeline 'lorra'. Did you mean 'lora'? Known: full, lora."
    )


def test_of_many_names_only_the_nearest_are_listed():
    names = [f"nf4+method-{number}" for number in range(MANY)] + ["lora"]
    text = unknown_name("pipeline", "lorra", names)
    assert text.startswith(f"unknown pipeline 'lorra'. Did you mean 'lora'? The nearest of {MANY + 1}: lora, ")
    assert len(text) < 250


def test_the_first_line_of_an_error_says_something_whatever_it_holds():
    errors = [ValueError("\n a shape:\n  (2, 3)"), NotImplementedError(), OSError(2, "No such file")]
    assert [first_line(error) for error in errors] == ["a shape", "NotImplementedError", "[Errno 2] No such file"]


def test_a_value_without_end_is_told_by_its_begin():
    long = RecipeError([Fault("model", f"no such folder: {'x' * 5000}"), Fault("name", "y" * 300)])
    assert "model: no such folder: xxxxx" in str(long)
    assert len(str(long)) < 500
    assert "y" * 300 in str(long)


def test_of_faults_without_number_the_first_are_told_and_the_others_counted():
    told = str(RecipeError([Fault(f"key{i}", "is unknown") for i in range(MANY + 3)])).splitlines()
    assert told[0] == f"recipe: {MANY + 3} faults"
    assert told[MANY] == f"  key{MANY - 1}: is unknown"
    assert told[MANY + 1 :] == ["  and 3 more"]
