"""The table of docs/augmentation.md is what the augmenters say and do: AUTOFT_WRITE_DOCS=1 writes it."""

from __future__ import annotations

import inspect
import io
import os
import random
import re
from pathlib import Path

import pytest

from autoft.contracts import Augmenter, Column, TaskCard
from autoft.space import Categorical
from autoft.strategies import autoft_strategies

PAGE = Path(__file__).parents[2] / "docs" / "augmentation.md"
HEAD = "| name | what | columns | parameters | source | before → after |"
AUGMENTERS = {one.name: one for one in autoft_strategies() if isinstance(one, Augmenter)}

TEXT = "A quiet film, with a funny plot and two very good actors."
STORY = "The film is quiet. Its plot is funny! Two actors are very good."
TAGGED = {
    "tokens": ["Ada", "Lovelace", "was", "born", "in", "London"],
    "tags": ["B-PER", "I-PER", "O", "O", "O", "B-LOC"],
}
OTHERS = [
    TAGGED,
    {"tokens": ["Oslo", "was", "cold"], "tags": ["B-LOC", "O", "O"]},
    {
        "tokens": ["Alan", "Turing", "went", "to", "Rio", "de", "Janeiro"],
        "tags": ["B-PER", "I-PER", "O", "O", "B-LOC", "I-LOC", "I-LOC"],
    },
]
# What WordNet 3.0 and BERT-tiny say of these words; the shorter lists of the model are its first words.
SYNONYMS = {"film": ("movie", "picture"), "funny": ("amusing", "comic")}
NEIGHBOURS = {
    "film": ["movie", "novel", "films", "thriller", "musical"],
    "funny": ["scary", "creepy", "silly", "goofy", "amazing"],
    "two": ["three", "eight", "five", "four", "one"],
    "very": ["relatively", "extremely", "fairly", "quite", "comparatively"],
    "actors": ["characters", "comedians", "writers", "actor", "filmmakers"],
}
MASKED = {TEXT: {"1": [["movie"], [0.018]], "9": [["movie", "guys"], [0.008, 0.012]]}}
TRANSLATED = {TEXT: "A silent film with a funny story and two very good actors."}

CARDS = {
    "text": TaskCard("texts", "", (Column("text", "text", ""),), ("accuracy",), "any"),
    "tokens": TaskCard(
        "tagged", "", (Column("tokens", "tokens", ""), Column("tags", "tags", "", target=True)), ("accuracy",), "any"
    ),
    "image": TaskCard("pictures", "", (Column("image", "image", ""),), ("accuracy",), "any"),
}
LEARNED = {
    "synonyms": SYNONYMS,
    "embedding-neighbours": NEIGHBOURS,
    "masked-replacement": MASKED,
    "back-translation": TRANSLATED,
}


def kind_of(augmenter: Augmenter) -> str:
    if "image" in augmenter.rewrites:
        return "image"
    return "tokens" if "tags" in augmenter.realigns else "text"


def picture() -> bytes:
    """Eight by four pixels, from black on the left to white on the right."""
    from PIL import Image

    image = Image.new("RGB", (8, 4))
    for x in range(8):
        for y in range(4):
            image.putpixel((x, y), (36 * x,) * 3)
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def shown(row: dict) -> str:
    if "text" in row:
        return row["text"]
    if "tokens" in row:
        pairs = zip(row["tokens"], row["tags"], strict=True)
        return " ".join(word if tag == "O" else f"{word}/{tag}" for word, tag in pairs)
    from PIL import Image

    image = Image.open(io.BytesIO(row["image"])).convert("L")
    return "greys " + " ".join(str(image.getpixel((x, 1))) for x in range(8))


def example(augmenter: Augmenter) -> str:
    kind = kind_of(augmenter)
    story = augmenter.name == "sentence-order"
    row = {"text": {"text": STORY if story else TEXT}, "tokens": TAGGED, "image": {"image": picture()}}[kind]
    rows = OTHERS if kind == "tokens" else [row]
    learned = LEARNED.get(augmenter.name) or augmenter.learn(rows, CARDS[kind])
    params = {name: domain.default for name, domain in augmenter.space.items()}
    for seed in range(200):
        changed = augmenter.augment(row, CARDS[kind], random.Random(seed), params, learned)
        if shown(changed) != shown(row):
            return f"{shown(row)} → {shown(changed)}"
    raise AssertionError(f"{augmenter.name} changes nothing")


