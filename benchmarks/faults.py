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
- ``interrupt``, ``end``, ``hangup``: one Ctrl-C, SIGTERM, or SIGHUP as of a terminal that is closed;
- ``second``: the same command is called on the same folder, and has to end with 5;
- ``cut``, ``flip``, ``zero``, ``swap``, ``lose``: a file loses its end, has a bit changed, ends in zeros as after a power cut,
  changes places with another of its class, or is deleted. This happens to a copy of a folder: of the search that nothing
  happened to, or of one that was killed at a random moment. Classes are results, weights, the exported model, the prepared data,
  all other records, and the study that is shared (a journal or SQLite);
- ``disk``: in the middle of a trial another program fills the disk up to some megabytes, and makes room again afterwards (a tmpfs;
  needs root). A disk that is too small from the start does not come to that: no trial is begun on it;
- ``read-only``: all are killed, and the command is called while the disk is read-only, too.

Then the same command is called until it says that it is done, at most three times. Written down are whether each call
ended with 0 or with one clear message, and whether

- a trial that was finished has another record now (*changed*), or is gone (*lost*); not the one whose record or kept files were
  damaged, which is done again or has another in its place;
- a trial is missing in the end, or the exported model scores otherwise than the report says, by ``autoft verify`` (*wrong*);
- anything printed a traceback (*traceback*);
- a process is left (*left*);
- a call took more than ten times what the undisturbed search took (*hung*).

*Struck* are the rounds in which the fault found what it was meant for: a process that was still there, a search that went on.
Processes are struck at a moment at which the undisturbed search had such a one. The next round is always of the kind, and of the
class of files, that was struck least so far.

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
from dataclasses import dataclass
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
    "hangup",
    "second",
    "cut",
    "flip",
    "zero",
    "swap",
    "lose",
    "disk",
    "read-only",
)
DISKS = ("disk", "read-only")
SIGNALS = {"interrupt": signal.SIGINT, "end": signal.SIGTERM, "hangup": signal.SIGHUP, "command": signal.SIGKILL}
DAMAGES = ("cut", "flip", "zero", "swap", "lose")
CLASSES = ("result", "weights", "model", "data", "record", "study")
CALLS = 3
BUSY = 5
"""The exit code where another command is at the run."""
ROOM = 40e6
"""Bytes that are left of a disk that is filled, at most: a trial writes more."""

Round = dict[str, Any]


@dataclass(frozen=True)
class Usual:
    """The search that nothing happened to."""

    seconds: float
    folder: Path
    """A copy of all it left."""
    killed: Path
    """What one left that was killed at a random moment."""
    seen: dict[str, list[float]]
    """By kind of fault, at which seconds there was a process that it could happen to."""


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
        "storage": f"sqlite:///{folder}/study.db" if seed % 2 else f"journal://{folder}/study.journal",
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


def victims(kind: str, command: int, folder: Path) -> list[psutil.Process]:
    """Return the processes that a kind of fault may happen to."""
    there = [one for one in processes(folder) if one.pid != command]
    workers = [one for one in there if "autoft.executors.worker" in _words(one)]
    if kind in {"worker", "start", "stop"}:
        return workers
    others = [one for one in there if one not in workers]
    if kind not in {"test", "freeze"}:
        return others
    measuring = {one for worker in workers for one in _children(worker)}
    return [one for one in others if "autoft.fork_server" in _words(one) and one not in measuring]


