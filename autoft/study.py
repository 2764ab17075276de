"""The study of a search: Optuna's samplers propose configurations, its pruners stop trials that are behind.

Nothing of Optuna is kept between two calls of the command: the records of trials are, and the study is told them again.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import statistics
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autoft.errors import SearchFailed
from autoft.plans.plan import Plan
from autoft.rundir import TrialConfig, TrialResult
from autoft.space import Categorical, Domain, Float, Int

if TYPE_CHECKING:
    import optuna

__all__ = ["GIVEN", "QUARTERS", "Settings", "Study", "directions", "questions", "settings_of_trial"]

Settings = tuple[str, str, frozenset[tuple[str, Any]], int]
"""What makes two configurations the same: model, pipeline, parameters and seed."""

FOLDS_P = 0.15
"""Of the signed-rank test over folds: worse on the first three, whose p is 1/8, is enough to be given up."""

QUARTERS = 4
"""Into how many parts each training is cut: at the end of one, trials are compared."""

GIVEN = frozenset({"default", "added"})
"""Kinds of trials that are trained to their end and compressed in every way, whatever others reached."""

CHOICES = ("augment", "regularize")
"""Parameters whose value decides which others a configuration has, beside model and pipeline."""

BEST_SHOWN, NEWEST_SHOWN = 500, 1500
"""Of how many trials, the best and the newest, a sampler learns: what it does at each proposal takes time in proportion."""

RIVALS_SHOWN = 1000
"""With how many of the newest trials one is compared that may be stopped early."""

GRID_LIMIT = 100_000
"""Points of a grid that are still counted out; more are an error of the space."""


class Study:
    """Optuna's study, fed from trial results, and a second one that decides early stopping.

    The second holds no infeasible trials: a model that can't fit the budget must not stop smaller ones for being worse.
    """

    def __init__(self, plan: Plan, seed: int | None = None) -> None:
        """Begin a study.

        Args:
            plan: of the search.
            seed: of the sampler; default: the plan's. Searches that share a study need one each, to propose different things.
        """
        import optuna

        from autoft.bounded_storage import BoundedStorage

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        # A training that ends at the time limit is validated there, often within a rung that it has reached before.
        warnings.filterwarnings("ignore", message="The reported value is ignored")
        self.optuna, self.plan, self.bounded = optuna, plan, BoundedStorage
        seed = plan.seed if seed is None else seed
        self.study = optuna.create_study(
            directions=directions(plan), sampler=_sampler(plan, seed), storage=BoundedStorage(BEST_SHOWN, NEWEST_SHOWN)
        )
        self.grid = _grid(plan, seed) if plan.sampler == "grid" else None
        self.live: dict[int, optuna.trial.Trial] = {}
        self.elsewhere: dict[Settings, int] = {}
        """By configuration that another search is at, its number in the study."""
        self.watch: dict[tuple[int, str], optuna.trial.Trial] = {}
        self._begin_early_stopping()
        self.folds = optuna.create_study(
            direction=directions(plan)[0],
            pruner=optuna.pruners.WilcoxonPruner(p_threshold=FOLDS_P)
            if plan.early_stopping == "wilcoxon"
            else optuna.pruners.NopPruner(),
        )
        self.at_fold: dict[int, dict[int, float]] = {}

    def ask(
        self,
        number: int,
        given: Mapping[str, Any] | None = None,
        tried: Callable[[TrialConfig], bool] = lambda config: False,
    ) -> TrialConfig | None:
        """Return the sampler's next proposal, or None where a grid is used up.

        Args:
            number: of the trial.
            given: parameters that are not the sampler's choice.
            tried: says of a configuration that it was tried before; a grid goes on to the next one.
        """
        if self.grid is not None:
            config = next((config for config in self.grid if not tried(config)), None)
            return None if config is None else self.fixed(config, number)
        if given:
            self.study.enqueue_trial(dict(given))
        trial = self.study.ask()
        config = self._suggest(trial, number, "search")
        self.live[number] = trial
        return config

    def fixed(self, config: TrialConfig, number: int) -> TrialConfig:
        """Enter a given configuration into the study."""
        self.study.enqueue_trial({"model": config.model, "pipeline": config.pipeline, **config.params})
        trial = self.study.ask()
        self._suggest(trial, number, config.kind)
        self.live[number] = trial
        return config.model_copy(update={"number": number})

    def _suggest(self, trial: optuna.trial.Trial, number: int, kind: Any) -> TrialConfig:
        def value(name: str) -> Any:
            domain: Domain = self.plan.domain(name)
            if isinstance(domain, Float):
                return trial.suggest_float(name, domain.low, domain.high, log=domain.log)
            if isinstance(domain, Int):
                return trial.suggest_int(name, domain.low, domain.high, log=domain.log)
            # One choice is no question: it would only thin the sampler's model.
            return domain.choices[0] if len(domain.choices) == 1 else trial.suggest_categorical(name, domain.choices)

        model, pipeline = value("model"), value("pipeline")
        choices = {name: value(name) for name in CHOICES if name in self.plan.space}
        names = self.plan.parameters(pipeline, choices["augment"], choices.get("regularize"))
        params = {**choices, **{name: value(name) for name in names if name not in choices}}
        return TrialConfig(number=number, kind=kind, model=model, pipeline=pipeline, params=params, seed=self.plan.seed)

    def behind(self, config: TrialConfig, epoch: float, value: float) -> bool:
        """Report a validation and say whether the trial should stop; the default and further seeds never do.

        What is compared is the best score so far at each quarter of a trial's own training: after as many epochs, a short
        training whose learning rate has nearly fallen to zero is mostly ahead of a long one. A trial competes with trials of
        its own model and of smaller ones: that a small model scores less than a large one is no reason to stop it, that a
        large one scores less than a small one is. A trial within half a standard error of the best at the same point is not
        behind: on a few hundred rows, that is chance.
        """
        rung, value = self._reached(config, epoch, value)
        if rung == 0:
            return False
        sign, behind = 1 if self.plan.higher_is_better else -1, False
        for model in self._rivals(config.model):
            trial = self.watch.get((config.number, model))
            if trial is None:
                trial = self.watch[config.number, model] = self.stopping[model].ask()
                self.watched.setdefault(config.number, {})[model] = trial.number
            trial.report(value, rung)
            judged = trial.should_prune()
            if model == config.model:
                behind = judged and sign * value < self.best_at[model, rung] - self._standard_error(value) / 2
        # At its end there is nothing left to save.
        return behind and config.kind not in GIVEN and rung < QUARTERS

    def _reached(self, config: TrialConfig, epoch: float, value: float) -> tuple[int, float]:
        """Note a score, and return the quarter that the trial is through with its best score so far; 0 where none counts."""
        if len(self.plan.objectives) > 1 or config.repeats or math.isnan(value):
            return 0, value
        if self.plan.folds > 1 and self.plan.early_stopping == "wilcoxon":
            return 0, value
        sign, rung = 1 if self.plan.higher_is_better else -1, _quarters(config, epoch)
        value = max(sign * value, self.so_far.get(config.number, -math.inf))
        self.so_far[config.number] = value
        for model in self._rivals(config.model) if rung else ():
            self.best_at[model, rung] = max(self.best_at.get((model, rung), -math.inf), value)
            self.scores.setdefault(config.number, {})[model, rung] = value
        return rung, sign * value

    def behind_at_fold(self, number: int, fold: int, value: float) -> bool:
        """Enter what a configuration scored on a fold and say whether it is behind the best on the folds so far.

        Each configuration is compared with the best one by a signed-rank test over the folds that both were trained on.
        The default is never behind.
        """
        seen = self.at_fold.setdefault(number, {})
        if math.isnan(value):
            return False
        seen[fold] = value
        trial = self.folds.ask()
        for place, figure in seen.items():
            trial.report(figure, place)
        behind = number != 0 and trial.should_prune()
        # Told each time, as a study's best trial has to be complete; the last entry of a configuration has all its folds.
        whole = len(seen) == self.plan.folds
        self.folds.tell(
            trial, statistics.fmean(seen.values()) if whole else None, state=None if whole else self._pruned
        )
        return behind

    @property
    def _pruned(self) -> optuna.trial.TrialState:
        return self.optuna.trial.TrialState.PRUNED

    def _standard_error(self, value: float) -> float:
        """Return the binomial standard error of a share of right answers, and nothing for a loss or a large figure."""
        rows = self.plan.rows_of_validation(int(self.plan.data["sizes"]["validation"]))
        return math.sqrt(value * (1 - value) / rows) if self.plan.higher_is_better and 0 <= value <= 1 else 0.0

    def _rivals(self, model: str) -> list[str]:
        """Return the models whose trials a trial of this model competes with: those not clearly smaller."""
        size = self.plan.model(model).size_bytes
        return [other.name for other in self.plan.models if other.name == model or other.size_bytes >= 0.9 * size]

    def _end_watch(self, number: int, value: float | None, state: Any) -> None:
        for (watched, model), trial in list(self.watch.items()):
            if watched == number:
                del self.watch[watched, model]
                if value is None:
                    self.stopping[model].tell(trial, state=state)
                else:
                    self.stopping[model].tell(trial, value)

    def _end_watch_of(self, result: TrialResult) -> None:
        state = self.optuna.trial.TrialState
        final = result.validation.get(self.plan.objective) if result.state == "complete" else None
        self._end_watch(result.number, final, state.PRUNED if result.state == "pruned" else state.FAIL)

    def withdraw(self, number: int) -> None:
        """Take a trial out of the early stopping: it does not fit, and must not stop others, or is begun again and told of anew."""
        self.so_far.pop(number, None)
        for model, place in self.watched.pop(number, {}).items():
            self.watch.pop((number, model), None)
            self.rivals[model].withdraw(place)
        for key, value in self.scores.pop(number, {}).items():
            if value == self.best_at[key]:
                self.best_at[key] = max(
                    (known.get(key, -math.inf) for known in self.scores.values()), default=-math.inf
                )

    def tell(self, result: TrialResult, values: Sequence[float] | None) -> None:
        """Tell how a trial ended. What does not fit is PRUNED with its constraint: from FAIL, TPE learns nothing."""
        trial, state = self.live.pop(result.number, None), self.optuna.trial.TrialState
        self._end_watch_of(result)
        if trial is None or result.config.derived:
            return
        for limit, over in self._constraints(result).items():
            trial.set_constraint(limit, over)
        if values is not None and _complete(values):
            self.study.tell(trial, list(values))
            return
        for quarter, value in self._at_quarters(result).items():
            trial.report(value, quarter)
        self.study.tell(trial, state=state.FAIL if result.state == "failed" else state.PRUNED)

    def reject(self, config: TrialConfig, reason: str) -> None:
        """Tell that a configuration is not possible."""
        trial = self.live.pop(config.number)
        trial.set_constraint("legal", 1.0)
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)

    def forget(self, number: int) -> None:
        """Take back a proposal that was not run."""
        trial = self.live.pop(number, None)
        if trial is not None:
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
        self._end_watch(number, None, self.optuna.trial.TrialState.FAIL)

    def reopen(self, result: TrialResult) -> bool:
        """Enter a trial of an earlier call that goes on; False where the space does not have its configuration."""
        if result.config.kind == "added" and not self._in_space(result.config):
            # The user may try what the search does not; its sampler has no place for it.
            return False
        try:
            self.fixed(result.config, result.number)
        except (ValueError, KeyError):
            return False
        self._watch(result)
        return True

    def _in_space(self, config: TrialConfig) -> bool:
        values = {"model": config.model, "pipeline": config.pipeline, **config.params}
        return all(name in self.plan.space and self.plan.domain(name).contains(value) for name, value in values.items())

    def replay_all(self, trials: Sequence[tuple[TrialResult, Sequence[float] | None]]) -> None:
        """Enter trials that are done, in this order, with their objectives (None for one that left nothing that fits).

        Of very many only those are entered that somebody will be shown; what comes later makes none of the others one of them.
        """
        shown: Collection[int] = range(len(trials))
        if len(trials) > BEST_SHOWN + NEWEST_SHOWN:
            sign = -1 if directions(self.plan)[0] == "maximize" else 1
            complete = [place for place, (_, values) in enumerate(trials) if _complete(values)]
            best = heapq.nsmallest(BEST_SHOWN, complete, key=lambda place: sign * (trials[place][1] or [math.nan])[0])
            learned = [place for place, (result, _) in enumerate(trials) if result.state != "failed"]
            shown = {0, *best, *learned[-NEWEST_SHOWN:]}
        for place, (result, values) in enumerate(trials):
            compared = place >= len(trials) - RIVALS_SHOWN
            self.replay(result, values, compared=compared, shown=place in shown)

    def replay(
        self, result: TrialResult, values: Sequence[float] | None, *, compared: bool = True, shown: bool = True
    ) -> None:
        """Enter a trial that is done, of an earlier call or of another search, as if it had just ended.

        Args:
            result: the trial's.
            values: its objectives, None where it left nothing that fits.
            compared: the early stopping compares others with it; of very many trials only the newest matter there.
            shown: the sampler learns from it; of very many trials only the best and the newest matter there.
        """
        if not self._in_space(result.config):
            if self.reopen(result):
                self.tell(result, values)
            return
        self._watch(result, compared)
        self._end_watch_of(result)
        if result.config.derived or not shown:
            return
        state = self.optuna.trial.TrialState
        # What asking and telling come to, without a look at all trials for each.
        complete = _complete(values)
        reached = {} if complete else self._at_quarters(result)
        if not complete:
            values = [reached[max(reached)]] if reached else None
        distributions, params, _ = questions(self.plan, result.config)
        self.study.add_trial(
            self.optuna.trial.create_trial(
                state=state.COMPLETE if complete else state.FAIL if result.state == "failed" else state.PRUNED,
                values=values,
                params=params,
                distributions=distributions,
                constraints=self._constraints(result),
                intermediate_values=reached,
            )
        )

    def _constraints(self, result: TrialResult) -> dict[str, float]:
        limits = [limit.key for limit in self.plan.budget] + (["memory"] if "memory" in result.violations else [])
        return {limit: _constraint(result, limit) for limit in limits}

    def _at_quarters(self, result: TrialResult) -> dict[int, float]:
        """Return what a trial that was stopped early scored first in each quarter."""
        if result.state != "pruned" or len(self.plan.objectives) > 1:
            return {}
        found: dict[int, float] = {}
        for point in result.curve:
            found.setdefault(_quarters(result.config, point.epoch), point.validation[self.plan.objective])
        return found

    def going_elsewhere(self, configs: Iterable[TrialConfig]) -> None:
        """Enter what other searches are at now, so that the sampler proposes something else (its constant liar)."""
        state = self.optuna.trial.TrialState
        current = {settings_of_trial(config): config for config in configs}
        for settings in [*self.elsewhere]:
            if settings not in current:
                self.study.tell(self.elsewhere.pop(settings), state=state.FAIL)
        for settings, config in current.items():
            if settings not in self.elsewhere:
                distributions, params, _ = questions(self.plan, config)
                self.study.add_trial(
                    self.optuna.trial.create_trial(state=state.RUNNING, params=params, distributions=distributions)
                )
                self.elsewhere[settings] = self.study.get_trials(deepcopy=False)[-1].number

    def _begin_early_stopping(self) -> None:
        self.watch = {}
        self.best_at: dict[tuple[str, int], float] = {}
        self.so_far: dict[int, float] = {}
        """By trial, its best score, greater being better."""
        self.watched: dict[int, dict[str, int]] = {}
        """By trial and model, its number in the study that decides for that model."""
        self.scores: dict[int, dict[tuple[str, int], float]] = {}
        """By trial, what it put into ``best_at``."""
        self.rivals = {model.name: self.bounded(0, RIVALS_SHOWN) for model in self.plan.models}
        direction = "maximize" if self.plan.higher_is_better else "minimize"
        self.stopping = {
            # By its study's name Hyperband deals trials out to its brackets: the same run has to deal alike.
            model.name: self.optuna.create_study(
                study_name=f"early stopping of {model.name}",
                direction=direction,
                pruner=_stopper(self.plan),
                storage=self.rivals[model.name],
            )
            for model in self.plan.models
        }

    def _watch(self, result: TrialResult, compared: bool = True) -> None:
        if result.state in {"infeasible", "failed"}:
            return
        enter = self.behind if compared else self._reached
        for point in result.curve:
            enter(result.config, point.epoch, point.validation[self.plan.objective])

    def importance(self) -> dict[str, float]:
        """Return PED-ANOVA's importance (Watanabe et al. 2023), which keeps conditional parameters."""
        done = [t for t in self.study.trials if t.state == self.optuna.trial.TrialState.COMPLETE]
        if len(done) < 8 or len({t.values[0] for t in done}) < 3:
            return {}
        evaluator = self.optuna.importance.PedAnovaImportanceEvaluator()
        target = (lambda t: t.values[0]) if len(self.plan.objectives) > 1 else None
        try:
            with warnings.catch_warnings():
                # That few trials make a weak figure is what the report says of it.
                warnings.simplefilter("ignore")
                shares = self.optuna.importance.get_param_importances(self.study, evaluator=evaluator, target=target)
        except (ValueError, RuntimeError):
            # Optuna refuses where no parameter varies among the trials.
            return {}
        return {name: float(share) for name, share in shares.items() if math.isfinite(share)}


