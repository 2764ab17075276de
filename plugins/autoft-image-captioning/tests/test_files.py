"""A model in its files, as users meet it: from Python, from the command, and at the end of a whole search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import autoft
import autoft.api
from autoft.artifact import save_artifact
from autoft.cli import app
from autoft.contracts import Target
from autoft.hardware import Hardware


@pytest.fixture
def saved(task, ready, squares, tmp_path):
    """The folder of a model that has learned a little, and what it says of two pictures."""
    source, context = ready("vit", squares)
    torch.manual_seed(0)
    model = task.load_model(source, context)
    batch = task.collate(task.encode(squares, context), context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        task.loss(model, batch, context).backward()
        optimizer.step()
        optimizer.zero_grad()
    config = json.loads((Path(source.path) / "config.json").read_text())
    target = Target(task, source, config, context, Hardware.probe_cpu())
    save_artifact(tmp_path / "best", model, target, writer=None, variant="none", objective="cider")
    return tmp_path / "best", task.predict(model, [{"image": row["image"]} for row in squares[:2]], context)


def test_a_model_captions_paths_rows_and_bytes(saved, squares):
    folder, expected = saved
    model = autoft.load(folder)
    paths = [row["image"] for row in squares[:2]]
    assert all(prediction["caption"] for prediction in expected)
    assert model.predict(paths) == expected
    assert model.predict([{"image": path} for path in paths]) == expected
    assert model.predict([{"image": Path(path).read_bytes()} for path in paths]) == expected


def test_the_command_takes_names_of_pictures(saved, squares):
    folder, expected = saved
    found = CliRunner().invoke(app, ["predict", str(folder), squares[0]["image"], squares[1]["image"]])
    assert found.exit_code == 0
    assert [json.loads(line) for line in found.stdout.splitlines()] == expected
    missing = CliRunner().invoke(app, ["predict", str(folder), "no-such-picture.jpg"])
    assert missing.exit_code == 2
    assert "row 1: there is no image no-such-picture.jpg" in missing.output


def test_transformers_reads_the_files_without_autoft(saved, squares):
    from PIL import Image
    from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

    folder, expected = saved
    images, tokenizer = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model = VisionEncoderDecoderModel.from_pretrained(folder)
    pictures = [Image.open(row["image"]) for row in squares[:2]]
    ids = model.generate(images(pictures, return_tensors="pt").pixel_values)
    assert [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)] == [
        prediction["caption"] for prediction in expected
    ]


@pytest.mark.slow
def test_a_search_reads_pictures_beside_the_data_and_reports_them(squares, checkpoints, tmp_path):
    # Paths in the data are relative to the data, wherever the command is started.
    data = Path(squares[0]["image"]).parent / "squares.jsonl"
    rows = [{"file_name": Path(row["image"]).name, "caption": row["captions"]} for row in squares]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "task": "image-captioning",
        "model": str(checkpoints("vit")),
        "data": {"train": str(data), "validation_size": 8, "test_size": 8},
        "effort": "quick",
        "compress": ["none", "dynamic-int8"],
        "budget": {"time": "5m", "trials": 1},
        "search": {"finalist_seeds": 0},
        "space": {"full.learning_rate": 3e-3, "train.epochs": 6, "train.batch_size": 8},
        "task_options": {"decoder_layers": 1, "decoder_width": 32, "vocabulary": 300},
    }
    run = autoft.api.search(recipe, run=tmp_path / "run")
    assert run.summary["objective"] == "cider"
    test = json.loads((run.path / "final.json").read_text())["test"]
    assert set(test) == {"best", "default", "most frequent caption", "caption of the nearest picture"}
    assert set(test["best"]) == {"cider", "caption_bleu", "caption_chrf", "caption_rouge_l", "caption_perplexity"}
    assert 1 < test["best"]["caption_perplexity"]["value"] < 100
    assert "caption_perplexity" not in test["most frequent caption"]
    html = run.report.read_text(encoding="utf-8")
    assert html.count("data:image/jpeg;base64,") == 8
    assert "How varied captions are" in html
    assert "a red square on the" in html or "one red square" in html