def _children(process: psutil.Process) -> list[psutil.Process]:
    """Return what a process started, and what that did; none of one that has ended."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def strike(kind: str, command: subprocess.Popen[str], folder: Path, drawn: random.Random) -> bool:
    """Let a fault happen to processes; return whether there was something that it could happen to."""
    if kind in SIGNALS:
        command.send_signal(SIGNALS[kind])
        return True
    if kind == "all":
        chosen = processes(folder)
    else:
        there = victims(kind, command.pid, folder)
        chosen = [drawn.choice(there)] if there else []
    if kind == "start" and chosen:
        # Anywhere in its imports.
        time.sleep(drawn.uniform(0.0, 2.0))
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


def files_of(name: str, folder: Path) -> list[Path]:
    """Return the files of a class, of a folder that has ``disk/run`` and the study."""
    run = folder / "disk" / "run"
    found = list[Path]()
    for path in sorted(one for one in folder.rglob("*") if one.is_file() and one.stat().st_size):
        if path.parent == folder:
            part = "study" if path.name.startswith("study") else ""
        elif path.name == "result.json":
            part = "result"
        elif "best" in path.relative_to(run).parts:
            part = "model"
        elif path.suffix in {".safetensors", ".onnx"}:
            part = "weights"
        elif "data" in path.relative_to(run).parts:
            part = "data"
        else:
            # Nobody reads again what is printed.
            part = "record" if path.suffix in {".json", ".jsonl", ".yaml", ".csv"} else ""
        if part == name:
            found.append(path)
    return found


def damage(kind: str, name: str, folder: Path, drawn: random.Random) -> list[Path]:
    """Damage a random file of a class; return which, with ``swap`` both."""
    files = files_of(name, folder)
    if len(files) <= (kind == "swap"):
        return []
    path = drawn.choice(files)
    content = path.read_bytes()
    place = drawn.randrange(len(content))
    if kind == "swap":
        same = [one for one in files if one.suffix == path.suffix and one.read_bytes() != content]
        if not same:
            return []
        other = drawn.choice(same)
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        return [path, other]
    if kind == "lose":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[:place])
    elif kind == "zero":
        path.write_bytes(content[:place] + bytes(len(content) - place))
    else:
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << drawn.randrange(8))]) + content[place + 1 :])
    return [path]


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


def settle(folder: Path) -> None:
    """Wait until workers have noticed that nobody listens any more."""
    deadline = time.monotonic() + 30
    while processes(folder) and time.monotonic() < deadline:
        time.sleep(0.1)


def disturb(kind: str, folder: Path, recipe: Path, usual: Usual, drawn: random.Random, found: Round) -> list[str]:
    """Run the search and let a fault happen; return what was printed."""
    disk = folder / "disk"
    run = disk / "run"
    command = call(recipe, run)
    seen = usual.seen.get(kind, [])
    at = drawn.choice(seen) if seen else 0.0 if kind in {"start", "disk"} else drawn.uniform(0.0, usual.seconds)
    trial = run / "trials" / f"{drawn.randrange(TRIALS):04d}"
    found["at"] = f"{at:.1f} s" if kind != "disk" else f"trial {trial.name}"
    begin = time.monotonic()
    while command.poll() is None and time.monotonic() - begin < at:
        time.sleep(0.02)
    # What it is to happen to may not be there yet, or any more.
    struck, texts = False, list[str]()
    while command.poll() is None and not struck:
        if kind == "disk":
            struck = fill(disk, trial, drawn)
        elif kind == "second":
            other = Path(shutil.copy(recipe, folder / "second.yaml"))
            code, text = ended(call(other, run), other, 10 * usual.seconds)
            found["codes"].append(code)
            texts.append(text)
            # The first may have ended meanwhile.
            struck = code == BUSY or command.poll() is None
        else:
            struck = strike("all" if kind == "read-only" else kind, command, folder, drawn)
        time.sleep(0.02)
    found["struck"] = struck
    code, text = ended(command, recipe, 10 * usual.seconds)
    found["codes"].append(code)
    texts.append(text)
    if code == -signal.SIGKILL:
        settle(folder)
    if kind == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        # The folder of a search that is done is written to as well.
        found["struck"] = True
        code, text = ended(call(recipe, run), recipe, 10 * usual.seconds)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        found["codes"].append(code)
        texts.append(text)
    return texts


def play(kind: str, name: str, number: int, seed: int, usual: Usual) -> Round:
    """Make one round, with damages to a file of the class ``name``."""
    drawn = random.Random(f"{seed} {kind} {number}")
    folder = Path(tempfile.mkdtemp(prefix="autoft-faults-"))
    disk = folder / "disk"
    disk.mkdir()
    run = disk / "run"
    found: Round = {"kind": kind, "number": number, "seed": seed, "faults": [], "codes": []}
    if kind in DISKS:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", str(disk)], check=True)
    try:
        texts, begin = list[str](), time.monotonic()
        if kind in DAMAGES:
            # What was killed may not have come to files of this class.
            of = drawn.choice([usual.folder, *([usual.killed] if files_of(name, usual.killed) else [])])
            found["of"] = of.name
            shutil.copytree(of, folder, dirs_exist_ok=True)
        recipe = write_recipe(folder, seed)
        if kind not in DAMAGES:
            texts = disturb(kind, folder, recipe, usual, drawn, found)
        finished = records(run)
        found["finished"] = len(finished)
        if kind in DAMAGES:
            damaged = damage(kind, name, folder, drawn)
            found |= {
                "class": name,
                "file": [str(path.relative_to(folder)) for path in damaged],
                "struck": bool(damaged),
            }
            for path in damaged:
                if path.is_relative_to(run / "trials"):
                    finished.pop(int(path.relative_to(run / "trials").parts[0]), None)
        (disk / "other").unlink(missing_ok=True)
        for _ in range(CALLS):
            code, text = ended(call(recipe, run), recipe, 10 * usual.seconds)
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
        if any(trial in now and now[trial] != record for trial, record in finished.items()):
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
        found["seconds"] = round(time.monotonic() - begin, 1)
    finally:
        for one in processes(folder):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        if kind in DISKS:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
        shutil.rmtree(folder, ignore_errors=True)
    return found


def undisturbed(seed: int, kept: Path) -> Usual:
    """Search where nothing happens, and once more until a random moment; both are kept in a folder."""
    seen: dict[str, list[float]] = {kind: [] for kind in ("worker", "stop", "child", "hang", "test", "freeze")}
    seconds = 0.0
    for name in ("whole", "killed"):
        folder = kept / name
        (folder / "disk").mkdir(parents=True)
        recipe = write_recipe(folder, seed)
        begin = time.monotonic()
        command = call(recipe, folder / "disk" / "run")
        if name == "killed":
            # Half of what is damaged there has a trial at least.
            time.sleep(random.Random(seed).uniform(0.4, 1.0) * seconds)
            strike("all", command, folder, random.Random(seed))
            command.wait()
            settle(folder)
            continue
        while command.poll() is None:
            at = time.monotonic() - begin
            for kind, moments in seen.items():
                moments += [at] if victims(kind, command.pid, folder) else []
            time.sleep(1.0)
        code, text = ended(command, recipe, 600)
        if code != 0:
            sys.exit(f"the undisturbed search ended with {code}:\n{text}")
        seconds = time.monotonic() - begin
    return Usual(seconds, kept / "whole", kept / "killed", seen)


def least_struck(played: list[Round], kinds: list[str], drawn: random.Random) -> tuple[str, str]:
    """Return the kind of the next round and, with damages, the class of files; a round that missed counts half."""

    def made(rounds: list[Round]) -> float:
        return sum(1.0 if one["struck"] else 0.5 for one in rounds)

    kind = min(kinds, key=lambda kind: (made([one for one in played if one["kind"] == kind]), drawn.random()))
    if kind not in DAMAGES:
        return kind, ""

    def of(name: str, rounds: list[Round]) -> float:
        return made([one for one in rounds if one.get("class") == name])

    same = [one for one in played if one["kind"] == kind]
    # Of studies there is one.
    names = [name for name in CLASSES if kind != "swap" or name != "study"]
    return kind, min(names, key=lambda name: (of(name, same), of(name, played), drawn.random()))


def main() -> None:
    """Play the rounds and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no round is begun any more")
    parser.add_argument("--out", type=Path, help="a file with one line of JSON a round")
    given = parser.parse_args()
    # What ignores a signal, as all that a shell or nohup runs in the background, hands that on: no search could be interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, lambda *_: None)
    played = list[Round]()
    if given.out and given.out.is_file():
        played = [json.loads(line) for line in given.out.read_text(encoding="utf-8").splitlines()]
    last = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory(prefix="autoft-faults-") as kept:
        usual = undisturbed(given.seed, Path(kept))
        print(f"undisturbed: {usual.seconds:.1f} s", file=sys.stderr, flush=True)
        drawn = random.Random(given.seed)
        while len(played) < given.rounds * len(given.kinds) and time.monotonic() < last:
            kind, name = least_struck(played, given.kinds, drawn)
            number = sum(one["kind"] == kind for one in played)
            found = play(kind, name, number, given.seed, usual)
            played.append(found)
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
