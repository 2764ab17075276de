from __future__ import annotations

import base64
import copy
import io
import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from autoft_image_captioning.pictures import descriptor, open_picture, open_pictures, thumbnail
from autoft_image_captioning.texts import captions_of, train_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from autoft.contracts import ModelSource, Pictures, Table, Target
from autoft.errors import DataError, ModelError
from autoft.hardware import Hardware

KINDS = ("vit", "vit-bert", "blip", "git")


def images(rows):
    return [{"image": row["image"]} for row in rows]


def trained(task, model, rows, context, steps, rate=3e-3):
    """Train a few steps by hand."""
    features = task.encode(rows, context)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    for _ in range(steps):
        task.loss(model, task.collate(features, context), context).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def target_of(task, source, context):
    config = json.loads((Path(source.path) / "config.json").read_text())
    return Target(task, source, config, context, Hardware.probe_cpu())


# ------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_model_s_own(kind, task, ready, squares):
    source, context = ready(kind, squares, training_caption="first")
    model = task.load_model(source, context).eval()
    batch = task.collate(task.encode(squares[:5], context), context)
    if kind.startswith("vit"):
        own = model(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss
    else:
        # BLIP and GIT shift by themselves: the whole caption goes in, with the start in front.
        whole = torch.cat([batch["input_ids"], torch.zeros(5, 1, dtype=torch.long)], 1)
        mask = torch.cat([torch.ones(5, 1, dtype=torch.long), batch["attention_mask"]], 1)
        labels = torch.cat([torch.full((5, 1), -100), batch["labels"]], 1)
        whole[:, 1:] = torch.where(batch["labels"] >= 0, batch["labels"], 0)
        own = model(pixel_values=batch["pixel_values"], input_ids=whole, attention_mask=mask, labels=labels).loss
    assert task.loss(model, batch, context).item() == pytest.approx(own.item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_the_likeliest_tokens_one_after_the_other(kind, task, ready, squares):
    source, context = ready(kind, squares, max_new_tokens=7)
    torch.manual_seed(1)
    model = trained(task, task.load_model(source, context), squares[:12], context, 12)
    processor = context.processor
    pixels = processor.scaled(processor.pixels(squares[:3]))
    prefix = "decoder_" if kind.startswith("vit") else ""
    for row, picture in zip(squares[:3], pixels, strict=True):
        ids = [processor.start]
        while len(ids) < 8 and ids[-1] != processor.end:
            logits = model(pixel_values=picture[None], **{f"{prefix}input_ids": torch.tensor([ids])}).logits
            ids.append(int(logits[0, -1].argmax()))
        expected = processor.tokenizer.decode(ids[1:], skip_special_tokens=True).strip()
        assert task.predict(model, images([row]), context) == [{"caption": expected}]


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_a_trained_model_say_what_it_said(kind, task, ready, squares, tmp_path):
    source, context = ready(kind, squares)
    torch.manual_seed(1)
    model = trained(task, task.load_model(source, context), squares[:12], context, 6)
    model.save_pretrained(tmp_path)
    context.processor.save_pretrained(tmp_path)
    there = ModelSource(name="there", path=str(tmp_path))
    again = replace(context, processor=task.load_processor(there, context))
    assert (again.processor.start, again.processor.end) == (context.processor.start, context.processor.end)
    loaded = task.load_model(there, again)
    assert task.predict(loaded, images(squares), again) == task.predict(model, images(squares), context)
    assert task.score_targets(loaded, squares[:4], again) == task.score_targets(model, squares[:4], context)


def test_a_new_decoder_is_joined_to_the_encoder_as_it_is(task, ready, squares, checkpoints):
    from transformers import ViTModel

    source, context = ready("vit", squares, {"train.dropout": 0.25}, decoder_layers=2, decoder_width=48, vocabulary=320)
    model = task.load_model(source, context)
    assert type(model).__name__ == "VisionEncoderDecoderModel"
    assert (model.config.decoder.n_layer, model.config.decoder.n_embd) == (2, 48)
    assert model.config.decoder.vocab_size == len(context.processor.tokenizer) <= 320
    assert {m.p for m in model.decoder.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
    assert {m.p for m in model.encoder.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    expected = ViTModel.from_pretrained(checkpoints("vit")).state_dict()
    found = model.encoder.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert model.decoder.lm_head.weight is model.decoder.transformer.wte.weight


ENCODERS = {
    "deit": ("DeiT", {}),
    "beit": ("Beit", {}),
    "dinov2": ("Dinov2", {}),
    "clip": ("CLIP", None),
    "siglip": ("Siglip", None),
    "swin": ("Swin", {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "patch_size": 4, "window_size": 4}),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_other_encoders_are_joined_too(name, task, ready, squares, tmp_path):
    import transformers

    family, changes = ENCODERS[name]
    size = {"image_size": 32, "patch_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 24}
    size["intermediate_size"] = 32
    kind = getattr(transformers, f"{family}Config")
    if changes is None:
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        config = kind(vision_config=size, text_config={"vocab_size": 40, **tokens, **text})
    else:
        config = kind(**({k: v for k, v in size.items() if k == "image_size"} if name == "swin" else size), **changes)
    getattr(transformers, f"{family}Model")(config).save_pretrained(tmp_path)
    # Without a preprocessor_config.json, pictures go as the kind of model has them; CLIP's and DINOv2's are larger.
    source, context = ready(name, squares, folder=tmp_path, image_size=32)
    model = task.load_model(source, context)
    task.loss(model, task.collate(task.encode(squares[:2], context), context), context).backward()
    assert any(p.grad is not None and p.grad.any() for p in model.encoder.parameters())
    assert len(task.predict(model, images(squares[:2]), context)) == 2


def test_models_that_cannot_be_joined_are_refused(task, ready, squares, tmp_path):
    import transformers

    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}
    made = {
        "gives maps of features": transformers.MobileNetV2Model(transformers.MobileNetV2Config(depth_multiplier=0.1)),
        "neither a captioner nor a vision encoder": transformers.BertModel(
            transformers.BertConfig(vocab_size=40, **small)
        ),
        "hides patches at random": transformers.ViTMAEModel(
            transformers.ViTMAEConfig(image_size=32, patch_size=8, **small)
        ),
    }
    for i, (expected, model) in enumerate(made.items()):
        folder = tmp_path / str(i)
        model.save_pretrained(folder)
        source, context = ready("other", squares, folder=folder)
        with pytest.raises(ModelError, match=expected) as caught:
            task.load_model(source, context)
        assert str(caught.value).startswith(str(folder))


def test_pictures_of_another_size_go_through_resized_positions(task, ready, squares):
    for kind in ("vit", "blip", "git"):
        source, context = ready(kind, squares, image_size=48)
        model = task.load_model(source, context).eval()
        batch = task.collate(task.encode(squares[:2], context), context)
        assert batch["pixel_values"].shape == (2, 3, 48, 48)
        assert torch.isfinite(task.loss(model, batch, context))
        assert len(task.predict(model, images(squares[:2]), context)) == 2


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("model.safetensors", b"\x10\x00", "damaged|cannot be loaded"),
        ("config.json", b"{", "cannot be loaded"),
        ("config.json", b'{"model_type": "vitt"}', "cannot be loaded"),
        ("preprocessor_config.json", b"{", "the image processor cannot be loaded"),
    ],
)
def test_a_damaged_model_is_told_with_its_place(file, content, expected, task, ready, squares, checkpoints, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoints("vit"), folder)
    (folder / file).write_bytes(content)
    source, context = ready("vit", squares)
    damaged = replace(source, path=str(folder))

    def load():
        return task.load_model(damaged, replace(context, processor=task.load_processor(damaged, context)))

    with pytest.raises(ModelError, match=expected) as caught:
        load()
    assert str(caught.value).startswith(str(folder))


# --------------------------------------------------------------------------------------------------- strategies


@pytest.mark.parametrize("adapter", ["full", "head-only", "lora"])
def test_adapters_train_a_joined_model_and_merge_into_what_was_trained(adapter, task, ready, squares):
    from autoft.plugins import load_plugins

    source, context = ready("vit", squares, {"train.dropout": 0.0}, decoder_width=48)
    target = target_of(task, source, context)
    strategy = load_plugins().adapters[adapter]
    assert strategy.check(target) is None
    torch.manual_seed(0)
    new = [p.numel() for name, p in task.load_model(source, context).named_parameters() if "encoder" not in name]
    model = strategy.attach(
        task.load_model(source, context), target, {name: domain.default for name, domain in strategy.space.items()}
    )
    free = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(count for name, count in free.items() if ".encoder." not in f".{name}") == sum(new), "all that is new"
    assert any(".encoder." in f".{name}" for name in free) == (adapter != "head-only")
    before = task.score_targets(model, squares[:8], context)
    model = trained(task, model, squares[:8], context, 10)
    after = task.score_targets(model, squares[:8], context)
    assert sum(row["log_likelihood"] for row in after) > sum(row["log_likelihood"] for row in before)
    merged = strategy.merge(model, None, target)
    assert type(merged).__name__ == "VisionEncoderDecoderModel"
    for row, expected in zip(task.score_targets(merged, squares[:8], context), after, strict=True):
        assert row["log_likelihood"] == pytest.approx(expected["log_likelihood"], abs=1e-3)


@pytest.mark.parametrize("kind", ["vit-bert", "blip", "git"])
def test_head_only_refuses_models_that_write_already(kind, task, ready, squares):
    from autoft.plugins import load_plugins

    target = target_of(task, *ready(kind, squares))
    assert "has no new head" in load_plugins().adapters["head-only"].check(target).reason


@pytest.mark.parametrize("kind", ["vit", "blip"])
def test_int8_files_say_what_the_quantized_model_said(kind, task, ready, squares, tmp_path):
    from autoft.plugins import load_plugins

    source, context = ready(kind, squares)
    target = target_of(task, source, context)
    torch.manual_seed(0)
    model = trained(task, task.load_model(source, context), squares[:12], context, 20)
    compressor = load_plugins().compressors["dynamic-int8"]
    small = compressor.apply(model, target, squares, {})
    compressor.save(small, tmp_path)
    context.processor.save_pretrained(tmp_path)
    loaded = compressor.load(tmp_path, replace(target, source=replace(source, path=str(tmp_path))))
    assert task.predict(loaded, images(squares[:6]), context) == task.predict(small, images(squares[:6]), context)
    dense = np.array([row["log_likelihood"] for row in task.score_targets(model, squares[:6], context)])
    rounded = np.array([row["log_likelihood"] for row in task.score_targets(loaded, squares[:6], context)])
    assert np.abs(dense - rounded).max() < 0.5


# --------------------------------------------------------------------------------------------------- rows, facts


def test_predictions_depend_neither_on_other_rows_nor_on_the_batch(task, ready, squares):
    source, context = ready("vit", squares)
    torch.manual_seed(0)
    model = trained(task, task.load_model(source, context), squares[:12], context, 30)
    together = task.predict(model, images(squares[:9]), context, batch_size=4)
    assert together == [task.predict(model, images([row]), context)[0] for row in squares[:9]]
    assert task.predict(model, [], context) == []
    assert set(together[0]) == {"caption"}


def test_beams_find_captions_that_are_at_least_as_likely(task, ready, squares):
    source, greedy = ready("vit", squares, max_new_tokens=9)
    torch.manual_seed(0)
    model = trained(task, task.load_model(source, greedy), squares, greedy, 25)
    wide = replace(greedy, options={**greedy.options, "num_beams": 4})

    def likelihood(context):
        said = task.predict(model, images(squares[:6]), context)
        rows = [
            {"image": row["image"], "captions": found["caption"] or "a"}
            for row, found in zip(squares, said, strict=False)
        ]
        scored = task.score_targets(model, rows, context)
        return sum(row["log_likelihood"] / row["tokens"] for row in scored)

    assert likelihood(wide) >= likelihood(greedy) - 1e-3


def test_the_log_likelihood_is_that_of_the_first_caption(task, ready, squares):
    source, context = ready("vit", squares)
    model = task.load_model(source, context).eval()
    found = task.score_targets(model, squares[:5], context, batch_size=2)
    for row, scored in zip(squares[:5], found, strict=True):
        only = task.encode([{"image": row["image"], "captions": row["captions"][0]}], context)
        batch = task.collate(only, context)
        assert scored["tokens"] == len(only[0]["labels"][0])
        assert scored["log_likelihood"] == pytest.approx(
            -task.loss(model, batch, context).item() * scored["tokens"], rel=1e-5
        )


def test_label_smoothing_mixes_with_the_uniform_distribution(task, ready, squares):
    source, context = ready("vit", squares, {"train.label_smoothing": 0.2}, training_caption="first")
    model = task.load_model(source, context).eval()
    batch = task.collate(task.encode(squares[:1], context), context)
    logits = model(pixel_values=batch["pixel_values"], decoder_input_ids=batch["input_ids"]).logits[0]
    logs = functional.log_softmax(logits, -1)
    target = torch.full_like(logs, 0.2 / logs.shape[-1])
    target[range(len(logs)), batch["labels"][0]] += 0.8
    assert task.loss(model, batch, context).item() == pytest.approx(-(target * logs).sum(-1).mean().item(), rel=1e-5)


def test_one_of_several_captions_is_drawn_and_the_seed_decides_which(task, ready, squares):
    _, context = ready("vit", squares)
    features = task.encode(squares, context)

    def lengths(seed, **options):
        torch.manual_seed(seed)
        batch = task.collate(features, replace(context, options={**context.options, **options}))
        return batch["attention_mask"].sum(1).tolist()

    first = [len(feature["labels"][0]) for feature in features]
    second = [len(feature["labels"][1]) for feature in features]
    drawn = lengths(3)
    assert drawn == lengths(3)
    assert drawn != lengths(4)
    assert all(n in pair for n, pair in zip(drawn, zip(first, second, strict=True), strict=True))
    assert drawn not in (first, second)
    assert lengths(3, training_caption="first") == first


def test_long_captions_are_cut_and_keep_their_end(task, ready, squares):
    rows = [{**squares[0], "captions": "a red square " * 30}, *squares[1:]]
    source, context = ready("vit", rows)
    (ids,) = task.encode(rows[:1], context)[0]["labels"]
    assert len(ids) == context.max_length == 20
    assert ids[-1] == context.processor.end
    model = task.load_model(source, context)
    assert torch.isfinite(task.loss(model, task.collate(task.encode(rows[:1], context), context), context))


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(min_size=1).filter(lambda text: text.strip()), min_size=1, max_size=8))
def test_the_learned_tokenizer_gives_back_every_text(texts):
    tokenizer = train_tokenizer(texts, 400)
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text).ids) in (text, f" {text}")


