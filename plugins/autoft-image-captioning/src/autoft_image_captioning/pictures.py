"""Pictures: what a row may hold, opened with Pillow; thumbnails for the report, and a small descriptor."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from autoft.errors import DataError
from autoft.pictures import rgb_picture

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

__all__ = ["descriptor", "open_picture", "open_pictures", "thumbnail"]

SIDE = 160
QUALITY = 70
CELLS = 8
ANGLES = 8


def open_picture(value: Any, where: str) -> Image:
    """Return a picture in RGB, turned upright as its EXIF says, transparent parts on white.

    Args:
        value: a path, the bytes of a file, ``{"bytes", "path"}`` as the datasets library keeps it, or a Pillow image.
        where: the row, for messages.

    Raises:
        DataError: it is none of these, the file is not there, or it is no whole picture.
    """
    source, name = _source(value, where)
    try:
        return rgb_picture(source)
    except FileNotFoundError:
        raise DataError(f"{where}: there is no image {name}") from None
    except Exception as error:
        # Pillow's decoders raise errors of many kinds on damaged files.
        lines = str(error).strip().splitlines()
        raise DataError(
            f"{where}: the image {name} cannot be read ({lines[0] if lines else type(error).__name__})"
        ) from error


def _source(value: Any, where: str) -> tuple[Any, str]:
    from PIL import Image

    if isinstance(value, Mapping):
        content, path = value.get("bytes"), value.get("path")
        return (io.BytesIO(content), path or "in the data") if content is not None else _source(path, where)
    if isinstance(value, bytes | bytearray):
        return io.BytesIO(value), f"of {len(value)} bytes in the data"
    if isinstance(value, str) and value.strip():
        return value, value
    if isinstance(value, Image.Image):
        return value, "given"
    given = "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"
    raise DataError(f"{where}: 'image' has to be a path, the bytes of a file, or {{'bytes', 'path'}}; given {given}")


def open_pictures(rows: Sequence[Mapping[str, Any]], threads: int = 1, first: int = 1) -> Iterator[Image]:
    """Return the picture of each row, in order, some read ahead by threads.

    Args:
        rows: with ``image``.
        threads: how many read at a time.
        first: the number of the first row, for messages.

    Raises:
        DataError: as :func:`open_picture`.
    """

    def opened(i: int) -> Image:
        return open_picture(rows[i].get("image"), f"row {first + i}")

    if threads < 2 or len(rows) < 2:
        yield from map(opened, range(len(rows)))
        return
    with ThreadPoolExecutor(threads) as pool:
        # map() starts all at once; in slices, no more pictures are held than are worked on.
        for start in range(0, len(rows), 8 * threads):
            yield from pool.map(opened, range(start, min(start + 8 * threads, len(rows))))


def thumbnail(picture: Image) -> str:
    """Return a picture as a data URI: JPEG of at most 160 pixels a side, a few kilobytes.

    Icons are enlarged by a whole number, so that every pixel stays a square.
    """
    from PIL import Image

    factor = SIDE // max(picture.size)
    if factor > 1:
        small = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    else:
        small = picture.copy()
        small.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"


def descriptor(picture: Image) -> np.ndarray:
    """Return what a picture looks like from afar, ``(320,)``: colours and directions of edges.

    The mean colour of 8 by 8 cells (192 numbers), and a histogram of eight gradient directions, weighted by strength,
    of 4 by 4 cells (128 numbers), as in HOG (Dalal & Triggs 2005); both parts of the same length.
    """
    import numpy as np
    from PIL import Image

    side = 4 * CELLS
    pixels = np.asarray(picture.resize((side, side), Image.Resampling.BOX), dtype=np.float64) / 255
    colours = pixels.reshape(CELLS, 4, CELLS, 4, 3).mean((1, 3)).ravel()
    down, right = np.gradient(pixels.mean(2))
    angle = ((np.arctan2(down, right) / (2 * np.pi)) % 1.0 * ANGLES).astype(int) % ANGLES
    strength = np.hypot(down, right)
    cells = np.arange(side) * (CELLS // 2) // side
    place = (cells[:, None] * (CELLS // 2) + cells[None, :]) * ANGLES + angle
    edges = np.bincount(place.ravel(), strength.ravel(), minlength=(CELLS // 2) ** 2 * ANGLES)
    parts = [part / (np.linalg.norm(part) or 1.0) for part in (colours - colours.mean(), edges)]
    return np.concatenate(parts)
