"""`autoft init`: from data to a recipe that works, without surprises."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from autoft.cli import app
from autoft.drafts.draft import draft_recipe
from autoft.drafts.models import TRIALS, Candidate, kind_of, proposed_models, time_budget, training_seconds
from autoft.drafts.sources import find_sources
from autoft.drafts.survey import MOST_COLUMNS
from autoft.errors import DataError
from autoft.hardware import Hardware
from autoft.plans.planner import make_plan
from autoft.plugins import load_plugins
from autoft.quantities import parse_seconds
from autoft.recipe import load_recipe


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def reviews(count: int, start: int = 0) -> list[dict]:
    words = ["warm", "dull", "long", "kind", "loud"]
    return [
        {"comment": f"a {words[n % 5]} evening number {n} with music", "stars": 1 if n % 5 in {1, 4} else 2}
        for n in range(start, start + count)
    ]


def init(*words: object):
    return CliRunner().invoke(app, ["init", *map(str, words)])


def test_a_recipe_is_written_that_the_next_commands_take(place, tiny_model):
    write(place / "reviews.csv", reviews(120) + reviews(3))
    done = init("reviews.csv", "--model", tiny_model)
    assert done.exit_code == 0, done.stderr
    recipe = load_recipe("recipe.yaml")
    assert (recipe.task, recipe.name, recipe.model) == ("text-classification", "reviews", [str(tiny_model)])
    assert recipe.data.columns == {"text": "comment", "label": "stars"}
    assert recipe.data.train == "reviews.csv"
    for said in ("123", "comment", "2 different", "60%", "3 training rows repeat the input of another", "recipe.yaml"):
        assert said in done.stdout
    explained = CliRunner().invoke(app, ["explain", "recipe.yaml"])
    assert explained.exit_code == 0, explained.stderr
    checked = CliRunner().invoke(app, ["check", "recipe.yaml"])
    assert checked.exit_code == 0, checked.stderr
    assert "The recipe works." in checked.stdout


def test_of_very_many_columns_the_first_are_looked_at_and_those_that_a_name_speaks_for(place, tiny_model):
    genes = {f"gene {number}": number for number in range(MOST_COLUMNS + 20)}
    write(place / "genes.csv", [{**genes, "said": row["comment"], "sentiment": row["stars"]} for row in reviews(40)])
    done = init("genes.csv", "--model", tiny_model, "--column", "text=said")
    assert done.exit_code == 0, done.stderr
    assert load_recipe("recipe.yaml").data.columns == {"text": "said", "label": "sentiment"}
    assert "22 were not looked at: --column ROLE=NAME" in " ".join(done.stdout.split())
    Path("recipe.yaml").unlink()
    refused = init("genes.csv", "--model", tiny_model)
    assert refused.exit_code == 2
    assert "22 were not looked at" in refused.stderr


def test_what_is_commented_out_is_right_once_it_is_put_in(place, tiny_model):
    write(place / "reviews.csv", reviews(120))
    assert init("reviews.csv", "--model", tiny_model).exit_code == 0
    text = Path("recipe.yaml").read_text()
    assert yaml.safe_load(text)["task"] == "text-classification"
    for line in (
        "  # validation_size",
        "  # model_size",
        "  # latency",
        "  # inference_memory",
        "# task_options",
        "# search",
    ):
        assert line in text
        text = text.replace(line, line.replace("# ", "", 1))
    for key in ("problem", "threshold", "objectives"):
        text = text.replace(f"#   {key}:", f"  {key}:")
    Path("full.yaml").write_text(text)
    recipe = load_recipe("full.yaml")
    assert recipe.budget.latency.p50 == "5ms"
    assert recipe.data.validation_size == 0.15
    assert CliRunner().invoke(app, ["explain", "full.yaml"]).exit_code == 0


def test_where_rows_have_several_labels_each_label_counts(place, tiny_model):
    rows = [{"text": row["comment"], "label": ["loud", "long"][: 1 + n % 2]} for n, row in enumerate(reviews(60))]
    write(place / "several.jsonl", rows)
    assert init("several.jsonl", "--model", tiny_model).exit_code == 0
    assert load_recipe("recipe.yaml").search.objectives == ["f1_micro"]
    assert CliRunner().invoke(app, ["explain", "recipe.yaml"]).exit_code == 0


def test_a_cpu_that_writes_a_text_for_each_validation_row_gets_fewer_of_them(place):
    pairs = [{"source": f"a dog runs {n}", "target": f"ein Hund läuft {n}"} for n in range(2000)]
    write(place / "cut.jsonl", pairs)
    for split in ("train", "validation"):
        write(place / "given" / f"{split}.jsonl", pairs)

    def drafted(source, task, hardware=CPU):
        found = draft_recipe(
            [source], load_plugins(), hardware, output=place / "recipe.yaml", model="owner/not-here", task=task
        )
        return yaml.safe_load(found.text)["data"]

    assert drafted("cut.jsonl", "translation")["validation_size"] == 200
    assert drafted("given", "translation")["limit"]["validation"] == 200
    # Perplexity needs no text, nor does a label; and a GPU writes faster.
    assert "validation_size" not in drafted("cut.jsonl", "generation")
    assert "validation_size" not in drafted("cut.jsonl", "translation", replace(CPU, device="cuda"))


def test_long_contexts_are_said_to_be_cut_off_only_where_they_are(place, tiny_model):
    context = " ".join(f"word{n}" for n in range(900))
    asked = [{"question": f"Which is number {n}?", "context": context, "answers": f"word{n}"} for n in range(60)]
    write(place / "asked.jsonl", asked)
    assert init("asked.jsonl", "--task", "question-answering", "--model", tiny_model).exit_code == 0
    drafted = (place / "recipe.yaml").read_text("utf-8")
    assert (
        "# Half of the rows are longer than the 512 tokens that are read at once: such texts are read in several windows."
        in drafted
    )
    assert "cut off" not in drafted
    judged = [{"text": f"{context} {n}", "label": "even" if n % 2 == 0 else "odd"} for n in range(60)]
    write(place / "judged.jsonl", judged)
    assert init("judged.jsonl", "--model", tiny_model, "--output", "judged.yaml").exit_code == 0
    assert "the rest is cut off" in (place / "judged.yaml").read_text("utf-8")
    few = [{"text": f"a short text {n}" if n % 10 else f"{context} {n}", "label": "ab"[n % 2]} for n in range(60)]
    write(place / "few.jsonl", few)
    assert init("few.jsonl", "--model", tiny_model, "--output", "few.yaml").exit_code == 0
    assert "One row in twenty is longer" in (place / "few.yaml").read_text("utf-8")


def test_a_recipe_tells_the_lengths_of_all_texts(place):
    rows = [
        {"source": f"The bridge number {n} is closed", "target": "\u6865\u4eca\u5929" + chr(0x4E00 + n)}
        for n in range(60)
    ]
    write(place / "pairs.jsonl", rows)
    done = init("pairs.jsonl", "--task", "translation")
    assert done.exit_code == 0, done.output
    told = [
        line
        for line in (place / "recipe.yaml").read_text(encoding="utf-8").splitlines()
        if line.startswith("# lengths")
    ]
    assert told == [
        "# lengths: source: 6 words in the median, 95 % up to 6",
        "# lengths: target: 4 characters in the median, 95 % up to 4, CJK",
    ]


def test_a_model_that_the_hub_does_not_give_is_told_in_one_sentence(place):
    for n in range(6):
        Image.new("RGB", (8, 8), (40 * n, 0, 0)).save(place / f"{n}.png")
    write(
        place / "pictures.jsonl", [{"image": f"{n}.png", "caption": f"a red square of shade {n}"} for n in range(6)] * 4
    )
    done = init("pictures.jsonl", "--task", "image-captioning")
    assert done.exit_code == 0, done.output
    (told,) = [line for line in done.output.splitlines() if line.startswith("warning: the model")]
    assert "and the hub did not give it" in told
    assert told.endswith("without a network, name a local folder or package://module/path")


def test_nothing_is_overwritten_unless_it_is_asked_for(place, tiny_model):
    write(place / "reviews.csv", reviews(120))
    Path("recipe.yaml").write_text("mine")
    refused = init("reviews.csv", "--model", tiny_model)
    assert (refused.exit_code, Path("recipe.yaml").read_text()) == (2, "mine")
    assert "--force" in refused.stderr
    assert not Path("recipe.schema.json").exists()
    Path("recipe.yaml").unlink()
    Path("recipe.schema.json").write_text("mine too")
    refused = init("reviews.csv", "--model", tiny_model)
    assert (refused.exit_code, Path("recipe.schema.json").read_text()) == (2, "mine too")
    assert not Path("recipe.yaml").exists()
    assert init("reviews.csv", "--model", tiny_model, "--force").exit_code == 0
    assert load_recipe("recipe.yaml").task == "text-classification"
    # The schema of an earlier call is no file of the user's.
    assert init("reviews.csv", "--model", tiny_model, "--output", "other.yaml").exit_code == 0


def test_what_the_data_does_not_say_is_an_error_with_the_choices_where_nobody_can_be_asked(place, tiny_model):
    rows = [{**row, "reply": f"thank you for the {row['comment']} indeed"} for row in reviews(120)]
    write(place / "reviews.csv", rows)
    asked = init("reviews.csv", "--model", tiny_model, "--task", "text-classification")
    assert asked.exit_code == 2
    assert "--column text=NAME" in asked.stderr
    assert "\n  comment: " in asked.stderr
    assert "\n  reply: " in asked.stderr
    told = init("reviews.csv", "--model", tiny_model, "--task", "text-classification", "--column", "text=reply")
    assert told.exit_code == 0, told.stderr
    assert load_recipe("recipe.yaml").data.columns == {"text": "reply", "label": "stars"}
    first = init("reviews.csv", "--model", tiny_model, "--task", "text-classification", "--yes", "--force")
    assert first.exit_code == 0, first.stderr
    assert load_recipe("recipe.yaml").data.columns == {"text": "comment", "label": "stars"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--task", "text-clasification"), "text-classification"),
        (("--column", "text=coment"), "'comment'"),
        (("--task", "text-classification", "--column", "txt=comment"), "'text'"),
        (("--column", "text"), "ROLE=NAME"),
        (("--task", "translation"), "no columns for source and target"),
    ],
)
def test_wrong_options_are_told_what_is_right(place, tiny_model, words, says):
    write(place / "reviews.csv", reviews(40))
    done = init("reviews.csv", "--model", tiny_model, *words)
    assert done.exit_code in {2, 3}
    assert says in done.stderr
    assert not Path("recipe.yaml").exists()


def test_json_says_the_same_to_programs(place, tiny_model):
    write(place / "reviews.csv", reviews(120))
    found = json.loads(init("reviews.csv", "--model", tiny_model, "--json").stdout)
    assert (found["task"], found["recipe"]) == ("text-classification", "recipe.yaml")
    assert found["columns"] == {"text": "comment", "label": "stars"}


LAYOUTS = {
    "one file": (["all.csv"], ["all.csv"], {"train": "all.csv"}),
    "a training file with the others beside it": (
        ["d/train.jsonl", "d/dev.jsonl", "d/test.jsonl", "d/README.md"],
        ["d/train.jsonl"],
        {"train": "d/train.jsonl", "validation": "d/dev.jsonl", "test": "d/test.jsonl"},
    ),
    "a folder with splits": (
        ["d/train.csv", "d/valid.csv", "d/notes.txt"],
        ["d"],
        {"train": "d/train.csv", "validation": "d/valid.csv"},
    ),
    "files beside it that are of other data": (
        ["d/german_train.csv", "d/french_train.csv", "d/french_test.csv", "d/german-dev-2.csv"],
        ["d/german_train.csv"],
        {"train": "d/german_train.csv", "validation": "d/german-dev-2.csv"},
    ),
    "the plain name where others hold the word": (
        ["d/train.csv", "d/train_raw.csv", "d/test-00000-of-00001.csv"],
        ["d"],
        {"train": "d/train.csv", "test": "d/test-00000-of-00001.csv"},
    ),
    "shards beside another": (
        ["d/train-00000-of-00001.csv", "d/test-0.csv"],
        ["d/train-00000-of-00001.csv"],
        {"train": "d/train-00000-of-00001.csv", "test": "d/test-0.csv"},
    ),
    "a folder without splits": (["d/a.csv", "d/b.csv"], ["d"], {"train": "d"}),
    "longer names": (
        ["d/reviews-train.csv", "d/reviews-test.csv"],
        ["d"],
        {"train": "d/reviews-train.csv", "test": "d/reviews-test.csv"},
    ),
    "named files": (
        ["x_test.csv", "x_train.csv"],
        ["x_test.csv", "x_train.csv"],
        {"train": "x_train.csv", "test": "x_test.csv"},
    ),
    "two files that say nothing": (["a.csv", "b.csv"], ["a.csv", "b.csv"], {"train": "a.csv", "test": "b.csv"}),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_splits_are_found(place, layout):
    files, given, wanted = layout
    for number, name in enumerate(files):
        path = place / name
        if path.suffix in {".csv", ".jsonl"}:
            write(path, reviews(5, 100 * number))
        else:
            path.write_text("notes")
    assert find_sources(given, place / "recipe.yaml").given == wanted
    elsewhere = find_sources(given, place / "sub" / "recipe.yaml").given
    assert elsewhere == {split: str(place / source) for split, source in wanted.items()}


@pytest.mark.parametrize("given", [["d"], ["nothing.csv"], ["a.csv", "x_test.csv"], ["a.csv"] * 4])
def test_what_is_no_data_set_is_refused(place, given):
    write(place / "d" / "test.csv", reviews(5))
    write(place / "a.csv", reviews(5))
    write(place / "x_test.csv", reviews(5))
    with pytest.raises(DataError):
        find_sources(given, place / "recipe.yaml")


def test_several_files_of_a_split_are_refused_and_not_all_but_one_left_out(place):
    for number in range(2):
        write(place / "d" / f"train-0000{number}-of-00002.csv", reviews(5, 100 * number))
    with pytest.raises(DataError, match=r"train-00000-of-00002\.csv or train-00001-of-00002\.csv.*a folder of its own"):
        find_sources(["d"], place / "recipe.yaml")


@pytest.mark.parametrize("given", ["d", "d/train.csv"])
def test_a_file_that_is_called_like_a_split_and_not_read_is_told(place, tiny_model, given):
    for number, name in enumerate(("train", "dev", "val")):
        write(place / "d" / f"{name}.csv", reviews(40, 100 * number))
    done = init(given, "--model", tiny_model)
    assert done.exit_code == 0, done.stderr
    assert load_recipe("recipe.yaml").data.validation == "d/dev.csv"
    assert "warning: d/val.csv is not read, for d/dev.csv is there too" in done.stdout
    done = init("d/train.csv", "d/val.csv", "--model", tiny_model, "--force")
    assert load_recipe("recipe.yaml").data.validation == "d/val.csv"
    assert "not read" not in done.stdout


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (lambda n: "good", "all 60 training rows have the label 'good'"),
        (lambda n: f"row{n}", "60 different labels, as 'row0'"),
        (lambda n: n / 7, "60 different, as '0.0'"),
        (lambda n: f"a sentence that is the number {n}", "60 different, as 'a sentence that is the number 0'"),
    ],
)
def test_labels_that_tell_nothing_apart_are_told_and_not_left_unread(place, tiny_model, label, says):
    rows = [{"review": row["comment"], "sentiment": label(n)} for n, row in enumerate(reviews(60))]
    write(place / "reviews.csv", rows)
    for further in ((), ("--yes",)):
        done = init("reviews.csv", "--model", tiny_model, *further)
        assert done.exit_code == 2
        assert "review and sentiment are called as those of text-classification, which cannot take them" in done.stderr
        assert says in done.stderr
        assert "--task generation reads review alone" in done.stderr
    assert init("reviews.csv", "--task", "generation", "--model", tiny_model).exit_code == 0


@pytest.mark.parametrize("name", ["2024", "no", "1e5", "null", "2024-01-01", "1_0"])
def test_a_file_may_be_called_like_something_else_than_a_text(place, tiny_model, name):
    write(place / f"{name}.csv", reviews(60))
    done = init(f"{name}.csv", "--model", tiny_model)
    assert done.exit_code == 0, done.stderr
    recipe = load_recipe("recipe.yaml")
    assert (recipe.name, recipe.data.train) == (name, f"{name}.csv")


@pytest.mark.parametrize("name", ["1e3", "yes", "a: b", "#x", "12:30", "{x}", "a\nb", "- \u00e9"])
def test_a_column_may_be_called_like_something_else_than_a_text(place, tiny_model, name):
    write(place / "reviews.csv", [{name: row["comment"], "stars": row["stars"]} for row in reviews(60)])
    done = init("reviews.csv", "--model", tiny_model, "--task", "text-classification")
    assert done.exit_code == 0, done.stderr
    assert load_recipe("recipe.yaml").data.columns == {"text": name, "label": "stars"}


LABEL = ("--column", "label=stars")


@pytest.mark.parametrize("column", ["patient_id", "userId", "Speaker", "subject", "doc_id"])
def test_rows_of_one_person_in_two_splits_are_told(place, tiny_model, column):
    rows = [{**row, column: number // 4} for number, row in enumerate(reviews(120))]
    write(place / "cut.csv", rows)
    told = " ".join(init("cut.csv", *LABEL, "--model", tiny_model).stdout.split())
    assert f"group {column}: splits are cut by it, so that rows of one value are in one split" in told
    assert "different values in" not in told
    assert load_recipe("recipe.yaml").data.group == column
    # Of few persons splits may not come out as large as asked for: that is for the user to decide.
    write(place / "few.csv", [{**row, column: number // 12} for number, row in enumerate(reviews(120))])
    told = " ".join(init("few.csv", *LABEL, "--model", tiny_model, "--output", "few.yaml").stdout.split())
    assert f"{column} has 10 different values in 120 rows, and splits are cut by rows" in told
    assert f"data.group: {column} in the recipe keeps them in one split" in told
    assert load_recipe("few.yaml").data.group is None
    # Three persons of the test rows are in training too.
    write(place / "given" / "train.csv", rows)
    write(place / "given" / "test.csv", [{**row, column: number + 27} for number, row in enumerate(reviews(20, 500))])
    told = " ".join(init("given", *LABEL, "--model", tiny_model, "--output", "given.yaml").stdout.split())
    assert f"{column} has 30 different values in training, 3 of them in test too" in told
    assert load_recipe("given.yaml").data.group is None
    write(place / "apart" / "train.csv", rows)
    write(place / "apart" / "test.csv", [{**row, column: number + 30} for number, row in enumerate(reviews(20, 500))])
    assert "different values in" not in init("apart", *LABEL, "--model", tiny_model, "--output", "apart.yaml").stdout


def test_a_column_that_names_a_field_or_each_row_groups_nobody(place, tiny_model):
    fields = ["sport", "politics", "music"]
    rows = [{**row, "subject": fields[n % 3], "author": f"author{n}"} for n, row in enumerate(reviews(120))]
    write(place / "fields.csv", rows)
    done = init("fields.csv", *LABEL, "--model", tiny_model)
    assert done.exit_code == 0, done.stderr
    assert "different values in" not in done.stdout


def test_columns_that_are_not_read_are_told(place, tiny_model):
    write(place / "reviews.csv", [{"id": number, **row} for number, row in enumerate(reviews(60))])
    done = init("reviews.csv", "--model", tiny_model)
    assert done.exit_code == 0, done.stderr
    assert "\nnot read  id\n" in done.stdout


def test_a_file_without_a_line_of_names_is_told(place, tiny_model):
    rows = [[row["comment"], "good" if row["stars"] == 1 else "bad"] for row in reviews(60)]
    with (place / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    done = init("reviews.csv", "--model", tiny_model)
    assert done.exit_code == 0, done.stderr
    assert "warning: the first line of the data seems to hold values and no names: 'bad'" in done.stdout
    with (place / "named.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "bad"], *rows])
    assert "warning: the first line" not in init("named.csv", "--force", "--model", tiny_model).stdout


def test_commands_that_are_shown_work_where_a_path_has_spaces(place, tiny_model):
    write(place / "my reviews.csv", reviews(60))
    done = init("my reviews.csv", "--model", tiny_model, "--output", "my recipe.yaml")
    assert done.exit_code == 0, done.stderr
    assert "autoft check 'my recipe.yaml'" in done.stdout
    assert Path("my recipe.yaml").read_text().startswith("# autoft search 'my recipe.yaml'\n")
    assert load_recipe("my recipe.yaml").data.train == "my reviews.csv"


def test_a_label_with_a_line_break_stays_within_its_comment(place, tiny_model):
    labels = {1: "good\ntask: other", 2: "bad"}
    write(place / "reviews.csv", [{"text": row["comment"], "label": labels[row["stars"]]} for row in reviews(60)])
    done = init("reviews.csv", "--model", tiny_model)
    assert done.exit_code == 0, done.stderr
    assert load_recipe("recipe.yaml").task == "text-classification"
    assert "\n# labels: 2: bad 60%, good task: other 40%\n" in Path("recipe.yaml").read_text()


def test_a_label_that_steers_the_terminal_does_not_stand_in_the_recipe(place, tiny_model):
    labels = {1: "good\x1b[31m", 2: "bad\uffff"}
    write(place / "reviews.csv", [{"text": row["comment"], "label": labels[row["stars"]]} for row in reviews(60)])
    done = init("reviews.csv", "--model", tiny_model)
    assert done.exit_code == 0, done.stderr
    assert "\n# labels: 2: bad 60%, good[31m 40%\n" in Path("recipe.yaml").read_text()


def test_of_many_columns_a_message_lists_some(place, tiny_model):
    rows = [{"words": "some words"} | {f"c{number}" + "x" * 1000: 0.5 for number in range(1000)}] * 30
    write(place / "reviews.csv", rows)
    done = init("reviews.csv", "--model", tiny_model, "--task", "text-classification")
    assert done.exit_code == 2
    assert "and 961 others" in done.stderr
    assert len(done.stderr) < 10_000


def test_splits_of_other_columns_are_refused(place, tiny_model):
    write(place / "train.csv", reviews(60))
    write(place / "test.csv", [{"text": "other", "label": 1}])
    done = init("train.csv", "--model", tiny_model)
    assert done.exit_code == 2
    assert "test.csv: has no column 'comment'" in done.stderr


CPU = Hardware("cpu", 4, 2**34, (), "a processor", False, "Linux x86_64")


def test_time_grows_with_rows_and_the_model_and_shrinks_with_cores():
    small, large = (Candidate("m", "encoder", n, n, "") for n in (10_000_000, 100_000_000))
    seconds = training_seconds(small, CPU, 1000, 50)
    assert training_seconds(small, CPU, 2000, 50) == pytest.approx(2 * seconds)
    assert training_seconds(large, CPU, 1000, 50) > 8 * seconds
    one_core = Hardware("cpu", 1, 2**34, (), "a processor", False, "Linux x86_64")
    assert training_seconds(small, one_core, 1000, 50) > 3 * seconds
    assert time_budget(0.0) >= 300
    assert time_budget(1000.0) >= TRIALS * 1000
    assert time_budget(1e9) == 86400


def seconds(place: Path, name: str, rows: list[dict], task: str | None = None) -> float:
    write(place / name, rows)
    drafted = draft_recipe([name], load_plugins(), CPU, output=place / "recipe.yaml", model="owner/not-here", task=task)
    return parse_seconds(dict(drafted.found)["time"].split("very roughly ")[1].removesuffix(" here").replace(" ", ""))


@pytest.mark.parametrize(
    ("task", "times"),
    # A question is trained on four windows of 512 tokens at most, and a sentence on all.
    [("question-answering", 7), ("token-classification", 50)],
)
def test_the_time_is_that_of_all_windows_that_a_training_reads(task, times, place):
    def rows(count: int) -> list[dict]:
        words = [f"word{n}" for n in range(count)]
        if task == "token-classification":
            return [{"tokens": [*words, str(n)], "tags": [*("O" for _ in words), "B-X"]} for n in range(400)]
        return [
            {"question": f"what is {n}?", "context": " ".join([*words, f"n{n}"]), "answers": f"n{n}"}
            for n in range(400)
        ]

    few = 100 if task == "token-classification" else 200
    assert seconds(place, "long.jsonl", rows(4000), task) > 0.9 * times * seconds(place, "short.jsonl", rows(few), task)


def test_the_time_is_that_of_pictures_and_of_whole_conversations_too(place):
    (place / "photo.png").write_bytes(b"")
    turns = [{"role": role, "content": "which of the trains goes to the coast"} for role in ("user", "assistant") * 8]
    said = seconds(place, "said.jsonl", [{"source": f"a dog {n}", "target": f"ein Hund {n}"} for n in range(20)])
    assert (
        seconds(place, "seen.jsonl", [{"image": "photo.png", "caption": f"a dog {n}"} for n in range(20)]) > 10 * said
    )
    assert (
        seconds(
            place, "talk.jsonl", [{"messages": [{"role": "user", "content": str(n)}, *turns[1:]]} for n in range(20)]
        )
        > 10 * said
    )


def test_a_model_that_only_reads_gets_a_decoder_that_is_trained_alone_and_for_longer(place, tiny_model):
    pairs = [{"source": f"a dog {n}", "target": f"ein Hund {n}"} for n in range(40)]
    write(place / "pairs.jsonl", pairs)
    done = init("pairs.jsonl", "--model", tiny_model)
    assert done.exit_code == 0, done.stderr
    recipe = load_recipe("recipe.yaml")
    assert (recipe.task, recipe.pipelines) == ("translation", ["head-only"])
    # Its tokens are those of the language that the model reads.
    assert recipe.task_options == {"target_vocabulary": 4000}
    plan = make_plan(recipe, load_plugins(), CPU)
    assert plan.default_config().params["train.epochs"] == 10
    # One that writes already has no new decoder.
    config = json.loads((tiny_model / "config.json").read_text())
    writer = Path(shutil.copytree(tiny_model, place / "writer"))
    (writer / "config.json").write_text(json.dumps({**config, "architectures": ["BertLMHeadModel"]}))
    assert init("pairs.jsonl", "--model", writer, "--force").exit_code == 0
    assert load_recipe("recipe.yaml").pipelines is None


@pytest.mark.parametrize("task", load_plugins().tasks.values(), ids=lambda task: task.card.name)
def test_every_task_has_a_model_to_begin_with(task):
    assert proposed_models(task.card, [], None)[0].name.count("/") == 1
    for script in ("LATIN", "CJK"):
        assert not proposed_models(task.card, [], script)[0].here


def test_what_is_installed_comes_first_the_largest_of_its_kind():
    card = load_plugins().task("text-classification").card
    installed = [
        Candidate("small", "encoder", 4, 2, ""),
        Candidate("large", "encoder", 22, 11, ""),
        Candidate("writer", "decoder", 135, 100, ""),
    ]
    names = [one.name for one in proposed_models(card, installed, "LATIN")]
    assert names[:2] == ["large", "small"]
    assert "writer" not in names


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, "encoder"),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "decoder"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "git"}, "image-text"),
        ({"model_type": "dinov2", "architectures": ["Dinov2Model"]}, "image"),
    ],
)
def test_a_model_is_of_the_kind_that_its_configuration_says(config, kind):
    assert kind_of(config) == kind
