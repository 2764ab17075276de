# python benchmarks/cost_aware.py --out cost_aware.jsonl
"""Does it help to let a proposal's predicted time enter the choice of what to train next: searches replayed without training.

What runs is :class:`autoft.search.Search` itself, its sampler, its early stopping and its model of how long trials take;
only a trial is looked up, and the clock is advanced by what it takes. Three worlds:

- ``recorded``: 72 real trainings of BERT-tiny on 450 movie review sentences, scored on 1,000 more (``--record`` makes
  them anew): three pipelines, two batch sizes, three lengths, four learning rates; between them, linear in the logarithms.
- ``large-better``: two models, the large one ten times as slow and five points better, with optima of learning rates and
  lengths drawn by the seed.
- ``alike``: the same with two models that are equally good.

What a search sees is the true accuracy with the noise of 300 validation rows; what it is judged by is the true accuracy of
the trial that it chose, as points below the best of the world (regret). Time noise is 5 %; compressing and measuring takes a
quarter of a default training, and four tenths of that for the small model.

Rules, each with four proposals of the sampler at most, and with a weight of time that falls from 1 to 0 as the time is
used up (cost cooling, Lee et al. 2020, arXiv:2003.10870):

- ``first``: the first proposal, whatever it takes; what autoft does.
- ``drawn``: one of four, with a probability in proportion to ``seconds ** -weight``.
- ``cheapest``: the cheapest of ``1 + 3 * weight``.
- ``per-second``: the largest expected improvement by ``seconds ** weight`` (Snoek et al. 2012, arXiv:1206.2944), the
  improvement by a Gaussian process over all trials.
- ``improvement``: the same without time: what of it is not the time's doing.

    python benchmarks/cost_aware.py --worlds recorded --budgets 4 10 --rules first drawn --seeds 50 --out cost_aware.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from autoft.hardware import Hardware
from autoft.listener import Listener
from autoft.plans.plan import ModelPlan, PipelinePlan, Plan, VariantPlan
from autoft.plugins import load_plugins
from autoft.rundir import CurvePoint, RunDir, TrialConfig, TrialResult, VariantResult
from autoft.search import Interruption, Search
from autoft.selection import best_trials
from autoft.space import Categorical, Domain, Float, Int, domain_to_json

TABLE = Path(__file__).with_suffix(".json")
ROWS, VALIDATION = 1000, 300
OVERHEAD = 0.25
"""Of a default training: what compressing and measuring takes."""

SHARED_NOISE = 0.5
"""Of the variance of an accuracy on the same rows: what all trials share, and does not confuse their order."""

PROPOSALS = 4
RULES = ("first", "drawn", "cheapest", "per-second", "improvement")
WORLDS = ("recorded", "large-better", "alike")


class World(Protocol):
    """What a search is replayed in."""

    models: Sequence[str]
    pipelines: Sequence[str]
    best: float

    def space(self) -> dict[str, Domain]:
        """Return the parameters beside model and pipeline."""

    def curve(self, config: TrialConfig) -> Sequence[float]:
        """Return the true accuracy after each epoch."""

    def seconds(self, config: TrialConfig) -> tuple[float, float]:
        """Return what training for an epoch and validating once take."""


class Recorded:
    """Real trainings, and what lies between them."""

    models = ("tiny",)

    def __init__(self, trainings: Sequence[Sequence[Any]]) -> None:
        """Take over trainings, as the columns of the table say."""
        self.curves = {(name, batch, epochs, rate): curve for name, batch, epochs, rate, curve, _, _ in trainings}
        self.pipelines = sorted({name for name, *_ in self.curves})
        self.batches = sorted({batch for _, batch, _, _ in self.curves})
        self.epochs = sorted({epochs for _, _, epochs, _ in self.curves})
        self.rates = {name: sorted({key[3] for key in self.curves if key[0] == name}) for name in self.pipelines}
        self.best = max(curve[-1] for curve in self.curves.values())
        self.pace = {
            (name, batch): statistics.fmean(
                line[5] / line[2] for line in trainings if (line[0], line[1]) == (name, batch)
            )
            for name in self.pipelines
            for batch in self.batches
        }
        self.validating = statistics.fmean(line[6] / line[2] for line in trainings) * VALIDATION / 1000

    def space(self) -> dict[str, Domain]:
        """Return lengths, batch sizes and the learning rates of each pipeline, the second one recorded as its default."""
        return {
            "train.epochs": Int(self.epochs[0], self.epochs[-1], 2),
            "train.batch_size": Categorical(tuple(self.batches), self.batches[-1]),
            **{
                f"{name}.learning_rate": Float(rates[0], rates[-1], rates[1], log=True)
                for name, rates in self.rates.items()
            },
        }

    def curve(self, config: TrialConfig) -> Sequence[float]:
        """Return the mean of the four recorded curves around a configuration, each stretched to its length."""
        epochs, batch = int(config.params["train.epochs"]), int(config.params["train.batch_size"])
        rate = float(config.params[f"{config.pipeline}.learning_rate"])
        found = np.zeros(epochs)
        for length, share in _around(self.epochs, epochs):
            for near, part in _around(self.rates[config.pipeline], rate):
                recorded = [0.5, *self.curves[config.pipeline, batch, length, near]]
                at = np.arange(1, epochs + 1) / epochs * length
                found += share * part * np.interp(at, range(length + 1), recorded)
        return list(found)

    def seconds(self, config: TrialConfig) -> tuple[float, float]:
        """Return what an epoch of a pipeline with a batch size took, and validating."""
        return self.pace[config.pipeline, int(config.params["train.batch_size"])], self.validating


class Drawn:
    """Two models, whose best settings a seed decides."""

    models = ("large", "small")
    pipelines = ("full", "lora", "head-only")
    ranges: ClassVar = {"full": (5e-6, 2e-4), "lora": (5e-5, 5e-3), "head-only": (3e-4, 3e-2)}
    pace: ClassVar = {"full": 60.0, "lora": 48.0, "head-only": 21.0}

    def __init__(self, better: float, seed: int) -> None:
        """Draw a world in which the large model is better by so much."""
        draw = random.Random(f"world {seed}")
        self.top = {("large", "full"): 0.88, ("small", "full"): 0.88 - better}
        self.optimum, self.length = {}, {}
        for model in self.models:
            self.top[model, "lora"] = self.top[model, "full"] + draw.uniform(-0.015, 0.01)
            self.top[model, "head-only"] = self.top[model, "full"] - draw.uniform(0.02, 0.08)
            for name, (low, high) in self.ranges.items():
                self.optimum[model, name] = low * (high / low) ** draw.uniform(0.65, 0.95)
                self.length[model, name] = draw.uniform(0.6, 2.5)
        self.best = max(self.top[key] - 0.3 * math.exp(-8 / self.length[key]) for key in self.top)

    def space(self) -> dict[str, Domain]:
        """Return lengths, batch sizes, which change nothing, and learning rates."""
        rates = {
            f"{name}.learning_rate": Float(a, b, math.sqrt(a * b), log=True) for name, (a, b) in self.ranges.items()
        }
        return {"train.epochs": Int(1, 8, 3), "train.batch_size": Categorical((16, 32)), **rates}

    def curve(self, config: TrialConfig) -> Sequence[float]:
        """Return what rises to a ceiling that lies lower the further the learning rate is from its optimum."""
        key = config.model, config.pipeline
        apart = math.log10(float(config.params[f"{config.pipeline}.learning_rate"]) / self.optimum[key])
        epochs = int(config.params["train.epochs"])
        at = np.arange(1, epochs + 1)
        rise = 0.3 * np.exp(-at / self.length[key]) + 0.02 * (1 - at / epochs)
        return list(np.maximum(0.5, self.top[key] - 0.08 * apart**2 - rise))

    def seconds(self, config: TrialConfig) -> tuple[float, float]:
        """Return what an epoch and a validation take: of the small model a tenth."""
        size = 1.0 if config.model == "large" else 0.1
        return size * self.pace[config.pipeline], size * 8.0


def _around(axis: Sequence[float], value: float) -> list[tuple[Any, float]]:
    """Return the two recorded values around one, with their weights."""
    place = min(len(axis) - 2, max(0, bisect_right(axis, value) - 1))
    low, high = axis[place], axis[place + 1]
    share = math.log(value / low) / math.log(high / low)
    return [(low, 1 - share), (high, share)]


def plan_of(world: World, seed: int) -> Plan:
    """Return the plan of a search in a world, its time not limited yet."""
    space = {
        "model": Categorical(tuple(world.models)),
        "pipeline": Categorical(tuple(world.pipelines), "full"),
        "augment": Categorical(("none",)),
        **world.space(),
    }
    return Plan.model_construct(
        space={name: domain_to_json(domain) for name, domain in space.items()},
        models=[
            ModelPlan(name=name, path="", config={"model_type": "bert"}, size_bytes=10 if name == "small" else 100)
            for name in world.models
        ],
        pipelines=[PipelinePlan(name=name, quantizer=None, adapter=name) for name in world.pipelines],
        variants=[VariantPlan(name="none", chain=[])],
        objective="accuracy",
        objectives=["accuracy"],
        metrics={"accuracy": {"higher_is_better": True}},
        budget=[],
        sampler="tpe",
        early_stopping="halving",
        seed=seed,
        task="text-classification",
        trials_limit=None,
        time_limit=math.inf,
        finalist_seeds=0,
        tolerance=0.0,
        data={"sizes": {"train": ROWS, "validation": VALIDATION, "test": 300}},
        device="cpu",
        hardware=Hardware("cpu", 2, 2**33, (), "simulated", False, "simulated").to_json(),
        trust_remote_code=False,
        workers=1,
        options={},
    )


class Replay(Search):
    """A search whose trials are looked up in a world, and whose clock is theirs."""

    def __init__(self, world: World, plan: Plan, budget: float, rule: str, folder: Path, catalog: Any) -> None:
        """Prepare a search.

        Args:
            world: where trials are looked up.
            plan: of the search.
            budget: its time, as a multiple of the default's.
            rule: by which one of several proposals is chosen.
            folder: for the run folder.
            catalog: what plugins offer.
        """
        default = plan.default_config()
        train, validate = world.seconds(default)
        self.overhead = OVERHEAD * int(default.params["train.epochs"]) * (train + validate)
        limit = budget * (1 / OVERHEAD + 1) * self.overhead
        run = RunDir(folder)
        run.create()
        plan = plan.model_copy(update={"time_limit": limit})
        super().__init__(run, plan, catalog, Listener(), Interruption(), started=0.0)
        self.world, self.clock, self.rule = world, 0.0, rule
        self.chance = random.Random(f"noise {plan.seed}")
        self.truth: dict[int, float] = {}
        for model in world.models:
            # What the probe of a real search measures: a step of the default.
            train, validate = world.seconds(default.model_copy(update={"model": model}))
            self.pace.seconds_per_sample[model] = train / ROWS
            self.pace.validate_per_row[model] = validate / VALIDATION
            self.pace.overhead[model] = self._measuring(model)
        if rule != "first":
            self.study.ask = self._chosen_of(self.study.ask)

    def seconds_left(self) -> float:
        """Return what the world's clock has left."""
        return self.plan.time_limit - self.clock

    def reserve(self) -> float:
        """Return nothing: export and test are not replayed."""
        return 0.0

    def _measuring(self, model: str) -> float:
        return self.overhead * (0.4 if model == "small" else 1.0)

    def play(self) -> float:
        """Search until the time is used up, and return the true accuracy of the trial that is chosen."""
        while (config := self.agenda.next()) is not None:
            result = self._trial(config)
            self.clock += result.seconds["total"]
            self.trials.add(result)
            self.pace.learn(result)
            self._tell(result)
        return self.truth[best_trials(self.plan, list(self.trials.results.values()))[0].number]

    def _trial(self, config: TrialConfig) -> TrialResult:
        train, validate = self.world.seconds(config)
        train *= math.exp(self.chance.gauss(0, 0.05))
        curve, points, state = self.world.curve(config), [], "complete"
        for epoch, value in enumerate(curve, 1):
            deviation = math.sqrt((1 - SHARED_NOISE) * value * (1 - value) / VALIDATION)
            points.append(
                CurvePoint(
                    samples=epoch * ROWS,
                    epoch=epoch,
                    seconds=epoch * (train + validate),
                    train_loss=1.0,
                    learning_rate=1.0,
                    validation={"accuracy": value + self.chance.gauss(0, deviation)},
                )
            )
            if epoch < len(curve) and self.study.behind(config, epoch, points[-1].validation["accuracy"]):
                state = "pruned"
                break
            if self.clock + points[-1].seconds > self.plan.time_limit:
                break
        best = max(points, key=lambda point: point.validation["accuracy"])
        self.truth[config.number] = float(curve[points.index(best)])
        variant = VariantResult(name="none", state="complete", validation=best.validation, costs={})
        return TrialResult(
            number=config.number,
            state=state,
            config=config,
            curve=points,
            validation=best.validation,
            variants=[variant] if state == "complete" else [],
            seconds={
                "train": points[-1].seconds,
                "validate": len(points) * validate,
                "total": points[-1].seconds + (self._measuring(config.model) if state == "complete" else 0.0),
            },
        )

    def _chosen_of(self, ask: Callable[..., TrialConfig | None]) -> Callable[..., TrialConfig | None]:
        """Return what asks for several proposals and enters the one that the rule chooses."""

        def choose(
            number: int,
            given: Mapping[str, Any] | None = None,
            tried: Callable[[TrialConfig], bool] = lambda config: False,
        ) -> TrialConfig | None:
            weight = max(0.0, self.seconds_left() / self.plan.time_limit)
            count = 1 + round((PROPOSALS - 1) * weight) if self.rule == "cheapest" else PROPOSALS
            if given or count == 1:
                return ask(number, given, tried)
            options = []
            for _ in range(count):
                option = ask(number, None, tried)
                assert option is not None
                # Told at once, so that it does not push the next proposal away.
                self.study.forget(number)
                options.append(option)
            seconds = [self.pace.estimate(option) for option in options]
            if self.rule == "cheapest":
                place = min(range(count), key=seconds.__getitem__)
            elif self.rule == "drawn":
                fits = [one <= self.agenda.room() for one in seconds]
                shares = [one**-weight if fit or not any(fits) else 0.0 for one, fit in zip(seconds, fits, strict=True)]
                place = random.Random(f"{self.plan.seed} {number}").choices(range(count), shares)[0]
            else:
                power = weight if self.rule == "per-second" else 0.0
                gains = [
                    math.log(max(gain, 1e-12)) - power * math.log(one)
                    for gain, one in zip(self._improvement(options), seconds, strict=True)
                ]
                place = max(range(count), key=gains.__getitem__)
            return self.study.fixed(options[place], number)

        return choose

    def _improvement(self, options: Sequence[TrialConfig]) -> list[float]:
        """Return the expected improvement of each over the best predicted mean, by a Gaussian process over all trials."""
        told = [result for result in self.trials.told() if result.validation]
        seen = np.array([self._place(result.config) for result in told])
        asked = np.array([self._place(option) for option in options])
        figures = np.array([result.validation["accuracy"] for result in told])
        figures = (figures - figures.mean()) / (figures.std() + 1e-6)

        def kernel(one: Any, other: Any) -> Any:
            return np.exp(-((one[:, None] - other[None]) ** 2).sum(-1) / (2 * 0.5**2))

        inverse = np.linalg.inv(kernel(seen, seen) + 0.15 * np.eye(len(seen)))
        mean = kernel(asked, seen) @ inverse @ figures
        spread = 1 - np.einsum("ij,jk,ik->i", kernel(asked, seen), inverse, kernel(asked, seen))
        deviation = np.sqrt(np.maximum(1e-9, spread))
        above = (mean - (kernel(seen, seen) @ inverse @ figures).max()) / deviation
        density = np.exp(-(above**2) / 2) / math.sqrt(2 * math.pi)
        share = np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in above])
        return [float(value) for value in deviation * (density + above * share)]

    def _place(self, config: TrialConfig) -> list[float]:
        """Return a configuration as numbers: a range from 0 to 1, a choice as one of several, what it has not as a half."""
        row: list[float] = []
        values = {"model": config.model, "pipeline": config.pipeline, **config.params}
        for name in self.plan.space:
            domain, value = self.plan.domain(name), values.get(name)
            if isinstance(domain, Categorical):
                row += [0.7 * (value == choice) for choice in domain.choices]
            elif value is None:
                row.append(0.5)
            else:
                low, high, at = float(domain.low), float(domain.high), float(value)
                row.append(math.log(at / low) / math.log(high / low) if domain.log else (at - low) / (high - low))
        return row


