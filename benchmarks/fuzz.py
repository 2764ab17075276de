# python benchmarks/fuzz.py recipe --minutes 10 --corpus fuzz/recipe
"""Does input of any kind end in work or in one clear message: coverage-guided fuzzing with Atheris (libFuzzer).

    pip install atheris
    python benchmarks/fuzz.py TARGET --minutes 10 --corpus fuzz/TARGET [--run RUN]

Targets:

- ``recipe``: the bytes of a recipe file;
- ``plan``: a legal recipe some of whose keys have another value, read and planned as ``autoft explain`` does;
- ``data``: the bytes of a data file of each kind that a search reads, read, and drafted for as ``autoft init`` does;
- ``run``: a file of a run folder with some bytes changed, cut or repeated, then its report written anew;
- ``request``: the body of a request to the server of a run's model;
- ``plugins``: an installed distribution with any ``METADATA`` and ``entry_points.txt``, whose hooks return what is not asked for.

An exception that is no :class:`autoft.errors.AutoftError`, a message of more than 20,000 characters or of none, an answer of the
server that is neither JSON nor below 500, more than 2 GB of memory or half a minute for one input is a finding: libFuzzer stops, and
leaves the input beside the corpus; ``--input FILE`` tries one again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import atheris

REPOSITORY = Path(__file__).parents[1]
LONGEST_MESSAGE = 20_000
ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".csv.gz", ".parquet", ".arrow")
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 0.5, 1e-5, -0.0, 1e308, float("nan"), float("inf"), 10**30, "", " ", "0", "1h", "5ms", "20MB", "-1GB",
    "1e400s", "auto", "none", "lora", "full", "onnx-int8", "é" * 40, "x" * 3000, "~nobody/a", "a/../../b", "package://x/y", "hub://a/b@c", "\x00", "{{ 1 }}",
    [], [1], ["a", "a"], [None], [[]], {}, {"a": 1}, {"a": {"b": []}}, {1: 2}, {"low": 1, "high": 0}, {"low": 1e-5, "high": 1e-3, "log": True},
)  # fmt: skip
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
            return VALUES[provider.ConsumeIntInRange(0, len(VALUES) - 1)]
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


def run_target(given: argparse.Namespace) -> Target:
    import atheris

    from autoft.errors import AutoftError
    from autoft.report import write
    from autoft.rundir import read_run

    files = sorted(
        path.relative_to(given.run)
        for path in given.run.rglob("*")
        if path.suffix in {".json", ".jsonl", ".yaml"} and not {"best", "cache", "logs"} & set(path.parts)
    )
    place = given.scratch / "run"
    ignored = shutil.ignore_patterns("best", "cache", "logs", "*.safetensors", "*.onnx")
    shutil.copytree(given.run, place, ignore=ignored)

    def run(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        name = files[provider.ConsumeIntInRange(0, len(files) - 1)]
        text = bytearray((given.run / name).read_bytes())
        for _ in range(provider.ConsumeIntInRange(1, 4)):
            where, kind = provider.ConsumeIntInRange(0, len(text)), provider.ConsumeIntInRange(0, 2)
            if kind == 0:
                text[where : where + 1] = provider.ConsumeBytes(1)
            elif kind == 1:
                del text[where : where + provider.ConsumeIntInRange(1, 4000)]
            else:
                text[where:where] = text[where : where + provider.ConsumeIntInRange(1, 400)]
        (place / name).write_bytes(text)
        try:
            write(read_run(place))
        except AutoftError as error:
            checked(error)
        finally:
            shutil.copyfile(given.run / name, place / name)

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
    "request": request_target,
    "plugins": plugins_target,
}


def seeds(target: str, given: argparse.Namespace) -> list[bytes]:
    """Return inputs to begin with."""
    if target == "recipe":
        return [path.read_bytes() for path in sorted((REPOSITORY / "recipes").rglob("*.yaml"))]
    if target == "request":
        return [b'{"text": "a film"}', b'{"rows": [{"text": "a film"}, {"text": ""}]}', b"[1e999, {}]"]
    if target != "data":
        return [bytes(range(64)), bytes(200)]
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet

    rows = [{"text": f"a film, number {i}", "label": ["bad", "good"][i % 2], "n": i / 2} for i in range(12)]
    table = pa.Table.from_pylist(rows)
    parquet, arrow = given.scratch / "seed.parquet", given.scratch / "seed.arrow"
    pyarrow.parquet.write_table(table, parquet)
    pyarrow.feather.write_feather(table, str(arrow), compression="uncompressed")
    lines = "\n".join(json.dumps(row) for row in rows)
    delimited = ["text,label,n", *(f'"{row["text"]}",{row["label"]},{row["n"]}' for row in rows)]
    csv = "\n".join(delimited)
    texts = [csv, csv.replace(",", "\t"), json.dumps(rows), lines, csv]
    return [bytes([i]) + text.encode() for i, text in enumerate(texts)] + [
        b"\x05" + parquet.read_bytes(),
        b"\x06" + arrow.read_bytes(),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--corpus", type=Path, help="folder of inputs that reach something new; default: not kept")
    parser.add_argument("--run", type=Path, help="a finished run, for run and request")
    parser.add_argument("--input", type=Path, help="try this one input, and end")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.target in {"run", "request"} and given.run is None:
        parser.error(f"{given.target} needs --run")
    import atheris

    # What libraries say of strange input is of no use to anybody here.
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
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
            f"-max_total_time={round(60 * given.minutes)}", f"-seed={given.seed}", "-timeout=30", "-rss_limit_mb=2048", "-max_len=8192",
            "-print_final_stats=1", f"-artifact_prefix={corpus.resolve()}-", str(corpus),
        ]  # fmt: skip
        atheris.Setup([sys.argv[0], *options], target)
        with contextlib.redirect_stdout(open(os.devnull, "w")):
            atheris.Fuzz()


if __name__ == "__main__":
    main()
