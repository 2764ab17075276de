"""One thread that asks the model, and the rows that wait for it: of one request or of many, they go together.

The thread takes what waits, up to a batch, and never two batches at once: models are not to be called from several
threads, and one call for many rows is cheaper than many calls.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from autoft.contracts import Prediction, Row
from autoft.errors import DataError, out_of_memory

__all__ = ["Batcher", "Closed", "Failure", "QueueFull"]

log = logging.getLogger("autoft.serving")


class QueueFull(Exception):
    """As many rows wait as may; ``retry_after`` are the seconds after which there may be room."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"full; come back in {retry_after:.3g} s")
        self.retry_after = retry_after


class Closed(Exception):
    """The server is about to end and takes nothing more."""


@dataclass(frozen=True)
class Failure:
    """Why a row has no prediction.

    Attributes:
        kind: ``row``: the task cannot use it; ``memory``: there was too little; ``model``: an error of the model.
        message: for the caller; empty where the reason is nobody else's business, and in the log.
    """

    kind: str
    message: str = ""


@dataclass
class _Job:
    """A request: its rows, the answers so far, and who waits for them."""

    rows: Sequence[Row]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[list[Prediction | Failure]]
    answers: list[Prediction | Failure | None] = field(default_factory=list)
    left: int = 0

    def __post_init__(self) -> None:
        self.answers = [None] * len(self.rows)
        self.left = len(self.rows)


class Batcher:
    """Gathers rows of concurrent requests into batches for a model.

    Args:
        predict: returns one prediction a row; called from one thread only.
        batch_size: rows a call, at most.
        wait: seconds that the first row of a batch waits for others.
        capacity: rows that wait, at most. A request that has more rows finds room only where nothing waits.
        observe: told the rows and the seconds of each call.
    """

    def __init__(
        self,
        predict: Callable[[list[Row]], Sequence[Prediction]],
        *,
        batch_size: int,
        wait: float,
        capacity: int,
        observe: Callable[[int, float], None] = lambda rows, seconds: None,
    ) -> None:
        self._predict = predict
        self._batch_size = batch_size
        self._wait = wait
        self._capacity = capacity
        self._observe = observe
        self._waiting: deque[tuple[_Job, int, float]] = deque()
        self._changed = threading.Condition()
        self._closed = True
        self._seconds_a_row = 0.0
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Rows that wait now."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """The thread runs and takes rows."""
        return self._thread is not None and self._thread.is_alive() and not self._closed

    def start(self) -> None:
        """Begin to answer; again, too, once it was closed."""
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="autoft-model", daemon=True)
        self._thread.start()

    async def close(self, timeout: float | None = None) -> None:
        """Take nothing more, answer what waits, and end the thread.

        Args:
            timeout: seconds after which a model that does not come back is left alone; it ends with the process.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, timeout)
            if self._thread.is_alive():
                log.warning("the model did not come back within %g s; %d rows have no answer", timeout, self.waiting)

    def submit(self, rows: Sequence[Row]) -> asyncio.Future[list[Prediction | Failure]]:
        """Return what will be a prediction or a failure for each row; cancelling it gives its rows up.

        Raises:
            QueueFull: too many rows wait.
            Closed: the server is about to end.
        """
        loop = asyncio.get_running_loop()
        job = _Job(rows, loop, loop.create_future())
        now = time.monotonic()
        with self._changed:
            if self._closed:
                raise Closed
            if len(self._waiting) + len(rows) > self._capacity:
                self._waiting = deque(entry for entry in self._waiting if not entry[0].future.done())
            if self._waiting and len(self._waiting) + len(rows) > self._capacity:
                raise QueueFull(max(1.0, len(self._waiting) * self._seconds_a_row))
            self._waiting.extend((job, i, now) for i in range(len(rows)))
            self._changed.notify()
        job.future.add_done_callback(self._given_up)
        return job.future

    def _given_up(self, future: asyncio.Future[list[Prediction | Failure]]) -> None:
        """Let go of the rows of a request that nobody waits for any more; the model may take long to come to them."""
        if future.cancelled():
            with self._changed:
                self._waiting = deque(entry for entry in self._waiting if entry[0].future is not future)

    def _work(self) -> None:
        while batch := self._next():
            rows = [job.rows[i] for job, i in batch]
            started = time.monotonic()
            answers = self._answers(rows)
            seconds = time.monotonic() - started
            share = seconds / len(rows)
            self._seconds_a_row = 0.9 * self._seconds_a_row + 0.1 * share if self._seconds_a_row else share
            self._observe(len(rows), seconds)
            self._deliver(batch, answers)

    def _next(self) -> list[tuple[_Job, int]]:
        """Return the rows to answer together; none once the server is to end and nothing waits."""
        with self._changed:
            while True:
                if not self._waiting:
                    if self._closed:
                        return []
                    self._changed.wait()
                    continue
                left = self._waiting[0][2] + self._wait - time.monotonic()
                if left > 0 and len(self._waiting) < self._batch_size and not self._closed:
                    self._changed.wait(left)
                    continue
                # Who has gone away, or waited too long, needs no answer; there may be nobody else.
                if found := self._taken():
                    return found

    def _taken(self) -> list[tuple[_Job, int]]:
        found: list[tuple[_Job, int]] = []
        while self._waiting and len(found) < self._batch_size:
            job, i, _ = self._waiting.popleft()
            if not job.future.done():
                found.append((job, i))
        return found

    def _answers(self, rows: list[Row]) -> list[Prediction | Failure]:
        """Return what the model says; where it raises, the halves by themselves, down to the row that is to blame."""
        try:
            found = list(self._predict(rows))
            if len(found) != len(rows):
                raise RuntimeError(f"the model gave {len(found)} predictions for {len(rows)} rows")
            return list(found)
        # A panic of the tokenizers, which are written in Rust, is no Exception; nothing may end the thread.
        except BaseException as error:
            if len(rows) == 1:
                if isinstance(error, DataError):
                    return [Failure("row", str(error))]
                log.exception("the model failed on a row")
                return [Failure("memory" if out_of_memory(error) else "model")]
        # Not in the handler: while an error is handled, its traceback holds what the model had computed in memory.
        half = len(rows) // 2
        return self._answers(rows[:half]) + self._answers(rows[half:])

    def _deliver(self, batch: list[tuple[_Job, int]], answers: list[Prediction | Failure]) -> None:
        for (job, i), answer in zip(batch, answers, strict=True):
            job.answers[i] = answer
            job.left -= 1
        done: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
        for job in {id(job): job for job, _ in batch}.values():
            if job.left == 0:
                done.setdefault(job.loop, []).append(job)
        for loop, jobs in done.items():
            try:
                loop.call_soon_threadsafe(_finish, jobs)
            except RuntimeError:
                # The loop is closed: nobody waits for these answers any more.
                log.warning("%d answers came after the server had ended", len(jobs))


def _finish(jobs: list[_Job]) -> None:
    for job in jobs:
        if not job.future.done():
            job.future.set_result([answer for answer in job.answers if answer is not None])
