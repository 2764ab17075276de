"""Augmentation of pictures, with Pillow alone; a changed picture is a PNG file in bytes, of the size that it had."""

from __future__ import annotations

import base64
import io
import math
import random
import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from autoft.contracts import Augmenter, Refusal, Row, Target, TaskCard
from autoft.pictures import rgb_picture
from autoft.space import Float, SearchSpace

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ColourJitter", "HorizontalFlip", "PictureAugmenter", "RandomErasing", "RandomResizedCrop", "shown_picture"]

_SIDES = re.compile(
    r"\b(left\w*|right\w*|links?|linke\w*|rechts?|rechte\w*|gauche|droite?|izquierd\w+|derech\w+|sinistr\w+|destr\w+"
    r"|esquerd\w+|direit\w+)\b|[左右]|왼|오른|лев|прав",
    re.IGNORECASE,
)
"""Left and right in English, German, French, Spanish, Italian, Portuguese, Chinese, Japanese, Korean and Russian."""


class PictureAugmenter(Augmenter):
    """What the augmenters of pictures share. A picture that cannot be read stays, for the task to say what is wrong."""

    rewrites: ClassVar[frozenset[str]] = frozenset({"image"})
    invalidates: ClassVar[frozenset[str]] = frozenset()

    def check(self, target: Target) -> Refusal | None:
        """Refuse tasks without pictures."""
        card = target.task.card
        if not self._roles(card):
            return Refusal(f"{self.name}: rewrites columns of kind image, and {card.name} reads none")
        return super().check(target)

    def augment(
        self, row: Row, card: TaskCard, rng: random.Random, params: Mapping[str, Any], learned: Any = None
    ) -> Row:
        """Return a copy of the row with each picture of its inputs changed.

        Args:
            row: pictures are paths, bytes of a file, ``{bytes, path}``, or Pillow images.
            card: says which columns are pictures.
            rng: all randomness comes from it.
            params: of this augmenter.
            learned: nothing.
        """
        changed = dict(row)
        if self.spares(row, card):
            return changed
        for role in self._roles(card):
            picture = _opened(row.get(role))
            if picture is not None:
                content = io.BytesIO()
                self.change(picture, rng, params).save(content, "PNG", compress_level=1)
                changed[role] = content.getvalue()
        return changed

    def spares(self, row: Row, card: TaskCard) -> bool:
        """Say whether a change would make something else in the row wrong."""
        return False

    @abstractmethod
    def change(self, picture: Image, rng: random.Random, params: Mapping[str, Any]) -> Image:
        """Return a changed picture of the same size, in RGB as the one given."""

    def _roles(self, card: TaskCard) -> list[str]:
        return [column.role for column in card.inputs if column.kind == "image"]


class HorizontalFlip(PictureAugmenter):
    """Mirror pictures left to right; rows in whose texts a word for left or right stands keep theirs.

    Such words are known of ten languages; letters and signs within pictures are mirrored too.

    Method: horizontal reflections of Krizhevsky et al. 2012 (doi:10.1145/3065386, section 4.1).
    """

    name: ClassVar[str] = "horizontal-flip"
    summary: ClassVar[str] = "mirror pictures, where no text says left or right"

    def spares(self, row: Row, card: TaskCard) -> bool:
        """Say whether a text of the row, its captions among them, names a side."""
        return any(_names_a_side(row.get(column.role)) for column in card.columns if column.kind != "image")

    def change(self, picture: Image, rng: random.Random, params: Mapping[str, Any]) -> Image:
        """Return the mirrored picture."""
        from PIL import Image

        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


