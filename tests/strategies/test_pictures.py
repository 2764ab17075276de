from __future__ import annotations

import base64
import io
import os
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.contracts import Column, TaskCard
from autoft.strategies.pictures import (
    ColourJitter,
    HorizontalFlip,
    RandomErasing,
    RandomResizedCrop,
    shown_picture,
)

CARD = TaskCard(
    name="captions",
    summary="pictures and captions",
    columns=(Column("image", "image", ""), Column("captions", "texts", "", target=True)),
    metrics=("cider",),
    architecture="image-text-to-text",
)
AUGMENTERS = [HorizontalFlip(), RandomResizedCrop(), ColourJitter(), RandomErasing()]
each = pytest.mark.parametrize("augmenter", AUGMENTERS, ids=lambda augmenter: augmenter.name)


def picture(width=20, height=12, seed=0):
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image):
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def pixels_of(value):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(value)).convert("RGB")).astype(int)


def changed(augmenter, image, seed=0, caption="a picture", **params):
    params = {name: domain.default for name, domain in augmenter.space.items()} | params
    row = {"image": image, "captions": [caption]}
    return augmenter.augment(row, CARD, random.Random(seed), params)


@each
@settings(deadline=None, max_examples=40)
@given(width=st.integers(1, 40), height=st.integers(1, 40), seed=st.integers(0, 99), share=st.floats(0, 1))
def test_a_picture_of_any_size_keeps_it_and_repeats_itself(augmenter, width, height, seed, share):
    params = {name: domain.low + share * (domain.high - domain.low) for name, domain in augmenter.space.items()}
    given_ = png(picture(width, height))
    once, again = (changed(augmenter, given_, seed, **params) for _ in range(2))
    assert once == again
    assert pixels_of(once["image"]).shape == (height, width, 3)
    assert once["captions"] == ["a picture"]


@each
def test_every_form_of_a_picture_is_read(augmenter, tmp_path):
    image = picture()
    path = tmp_path / "one.png"
    path.write_bytes(png(image))
    forms = [png(image), str(path), {"bytes": png(image), "path": None}, {"bytes": None, "path": str(path)}, image]
    answers = [changed(augmenter, form, seed=3)["image"] for form in forms]
    assert len(set(answers)) == 1
    assert answers[0] != png(image)


@each
@pytest.mark.parametrize("value", [b"no picture", "no/such/file.png", None, 3, {"path": None}])
def test_what_cannot_be_read_stays_for_the_task_to_tell(augmenter, value):
    assert changed(augmenter, value)["image"] == value


@each
def test_transparent_parts_are_white_and_turned_pictures_upright(augmenter):
    from PIL import Image

    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    if augmenter.name == "horizontal-flip":
        assert (pixels_of(changed(augmenter, png(clear))["image"]) == 255).all()
    content = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(20, 12).save(content, "JPEG", exif=exif)
    assert pixels_of(changed(augmenter, content.getvalue())["image"]).shape == (20, 12, 3)


def test_a_flip_mirrors():
    image = picture()
    assert (pixels_of(changed(HorizontalFlip(), png(image))["image"]) == np.asarray(image)[:, ::-1]).all()


@pytest.mark.parametrize(
    "caption",
    ["a dog on the left", "LEFT", "turning right", "rechts ein Haus", "左边有一只猫", "à gauche", "слева дом"],
)
def test_captions_with_a_side_keep_their_picture(caption):
    given_ = png(picture())
    assert changed(HorizontalFlip(), given_, caption=caption)["image"] == given_
    assert changed(HorizontalFlip(), given_, caption="a bright house, cleft in two")["image"] != given_


def test_a_crop_is_a_part_enlarged():
    from PIL import Image

    # Left half black, right half white: what a crop shows of each tells where it was cut.
    image = Image.new("RGB", (100, 100))
    image.paste((255, 255, 255), (50, 0, 100, 100))
    white = [
        (pixels_of(changed(RandomResizedCrop(), png(image), s, area=0.2)["image"]) > 127).mean() for s in range(200)
    ]
    # A part of .2 or more, as high as 4:3 and so at least sqrt(.15) wide, may lie on one side alone or in the middle.
    assert min(white) < 0.02
    assert max(white) > 0.98
    assert np.mean(white) == pytest.approx(0.5, abs=0.08)
    gentle = [
        (pixels_of(changed(RandomResizedCrop(), png(image), s, area=0.95)["image"]) > 127).mean() for s in range(60)
    ]
    assert min(gentle) > 0.35
    assert max(gentle) < 0.65


def test_jitter_stays_within_its_factors():
    from PIL import Image

    # On a grey of one shade contrast and saturation change nothing, so that brightness alone is seen.
    image = Image.new("RGB", (6, 6), (100, 100, 100))
    seen = [
        int(pixels_of(changed(ColourJitter(), png(image), seed, strength=0.3)["image"])[0, 0, 0]) for seed in range(300)
    ]
    assert 69 <= min(seen) <= 75
    assert 125 <= max(seen) <= 131
    assert np.mean(seen) == pytest.approx(100, abs=4)


def test_erasing_changes_one_rectangle_of_the_drawn_area():
    image = picture(60, 50)
    shares = []
    for seed in range(200):
        differs = (pixels_of(changed(RandomErasing(), png(image), seed, area=0.4)["image"]) != np.asarray(image)).any(2)
        rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
        if len(rows) == 0:
            continue
        box = differs[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        # Noise equals the pixel beneath it once in 256 ** 3.
        assert box.mean() > 0.99
        shares.append(box.size / differs.size)
    assert len(shares) > 190
    assert 0.015 < min(shares) < 0.06
    assert 0.3 < max(shares) <= 0.42


def test_the_report_shows_small_pictures():
    from PIL import Image

    uri = shown_picture(png(picture(600, 300)))
    content = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(content)).size == (160, 80)
    assert shown_picture("no/such/file.png") == ""


@each
def test_tasks_without_pictures_are_refused(augmenter, make_target, tmp_path):
    assert augmenter.check(make_target(tmp_path, columns=CARD.columns)) is None
    assert augmenter.check(make_target(tmp_path)).reason.startswith(f"{augmenter.name}: rewrites columns of kind image")


def test_no_picture_starts_a_program_or_waits_for_a_pipe(tmp_path, monkeypatch):
    from PIL import Image

    # Pillow hands EPS to whatever is called gs.
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "EPS")
    assert shown_picture(content.getvalue()) == ""
    assert not (tmp_path / "ran").exists()
    os.mkfifo(tmp_path / "a.png")
    assert shown_picture(str(tmp_path / "a.png")) == ""