def record(out: Path) -> None:
    """Train BERT-tiny on each point of the table and write it."""
    from reviews import Bench

    class Watched(Bench):
        def accuracy(self, model: Any) -> float:
            begin = time.process_time()
            figures.append(super().accuracy(model))
            spent.append(time.process_time() - begin)
            return figures[-1]

    figures: list[float] = []
    spent: list[float] = []
    rates = {
        "full": (3e-5, 1.4e-4, 6.5e-4, 3e-3),
        "head-only": (3e-4, 1.4e-3, 6.5e-3, 3e-2),
        "lora": (1e-4, 4.6e-4, 2.2e-3, 1e-2),
    }
    lines = []
    with tempfile.TemporaryDirectory() as cache:
        bench = Watched(450, 1000, 1, Path(cache))
        for name, choices in rates.items():
            adapter = None if name == "full" else bench.catalog.adapters[name]
            for batch, epochs, rate in ((b, e, r) for b in (8, 32) for e in (1, 2, 4) for r in choices):
                own = {key: domain.default for key, domain in adapter.space.items()} if adapter else {}
                params = {"train.batch_size": batch, "train.epochs": epochs}
                figures.clear()
                spent.clear()
                done = bench.train(
                    0,
                    rate,
                    params=params,
                    adapter=adapter,
                    adapter_params={**own, "learning_rate": rate} if own else own,
                )
                curve = [round(value, 3) for value in figures]
                lines.append([name, batch, epochs, rate, curve, round(done.seconds, 2), round(sum(spent), 2)])
                print(json.dumps(lines[-1]), flush=True)
    columns = ["pipeline", "batch_size", "epochs", "learning_rate", "accuracy after each epoch"]
    columns += ["seconds of training", "seconds of validation"]
    text = ",\n".join("  " + json.dumps(line) for line in lines)
    out.write_text(f'{{"columns": {json.dumps(columns)},\n "trainings": [\n{text}\n]}}\n', encoding="utf-8")