def test_facts_are_plain_json_and_the_same_each_time(task, squares):
    options = {option.name: option.default for option in task.card.options}
    facts = task.facts(squares, options)
    assert json.loads(json.dumps(facts)) == facts == task.facts(squares, options)
    assert facts["usual"] <= facts["longest"] <= 7


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a dog\n on  grass ", ["a dog on grass"]),
        (["a dog", " ", None, "two dogs"], ["a dog", "two dogs"]),
        (("a dog",), ["a dog"]),
    ],
)
def test_captions_may_be_a_text_or_several(value, expected):
    assert captions_of({"captions": value}) == expected


@pytest.mark.parametrize("value", [None, "", [], ["", None], 3, ["a dog", 3], {"text": "a dog"}])
def test_captions_of_another_kind_are_told_with_the_row(value, task):
    rows = [{"image": "x.png", "captions": "a dog"}, {"image": "y.png", "captions": value}]
    with pytest.raises(DataError, match="training row 2: 'captions' has to be a text or a list of texts"):
        task.facts(rows, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [("vocabulary", 20), ("decoder_width", 2.5), ("num_beams", 0), ("image_size", "large"), ("decoder_layers", True)],
)
def test_options_that_cannot_be_are_told(name, value, task, squares):
    with pytest.raises(DataError, match=f"task_options.{name}: needs a whole number from"):
        task.facts(squares, {name: value})


