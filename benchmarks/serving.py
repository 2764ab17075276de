"""A served model under load: throughput and latency with and without batching, and every answer compared.

    python benchmarks/serving.py RUN_OR_MODEL ROWS --clients 16 --requests 2000 --rounds 3 --core 1

Clients on loopback, each on a connection of its own, send one row, wait for the answer and send the next; one request in ten is
malformed. Each answer is compared with what ``predict`` says of its row alone. The settings take turns, so that what else the machine
does falls on all of them. Server and clients run on the same core, the server with one thread: throughput is that of both
together, and beside it stands the processor time of the server, which other work on the core does not change.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MALFORMED: list[tuple[bytes, int]] = [
    (b"{", 400),
    (b"[]", 400),
    (b"{}", 422),
    (b'{"text": 1}', 422),
    (b'{"txt": "a"}', 422),
    (b'{"rows": []}', 422),
    (b'{"rows": [{"text": "a"}, {"text": null}]}', 422),
]
"""Bodies that are refused by any model of one text, and with which status."""

MODES: dict[str, list[str]] = {
    "one at a time": ["--batch-size", "1"],
    "batches": ["--batch-size", "32"],
    "batches, wait 5 ms": ["--batch-size", "32", "--wait", "5ms"],
}


@dataclass
class Seen:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    drift: float = 0.0
    unexpected: int = 0
    wall: float = 0.0
    processor: float = 0.0
    batches: float = 0.0


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> tuple[int, bytes]:
    """Send one request on an open connection and return status and body of the answer."""
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    answer = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", answer)
    assert length is not None, answer
    return int(answer.split(b" ", 2)[1]), await reader.readexactly(int(length[1]))


async def client(port: int, work: list[tuple[bytes, Any]], seen: Seen) -> None:
    """Send requests one after the other; what is expected is a status, or the prediction."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while work:
        body, expected = work.pop()
        started = time.perf_counter()
        status, answer = await exchange(reader, writer, body)
        took = time.perf_counter() - started
        seen.statuses[status] += 1
        if isinstance(expected, int):
            seen.unexpected += status != expected
            continue
        seen.seconds.append(took)
        if status != 200:
            seen.unexpected += 1
            continue
        said = json.loads(answer)
        seen.wrong += said["label"] != expected["label"]
        seen.drift = max(seen.drift, *(abs(a - b) for a, b in zip(said["scores"], expected["scores"], strict=True)))
    writer.close()
    await writer.wait_closed()


def measure(model: Path, words: list[str], work: list[tuple[bytes, Any]], clients: int) -> Seen:
    """Start a server, send it the work, and end it."""
    import psutil

    process = subprocess.Popen(
        [sys.executable, "-m", "autoft", "serve", str(model), "--port", "0", "--threads", "1", *words],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = ""
        while "Example" not in said:
            line = process.stdout.readline()
            assert line, "the server did not start"
            said += line
        found = re.search(r"http://127\.0\.0\.1:(\d+)", said)
        assert found is not None
        port = int(found[1])
        seen, warm, watched = Seen(), Seen(), psutil.Process(process.pid)

        async def run() -> None:
            warm_up = work[:200]
            await asyncio.gather(*(client(port, warm_up, warm) for _ in range(clients)))
            before, started, left = watched.cpu_times(), time.perf_counter(), list(work)
            await asyncio.gather(*(client(port, left, seen) for _ in range(clients)))
            seen.wall = time.perf_counter() - started
            after = watched.cpu_times()
            seen.processor = after.user + after.system - before.user - before.system
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            text = (await reader.read()).decode()
            writer.close()
            rows, calls = (
                float(re.search(rf"autoft_batch_rows_{name} ([\d.]+)", text)[1])  # type: ignore[index]
                for name in ("sum", "count")
            )
            seen.batches = rows / calls

        asyncio.run(run())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        return seen
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path, help="a data file with a column that holds the text")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=2000, help="in each round of each setting")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, help="the core for server and clients; default: all")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    if given.core is not None:
        os.sched_setaffinity(0, {given.core})

    from dataclasses import replace

    import torch

    from autoft.artifact import load
    from autoft.data.columns import map_columns
    from autoft.data.sources import load_source

    torch.set_num_threads(1)
    loaded = load(given.model, device="cpu")
    card = replace(loaded.task.card, columns=loaded.task.inputs(loaded.context))
    table = map_columns(load_source(str(given.rows), base=Path.cwd(), where="rows"), card, {}, "rows")
    rows = table.slice(0, given.requests).to_pylist()
    # Each row by itself: what a served answer has to be.
    expected = [loaded.predict([row])[0] for row in rows]
    together = loaded.predict(rows)
    drift = max(
        abs(a - b)
        for one, other in zip(expected, together, strict=True)
        for a, b in zip(one["scores"], other["scores"], strict=True)
    )
    differing = sum(one["label"] != other["label"] for one, other in zip(expected, together, strict=True))
    print(
        f"{loaded.manifest.variant}: {len(rows)} rows; predict() in batches of 32 differs from predict() of each row in "
        f"{differing} labels, and in scores by {drift:.2e} at most"
    )
    del loaded
    rng = random.Random(given.seed)
    work: list[tuple[bytes, Any]] = [
        (json.dumps(rows[i % len(rows)]).encode(), expected[i % len(rows)]) for i in range(given.requests)
    ]
    work += [rng.choice(MALFORMED) for _ in range(given.requests // 9)]
    rng.shuffle(work)
    found: dict[str, list[Seen]] = {name: [] for name in MODES}
    for number in range(given.rounds):
        for name, words in MODES.items():
            seen = measure(given.model, words, work, given.clients)
            found[name].append(seen)
            lost = len(work) - seen.statuses.total()
            print(
                f"round {number + 1}, {name}: {len(seen.seconds) / seen.wall:.0f} rows/s, load {os.getloadavg()[0]:.1f}, "
                f"lost {lost}, other statuses than expected {seen.unexpected}, {dict(seen.statuses)}",
                flush=True,
            )
    print()
    print(
        "| | rows/s | p50 | p95 | processor time of the server, a row | rows a call | labels unlike predict | scores differ by |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, rounds in found.items():
        median = statistics.median
        p50 = median(statistics.quantiles(seen.seconds, n=100)[49] for seen in rounds)
        p95 = median(statistics.quantiles(seen.seconds, n=100)[94] for seen in rounds)
        print(
            f"| {name} | {median(len(seen.seconds) / seen.wall for seen in rounds):.0f} | {p50 * 1e3:.1f} ms "
            f"| {p95 * 1e3:.1f} ms | {median(seen.processor / len(seen.seconds) for seen in rounds) * 1e3:.2f} ms "
            f"| {median(seen.batches for seen in rounds):.1f} "
            f"| {max(seen.wrong for seen in rounds)} of {len(rounds[0].seconds)} | {max(seen.drift for seen in rounds):.1e} |"
        )


if __name__ == "__main__":
    main()
