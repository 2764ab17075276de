"""Draw the pictures of shapes.yaml, and write a small vision transformer with random weights.

    python recipes/image-captioning/make_data.py

All of it is made here with Pillow: the captions follow from what is drawn, so nothing is copied and every caption is
true. A picture of 40 pixels shows one or two groups of one or two shapes, with noise, on a ground of changing
brightness. Two groups have two captions, one from the view of each ("two red circles left of a blue square", "a blue
square right of two red circles"). Four of the twenty pairs of colour and shape never occur in training and
validation (HELD_OUT); each test picture shows one of them.

Writes data/shapes/{train,validation,test}.jsonl with the pictures beside them, and data/vit: a ViT of transformers
that has learned nothing, to be trained from scratch with the decoder. The same files come out each time.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

FOLDER = Path(__file__).parent / "data"
SIDE = 40
COUNTS = {"train": 8000, "validation": 200, "test": 400}
NUMBERS = {1: "a", 2: "two"}
COLOURS = {
    "red": (214, 48, 40),
    "green": (52, 160, 70),
    "blue": (45, 90, 200),
    "yellow": (236, 196, 40),
    "purple": (140, 60, 170),
}
SHAPES = ("circle", "square", "triangle", "cross")
HELD_OUT = {("red", "triangle"), ("green", "cross"), ("blue", "circle"), ("yellow", "square")}
OPPOSITE = {"left of": "right of", "above": "below"}


def group_words(group: tuple[int, str, str]) -> str:
    """Return a group in words, as "two red circles"."""
    count, colour, shape = group
    plural = "" if count == 1 else "es" if shape == "cross" else "s"
    return f"{NUMBERS[count]} {colour} {shape}{plural}"


def draw_shape(
    canvas: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, fill: tuple[int, ...]
) -> None:
    """Draw one shape around a point."""
    if shape == "circle":
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif shape == "square":
        edge = radius * 0.9
        canvas.rectangle((x - edge, y - edge, x + edge, y + edge), fill=fill)
    elif shape == "triangle":
        corners = [(x + radius * 1.15 * math.sin(a), y - radius * 1.15 * math.cos(a)) for a in (0, 2.094, 4.189)]
        canvas.polygon(corners, fill=fill)
    else:
        arm = radius * 0.38
        canvas.rectangle((x - radius, y - arm, x + radius, y + arm), fill=fill)
        canvas.rectangle((x - arm, y - radius, x + arm, y + radius), fill=fill)


def draw_scene(rng: random.Random, groups: list[tuple[int, str, str]], relation: str | None) -> Image.Image:
    """Draw one group over the whole picture, or two that lie as the relation says."""
    # Drawn four times as large and scaled down, so that edges are soft.
    scale = 4
    ground = rng.randint(196, 250)
    picture = Image.new("RGB", (SIDE * scale, SIDE * scale), tuple(ground + rng.randint(-5, 5) for _ in range(3)))
    canvas = ImageDraw.Draw(picture)
    end, middle = SIDE - 2.0, SIDE / 2
    fields = [(2.0, 2.0, end, end)]
    if relation == "left of":
        fields = [(2.0, 2.0, middle - 1, end), (middle + 1, 2.0, end, end)]
    elif relation == "above":
        fields = [(2.0, 2.0, end, middle - 1), (2.0, middle + 1, end, end)]
    for (count, colour, shape), (left, top, right, bottom) in zip(groups, fields, strict=True):
        radius = rng.uniform(6.0, 7.5)
        places: list[tuple[float, float]] = []
        while len(places) < count:
            place = (rng.uniform(left + radius, right - radius), rng.uniform(top + radius, bottom - radius))
            if all(math.dist(place, other) > 2.1 * radius for other in places):
                places.append(place)
            elif rng.random() < 0.02:
                # No room: smaller shapes, from the start.
                radius, places = radius * 0.9, []
        for x, y in places:
            fill = tuple(max(0, min(255, part + rng.randint(-18, 18))) for part in COLOURS[colour])
            draw_shape(canvas, shape, x * scale, y * scale, radius * scale, fill)
    picture = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    grain = Image.frombytes("RGB", picture.size, rng.randbytes(SIDE * SIDE * 3))
    picture = Image.blend(picture, grain, rng.uniform(0.02, 0.06))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.4)))


def scene(rng: random.Random, held_out: bool) -> tuple[list[tuple[int, str, str]], str | None]:
    """Return groups and relation; one group is of a held-out pair where asked for, and none is otherwise."""
    known = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT]
    pairs = rng.sample(known, 1 if rng.random() < 0.25 else 2)
    if held_out:
        pairs[rng.randrange(len(pairs))] = rng.choice(sorted(HELD_OUT))
    groups = [(rng.randint(1, 2), *pair) for pair in pairs]
    return groups, None if len(groups) == 1 else rng.choice(sorted(OPPOSITE))


def write_split(name: str) -> None:
    """Draw the pictures of a split, and write its rows."""
    rng = random.Random(f"shapes-{name}")
    images = FOLDER / "shapes" / name
    images.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "shapes" / f"{name}.jsonl").open("w", encoding="utf-8") as rows:
        for i in range(COUNTS[name]):
            groups, relation = scene(rng, held_out=name == "test")
            draw_scene(rng, groups, relation).save(images / f"{i:05d}.png")
            captions = [group_words(groups[0])]
            if relation:
                first, second = map(group_words, groups)
                captions = [f"{first} {relation} {second}", f"{second} {OPPOSITE[relation]} {first}"]
            rows.write(json.dumps({"image": f"{name}/{i:05d}.png", "captions": captions}) + "\n")


def write_vit() -> None:
    """Write a ViT with random weights for pictures of this size, as a folder of transformers."""
    import torch
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=SIDE,
        patch_size=10,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(FOLDER / "vit")
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(FOLDER / "vit")


if __name__ == "__main__":
    for split in COUNTS:
        write_split(split)
    write_vit()
