"""Formats × tasks on tiny models: what docs/export.md says of each pair is what happens."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import autoft
from autoft.artifact import save_artifact
from autoft.errors import AutoftError
from autoft.plugins import load_plugins
from autoft.testing import tiny_model
from autoft.testing.workbench import Workbench

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
FORMATS = ["safetensors", "onnx", "onnx-fp16", "onnx-int8", "openvino"]
KINDS = {
    "text-classification": None,
    "token-classification": None,
    "question-answering": None,
    "translation": "seq2seq",
    "summarization": "seq2seq",
    "generation": "decoder",
    "image-captioning": "vision-to-text",
}
"""The tiny model of each task; the other tasks are built on these."""
WRITING = {"translation", "summarization", "generation", "image-captioning"}
ANSWER = {
    "text-classification": "label",
    "token-classification": "tags",
    "question-answering": "answer",
    "image-captioning": "caption",
}
"""What of a prediction the code of a card gives; of the others the text."""


def table() -> dict[tuple[str, str], bool]:
    """Return what the page says of each task and format."""
    rows = [
        line.strip("|").split("|") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")
    ]
    head = next(row for row in rows if "safetensors" in "".join(row) and "task" in row[0])
    names = [re.sub(r"[` ]", "", cell) for cell in head]
    found = {}
    for row in rows:
        task = re.sub(r"[`\[\] ]|\(.*?\)", "", row[0])
        if task in KINDS and len(row) == len(names):
            found |= {(task, name): cell.strip() == "yes" for name, cell in zip(names[1:], row[1:], strict=True)}
    return found


def pairs():
    for task in KINDS:
        for format in FORMATS:
            # Tracing the three graphs of a model with an encoder takes half a minute on a quiet core.
            # Of the others one task is enough for each day.
            slow = format != "safetensors" if task in WRITING else task != "text-classification"
            yield pytest.param(task, format, marks=[pytest.mark.slow] if slow else [], id=f"{task}-{format}")


@pytest.mark.parametrize(("task", "format"), pairs())
def test_a_pair_does_what_the_page_says(task, format, trained, without, tmp_path, places_told):
    if format == "openvino":
        pytest.importorskip("openvino")
    model = trained(task, KINDS[task])
    if not table()[task, format]:
        with pytest.raises(AutoftError):
            autoft.export(model, format, output=tmp_path / "out")
        assert list(tmp_path.iterdir()) == []
        return
    done = autoft.export(model, format, output=tmp_path / "out")
    rows = load_plugins().task(task).demo_rows()
    assert done.agreement.rows == len(rows)
    assert places_told(done.path) == []
    if format in {"safetensors", "onnx"}:
        assert done.agreement.agreement == 1.0
    if task == "image-captioning":
        # The picture of the card is none of the demo rows.
        assert len(without.answers(done.path)) == 1
        return
    loaded = autoft.load(model, device="cpu")
    inputs = [{c.role: row[c.role] for c in loaded.task.card.inputs if c.role in row} for row in rows[:2]]
    expected = [answer[ANSWER.get(task, "text")] for answer in loaded.predict(inputs)]
    said = without.answers(done.path)
    if format in {"safetensors", "onnx", "openvino"}:
        assert said == expected
    else:
        assert len(said) == len(expected)
    if task in {"token-classification", "question-answering"}:
        assert "autoft reads longer ones in\nwindows" in (done.path / "README.md").read_text(encoding="utf-8")


def exported(tmp_path, **facts):
    """A model of medical questions, which are pairs of texts in columns of their own, with further facts."""
    catalog = load_plugins()
    bench = Workbench(catalog.task("medical-qa-yes-no"), catalog)
    target = replace(bench.target, context=replace(bench.context, facts={**bench.context.facts, **facts}))
    save_artifact(tmp_path / "model", bench.load_model(), target, writer=None, variant="none", objective="accuracy")
    return autoft.export(tmp_path / "model", "safetensors", output=tmp_path / "out")


def test_pairs_in_columns_of_their_own_are_exported(tmp_path):
    done = exported(tmp_path)
    assert (done.agreement.rows, done.agreement.agreement) == (6, 1.0)


def test_what_was_decided_on_validation_goes_with_an_exported_model(tmp_path):
    point = {"temperature": 2.0, "threshold": 0.75, "coverage": 0.5, "risk": 0.1, "risk_of_all": 0.2}
    done = exported(tmp_path, operating_point=point)
    assert json.loads((done.path / "preprocessing.json").read_text())["operating_point"] == point
    assert "This code answers every question" in (done.path / "README.md").read_text(encoding="utf-8")


DOCUMENT = (
    "The bridge over the river was closed on Tuesday. Engineers had found cracks in two of its pillars. Repairs will take until the "
    "autumn, the town said. The library opens an hour later from Monday. It lacks staff for the early shift."
)
TOO_LONG = {
    # The beginning goes, but for the token that starts every text.
    "generation": (4, {"prompt": "A dog says A cat says"}),
    # The document loses its end, and not the request for a summary.
    "summarization": (64, {"document": DOCUMENT}),
    "translation": (
        48,
        {"source": "She reads a book. Where is the station? The train is late again. We are going home now."},
    ),
}


@pytest.mark.parametrize("task", TOO_LONG)
def test_the_code_of_the_card_reads_of_a_prompt_that_is_too_long_what_the_task_reads(task, trained, without, tmp_path):
    length, row = TOO_LONG[task]
    model = Path(shutil.copytree(trained(task, "decoder"), tmp_path / "model"))
    whole = autoft.load(model).context
    manifest = json.loads((model / "autoft.json").read_text())
    (model / "autoft.json").write_text(json.dumps({**manifest, "max_length": length}))
    loaded = autoft.load(model)
    done = autoft.export(model, "safetensors", output=tmp_path / "out")
    prompt = loaded.task.prompt(row, whole)
    ids = without.told(done.path, "inputs['input_ids'].tolist()", [f"<s>{prompt}"])
    assert ids == [loaded.task.encode([row], loaded.context)[0]["input_ids"]]
    assert len(whole.processor.source(f"<s>{prompt}", add_special_tokens=False).input_ids) > len(ids[0])


def test_the_code_of_the_card_has_a_token_see_all_others_where_the_task_has(without, tmp_path):
    from transformers import AutoTokenizer, LEDConfig, LEDForConditionalGeneration

    catalog = load_plugins()
    task = catalog.task("summarization")
    folder = tiny_model("seq2seq", tmp_path / "led", [str(row["document"]) for row in task.demo_rows()])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = LEDConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_encoder_position_embeddings=512,
        max_decoder_position_embeddings=64,
        attention_window=[8],
        init_std=0.5,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        forced_eos_token_id=None,
    )
    torch.manual_seed(0)
    LEDForConditionalGeneration(config).save_pretrained(folder)
    bench = Workbench(task, catalog, kind="seq2seq", model=folder)
    save_artifact(tmp_path / "model", bench.load_model(), bench.target, writer=None, variant="none", objective="rougeL")
    done = autoft.export(tmp_path / "model", "safetensors", output=tmp_path / "out")
    rows = [{"document": row["document"]} for row in task.demo_rows()[:2]]
    assert without.answers(done.path) == [answer["text"] for answer in autoft.load(tmp_path / "model").predict(rows)]


def test_the_page_has_all_tasks_and_formats():
    assert set(table()) >= {(task, format) for task in KINDS for format in FORMATS}


SUBJECTS = (
    {"text": "The striker scored twice.", "label": ["sport"]},
    {"text": "Parliament pays for the stadium.", "label": ["politics", "sport"]},
    {"text": "The minister resigned.", "label": ["politics"]},
    {"text": "The goalkeeper was injured.", "label": ["sport"]},
)
PAIRS = (
    {"text": "A dog runs.", "text_pair": "An animal moves.", "label": "follows"},
    {"text": "A dog runs.", "text_pair": "A dog sleeps.", "label": "contradicts"},
    {"text": "A child reads.", "text_pair": "Somebody reads.", "label": "follows"},
    {"text": "A child reads.", "text_pair": "Nobody reads.", "label": "contradicts"},
)


@pytest.mark.parametrize("format", ["safetensors", "onnx"])
@pytest.mark.parametrize("rows", [SUBJECTS, PAIRS], ids=["several labels", "pairs"])
def test_the_code_for_several_labels_and_for_pairs_answers_as_the_model_does(rows, format, without, tmp_path):
    from autoft_text_classification.task import TextClassification

    class Own(TextClassification):
        def demo_rows(self):
            return rows

    bench = Workbench(Own(), load_plugins())
    folder = tmp_path / "model"
    save_artifact(folder, bench.trained.model, bench.target, writer=None, variant="none", objective="accuracy")
    done = autoft.export(folder, format, output=tmp_path / "out")
    # The card asks the demo rows of the installed task, and where a second text is needed, each beside itself.
    demo = load_plugins().task("text-classification").demo_rows()[:2]
    asked = [{"text": row["text"], **({"text_pair": row["text"]} if rows is PAIRS else {})} for row in demo]
    expected = [answer.get("labels", answer.get("label")) for answer in autoft.load(folder).predict(asked)]
    assert [sorted(one) for one in without.answers(done.path)] == [sorted(one) for one in expected]
