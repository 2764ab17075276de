"""What a served model costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoft.contracts import Served
from autoft.measures import Latency


@pytest.mark.parametrize(
    ("seconds", "warm", "timed"),
    [
        # Short requests are many; of long ones, as of a model that writes, a few do.
        (0.01, 5, 100),
        (0.125, 5, 33),
        (0.5, 3, 20),
        (1.0, 2, 17),
        (30.0, 1, 5),
    ],
)
def test_requests_are_as_many_as_their_length_leaves_time_for(seconds, warm, timed, monkeypatch):
    clock, asked = [0.0], []

    def predict(request):
        clock[0] += seconds
        asked.append(request)
        return []

    monkeypatch.setattr("autoft.measures.time.perf_counter", lambda: clock[0])
    rows = [{"text": str(number)} for number in range(3)]
    served = Served(folder=Path(), predict=predict, rows=rows, batch_size=1, peak_memory=lambda: 0)
    found = Latency().measure(served)
    assert len(asked) == warm + timed
    assert found == pytest.approx({"latency_p50_ms": 1e3 * seconds, "latency_p95_ms": 1e3 * seconds})