def world_of(name: str, seed: int) -> World:
    """Return a world by its name."""
    if name == "recorded":
        return Recorded(json.loads(TABLE.read_text(encoding="utf-8"))["trainings"])
    return Drawn(0.05 if name == "large-better" else 0.0, seed)


def report(lines: Sequence[dict[str, Any]]) -> None:
    """Print mean regret, and the paired gain over the first proposal with its standard error."""
    regret = {(x["world"], x["budget"], x["rule"], x["seed"]): 100 * (x["best"] - x["accuracy"]) for x in lines}
    trials = {(x["world"], x["budget"], x["rule"], x["seed"]): x["trials"] for x in lines}
    print(
        "\n| world | time | rule | n | regret | gain over `first` | trials |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for world, budget in sorted({key[:2] for key in regret}):
        for rule in RULES:
            seeds = [s for w, b, r, s in regret if (w, b, r) == (world, budget, rule)]
            seeds = [s for s in seeds if (world, budget, "first", s) in regret]
            if len(seeds) < 2:
                continue
            own = [regret[world, budget, rule, s] for s in seeds]
            apart = [regret[world, budget, "first", s] - value for s, value in zip(seeds, own, strict=True)]
            error = statistics.stdev(apart) / math.sqrt(len(apart))
            gain = "" if rule == "first" else f"{statistics.fmean(apart):+.2f} ± {error:.2f}"
            count = statistics.fmean(trials[world, budget, rule, s] for s in seeds)
            print(
                f"| {world} | {budget:g}x | {rule} | {len(seeds)} | {statistics.fmean(own):.2f} | {gain} | {count:.0f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", choices=WORLDS, default=WORLDS)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--budgets", type=float, nargs="+", default=[4.0, 10.0, 40.0], help="multiples of the default")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--out", type=Path, help="JSON lines; what the file holds already is not replayed again")
    parser.add_argument("--record", type=Path, help="train anew what the recorded world is made of, and write it there")
    given = parser.parse_args()
    if given.record:
        record(given.record)
        return
    known = given.out.read_text(encoding="utf-8").splitlines() if given.out and given.out.is_file() else []
    lines: list[dict[str, Any]] = [json.loads(line) for line in known]
    done = {(x["world"], x["budget"], x["rule"], x["seed"]) for x in lines}
    catalog = load_plugins()
    wanted = [
        (world, budget, rule, seed)
        for seed in range(given.seeds)
        for world in given.worlds
        for budget in given.budgets
        for rule in given.rules
    ]
    for name, budget, rule, seed in wanted:
        if (name, budget, rule, seed) in done:
            continue
        world = world_of(name, seed)
        with tempfile.TemporaryDirectory() as folder:
            replay = Replay(world, plan_of(world, seed), budget, rule, Path(folder) / "run", catalog)
            accuracy = replay.play()
        lines.append(
            {
                "world": name,
                "budget": budget,
                "rule": rule,
                "seed": seed,
                "accuracy": round(accuracy, 4),
                "best": round(world.best, 4),
                "trials": len(replay.results),
            }
        )
        if given.out:
            with given.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    report(lines)


if __name__ == "__main__":
    main()
