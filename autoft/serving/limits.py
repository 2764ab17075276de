"""How a server gathers requests, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass

from autoft.errors import ServingError

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """What a server does at most; every part has a default that suits one machine on a desk.

    Attributes:
        batch_size: rows a forward pass, of one request or of several. None is 32 for models to which it makes no
            difference which rows go together, and 1 for others: where activations are quantized by the range that they have
            in a batch, the same row would get other answers in other company.
        wait: seconds that the first row of a batch waits for others. With 0 a batch is what came in while the model was
            busy with the one before, and a lone request waits for nothing.
        queue: rows that wait for the model; beyond, requests are told to come back later (503).
        rows: of one request (413).
        characters: of all texts of one field of a row (422); each entry of a list counts at least as one.
        body: bytes of one request (413).
        bodies: bytes of all requests together that have no answer yet (503); one request always finds room.
        pixels: of one image, as its header says, before anything is unpacked (422).
        timeout: seconds that a request takes: until all of it has come in (408), and until it has an answer (504).

    Raises:
        ServingError: a row would wait for others longer than its request may take.
    """

    batch_size: int | None = None
    wait: float = 0.0
    queue: int = 1024
    rows: int = 256
    characters: int = 100_000
    body: int = 10_000_000
    bodies: int = 100_000_000
    pixels: int = 50_000_000
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if self.wait >= self.timeout:
            raise ServingError(
                f"rows wait {self.wait:g} s for others (--wait), and a request may take {self.timeout:g} s (--timeout): give "
                "less of the first or more of the second"
            )