class RandomResizedCrop(PictureAugmenter):
    """Cut out a random part, of ``area`` or more of the picture and of 3:4 to 4:3 of its proportions, and enlarge it.

    Method: the crops of Inception (Szegedy et al. 2014, arXiv:1409.4842, section 6), which go down to .08 of the
    picture; captions speak of all that is seen, so that half of it is kept by default.
    """

    name: ClassVar[str] = "random-resized-crop"
    summary: ClassVar[str] = "cut out a random part of pictures and enlarge it"
    space: ClassVar[SearchSpace] = {"area": Float(0.2, 0.95, default=0.5)}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"area": 0.5},)

    def change(self, picture: Image, rng: random.Random, params: Mapping[str, Any]) -> Image:
        """Return the enlarged part."""
        from PIL import Image

        area = rng.uniform(float(params["area"]), 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        # Sides as shares of the picture's, so that the part has the drawn area, cut to what there is.
        wide, high = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
        width, height = max(1.0, wide * picture.width), max(1.0, high * picture.height)
        left, top = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - height)
        box = (left, top, left + width, top + height)
        return picture.resize(picture.size, Image.Resampling.BICUBIC, box=box)


class ColourJitter(PictureAugmenter):
    """Change brightness, contrast and saturation, each by a factor from ``1 - strength`` to ``1 + strength``.

    The hue stays, as captions name colours.

    Method: photometric distortions of Howard 2013 (arXiv:1312.5402, section 2.2); SimCLR (Chen et al. 2020,
    arXiv:2002.05709) takes a strength of .8, fine-tuning usually .4 or less.
    """

    name: ClassVar[str] = "colour-jitter"
    summary: ClassVar[str] = "change brightness, contrast and saturation of pictures"
    space: ClassVar[SearchSpace] = {"strength": Float(0.05, 0.8, default=0.3)}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"strength": 0.3},)

    def change(self, picture: Image, rng: random.Random, params: Mapping[str, Any]) -> Image:
        """Return the picture in other light; the three changes come in random order."""
        from PIL import ImageEnhance

        strength = float(params["strength"])
        kinds = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
        rng.shuffle(kinds)
        for kind in kinds:
            picture = kind(picture).enhance(rng.uniform(1 - strength, 1 + strength))
        return picture


class RandomErasing(PictureAugmenter):
    """Fill a random rectangle, of .02 to ``area`` of the picture and of 3:10 to 10:3, with random pixels.

    Method: random erasing (Zhong et al. 2017, arXiv:1708.04896, algorithm 1 and section 5.1, where area is .4).
    """

    name: ClassVar[str] = "random-erasing"
    summary: ClassVar[str] = "fill a random rectangle of pictures with random pixels"
    space: ClassVar[SearchSpace] = {"area": Float(0.02, 0.4, default=0.2)}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"area": 0.4},)

    def change(self, picture: Image, rng: random.Random, params: Mapping[str, Any]) -> Image:
        """Return the picture with a rectangle filled; it stays where ten draws give none that fits."""
        from PIL import Image

        for _ in range(10):
            area = rng.uniform(0.02, float(params["area"])) * picture.width * picture.height
            ratio = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            width, height = max(1, round(math.sqrt(area / ratio))), max(1, round(math.sqrt(area * ratio)))
            if width < picture.width and height < picture.height:
                left, top = rng.randint(0, picture.width - width), rng.randint(0, picture.height - height)
                noise = Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height))
                changed = picture.copy()
                changed.paste(noise, (left, top))
                return changed
        return picture


def _opened(value: Any) -> Image | None:
    """Return a picture in RGB, upright, transparent parts on white; None where it is no picture."""
    from PIL import Image

    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes | bytearray):
        value = io.BytesIO(value)
    elif not isinstance(value, str | Image.Image):
        return None
    try:
        return rgb_picture(value)
    except Exception:  # noqa: BLE001 - Pillow raises many kinds; the row stays, and the task tells of it by its number
        return None


def shown_picture(value: Any) -> str:
    """Return a picture as a data URI of at most 160 pixels a side; an empty text where it cannot be read."""
    picture = _opened(value)
    if picture is None:
        return ""
    picture.thumbnail((160, 160))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=70)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def _names_a_side(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_names_a_side, value))
    return isinstance(value, str) and _SIDES.search(value) is not None
