# python benchmarks/faults.py --rounds 5
"""Does a search lose work: faults at random times, for real, and the same command again.

Each round is a search of BERT-tiny on a few movie reviews, by the command, as a user calls it. At a random moment of it
one of these happens:

- ``command``, ``worker``, ``child``, ``all``: kill -9 of the command, of a worker, of a process that a worker started, or
  of all of them at once;
- ``start``: kill -9 of a worker that was just started;
- ``stop``, ``hang``: SIGSTOP of a worker, or of a process that a worker or the command started, so that it waits for ever;
- ``test``, ``freeze``: kill -9 or SIGSTOP of a process that scores the chosen model, the default or the baselines, at a random
  moment of it;
- ``interrupt``, ``end``: one Ctrl-C, or SIGTERM;
- ``cut``, ``flip``, ``lose``: all are killed, and a random file of the run folder loses its end, has a bit changed, or is
  deleted: as often a trial's result or weights as all other files together;
- ``disk``: in the middle of a trial another program fills the disk up to some megabytes, and makes room again afterwards (a tmpfs;
  needs root). A disk that is too small from the start does not come to that: no trial is begun on it.

Then the same command is called until it says that it is done, at most three times. Written down are whether each call
ended with 0 or with one clear message, and whether

- a trial that was finished has another record now (*changed*), or is gone (*lost*);
- a trial is missing in the end, or the exported model scores otherwise than the report says, by ``autoft verify`` (*wrong*);
- anything printed a traceback (*traceback*);
- a process is left (*left*);
- a call took more than ten times what the undisturbed search took (*hung*).

*Struck* are the rounds in which the fault found what it was meant for: a process that was still there, a search that went on.

    python benchmarks/faults.py --rounds 5 --seed 0 --out faults.jsonl

With ``--out``, rounds that the file holds already are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from reviews import DATA, MODEL

TRIALS = 4
COMMAND = [sys.executable, "-m", "autoft"]
KINDS = (
    "command",
    "worker",
    "child",
    "all",
    "start",
    "stop",
    "hang",
    "test",
    "freeze",
    "interrupt",
    "end",
    "cut",
    "flip",
    "lose",
    "disk",
)
DAMAGES = ("cut", "flip", "lose")
CALLS = 3
ROOM = 40e6
"""Bytes that are left of a disk that is filled, at most: a trial writes more."""

Round = dict[str, Any]


def write_recipe(folder: Path, seed: int) -> Path:
    """Write the recipe of a search of some seconds."""
    recipe = {
        "task": "text-classification",
        "name": "faults",
        "model": MODEL,
        "data": {
            "train": DATA,
            "where": {"source": "rotten_tomatoes"},
            "limit": 500,
            "validation_size": 100,
            "test_size": 100,
        },
        "budget": {"time": "10m", "trials": TRIALS},
        "effort": "quick",
        "pipelines": ["full", "lora"],
        "compress": ["none", "dynamic-int8"],
        "search": {"finalist_seeds": 0, "seed": seed},
        # A search of this size has nothing that takes long.
        "executor": {"threads": 1, "patience": "10s"},
    }
    path = folder / "faults.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def records(run: Path) -> dict[int, dict[str, Any]]:
    """Return the records of finished trials that can be read, without the places of files, which go with time."""
    found = {}
    for path in run.glob("trials/*/result.json"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue
        for variant in record.get("variants", ()):
            variant.pop("folder", None)
        found[int(path.parent.name)] = record
    return found


def processes(folder: Path) -> list[psutil.Process]:
    """Return what runs for a folder: commands, workers and what they started."""
    found: dict[int, psutil.Process] = {}
    for one in psutil.process_iter(["cmdline"]):
        words = " ".join(one.info["cmdline"] or ())
        if str(folder) in words and one.pid != os.getpid():
            with suppress(psutil.NoSuchProcess):
                found |= {each.pid: each for each in [one, *one.children(recursive=True)]}
    return list(found.values())


def _words(process: psutil.Process) -> list[str]:
    """Return the command line of a process; none of one that has ended."""
    try:
        words: list[str] = process.cmdline()
    except psutil.NoSuchProcess:
        words = []
    return words


def strike(kind: str, command: subprocess.Popen[str], folder: Path, drawn: random.Random) -> bool:
    """Let a fault happen to processes; return whether there was something that it could happen to."""
    if kind in {"interrupt", "end"}:
        command.send_signal(signal.SIGINT if kind == "interrupt" else signal.SIGTERM)
        return True
    if kind == "command":
        command.kill()
        return True
    there = [one for one in processes(folder) if one.pid != command.pid]
    workers, others = list[psutil.Process](), list[psutil.Process]()
    for one in there:
        (workers if "autoft.executors.worker" in " ".join(_words(one)) else others).append(one)
    if kind == "all":
        chosen = processes(folder)
    else:
        from_these = workers if kind in {"worker", "start", "stop"} else others
        if kind in {"test", "freeze"}:
            from_these = [one for one in others if "autoft.evaluation" in _words(one)]
        chosen = [drawn.choice(from_these)] if from_these else []
    if kind in {"start", "test", "freeze"} and chosen:
        # Anywhere in its imports, or in its work.
        time.sleep(drawn.uniform(0.0, 2.0 if kind == "start" else 6.0))
    struck = False
    for one in chosen:
        with suppress(psutil.NoSuchProcess):
            struck |= one.status() != psutil.STATUS_ZOMBIE
            one.send_signal(signal.SIGSTOP if kind in {"stop", "hang", "freeze"} else signal.SIGKILL)
    return struck


def fill(disk: Path, trial: Path, drawn: random.Random) -> bool:
    """Fill the disk of a run up to some megabytes, once a trial is begun and not done; return whether it is."""
    if not (trial / "config.json").is_file() or (trial / "result.json").is_file():
        return False
    # Anywhere in it: in what it writes of a training, or of its variants.
    time.sleep(drawn.uniform(0.0, 4.0))
    room = int(drawn.uniform(0.0, ROOM))
    with (disk / "other").open("wb") as file:
        # The trial goes on writing meanwhile.
        while (size := shutil.disk_usage(disk).free - room) > 0:
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, size)
                break
    return True


def damage(kind: str, run: Path, drawn: random.Random) -> str:
    """Cut, change or delete a random file of a run; return which."""
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size)
    if not files:
        return ""
    weights = [path for path in files if path.suffix in {".safetensors", ".onnx"}]
    results = [path for path in files if path.name == "result.json"]
    path = drawn.choice(drawn.choice([some for some in (results, weights, files) if some]))
    content = path.read_bytes()
    place = drawn.randrange(len(content))
    if kind == "lose":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[:place])
    else:
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << drawn.randrange(8))]) + content[place + 1 :])
    return str(path.relative_to(run))


def call(recipe: Path, run: Path) -> subprocess.Popen[str]:
    """Start the command; all that it prints goes to a file beside the recipe."""
    words = [*COMMAND, "search", str(recipe), "--run", str(run)]
    with recipe.with_suffix(".log").open("w", encoding="utf-8") as log:
        return subprocess.Popen(words, cwd=recipe.parent, stdout=log, stderr=subprocess.STDOUT, text=True)


def ended(command: subprocess.Popen[str], recipe: Path, limit: float) -> tuple[int | None, str]:
    """Wait for a command; return its exit code, or None where it had to be killed, and what it printed."""
    try:
        code: int | None = command.wait(limit)
    except subprocess.TimeoutExpired:
        command.kill()
        command.wait()
        code = None
    return code, recipe.with_suffix(".log").read_text(encoding="utf-8", errors="replace")


def play(kind: str, number: int, seed: int, usual: float) -> Round:
    """Make one round; ``usual`` is what the undisturbed search takes, in seconds."""
    drawn = random.Random(f"{seed} {kind} {number}")
    folder = Path(tempfile.mkdtemp(prefix="autoft-faults-"))
    disk = folder / "disk"
    disk.mkdir()
    run = disk / "run"
    found: Round = {"kind": kind, "number": number, "seed": seed, "faults": [], "codes": []}
    if kind == "disk":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", str(disk)], check=True)
    try:
        recipe = write_recipe(folder, seed)
        command = call(recipe, run)
        at = 0.0 if kind in {"start", "test", "freeze", "disk"} else drawn.uniform(0.0, usual)
        trial = run / "trials" / f"{drawn.randrange(TRIALS):04d}"
        found["at"] = f"{at:.1f} s" if kind != "disk" else f"trial {trial.name}"
        begin = time.monotonic()
        while command.poll() is None and time.monotonic() - begin < at:
            time.sleep(0.02)
        # What it is to happen to may not be there yet, or any more.
        struck = False
        while command.poll() is None and not struck:
            struck = (
                fill(disk, trial, drawn)
                if kind == "disk"
                else strike("all" if kind in DAMAGES else kind, command, folder, drawn)
            )
            time.sleep(0.02)
        found["struck"] = struck
        code, text = ended(command, recipe, 10 * usual)
        texts = [text]
        found["codes"].append(code)
        if code == -signal.SIGKILL:
            # Workers notice that nobody listens any more.
            deadline = time.monotonic() + 30
            while processes(folder) and time.monotonic() < deadline:
                time.sleep(0.1)
        finished = records(run)
        found["finished"] = len(finished)
        if kind in DAMAGES:
            found["file"] = damage(kind, run, drawn)
            # A file can be damaged after the end as well.
            found["struck"] = bool(found["file"])
            if "result.json" in found["file"]:
                finished.pop(int(Path(found["file"]).parent.name), None)
        (disk / "other").unlink(missing_ok=True)
        for _ in range(CALLS):
            code, text = ended(call(recipe, run), recipe, 10 * usual)
            found["codes"].append(code)
            texts.append(text)
            if code == 0:
                break
        said = [
            text[-400:] for code, text in zip(found["codes"], texts, strict=True) if code not in {0, -signal.SIGKILL}
        ]
        found["said"] = "\n".join(said)
        now = records(run)
        if None in found["codes"]:
            found["faults"].append("hung")
        if any("Traceback" in text for text in texts):
            found["faults"].append("traceback")
            found["said"] = next(text for text in texts if "Traceback" in text)[-1500:]
        if any(trial not in now for trial in finished):
            found["faults"].append("lost")
        if any(now.get(trial, record) != record for trial, record in finished.items()):
            found["faults"].append("changed")
        if code == 0:
            words = [*COMMAND, "verify", str(run)]
            same = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
            if same.returncode or len(now) < TRIALS:
                found["faults"].append("wrong")
                found["said"] = f"{len(now)} trials; {same.stdout[-300:]}{same.stderr[-600:]}"
        else:
            found["faults"].append("refused")
        if processes(folder):
            found["faults"].append("left")
    finally:
        for one in processes(folder):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        if kind == "disk":
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
        shutil.rmtree(folder, ignore_errors=True)
    return found


def undisturbed(seed: int) -> float:
    """Return how long the search takes where nothing happens, in seconds."""
    with tempfile.TemporaryDirectory(prefix="autoft-faults-") as name:
        folder = Path(name)
        begin = time.monotonic()
        recipe = write_recipe(folder, seed)
        code, text = ended(call(recipe, folder / "run"), recipe, 600)
        if code != 0:
            sys.exit(f"the undisturbed search ended with {code}:\n{text}")
        return time.monotonic() - begin


def main() -> None:
    """Play the rounds and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no round is begun any more")
    parser.add_argument("--out", type=Path, help="a file with one line of JSON a round")
    given = parser.parse_args()
    done: dict[tuple[str, int, int], Round] = {}
    if given.out and given.out.is_file():
        for line in given.out.read_text(encoding="utf-8").splitlines():
            one = json.loads(line)
            done[one["kind"], one["number"], one["seed"]] = one
    last = time.monotonic() + 60 * given.minutes
    usual = undisturbed(given.seed)
    print(f"undisturbed: {usual:.1f} s", file=sys.stderr, flush=True)
    played = []
    for number in range(given.rounds):
        for kind in given.kinds:
            known = done.get((kind, number, given.seed))
            if known is None and time.monotonic() > last:
                continue
            found = known or play(kind, number, given.seed, usual)
            played.append(found)
            if (kind, number, given.seed) not in done:
                print(json.dumps(found), file=sys.stderr, flush=True)
                if given.out:
                    with given.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(found) + "\n")
    columns = ("lost", "changed", "wrong", "traceback", "left", "hung", "refused")
    print(f"| fault | rounds | struck | trials finished before it | {' | '.join(columns)} |")
    print("| --- " * (4 + len(columns)) + "|")
    for kind in given.kinds:
        rounds = [one for one in played if one["kind"] == kind]
        counts = Counter(fault for one in rounds for fault in one["faults"])
        before = sum(one["finished"] for one in rounds)
        struck = sum(one["struck"] for one in rounds)
        print(f"| {kind} | {len(rounds)} | {struck} | {before} | {' | '.join(str(counts[name]) for name in columns)} |")


if __name__ == "__main__":
    main()