# ----------------------------------------------------------------------------------------------------- pictures


def encoded(picture, kind="PNG", **settings):
    content = io.BytesIO()
    picture.save(content, kind, **settings)
    return content.getvalue()


def test_a_picture_may_be_a_path_bytes_or_both(tmp_path):
    picture = Image.new("RGB", (4, 4), (10, 200, 30))
    content, path = encoded(picture), tmp_path / "a.png"
    path.write_bytes(content)
    for value in (str(path), content, {"bytes": content, "path": None}, {"bytes": None, "path": str(path)}, picture):
        assert open_picture(value, "row 1").getpixel((1, 1)) == (10, 200, 30)


def test_no_picture_starts_a_program(tmp_path, monkeypatch):
    # Pillow hands EPS to whatever is called gs.
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(DataError, match="cannot identify image file"):
        open_picture(encoded(Image.new("RGB", (4, 4)), "EPS"), "row 1")
    assert not (tmp_path / "ran").exists()


def test_pictures_are_upright_and_without_holes():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    found = open_picture(encoded(clear), "row 1")
    assert (found.getpixel((0, 0)), found.getpixel((3, 3))) == ((255, 0, 0), (255, 255, 255))
    tall = Image.new("RGB", (2, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert open_picture(encoded(tall, "JPEG", exif=exif), "row 1").size == (6, 2)
    assert open_picture(encoded(Image.new("P", (3, 3))), "row 1").mode == "RGB"


@pytest.mark.parametrize(
    ("kind", "pixels"), [("PNG", np.uint16), ("TIFF", np.uint16), ("TIFF", np.int32), ("PPM", np.int32)]
)
def test_pictures_of_16_bits_keep_their_greys(kind, pixels):
    grey = np.arange(256).reshape(16, 16)
    found = open_picture(encoded(Image.fromarray((grey * 257).astype(pixels)), kind), "row 1")
    assert np.array_equal(np.asarray(found), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("values", [np.full((3, 3), 0.5, np.float32), np.full((3, 3), 2**20, np.int32)])
def test_pictures_of_numbers_without_a_known_range_are_refused(values):
    with pytest.raises(DataError, match="save it with 8 bits"):
        open_picture(encoded(Image.fromarray(values), "TIFF"), "row 1")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a.png cannot be read \(is no file\)"):
        open_picture({"bytes": None, "path": str(tmp_path / "a.png")}, "row 1")


def test_damaged_and_missing_pictures_are_told_with_row_and_file(task, ready, squares, tmp_path):
    whole = Path(squares[0]["image"]).read_bytes()
    cut, text = tmp_path / "cut.png", tmp_path / "notes.png"
    cut.write_bytes(whole[: len(whole) // 2])
    text.write_text("not a picture")
    _, context = ready("vit", squares)
    for value, expected in (
        (str(cut), f"row 2: the image {cut} cannot be read"),
        (str(text), f"row 2: the image {text} cannot be read"),
        (str(tmp_path / "gone.png"), f"row 2: there is no image {tmp_path}/gone.png"),
        (whole[:40], "row 2: the image of 40 bytes in the data cannot be read"),
        (None, "row 2: 'image' has to be a path, the bytes of a file"),
        ({"bytes": None, "path": None}, "row 2: 'image' has to be a path, the bytes of a file"),
        (17, "given int 17"),
        (str(tmp_path), "row 2: the image"),
    ):
        with pytest.raises(DataError, match=expected.replace("(", r"\(")):
            task.encode([squares[0], {**squares[1], "image": value}], context)


@settings(max_examples=40, deadline=None)
@given(place=st.integers(8, 700), value=st.binary(min_size=1, max_size=6))
def test_no_damage_ends_in_another_error(place, value):
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF"):
        content = encoded(Image.fromarray(rng.integers(0, 255, (12, 12, 3)).astype(np.uint8)), kind)
        at = place % len(content)
        broken = content[:at] + value + content[at + len(value) :]
        with suppress(DataError):
            assert open_picture(broken, "row 1").mode == "RGB"


def test_threads_keep_the_order_and_the_error_of_the_first_bad_row(squares):
    rows = images(squares)
    alone = [np.asarray(picture) for picture in open_pictures(rows)]
    together = [np.asarray(picture) for picture in open_pictures(rows, 3)]
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    with pytest.raises(DataError, match="row 107: there is no image"):
        list(open_pictures([*rows[:7], {"image": "gone.png"}, *rows], 3, first=100))


@pytest.mark.parametrize("name", ["vit", "deit", "dinov2", "clip", "blip", "siglip", "swin", "beit"])
def test_features_are_bytes_from_which_the_image_processor_s_own_floats_come(name, squares):
    import transformers
    from autoft_image_captioning.processor import CaptionProcessor
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    images_of = getattr(transformers, IMAGE_PROCESSOR_MAPPING_NAMES[name]["pil"])()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (301, 407, 3)).astype(np.uint8))
    processor = CaptionProcessor(images_of, None, 0, 1)
    (pixels,) = processor.pixels([{"image": picture}])
    assert pixels.dtype == np.uint8
    expected = images_of(images=[picture], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(processor.scaled([pixels]), expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------ baselines and report


def test_the_most_frequent_caption_is_said_of_every_picture(task, ready, squares):
    rows = [*squares[:4], {**squares[4], "captions": "a blue square on the left"}]
    _, context = ready("vit", squares)
    trivial, _ = task.baselines(rows, context)
    # "a red square on the left", "a green ...", "a blue square on the left" (twice), "one red square" (twice).
    assert trivial.trivial
    assert trivial.predict(images(squares[:2])) == [{"caption": "a blue square on the left"}] * 2


def test_the_nearest_picture_gives_its_caption(task, ready, squares):
    _, context = ready("vit", squares)
    *_, nearest = task.baselines(squares[:36], context)
    assert not nearest.trivial
    assert [row["caption"] for row in nearest.predict(images(squares[:36]))] == [r["captions"][0] for r in squares[:36]]
    right = [
        found["caption"] == row["captions"][0]
        for found, row in zip(nearest.predict(images(squares[36:])), squares[36:], strict=True)
    ]
    assert sum(right) >= 8, "of 12 new pictures, by colour and place"
    assert descriptor(Image.new("RGB", (50, 20), "red")).shape == (320,)


def test_the_report_shows_pictures_with_their_captions_best_first(task, ready, squares):
    _, context = ready("vit", squares)
    said = [{"caption": row["captions"][0] if i % 3 else "nothing of it"} for i, row in enumerate(squares[:20])]
    variety, best, worst = task.details(squares[:20], said, context)
    assert isinstance(variety, Table)
    assert variety.rows[0][1] == pytest.approx((7 * 3 + 13 * 6) / 20)
    assert isinstance(best, Pictures)
    assert len(best.pictures) == len(worst.pictures) == 10
    figures = [float(dict(picture.lines)["CIDEr-D"]) for picture in best.pictures]
    assert figures == sorted(figures, reverse=True)
    assert {dict(picture.lines)["predicted"] for picture in worst.pictures[:7]} == {"nothing of it"}
    for picture in (*best.pictures, *worst.pictures):
        kind, _, content = picture.image.partition(",")
        assert kind == "data:image/jpeg;base64"
        assert len(content) < 10_000
        assert Image.open(io.BytesIO(base64.b64decode(content))).size == (160, 160), "five times as large"


@pytest.mark.parametrize(
    ("size", "expected"), [((20, 10), (160, 80)), ((90, 30), (90, 30)), ((640, 480), (160, 120)), ((1, 500), (1, 160))]
)
def test_thumbnails_have_at_most_160_pixels_a_side(size, expected):
    _, _, content = thumbnail(Image.new("RGB", size)).partition(",")
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == expected


def test_references_are_all_captions_of_a_row(task, ready, squares):
    _, context = ready("vit", squares)
    assert task.reference(squares[0], context) == ["a red square on the left", "one red square"]
    assert task.reference({"captions": " a dog "}, context) == ["a dog"]


def test_demo_rows_can_be_learned_from(task, ready):
    rows = list(task.demo_rows())
    source, context = ready("vit", rows, image_size=32)
    model = task.load_model(source, context)
    first = task.loss(model, task.collate(task.encode(rows, context), context), context).item()
    torch.manual_seed(0)
    trained(task, model, rows, context, 40)
    assert task.loss(model, task.collate(task.encode(rows, context), context), context).item() < first / 2
    assert copy.deepcopy(rows) == list(task.demo_rows())
