# python benchmarks/fuzz.py recipe --minutes 10 --corpus fuzz/recipe
"""Does input of any kind end in work or in one clear message: coverage-guided fuzzing with Atheris (libFuzzer).

    pip install atheris
    python benchmarks/fuzz.py TARGET --minutes 10 --corpus fuzz/TARGET [--run RUN]

Targets:

- ``recipe``: the bytes of a recipe file;
- ``plan``: a legal recipe some of whose keys have another value, read and planned as ``autoft explain`` does;
- ``data``: the bytes of a data file of each kind that a search reads, read, and drafted for as ``autoft init`` does;
- ``run``: files of a run folder with other keys and values, or with some bytes changed, cut or repeated, read as all commands do
  that neither train nor load a model;
- ``model``: the same for the settings of a run's models and the notes of its data: loaded, asked, and now and then exported;
- ``resume``: the same for all files of a run folder, and its search called again (its time is used up, so that nothing is trained);
- ``request``: the body of a request to the server of a run's model;
- ``plugins``: an installed distribution with any ``METADATA`` and ``entry_points.txt``, whose hooks return what is not asked for.

An exception that is no :class:`autoft.errors.AutoftError`, a message of more than 20,000 characters or of none, an answer of the
server that is neither JSON nor below 500, a file that is written outside of the scratch folder or read in a folder that is none
of the run's business, more than 2 GB of memory or half a minute for one input is a finding: libFuzzer stops, and leaves the input
beside the corpus; ``--input FILE`` tries one again, ``--keep`` goes on after a finding and counts those that are alike once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import gzip
import io
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import atheris

REPOSITORY = Path(__file__).parents[1]
LONGEST_MESSAGE = 20_000
LONGEST_SECONDS = 30.0
ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".csv.gz", ".parquet", ".arrow")
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 0.5, 1e-5, -0.0, 1e308, float("nan"), float("inf"), 10**30, "", " ", "0", "1h", "5ms", "20MB", "-1GB",
    "1e400s", "auto", "none", "lora", "full", "onnx-int8", "é" * 40, "x" * 3000, "~nobody/a", "a/../../b", "package://x/y", "hub://a/b@c", "\x00", "{{ 1 }}",
    [], [1], ["a", "a"], [None], [[]], {}, {"a": 1}, {"a": {"b": []}}, {1: 2}, {"low": 1, "high": 0}, {"low": 1e-5, "high": 1e-3, "log": True},
)  # fmt: skip
RAW = {
    "digits": "9" * 5000,
    "nested": "[" * 3000 + "]" * 3000,
    "objects": '{"a":' * 3000 + "1" + "}" * 3000,
    "exponent": "-1e99999",
    "half": '"\\ud800"',
    "aliases": "{a0: &a0 [x, x, x, x, x, x, x, x, x], "
    + ", ".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
    + "}",
    "itself": "&itself {a: *itself}",
    "date": "2020-01-01",
    "binary": "!!binary aGVsbG8=",
    "set": "{1, 2}",
}
"""Texts that JSON or YAML may hold, and that the values of a program do not."""
KEYS = (
    "learning_rate",
    "epochs",
    "rank",
    "train",
    "lora",
    "x",
    "",
    "time",
    "seed",
    "limit",
    "label",
    "columns",
    "trust_remote_code",
)

Target = Callable[[bytes], None]


class Finding(Exception):
    """An input whose handling is wrong without an exception of its own."""


def checked(error: Exception) -> None:
    """Raise where the message of an expected error is none, or too long to be read."""
    if not 0 < len(str(error).strip()) <= LONGEST_MESSAGE:
        raise Finding(f"a message of {len(str(error))} characters") from error


def recipe_target(given: argparse.Namespace) -> Target:
    from autoft.errors import AutoftError
    from autoft.recipe import load_recipe

    path = given.scratch / "recipe.yaml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            load_recipe(path)
        except AutoftError as error:
            checked(error)

    return run


def plan_target(given: argparse.Namespace) -> Target:
    import atheris

    from autoft.errors import AutoftError
    from autoft.hardware import Hardware
    from autoft.plans.planner import make_plan
    from autoft.plugins import load_plugins
    from autoft.recipe import Recipe, recipe_from_mapping, recipe_schema

    catalog, hardware = load_plugins(), Hardware.probe()
    tasks = sorted(catalog.tasks)
    sections = recipe_schema()["properties"]
    paths = [(key,) for key in sections] + [
        (key, inner)
        for key, value in Recipe.model_fields.items()
        for inner in getattr(value.annotation, "model_fields", {})
    ]

    def value_of(provider: atheris.FuzzedDataProvider, depth: int = 0) -> Any:
        kind = provider.ConsumeIntInRange(0, 5 if depth < 3 else 3)
        if kind <= 2:
            # A copy: what is put into it later is of this input alone.
            return copy.deepcopy(VALUES[provider.ConsumeIntInRange(0, len(VALUES) - 1)])
        if kind == 3:
            return provider.ConsumeUnicodeNoSurrogates(12)
        size = provider.ConsumeIntInRange(0, 3)
        if kind == 4:
            return [value_of(provider, depth + 1) for _ in range(size)]
        return {KEYS[provider.ConsumeIntInRange(0, len(KEYS) - 1)]: value_of(provider, depth + 1) for _ in range(size)}

    def run(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        task = tasks[provider.ConsumeIntInRange(0, len(tasks) - 1)]
        recipe: dict[str, Any] = {"task": task, "model": str(given.model), "data": {"train": "rows.jsonl"}}
        for _ in range(provider.ConsumeIntInRange(1, 4)):
            path = paths[provider.ConsumeIntInRange(0, len(paths) - 1)]
            place: Any = recipe
            for key in path[:-1]:
                place = place[key] if isinstance(place.get(key), dict) else place.setdefault(key, {})
                if not isinstance(place, dict):
                    break
            else:
                place[path[-1]] = value_of(provider)
        try:
            make_plan(recipe_from_mapping(recipe), catalog, hardware, given.scratch)
        except AutoftError as error:
            checked(error)

    return run


def data_target(given: argparse.Namespace) -> Target:
    from autoft.data.sources import load_source
    from autoft.drafts.draft import draft_recipe
    from autoft.errors import AutoftError
    from autoft.hardware import Hardware
    from autoft.plugins import load_plugins

    catalog, hardware = load_plugins(), Hardware.probe()

    def run(data: bytes) -> None:
        if not data:
            return
        ending = ENDINGS[data[0] % len(ENDINGS)]
        path = given.scratch / f"rows{ending}"
        path.write_bytes(gzip.compress(data[1:], 1) if ending.endswith(".gz") else data[1:])
        try:
            load_source(path.name, base=given.scratch, where="data.train")
            draft_recipe([path.name], catalog, hardware, output=given.scratch / "recipe.yaml", model=str(given.model))
        except AutoftError as error:
            checked(error)

    return run


def changed(document: Any, provider: atheris.FuzzedDataProvider, values: tuple[Any, ...]) -> None:
    """Change one place of a JSON document."""
    places: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        one = waiting.pop()
        entries = list(one.items() if isinstance(one, dict) else enumerate(one))
        places += [(one, key) for key, _ in entries]
        waiting += [value for _, value in entries if isinstance(value, dict | list)]
    if not places:
        return

    def drawn(some: Any) -> Any:
        return some[provider.ConsumeIntInRange(0, len(some) - 1)]

    one, key = drawn(places)
    kind = provider.ConsumeIntInRange(0, 8)
    if kind == 0:
        del one[key]
    elif kind == 1 and isinstance(one, dict):
        one[drawn([*KEYS, *(name for _, name in places if isinstance(name, str))])] = one.pop(key)
    elif kind == 2:
        other, name = drawn(places)
        one[key] = copy.deepcopy(other[name])
    elif kind == 3 and isinstance(one[key], int | float) and not isinstance(one[key], bool):
        one[key] = drawn(
            [-one[key], 0, one[key] * 1e300, one[key] + 1, one[key] - 1, 10**9, 1e-320, int(provider.ConsumeInt(8))]
        )
    elif kind == 4:
        one[key] = drawn([[one[key]], {"a": one[key]}, {str(key): one[key]}])
    elif kind == 5 and isinstance(one, list):
        one.insert(key, copy.deepcopy(one[key]))
    elif kind == 6:
        one[key] = provider.ConsumeUnicode(12)
    elif kind == 7:
        one[key] = f"\x02{drawn(list(RAW))}\x02"
    else:
        one[key] = drawn(values)


def as_text(document: Any) -> bytes:
    """Return a document as JSON, with the raw texts that stand in it."""
    text = json.dumps(document)
    for name, raw in RAW.items():
        text = text.replace(f'"\\u0002{name}\\u0002"', raw)
    return text.encode()


class Folder:
    """A copy of a run folder, whose files an input changes and that is put right afterwards.

    What is opened, made or deleted outside of what the run may touch is kept in ``astray``.
    """

    def __init__(self, given: argparse.Namespace, chosen: Callable[[Path], bool], ignored: tuple[str, ...]) -> None:
        self.path, self.whole, self.astray = given.scratch / "around" / "run", given.scratch / "whole", list[str]()
        shutil.copytree(given.run, self.whole, ignore=shutil.ignore_patterns(*ignored), symlinks=True)
        self.mend()
        outside = given.scratch / "outside"
        shutil.copytree(self.whole, outside)
        self.values = (
            *VALUES, "..", "../..", "../../outside", "../../outside/best", "../../../../outside/best", str(outside), f"{outside}/best",
            "/etc/passwd", "best", "trials/0001", "trials/0000/variants/none", "-1", "99", 99, str(given.scratch),
        )  # fmt: skip
        self.files = {
            path.relative_to(self.whole): path.read_bytes()
            for path in sorted(self.whole.rglob("*"))
            if path.suffix in {".json", ".jsonl", ".yaml"} and path.is_file() and chosen(path.relative_to(self.whole))
        }
        self.documents = {}
        for name, text in self.files.items():
            with contextlib.suppress(ValueError):
                self.documents[name] = json.loads(text)
        import yaml

        self.documents |= {name: yaml.safe_load(text) for name, text in self.files.items() if name.suffix == ".yaml"}
        allowed = [str(path) for path in (given.scratch, tempfile.gettempdir(), "/dev")]
        baits = (str(outside), "/etc/passwd")

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            if event not in {
                "open",
                "os.mkdir",
                "os.remove",
                "os.rename",
                "os.rmdir",
                "os.link",
                "os.symlink",
                "os.listdir",
                "os.scandir",
            }:
                return
            for place in arguments[: 2 if event in {"os.rename", "os.link", "os.symlink"} else 1]:
                if not isinstance(place, str | bytes | os.PathLike):
                    continue
                path = os.path.normpath(os.path.join(os.getcwd(), os.fsdecode(place)))
                written = event not in {"open", "os.listdir", "os.scandir"} or (
                    event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
                )
                if path.startswith(baits) or (written and not path.startswith(tuple(allowed))):
                    self.astray.append(f"{event} {path}")

        self.watch = watch

    def mend(self) -> None:
        """Make the folder what it was."""
        shutil.rmtree(self.path.parent, ignore_errors=True)
        self.path.parent.mkdir()
        shutil.copytree(self.whole, self.path, symlinks=True)

    @contextlib.contextmanager
    def damaged(self, provider: atheris.FuzzedDataProvider) -> Iterator[None]:
        """Have some of the files be others within the block."""
        names = list(self.files)
        touched = set[Path]()
        for _ in range(1 if provider.ConsumeBool() else 2):
            name = names[provider.ConsumeIntInRange(0, len(names) - 1)]
            touched.add(name)
            text = bytearray(self.files[name])
            if name in self.documents and provider.ConsumeIntInRange(0, 9):
                document = [copy.deepcopy(self.documents[name])]
                for _ in range(provider.ConsumeIntInRange(1, 3)):
                    changed(document, provider, self.values)
                text = bytearray(as_text(document[0] if document else None))
            else:
                for _ in range(provider.ConsumeIntInRange(1, 4)):
                    where, kind = provider.ConsumeIntInRange(0, len(text)), provider.ConsumeIntInRange(0, 2)
                    if kind == 0:
                        text[where : where + 1] = provider.ConsumeBytes(1)
                    elif kind == 1:
                        del text[where : where + provider.ConsumeIntInRange(1, 4000)]
                    else:
                        text[where:where] = text[where : where + provider.ConsumeIntInRange(1, 400)]
            (self.path / name).write_bytes(text)
        self.astray.clear()
        try:
            yield
        finally:
            for name in touched:
                # A search that goes on deletes what there was of a trial that it begins again.
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                (self.path / name).write_bytes(self.files[name])
        if self.astray:
            raise Finding(f"outside of the run: {self.astray[:3]}")


def told(call: Callable[[], Any]) -> bool:
    """Make a call as a command does; return whether it ended without an error that is told."""
    from autoft.errors import AutoftError
    from autoft.plugins import hook_of

    try:
        call()
    except (AutoftError, OSError) as error:
        # Of an OSError the command tells the file and the reason.
        checked(error)
        return False
    except Exception as error:
        # Of one in a plugin it tells the plugin and the line.
        if hook_of(error.__traceback__) is None:
            raise
        return False
    return True


def run_target(given: argparse.Namespace) -> Target:
    import atheris
    from rich.console import Console

    from autoft.additions import added_configuration
    from autoft.dashboard import Dashboard
    from autoft.plans.plan import plan_of
    from autoft.plugins import load_plugins
    from autoft.portfolio import settings_of_run
    from autoft.pretrained import dense_folder
    from autoft.report import figures, page, terminal, write  # noqa: F401 - what is imported later is not instrumented
    from autoft.report.comparison import comparison_json, make_comparison, render_comparison
    from autoft.rundir import read_run
    from autoft.selection import select
    from autoft.watching import watch

    folder = Folder(given, lambda name: name.parts[0] not in {"best", "cache", "logs"}, ("best", "cache", "logs", "encoded", "*.safetensors", "*.onnx", "trackers"))  # fmt: skip
    place, original, catalog = folder.path, read_run(given.run), load_plugins()
    # What it imports takes as long as hundreds of inputs.
    Dashboard(given.run)
    sys.addaudithook(lambda event, arguments: folder.watch(event, arguments))

    def show(*parts: Any) -> None:
        console = Console(file=io.StringIO(), width=160)
        for part in parts:
            console.print(part)

    def ask(pages: Dashboard, path: str) -> None:
        errors = io.StringIO()
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "", "wsgi.input": io.BytesIO(), "wsgi.errors": errors, "SERVER_NAME": "localhost", "SERVER_PORT": "80", "wsgi.url_scheme": "http"}  # fmt: skip
        status: list[str] = []
        b"".join(pages(environ, lambda said, headers, error=None: status.append(said)))
        if status[0].startswith("5"):
            raise Finding(f"{path}: {status[0]}: {errors.getvalue()[-1000:]}")

    def browse() -> None:
        pages = Dashboard(place)
        ask(pages, "/api/studies")
        ask(pages, "/api/studies/0")

    def look(whole: bool) -> None:
        record = read_run(place)
        plan = plan_of(record)

        def summed() -> None:
            show(terminal.summary(record) if record.selection else terminal.nearest_misses(record))
            show(*terminal.closing(record, "runs/x"))

        def compared() -> None:
            comparison = make_comparison([record, original])
            show(terminal.compared(comparison))
            json.dumps(comparison_json(comparison))
            if whole:
                render_comparison(comparison)

        told(summed)
        told(compared)
        told(lambda: show(terminal.front(record)))
        told(lambda: json.dumps(terminal.front_rows(record)))
        told(lambda: select(plan, record.trials, 0.1))
        told(lambda: settings_of_run(place, 5))
        told(lambda: added_configuration(plan, catalog, record.trials, {"train.epochs": 3}))
        told(lambda: dense_folder(place))
        if whole:
            told(lambda: write(record))

    def run(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        which = provider.ConsumeIntInRange(0, 15)
        with folder.damaged(provider):
            told(lambda: look(whole=which == 0))
            told(lambda: watch(place, io.StringIO(), once=True, as_json=which % 2 == 0))
            if which == 1:
                told(browse)

    return run


def model_target(given: argparse.Namespace) -> Target:
    import atheris

    import autoft
    from autoft.serving import make_app

    def chosen(name: Path) -> bool:
        return name.parts[0] in {"best", "trials", "data"} or name.name in {"selection.json", "plan.json"}

    folder = Folder(given, chosen, ("cache", "logs", "trackers"))
    place, scratch = folder.path, given.scratch / "exported"
    models = [place / "best", *sorted(path.parent for path in place.glob("trials/*/variants/*/autoft.json"))]
    sys.addaudithook(lambda event, arguments: folder.watch(event, arguments))

    def run(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        which, one = provider.ConsumeIntInRange(0, 15), models[provider.ConsumeIntInRange(0, len(models) - 1)]

        def use() -> None:
            loaded = autoft.load(one, device="cpu")
            loaded.predict(["a film"])
            if which == 1:
                make_app(loaded)

        with folder.damaged(provider):
            told(use)
            if which == 2:
                told(lambda: autoft.export(place if provider.ConsumeBool() else one, "safetensors", output=scratch))
                shutil.rmtree(scratch, ignore_errors=True)

    return run


def resume_target(given: argparse.Namespace) -> Target:
    import atheris
    import yaml

    import autoft

    folder = Folder(given, lambda name: name.parts[0] not in {"best", "cache", "logs"}, ("logs", "trackers"))
    recipe = yaml.safe_load((given.run / "recipe.yaml").read_text(encoding="utf-8"))
    sys.addaudithook(lambda event, arguments: folder.watch(event, arguments))

    def run(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        (folder.path / "time.json").unlink()
        (folder.path / "time.json").write_text('{"seconds": 1e9}')
        try:
            with folder.damaged(provider):
                told(lambda: autoft.search(recipe, run=folder.path))
        finally:
            folder.mend()

    return run


def request_target(given: argparse.Namespace) -> Target:
    import autoft
    from autoft.serving import make_app

    app = make_app(autoft.load(given.run))
    loop = asyncio.new_event_loop()
    lifespan = app.router.lifespan_context(app)
    loop.run_until_complete(lifespan.__aenter__())

    async def ask(body: bytes) -> tuple[int, bytes]:
        sent, given_out = [], False
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/predict", "raw_path": b"/predict",
            "root_path": "", "scheme": "http", "query_string": b"", "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 1),
            "headers": [(b"host", b"127.0.0.1:8000"), (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            nonlocal given_out
            if given_out:
                await asyncio.sleep(60)
            given_out = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await app(scope, receive, send)
        return sent[0]["status"], b"".join(part.get("body", b"") for part in sent[1:])

    def run(data: bytes) -> None:
        status, answer = loop.run_until_complete(ask(data))
        try:
            json.loads(answer, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
        except ValueError as error:
            raise Finding(f"{status}: the answer is no JSON: {answer[:200]!r}") from error
        if status >= 500:
            raise Finding(f"{status}: {answer[:200]!r}")

    return run


def plugins_target(given: argparse.Namespace) -> Target:
    import importlib
    import types

    import atheris

    from autoft import contracts, plugins
    from autoft.errors import AutoftError
    from autoft.hookspecs import hookimpl

    folder = given.scratch / "site" / "autoft_odd-1.dist-info"
    folder.mkdir(parents=True)
    sys.path.insert(0, str(folder.parent))
    contents = {
        "METADATA": b"Metadata-Version: 2.1\nName: autoft-odd\nVersion: 1\n",
        "entry_points.txt": b"[autoft]\nodd = autoft_odd\n",
    }
    hooks = ("autoft_tasks", "autoft_strategies", "autoft_metrics")
    kinds = (contracts.Task, contracts.Augmenter, contracts.Adapter, contracts.CostMetric, contracts.QualityMetric)
    members = ("name", "summary", "card", "columns", "space", "unit", "tasks", "published")

    def offered(provider: atheris.FuzzedDataProvider) -> Any:
        if provider.ConsumeBool():
            return VALUES[provider.ConsumeIntInRange(0, len(VALUES) - 1)]
        kind = kinds[provider.ConsumeIntInRange(0, len(kinds) - 1)]
        body: dict[str, Any] = dict.fromkeys(kind.__abstractmethods__)
        body |= {"name": "odd", "summary": "odd"}
        for _ in range(provider.ConsumeIntInRange(0, 3)):
            member = members[provider.ConsumeIntInRange(0, len(members) - 1)]
            body[member] = VALUES[provider.ConsumeIntInRange(0, len(VALUES) - 1)]
        return type("Odd", (kind,), body)()

    def run(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        module = types.ModuleType("autoft_odd")
        for hook in hooks[: provider.ConsumeIntInRange(0, 3)]:
            answer = [offered(provider) for _ in range(provider.ConsumeIntInRange(0, 2))]
            value = answer if provider.ConsumeBool() else next(iter(answer), None)
            setattr(module, hook, hookimpl(eval("lambda: value", {"value": value})))
        sys.modules["autoft_odd"] = module
        for name, usual in contents.items():
            text = bytearray(usual)
            for _ in range(provider.ConsumeIntInRange(0, 3)):
                where = provider.ConsumeIntInRange(0, len(text))
                text[where : where + provider.ConsumeIntInRange(0, 8)] = provider.ConsumeBytes(4)
            (folder / name).write_bytes(text)
        importlib.invalidate_caches()
        plugins._owners.cache_clear()
        try:
            for broken in plugins.load_plugins().broken:
                checked(plugins.PluginError(broken.error))
            plugins.hook_of(sys._getframe())
        except AutoftError as error:
            checked(error)

    return run


TARGETS = {
    "recipe": recipe_target,
    "plan": plan_target,
    "data": data_target,
    "run": run_target,
    "model": model_target,
    "resume": resume_target,
    "request": request_target,
    "plugins": plugins_target,
}


def seeds(target: str, given: argparse.Namespace) -> list[bytes]:
    """Return inputs to begin with."""
    if target == "recipe":
        files = sorted((REPOSITORY / "recipes").rglob("*.yaml"))
        return [path.read_bytes() for path in files] + [
            f"task: text-classification\nmodel: {raw}\ndata: {raw}\nspace: {{train.epochs: {raw}}}\n".encode()
            for raw in RAW.values()
        ]
    if target == "request":
        rows = [b'{"text": "a film"}', b'{"rows": [{"text": "a film"}, {"text": ""}]}', b"[1e999, {}]"]
        return rows + [f'{{"text": {raw}}}'.encode() for raw in RAW.values()] + [raw.encode() for raw in RAW.values()]
    if target != "data":
        # Of these the choices are made, one after the other.
        return [bytes(range(64)), bytes(200), *(random.Random(number).randbytes(200) for number in range(50))]
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.feather
    import pyarrow.parquet

    rows = [{"text": f"a film, number {i}", "label": ["bad", "good"][i % 2], "n": i / 2} for i in range(12)]
    table = pa.Table.from_pylist(rows)
    parquet, arrow = given.scratch / "seed.parquet", given.scratch / "seed.arrow"
    pyarrow.parquet.write_table(table, parquet)
    pyarrow.feather.write_feather(table, str(arrow), compression="uncompressed")
    # What is written once and used often: at once, in lists and structs, and of lists.
    texts, places = table["text"].combine_chunks(), pa.array(range(12), pa.int32())
    known = texts.dictionary_encode()
    encoded = {
        "text": texts.cast(pa.string_view()), "label": table["label"].combine_chunks().dictionary_encode(),
        "runs": pc.run_end_encode(texts), "views": pa.ListViewArray.from_arrays(places, pa.array([1] * 12, pa.int32()), texts),
        "lists": pa.ListArray.from_arrays(pa.array(range(13), pa.int32()), known), "parts": pa.StructArray.from_arrays([known], ["a"]),
        "nulls": pa.nulls(12), "either": pa.UnionArray.from_dense(pa.array([0] * 12, pa.int8()), places, [texts]),
    }  # fmt: skip
    nested, parts = given.scratch / "nested.arrow", given.scratch / "nested.parquet"
    with pa.ipc.new_file(nested, pa.table(encoded).schema) as file:
        file.write_table(pa.table(encoded))
    pyarrow.parquet.write_table(pa.table({name: encoded[name] for name in ("text", "label", "lists", "parts")}), parts)
    lines = "\n".join(json.dumps(row) for row in rows)
    delimited = ["text,label,n", *(f'"{row["text"]}",{row["label"]},{row["n"]}' for row in rows)]
    csv = "\n".join(delimited)
    written = [csv, csv.replace(",", "\t"), json.dumps(rows), lines, csv]
    odd = [(2, f'[{{"text": {raw}, "label": {raw}}}]') for raw in RAW.values()]
    odd += [(3, f'{{"text": {raw}, "label": {raw}}}\n' * 2) for raw in RAW.values()]
    odd += [(0, f"text,label\n{raw},{raw}\n" * 2) for raw in RAW.values()]
    return [bytes([i]) + text.encode() for i, text in [*enumerate(written), *odd]] + [
        b"\x05" + parquet.read_bytes(),
        b"\x06" + arrow.read_bytes(),
        b"\x05" + parts.read_bytes(),
        b"\x06" + nested.read_bytes(),
    ]


def timed(target: Target, data: bytes) -> None:
    """Try an input, and raise where it takes more of the processor than any should."""
    begin = time.process_time()
    target(data)
    took = time.process_time() - begin
    if took > LONGEST_SECONDS:
        raise Finding(f"takes {took:.0f} s")


def going_on(target: Target, corpus: Path) -> Target:
    """Return a target that does not stop at a finding: it is written beside the corpus and counted, alike ones once."""
    seen = set[tuple[str, str]]()

    def run(data: bytes) -> None:
        try:
            timed(target, data)
        except Exception as error:  # noqa: BLE001 - each is a finding
            own = [one for one in traceback.extract_tb(error.__traceback__) if "/autoft/" in one.filename]
            place = f"{own[-1].filename}:{own[-1].lineno}" if own else str(error)[:200]
            if (type(error).__name__, place) not in seen:
                seen.add((type(error).__name__, place))
                file = corpus.with_name(f"{corpus.name}-finding-{len(seen)}")
                file.write_bytes(data)
                print(
                    f"FINDING {file}\n{''.join(traceback.format_exception(error)[-12:])}", file=sys.stderr, flush=True
                )

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--corpus", type=Path, help="folder of inputs that reach something new; default: not kept")
    parser.add_argument("--run", type=Path, help="a finished run, for run, model, resume and request")
    parser.add_argument("--input", type=Path, help="try this one input, and end")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-len", type=int, default=8192, help="bytes of an input at most")
    parser.add_argument("--keep", action="store_true", help="go on after a finding")
    given = parser.parse_args()
    if given.target in {"run", "model", "resume", "request"} and given.run is None:
        parser.error(f"{given.target} needs --run")
    import atheris

    # What libraries say of strange input is of no use to anybody here.
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        given.scratch = Path(scratch)
        # Imported here, so that nothing of autoft is imported before.
        with atheris.instrument_imports(include=["autoft"], enable_loader_override=False):
            from reviews import MODEL

            given.model = MODEL
            target = TARGETS[given.target](given)
        if given.input is not None:
            target(given.input.read_bytes())
            return
        corpus = given.corpus or given.scratch / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(seeds(given.target, given)):
            (corpus / f"seed-{number}").write_bytes(data)
        options = [
            # By the wall: a machine that is shared makes one input last long. Of its own time an input has half a minute.
            f"-max_total_time={round(60 * given.minutes)}", f"-seed={given.seed}", "-timeout=300",
            f"-rss_limit_mb={4096 if given.target in {'model', 'resume'} else 2048}", f"-max_len={given.max_len}",
            "-print_final_stats=1", f"-artifact_prefix={corpus.resolve()}-", str(corpus),
        ]  # fmt: skip
        wanted = going_on(target, corpus) if given.keep else lambda data: timed(target, data)
        atheris.Setup([sys.argv[0], *options], wanted)
        with contextlib.redirect_stdout(open(os.devnull, "w")):
            atheris.Fuzz()


if __name__ == "__main__":
    main()