def described(domain) -> str:
    if not isinstance(domain, Categorical):
        return f"{domain}, default {domain.default}"
    if domain.open:
        return "named in the recipe"
    return ", ".join(f"{choice} (default)" if choice == domain.default else str(choice) for choice in domain.choices)


def line(augmenter: Augmenter) -> str:
    sources = re.findall(
        r"arXiv:[\d.]+\d|doi:[\w./]+\w|aclanthology\.org/[\w-]+", inspect.getdoc(type(augmenter)) or ""
    )
    parameters = "; ".join(f"`{name}`: {described(domain)}" for name, domain in augmenter.space.items())
    columns = ", ".join(sorted(augmenter.rewrites))
    if augmenter.realigns and "tags" in augmenter.realigns:
        columns += "; tags follow"
    elif not augmenter.breaks(Column("span", "span", "", of="text"), SPANS):
        columns += "; around a span" if "image" not in augmenter.rewrites else ""
    cells = [
        f"`{augmenter.name}`",
        augmenter.summary,
        columns,
        parameters or "none",
        ", ".join(dict.fromkeys(sources)),
        example(augmenter),
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


SPANS = TaskCard(
    "answers", "", (Column("text", "text", ""), Column("span", "span", "", target=True, of="text")), ("f1",), "any"
)


def table() -> list[str]:
    return [HEAD, "| --- | --- | --- | --- | --- | --- |", *(line(one) for one in AUGMENTERS.values())]


@pytest.mark.skipif("AUTOFT_WRITE_DOCS" not in os.environ, reason="writes docs/augmentation.md")
def test_write_the_page():
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text("\n".join([page.split(HEAD)[0].rstrip(), "", *table(), ""]), encoding="utf-8")


def test_the_table_is_what_the_augmenters_say_and_do():
    page = PAGE.read_text(encoding="utf-8")
    assert page.split(HEAD)[1].strip().splitlines() == table()[1:]
    assert len(table()) - 2 == len(AUGMENTERS) >= 20


def test_every_augmenter_names_its_source():
    for one in AUGMENTERS.values():
        assert re.search(r"arXiv:\d{4}\.\d{5}|arXiv:\d{4}\.\d{4}|doi:", inspect.getdoc(type(one)) or ""), one.name


def test_the_measured_augmenters_are_those_of_texts():
    """Each row of the measured table names an augmenter, and its mean is that of its figures."""
    measured = re.findall(
        r"^\| ([\w-]+)(?: \([^)]*\))? \| (\.\d+) (\.\d+) (\.\d+) \| (\.\d+) \|", PAGE.read_text(encoding="utf-8"), re.M
    )
    assert {name for name, *_ in measured} >= {
        "none",
        "random-swap",
        "crop",
        "embedding-neighbours",
        "masked-replacement",
    }
    for name, *figures, mean in measured:
        assert name == "none" or name in AUGMENTERS
        assert abs(sum(map(float, figures)) / 3 - float(mean)) < 6e-5


@pytest.mark.offline_models
def test_the_examples_of_the_model_are_what_it_says():
    import json

    from autoft.contracts import ModelSource, Target, TaskContext
    from autoft.hardware import Hardware
    from autoft.paths import package_path
    from autoft.plugins import load_plugins

    pytest.importorskip("cognition")
    path = package_path("package://cognition/model")
    task = load_plugins().task("text-classification")
    config = json.loads((path / "config.json").read_text())
    target = Target(task, ModelSource("tiny", str(path)), config, TaskContext({}, {}, {}, 128), Hardware.probe_cpu())
    rows = [{"text": TEXT, "label": "good"}]
    near = AUGMENTERS["embedding-neighbours"].learn_from(target, rows, {})
    assert {word: list(near[word]) for word in NEIGHBOURS} == NEIGHBOURS
    masked = AUGMENTERS["masked-replacement"].learn_from(target, rows, {})
    for place, (words, _) in MASKED[TEXT].items():
        assert masked[TEXT][place][0][: len(words)] == words
