"""Pictures as models see them, opened with Pillow."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FORMATS", "rgb_picture"]

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that Pillow reads by itself: for others, as EPS, it starts a program."""


def rgb_picture(source: str | IO[bytes] | Image) -> Image:
    """Return a picture in RGB of 8 bits, turned upright as its EXIF says, transparent parts on white.

    Args:
        source: a path, a file, or a Pillow image.

    Raises:
        ValueError: its numbers have no known range.
        Exception: it is no whole picture; Pillow's decoders raise errors of many kinds.
    """
    import numpy as np
    from PIL import Image, ImageOps

    # Opening a pipe waits for whoever writes into it.
    if isinstance(source, str) and os.path.exists(source) and not os.path.isfile(source):
        raise ValueError("is no file")
    picture = ImageOps.exif_transpose(
        source if isinstance(source, Image.Image) else Image.open(source, formats=FORMATS)
    )
    if picture.mode.startswith("I"):
        # Pillow's own conversion cuts off at 255, and all but the darkest grey becomes white.
        values = np.asarray(picture, dtype=np.int64)
        if values.min() < 0 or values.max() > 2**16 - 1:
            raise ValueError("holds whole numbers beyond 16 bits; save it with 8 bits a channel")
        picture = Image.fromarray((values // 257).astype(np.uint8))
    elif picture.mode == "F":
        raise ValueError("holds floating-point numbers of no known range; save it with 8 bits a channel")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture.convert("RGB")
