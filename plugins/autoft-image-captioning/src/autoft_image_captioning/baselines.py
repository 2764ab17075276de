"""Captions without a transformer: the most frequent one, and that of the picture that looks most alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from autoft.contracts import Baseline, Prediction, Row
from autoft_image_captioning.pictures import descriptor, open_pictures
from autoft_image_captioning.texts import captions_of

__all__ = ["most_frequent", "nearest_picture"]

MOST_PICTURES = 5000
"""Training pictures that the nearest one is sought among: the first ones, which are a fair sample."""


def most_frequent(rows: Sequence[Row]) -> Baseline:
    """Return the baseline that always says the most frequent caption; of several the first in the alphabet."""
    counts = Counter(text for row in rows for text in captions_of(row))
    caption = min(counts, key=lambda text: (-counts[text], text))
    return Baseline("most frequent caption", lambda given: [{"caption": caption} for _ in given], trivial=True)


def nearest_picture(rows: Sequence[Row], threads: int = 1) -> Baseline:
    """Return the baseline that says the first caption of the training picture with the nearest descriptor."""
    import numpy as np

    known = list(rows[:MOST_PICTURES])
    captions = [captions_of(row)[0] for row in known]
    table = np.stack([descriptor(picture) for picture in open_pictures(known, threads)])
    lengths = (table**2).sum(1)

    def predict(given: Sequence[Row]) -> list[Prediction]:
        # The square of the distance, without the part that is the same for all.
        nearest = (np.argmin(lengths - 2 * table @ descriptor(picture)) for picture in open_pictures(given, threads))
        return [{"caption": captions[int(i)]} for i in nearest]

    return Baseline("caption of the nearest picture", predict)