def settings_of_trial(config: TrialConfig) -> Settings:
    """Return what makes a configuration the same as another one."""
    return config.model, config.pipeline, frozenset(config.params.items()), config.seed


def directions(plan: Plan) -> list[str]:
    """Return the direction of each objective, as Optuna names them; costs are minimised."""
    return [
        "maximize" if plan.metrics.get(name, {}).get("higher_is_better", False) else "minimize"
        for name in plan.objectives
    ]


def questions(plan: Plan, config: TrialConfig) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the distributions and values that Optuna knows, and the settings that are no question or outside of the space."""
    distributions, params, further = {}, {}, {}
    for name, value in {"model": config.model, "pipeline": config.pipeline, **config.params}.items():
        domain = plan.domain(name) if name in plan.space else None
        if (
            domain is None
            or not domain.contains(value)
            or (isinstance(domain, Categorical) and len(domain.choices) == 1)
        ):
            further[name] = value
        else:
            distributions[name], params[name] = _distribution(domain), value
    return distributions, params, further


def _distribution(domain: Domain) -> optuna.distributions.BaseDistribution:
    from optuna import distributions

    if isinstance(domain, Float):
        return distributions.FloatDistribution(domain.low, domain.high, log=domain.log)
    if isinstance(domain, Int):
        return distributions.IntDistribution(domain.low, domain.high, log=domain.log)
    return distributions.CategoricalDistribution(domain.choices)


def _complete(values: Sequence[float] | None) -> bool:
    return values is not None and all(math.isfinite(value) for value in values)


def _constraint(result: TrialResult, key: str) -> float:
    """Return Optuna's constraint value: above 0 where the limit is broken, by how much."""
    if result.state == "complete" or key not in result.violations:
        return 0.0 if result.state != "complete" else -1.0
    return result.violations[key]


def _quarters(config: TrialConfig, epoch: float) -> int:
    """Return how many quarters of its own training a trial is through."""
    epochs = float(config.params.get("train.epochs") or 1)
    return min(QUARTERS, int(QUARTERS * epoch / epochs + 1e-6))


def _sampler(plan: Plan, seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    samplers = optuna.samplers
    match plan.sampler:
        case "tpe":
            return samplers.TPESampler(multivariate=True, group=True, constant_liar=True, n_startup_trials=6, seed=seed)
        case "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=6, warn_independent_sampling=False)
        case "cmaes":
            return samplers.CmaEsSampler(seed=seed, n_startup_trials=4, warn_independent_sampling=False)
        case "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=12)
        case "qmc":
            return samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
        case _:
            return samplers.RandomSampler(seed=seed)


def _grid(plan: Plan, seed: int) -> Iterator[TrialConfig]:
    """Yield every configuration of the grid once, in an order that ``seed`` decides.

    A choice gives its values, a range its ends and its default; a configuration has only the parameters of its
    pipeline, which Optuna's own grid cannot express.
    """

    def values(name: str) -> list[Any]:
        domain = plan.domain(name)
        if isinstance(domain, Categorical):
            return list(domain.choices)
        return sorted({domain.low, domain.default, domain.high})

    axes = []
    chosen = [name for name in CHOICES if name in plan.space]
    for model, pipeline, *given in itertools.product(*(values(name) for name in ("model", "pipeline", *chosen))):
        choices = dict(zip(chosen, given, strict=True))
        if plan.unfit(model, pipeline, choices.get("regularize")):
            continue
        names = [
            n for n in plan.parameters(pipeline, choices["augment"], choices.get("regularize")) if n not in choices
        ]
        axes.append((model, pipeline, choices, names, [values(name) for name in names]))
    sizes = [math.prod(len(options) for options in entry[-1]) for entry in axes]
    if sum(sizes) > GRID_LIMIT:
        raise SearchFailed(
            f"the grid has {sum(sizes)} points, and at most {GRID_LIMIT} are possible; narrow the space, or take another "
            "sampler"
        )
    order = list(range(sum(sizes)))
    random.Random(seed).shuffle(order)
    for place in order:
        part = 0
        while place >= sizes[part]:
            place -= sizes[part]
            part += 1
        model, pipeline, choices, names, domains = axes[part]
        params: dict[str, Any] = dict(choices)
        for name, options in zip(names, domains, strict=True):
            place, index = divmod(place, len(options))
            params[name] = options[index]
        yield TrialConfig(number=0, kind="search", model=model, pipeline=pipeline, params=params, seed=plan.seed)


def _stopper(plan: Plan) -> optuna.pruners.BasePruner:
    import optuna

    pruners = optuna.pruners
    match plan.early_stopping:
        case "halving":
            return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
        case "hyperband":
            return pruners.HyperbandPruner(min_resource=1, max_resource=QUARTERS, reduction_factor=2)
        case "median":
            return pruners.MedianPruner(n_startup_trials=3)
        case _:
            return pruners.NopPruner()
