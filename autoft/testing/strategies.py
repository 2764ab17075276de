"""The checks of a strategy, and what tasks' checks ask of strategies too."""

from __future__ import annotations

import copy
import io
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from autoft.artifact import LoadedModel
from autoft.contracts import (
    Adapter,
    Augmenter,
    Column,
    Compressor,
    PostTrainingQuantizer,
    Quantizer,
    Refusal,
    Regularizer,
    Row,
    State,
    Strategy,
    Target,
    Task,
    TaskCard,
    WeightPruner,
)
from autoft.space import Categorical, Float, Int, SearchSpace
from autoft.strategies.augmentation import read_tagged
from autoft.strategies.places import Unreadable, places
from autoft.strategies.tagged_words import segments
from autoft.testing.isolation import heavy_imports
from autoft.testing.values import difference
from autoft.testing.workbench import TOLERANCE, BenchRecovery, Call, Workbench, expect, skip

__all__ = [
    "Pipeline",
    "compress",
    "keeps_quality",
    "keeps_the_row",
    "legal_pipelines",
    "merges_and_loads",
    "strategy_checks",
    "trains_and_merges",
]

STAGES: Mapping[type[Strategy], str] = {
    Augmenter: "data",
    Quantizer: "load",
    Adapter: "adapt",
    Regularizer: "train",
    Compressor: "compress",
}

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Two words",
    "word",
    "",
    " ",
    "...",
    "Numbers 1,234.5 and 67 % - and (brackets)!",
    "a  b   c\td\ne",
    "ÅNGSTRÖM ﬁ ½ ﷺ",
    "人工知能は面白い。",
    "मैं घर जा रहा हूँ",
    "مرحبا بالعالم",
    "👩‍👩‍👧 🏳️‍🌈",
    "same same same same",
    "x" * 3000,
)
SEEDS = 6

EVERYTHING = TaskCard(
    name="autoft-testing-everything",
    summary="columns of every kind",
    columns=(
        Column("text", "text", "a text"),
        Column("second", "text", "another text", required=False),
        Column("count", "number", "a number"),
        Column("words", "tokens", "words"),
        Column("picture", "image", "a picture"),
        Column("answer", "text", "a text to find", target=True),
        Column("label", "label", "a label", target=True),
        Column("labels", "labels", "labels", target=True),
        Column("tags", "tags", "a tag a word", target=True),
        Column("span", "span", "a place in the text", target=True),
    ),
    metrics=("praise_hits",),
    architecture="sequence-classification",
)

TEXTS = TaskCard(
    name="autoft-testing-texts",
    summary="a text and its label",
    columns=(Column("text", "text", "a text"), Column("label", "label", "a label", target=True)),
    metrics=("praise_hits",),
    architecture="sequence-classification",
)
ANSWERS = replace(
    TEXTS,
    name="autoft-testing-answers",
    summary="places in a text",
    columns=(Column("text", "text", "a text"), Column("answer", "span", "places in it", target=True, of="text")),
)
TAGGED = replace(
    TEXTS,
    name="autoft-testing-tagged",
    summary="words and their tags",
    columns=(Column("words", "tokens", "words"), Column("tags", "tags", "a tag a word", target=True)),
)
PICTURES = replace(
    TEXTS,
    name="autoft-testing-pictures",
    summary="a picture and what it shows",
    columns=(Column("picture", "image", "a picture"), Column("caption", "texts", "what it shows", target=True)),
)


def _texts() -> list[Row]:
    return [{"text": f"{SENTENCES[0]} {SENTENCES[6]}", "label": "praise"}]


def _answers() -> list[Row]:
    text = "The lamp of the lighthouse burned whale oil until 1869, and then paraffin. It is seen for 28 miles."
    start = text.index("whale oil")
    return [
        {"text": text, "answer": {"text": ["whale oil"], "answer_start": [start]}},
        {
            "text": text,
            "answer": [{"start": start, "end": start + 9, "label": "FUEL"}, {"start": 4, "end": 8, "label": "X"}],
        },
        {"text": text, "answer": "paraffin"},
        {"text": text, "answer": []},
        {"text": text, "answer": {"text": ["not there"], "answer_start": [3]}},
        {"text": "梨园里有四十二棵树，由老陈种下。", "answer": ["四十二"]},
    ]


def _tagged() -> list[Row]:
    sentences = (
        ("Ada Lovelace was born in London .", "B-PER I-PER O O O B-LOC O"),
        ("The old train from Oslo is late .", "O O O O B-LOC O O O"),
        ("Grace Hopper met Alan at Harvard .", "B-PER I-PER O B-PER O B-LOC O"),
    )
    rows: list[Row] = [{"words": words.split(), "tags": tags.split()} for words, tags in sentences]
    return [*rows, {"words": ["one", "two"], "tags": [3, 4]}, {"words": ["one"], "tags": ["O", "O"]}]


def _pictures() -> list[Row]:
    from PIL import Image

    content = io.BytesIO()
    picture = Image.linear_gradient("L").resize((20, 14)).rotate(30)
    Image.merge("RGB", (picture, picture.rotate(90), picture.rotate(180))).save(content, "PNG")
    return [{"picture": content.getvalue(), "caption": ["a gradient"]}, {"picture": b"no picture", "caption": "none"}]


ORDINARY: tuple[tuple[TaskCard, Callable[[], list[Row]]], ...] = (
    (TEXTS, _texts),
    (ANSWERS, _answers),
    (TAGGED, _tagged),
    (PICTURES, _pictures),
)
"""Rows as tasks have them; an augmenter has to keep, and change, those that it does not refuse."""

KEPT = 0.5
"""Share of what training gained that a compressed model has to keep. The contract does not say what one costs."""


ROUNDED = 0.25
"""Error that a quantized base may have, as a share of its weights; 4-bit floats have some .15 on normal weights."""


@dataclass(frozen=True)
class Pipeline:
    """An adapter, over a quantized base or a dense one."""

    adapter: Adapter
    quantizer: Quantizer | None = None

    @property
    def name(self) -> str:
        """As recipes name it."""
        return f"{self.quantizer.name}+{self.adapter.name}" if self.quantizer else self.adapter.name


def strategy_checks(strategy: Strategy, benches: Mapping[str, Workbench]) -> Iterator[Call]:
    """Yield the checks that suit a strategy.

    Args:
        strategy: what is checked.
        benches: a small task on each kind of model that strategies are tried upon.
    """
    (first, *_) = benches.values()
    yield Call(check_import_is_light, (strategy,))
    yield Call(check_names, (strategy,))
    for kind, bench in benches.items():
        yield Call(check_refuses_with_a_sentence, (bench, strategy), kind)
    if isinstance(strategy, Augmenter):
        yield Call(check_augmenter_keeps_the_row, (first, strategy))
        yield Call(check_augmenter_changes_texts, (first, strategy))
        yield Call(check_augmenter_refuses_what_it_invalidates, (first, strategy))
    for kind, bench in benches.items():
        if strategy.check(bench.planning) is not None:
            continue
        if isinstance(strategy, Compressor):
            yield Call(check_compressor_keeps_predictions, (bench, strategy), kind)
            if isinstance(strategy, PostTrainingQuantizer):
                yield Call(check_quantized_files_are_smaller, (bench, strategy), kind)
            if "sparse" in strategy.accepts:
                yield Call(check_compressor_takes_pruned_models, (bench, strategy), kind)
        if isinstance(strategy, Regularizer):
            yield Call(check_regularizer_trains_and_leaves_nothing, (bench, strategy), kind)
        if isinstance(strategy, Quantizer):
            yield Call(check_quantizer_loads, (bench, strategy), kind)
        for pipeline in legal_pipelines(bench):
            if pipeline.adapter is strategy:
                yield Call(check_adapter_trains_and_merges, (bench, pipeline), f"{pipeline.name}, {kind}")


# ---------------------------------------------------------------------------------------------- any strategy


def check_import_is_light(strategy: Strategy) -> None:
    """Its module and its ``check`` load no heavy library."""
    heavy_imports(strategy)


def check_names(strategy: Strategy) -> None:
    """Summary, stage, states, parameters and published settings are as the contract has them."""
    summary = strategy.summary
    expect(summary.strip() and "\n" not in summary, f"the summary has to be one line, given {summary!r:.60}")
    kinds = [kind for kind in STAGES if isinstance(strategy, kind)]
    expect(len(kinds) == 1, "a strategy is one of Augmenter, Quantizer, Adapter, Regularizer and Compressor")
    expect(strategy.stage == STAGES[kinds[0]], f"the stage is {strategy.stage!r}, not {STAGES[kinds[0]]!r}")
    states = set(get_args(State))
    expect(
        strategy.accepts and set(strategy.accepts) <= states, f"accepts has to name some of {', '.join(sorted(states))}"
    )
    expect(strategy.yields in states, f"yields is {strategy.yields!r}, none of {', '.join(sorted(states))}")
    for name, domain in strategy.space.items():
        expect(isinstance(domain, Float | Int | Categorical), f"space says {domain!r} of {name!r}, which is no domain")
        expect(
            name.isidentifier(), f"the parameter {name!r} is no plain name; the strategy's own is put in front of it"
        )
    for setting in strategy.published:
        for name, value in setting.items():
            if "." in name:
                continue
            expect(name in strategy.space, f"a published setting has {name!r}, which is no parameter")
            expect(
                strategy.space[name].contains(value),
                f"published {name}={value!r} lies outside of {strategy.space[name]}",
            )
    if isinstance(strategy, Adapter):
        expect(
            isinstance(strategy.space.get("learning_rate"), Float | Categorical), "space lacks learning_rate, a Float"
        )


def check_refuses_with_a_sentence(bench: Workbench, strategy: Strategy) -> None:
    """``check`` answers with None, or with one line that names the strategy."""
    for target in (bench.planning, replace(bench.planning, config={})):
        refusal = strategy.check(target)
        if refusal is None:
            continue
        expect(isinstance(refusal, Refusal), f"check() returned {type(refusal).__name__}, neither a Refusal nor None")
        reason = refusal.reason
        fits = strategy.name in reason and "\n" not in reason
        expect(fits, f"a refusal is one line that names {strategy.name}, given {reason!r:.80}")


# ------------------------------------------------------------------------------------------------- augmenters


def check_augmenter_keeps_the_row(bench: Workbench, augmenter: Augmenter) -> None:
    """Other columns, the given row, and what targets say stay; the same ``rng`` gives the same; odd texts survive."""
    rows: list[Row] = [
        {
            "text": text,
            **({"second": SENTENCES[i - 1]} if i % 2 else {}),
            "count": 3.5,
            "words": ["two", "words"],
            "picture": b"\x89PNG",
            "answer": "the answer",
            "label": "b",
            "labels": ["a", "b"],
            "tags": ["O", "B"],
            "span": {"start": 0, "text": "The"},
        }
        for i, text in enumerate(SENTENCES)
    ]
    keeps_the_row(bench, augmenter, rows, EVERYTHING)
    for card, ordinary in ORDINARY:
        if augmenter.check(_on_card(bench.planning, card)) is None:
            keeps_the_row(bench, augmenter, ordinary(), card)


def check_augmenter_changes_texts(bench: Workbench, augmenter: Augmenter) -> None:
    """With its default parameters it changes an ordinary row once in a while."""
    served = [(card, rows()) for card, rows in ORDINARY if augmenter.check(_on_card(bench.planning, card)) is None]
    if not served:
        skip("refuses texts, tagged words, spans and pictures here")
    for card, rows in served:
        learned = learned_of(bench, augmenter, rows, card)
        for row in rows[:1]:
            tries = [
                augmenter.augment(copy.deepcopy(row), card, random.Random(seed), defaults(augmenter.space), learned)
                for seed in range(40)
            ]
            if any(dict(one) != row for one in tries):
                return
    if type(augmenter).learn_from is not Augmenter.learn_from:
        skip("knows nothing of ordinary rows from a tiny model")
    expect(False, f"40 tries at {defaults(augmenter.space)} change nothing of {served[0][1][0]!r:.200}")


def check_augmenter_refuses_what_it_invalidates(bench: Workbench, augmenter: Augmenter) -> None:
    """A task with a column that a change would make wrong is refused."""
    for kind in sorted(augmenter.invalidates):
        card = replace(
            bench.task.card, columns=(*bench.task.card.columns, Column("it", kind, "what would be wrong", target=True))
        )
        other: Task = type("Other", (type(bench.task),), {"card": card})()
        expect(
            augmenter.check(replace(bench.planning, task=other)) is not None,
            f"it invalidates columns of kind {kind!r}, and check() does not refuse a task with one",
        )


def learned_of(bench: Workbench, augmenter: Augmenter, rows: Sequence[Row], card: TaskCard) -> Any:
    """Return what an augmenter learns of rows: from the bench's model, where it asks for one and does not refuse."""
    given = copy.deepcopy(list(rows))
    if type(augmenter).learn_from is Augmenter.learn_from or augmenter.check(bench.planning) is not None:
        return augmenter.learn(given, card)
    return augmenter.learn_from(_on_card(bench.target, card), given, defaults(augmenter.space))


def _on_card(target: Target, card: TaskCard) -> Target:
    task: Task = type("Other", (type(target.task),), {"card": card})()
    return replace(target, task=task)


def says_the_same(column: Column, card: TaskCard, before: Row, after: Row) -> str | None:
    """Return how a target that was realigned says something else than before, or None.

    Args:
        column: of kind ``span``, whose places have to hold the same texts; or of kind ``tags``, one for each word,
        whose
            entities have to be of the same types in the same order. Other kinds may not change at all.
        card: says what the column refers to.
        before: the row.
        after: the changed row.
    """
    one, other = before.get(column.role), after.get(column.role)
    if column.kind == "span" and column.of:
        texts = [str(row[column.of]) for row in (before, after)]
        try:
            held = [texts[0][a:b] for a, b in places(one, texts[0])]
        except Unreadable:
            return difference([other, texts[1]], [one, texts[0]], 0.0, repr(column.role))
        try:
            now = [texts[1][a:b] for a, b in places(other, texts[1])]
        except Unreadable as error:
            return f"{column.role!r} held {held}, and now {error}"
        return None if held == now else f"{column.role!r} held {held}, and holds {now}"
    if column.kind == "tags":
        pair = [read_tagged(row, card) for row in (before, after)]
        if pair[0] is None or pair[1] is None:
            return difference(other, one, 0.0, repr(column.role))
        kinds = [[kind for kind, _, _ in segments(tagged.tags)] for tagged in pair if tagged]
        return None if kinds[0] == kinds[1] else f"{column.role!r} had entities {kinds[0]}, and has {kinds[1]}"
    return difference(other, one, 0.0, repr(column.role))


def keeps_the_row(bench: Workbench, augmenter: Augmenter, rows: Sequence[Row], card: TaskCard) -> list[Row]:
    """Augment rows with the smallest, the default and the largest parameters, and return them all.

    Raises:
        CheckFailed: something changed that has to stay, or chance came from elsewhere than ``rng``.
    """
    rewritten = {column.role for column in card.inputs if column.kind in augmenter.rewrites}
    realigned = {column.role: column for column in card.targets if column.kind in augmenter.realigns}
    learned = learned_of(bench, augmenter, rows, card)
    changed: list[Row] = []
    for params in extremes(augmenter.space):
        for number, row in enumerate(rows):
            for seed in range(SEEDS):
                answers = []
                for noise in (1, 2):
                    random.seed(noise)
                    given = copy.deepcopy(dict(row))
                    answers.append(augmenter.augment(given, card, random.Random(seed), params, learned))
                    told = difference(given, dict(row), 0.0, "the given row")
                    expect(told is None, f"augment() changes the row that it is given: {told}")
                one, other = (dict(answer) for answer in answers)
                expect(
                    one == other, f"row {number + 1}: the same rng gives two answers; all chance has to come from it"
                )
                expect(set(one) == set(row), f"row {number + 1} had the roles {sorted(row)}, and now has {sorted(one)}")
                for role, value in one.items():
                    if role in realigned:
                        told = says_the_same(realigned[role], card, row, one) if value != row[role] else None
                        expect(told is None, f"augment() makes a target wrong: {told}")
                    elif role not in rewritten:
                        told = difference(value, row[role], 0.0, repr(role))
                        expect(told is None, f"augment() may not change {role!r}, which it does not rewrite: {told}")
                    elif isinstance(row[role], str):
                        expect(isinstance(value, str), f"{role!r} was a text, and is {type(value).__name__} now")
                        lost = bool(row[role].strip()) and not value.strip()
                        expect(not lost, f"nothing is left of {role!r}, which was {row[role]!r:.40} (with {params})")
                    elif isinstance(row[role], list):
                        empty = not value or not all(str(word).strip() for word in value)
                        expect(not empty, f"a word of {role!r} is left empty: {value!r:.80}")
                for column in realigned.values():
                    if column.of in one and one[column.of] != row[column.of]:
                        told = says_the_same(column, card, row, one)
                        expect(told is None, f"augment() makes a target wrong: {told}")
                changed.append(one)
    return changed


# ------------------------------------------------------------------------------------------------ compressors


def check_compressor_keeps_predictions(bench: Workbench, compressor: Compressor) -> None:
    """The given model stays as it is; the files of the compressed one load, and predict nearly as it did."""
    keeps_quality(bench, compressor, compress(bench, compressor))


def check_quantized_files_are_smaller(bench: Workbench, compressor: PostTrainingQuantizer) -> None:
    """The files of a quantized model are smaller than those of the dense one."""
    dense, folder = bench.new_folder(), bench.new_folder()
    model: Any = bench.trained.model
    model.save_pretrained(dense)
    compressor.save(apply_and_compare(bench, compressor, model)[0], folder)
    before, after = _bytes_of(dense), _bytes_of(folder)
    expect(after < before, f"the quantized model has {after} bytes, the dense one {before}")


def check_compressor_takes_pruned_models(bench: Workbench, compressor: Compressor) -> None:
    """It accepts sparse models: one with half of its weights at zero comes through, and loads."""
    import torch

    pruned = copy.deepcopy(bench.trained.model)
    with torch.no_grad():
        for weight in pruned.parameters():
            if weight.dim() == 2:
                weight.masked_fill_(weight.abs() < weight.abs().median(), 0.0)
    loaded = compress(bench, compressor, pruned)
    found = bench.judge(loaded.model, loaded.context)
    expect(len(found) == len(bench.rows), f"{len(found)} predictions for {len(bench.rows)} rows")


def apply_and_compare(bench: Workbench, compressor: Compressor, model: Any) -> tuple[Any, Target]:
    """Return the compressed model, and what its files work upon.

    Raises:
        CheckFailed: the given one is not what it was.
    """
    import torch

    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss, training = bench.loss(model), model.training
    modules = {name: type(module) for name, module in model.named_modules()}
    target = replace(bench.target, recover=BenchRecovery(bench, model))
    answer, changed = compressor.transform(model, target, bench.rows, defaults(compressor.space))
    who = f"transform() of {compressor.name}"
    expect(
        {name: type(module) for name, module in model.named_modules()} == modules, f"{who} changes the model's modules"
    )
    after = model.state_dict()
    wrong = [name for name, value in before.items() if name not in after or not torch.equal(value, after[name])]
    expect(
        not wrong and set(after) == set(before), f"{who} changes the given model: {', '.join(wrong[:3]) or 'its names'}"
    )
    expect(model.training == training, f"{who} leaves the given model in another mode; set it back")
    expect(bench.loss(model) == loss, f"after {who} the given model has another loss")
    return answer, changed


def compress(bench: Workbench, compressor: Compressor, model: Any = None) -> LoadedModel:
    """Compress a model (the trained one by default), write it as a trial does, and return what loads from the files.

    Raises:
        CheckFailed: the given model was changed, or the files predict otherwise than the compressed model in memory.
    """
    import torch

    given = bench.trained.model if model is None else model
    answer, target = apply_and_compare(bench, compressor, given)
    plain = compressor.yields in {"dense", "sparse"} and not compressor.writes_itself
    loaded = bench.write_and_read(answer, None if plain else compressor, compressor.name, target)
    if isinstance(answer, torch.nn.Module):
        wanted, found = bench.judge(answer.eval(), target.context), bench.judge(loaded.model, loaded.context)
        # One in 16 bits in memory and in 32 once it is loaded rounds differently.
        if getattr(answer, "dtype", torch.float32) == torch.float32:
            told = difference(found, wanted, TOLERANCE, "predictions")
            expect(
                told is None, f"{compressor.name}: its files predict otherwise than the compressed model did: {told}"
            )
    return loaded


def keeps_quality(bench: Workbench, compressor: Compressor, loaded: LoadedModel) -> None:
    """Fail where a compressor loses more than half of what training gained; a pruner may, by its parameters."""
    value = bench.score(bench.judge(loaded.model, loaded.context))
    expect(math.isfinite(value), f"{bench.objective.name} of the compressed model is {value}")
    if isinstance(compressor, WeightPruner):
        return
    before = bench.score(bench.predictions)
    expect(
        bench.gain(value) >= KEPT,
        f"{compressor.name}: {bench.objective.name} falls from {before:.3g} to {value:.3g} (untrained: "
        f"{bench.score(bench.first_predictions):.3g}) with parameters at their defaults",
    )


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------- adapters and quantizers


def check_adapter_trains_and_merges(bench: Workbench, pipeline: Pipeline) -> None:
    """It trains what it says and leaves the rest; the merged model is dense and says what the adapted one did."""
    merges_and_loads(bench, pipeline)


def check_quantizer_loads(bench: Workbench, quantizer: Quantizer) -> None:
    """The base loads with fewer bytes, gives a finite loss, and can be made dense, near the first one, and written."""
    import torch

    kwargs = quantizer.load_kwargs(bench.target, defaults(quantizer.space))
    model = quantizer.prepare(bench.load_model(**kwargs), bench.target)
    dense_bytes = sum(value.numel() * value.element_size() for value in bench.untrained.parameters())
    own_bytes = sum(value.numel() * value.element_size() for value in model.parameters())
    expect(own_bytes < dense_bytes, f"its weights have {own_bytes} bytes, the dense ones {dense_bytes}")
    loss = bench.loss(model)
    expect(math.isfinite(loss), f"the loss over the quantized base is {loss}")
    dense = quantizer.dequantize(bench.load_model(**kwargs), bench.target)
    wrong = {str(value.dtype) for value in dense.parameters() if not value.is_floating_point()}
    expect(not wrong, f"dequantize() leaves weights of {', '.join(wrong)}")
    told = difference(bench.loss(dense), loss, 0.05, "the loss of the dequantized model")
    expect(told is None, f"{told}, as that of the quantized one")
    # Weights, not losses: that of a model with a random head says little of its base.
    error = _distance(dense, bench.untrained)
    expect(
        error <= ROUNDED,
        f"dequantize() gives weights {error:.0%} away from the dense ones, at most {ROUNDED:.0%} allowed",
    )
    loaded = bench.write_and_read(dense, None, "none")
    told = difference(bench.loss(loaded.model), bench.loss(dense), TOLERANCE, "the loss")
    expect(told is None, f"the dequantized model that was written and read is another: {told}")
    expect(
        all(torch.isfinite(value).all() for value in dense.parameters()),
        "dequantize() gives weights that are not finite",
    )


def _distance(model: Any, wanted: Any) -> float:
    """Return the root mean square error of a model's weights, as a share of the root mean square of those wanted."""
    import torch

    others = dict(wanted.named_parameters())
    with torch.no_grad():
        pairs = [(value.float(), others[name].float()) for name, value in model.named_parameters() if name in others]
        error = sum(float((one - other).square().sum()) for one, other in pairs)
        return math.sqrt(error / sum(float(other.square().sum()) for _, other in pairs)) if pairs else math.nan


def check_regularizer_trains_and_leaves_nothing(bench: Workbench, regularizer: Regularizer) -> None:
    """The loss falls, the rates that it names are of parameters, and the model is left without its hooks and modules."""
    import torch

    from autoft.training import Regularization

    who, params = regularizer.name, defaults(regularizer.space)
    model, batch = bench.load_model(), bench.batch()
    shape, keys = _anatomy(model), list(model.state_dict())
    first = bench.loss(model)
    steps = 30
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with Regularization([(regularizer, params)], model, bench.target) as acting:
            factors = acting.learning_rates()
            names = {name for name, _ in model.named_parameters()}
            strange = sorted(set(factors) - names)
            expect(not strange, f"{who}: learning_rates() names what is no parameter: {', '.join(strange[:3])}")
            wrong = [name for name, factor in factors.items() if not (math.isfinite(factor) and factor >= 0)]
            expect(not wrong, f"{who}: learning_rates() of {', '.join(wrong[:3])} are no factors of 0 or more")
            optimizer = torch.optim.AdamW(
                [{"params": [p], "lr": 5e-3 * factors.get(name, 1.0)} for name, p in model.named_parameters()]
            )
            model.train()
            for step in range(steps):
                loss = acting.loss(lambda given: bench.task.loss(model, given, bench.context), dict(batch))
                fits = loss.ndim == 0 and bool(torch.isfinite(loss))
                expect(fits, f"{who}: the loss of step {step + 1} is {loss.detach()}, which is no finite scalar")
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
                acting.after_step((step + 1) / steps)
            averaged, now = acting.averaged(), dict(model.named_parameters())
            odd = [name for name, value in averaged.items() if name not in now or now[name].shape != value.shape]
            expect(not odd, f"{who}: averaged() has weights that do not fit: {', '.join(odd[:3])}")
    with torch.no_grad():
        for name, value in averaged.items():
            now[name].copy_(value)
    last = bench.loss(model)
    expect(last < first, f"{who}: {steps} steps bring the loss of the demo rows from {first:.4g} to {last:.4g}")
    expect(list(model.state_dict()) == keys, f"{who}: the model has other weights than before, by name or order")
    told = difference(_anatomy(model), shape, 0.0, "modules and hooks")
    expect(told is None, f"{who}: is not gone from the model once it is done: {told}")
    loaded = bench.write_and_read(model, None, "none")
    told = difference(bench.loss(loaded.model), last, TOLERANCE, "the loss")
    expect(told is None, f"{who}: the model that was written and read is another: {told}")


def _anatomy(model: Any) -> dict[str, list[str]]:
    """Return by module its class, what is set on the instance, and how many hooks it has."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        name: [type(module).__qualname__, *sorted(vars(module)), *(str(len(getattr(module, kind))) for kind in kinds)]
        for name, module in model.named_modules()
    }


def legal_pipelines(bench: Workbench) -> list[Pipeline]:
    """Return the adapters that are legal for the bench's task and model, over a dense base and over quantized ones."""
    target: Target = bench.planning
    bases = [None, *(one for one in bench.catalog.quantizers.values() if one.check(target) is None)]
    return [
        Pipeline(adapter, quantizer)
        for quantizer in bases
        for adapter in bench.catalog.adapters.values()
        if (quantizer.yields if quantizer else "dense") in adapter.accepts
        and adapter.check(replace(target, quantizer=quantizer.name if quantizer else "")) is None
    ]


def trains_and_merges(
    bench: Workbench,
    pipeline: Pipeline,
    steps: int = 25,
    *,
    settings: Mapping[str, Any] | None = None,
    bf16: bool = False,
) -> Any:
    """Load, attach, train and merge, as a trial does, and return the merged model.

    Args:
        bench: the task and its tiny model.
        pipeline: what is tried.
        steps: of training, with the largest learning rate of the adapter's space, 1e-2 at most.
        settings: parameters of the quantizer that are not at their default.
        bf16: train with bfloat16 autocast; losses are compared in float32.

    Raises:
        CheckFailed: nothing is trained, what is frozen changes, the loss does not fall, or the merged model is not
            dense or has another loss than the adapted one.
    """
    import torch

    adapter, quantizer, who = pipeline.adapter, pipeline.quantizer, pipeline.name
    kwargs = quantizer.load_kwargs(bench.target, {**defaults(quantizer.space), **(settings or {})}) if quantizer else {}
    model = bench.load_model(**kwargs)
    domain = adapter.space["learning_rate"]
    rate = (
        max(value for value in domain.choices if isinstance(value, float))
        if isinstance(domain, Categorical)
        else domain.high
    )
    params = defaults(adapter.space)
    if quantizer:
        model = quantizer.prepare(model, bench.target)
    target = replace(bench.target, quantizer=quantizer.name if quantizer else "")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = adapter.attach(model, replace(target, learned=adapter.learn_from(target, bench.rows, params)), params)
    frozen = {name: value.detach().clone() for name, value in model.named_parameters() if not value.requires_grad}
    trained = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    expect(trained, f"{who}: attach() leaves nothing to train")
    first = bench.loss(model)
    bench.train(
        model,
        steps,
        learning_rate=min(rate, 1e-2),
        groups=adapter.parameter_groups(model, min(rate, 1e-2), params) or (),
        after_step=adapter.after_step,
        bf16=bf16,
    )
    last = bench.loss(model)
    expect(last < first, f"{who}: {steps} steps bring the loss of the demo rows from {first:.4g} to {last:.4g}")
    now = dict(model.named_parameters())
    moved = [name for name, value in frozen.items() if not torch.equal(value, now[name])]
    expect(not moved, f"{who}: frozen weights change in training: {', '.join(moved[:3])}")
    expect(
        any(not torch.equal(value, now[name]) for name, value in trained.items()),
        f"{who}: no weight changes in training",
    )
    if quantizer is None:
        merged = adapter.merge(model, None, bench.target)
        slack = TOLERANCE
    else:
        base = quantizer.dequantize(bench.load_model(**kwargs), bench.target)
        merged = adapter.merge(model, lambda: base, bench.target)
        # The quantized layers compute with rounded activations, the dense ones do not.
        slack = 0.1
        full = adapter.merge(model, bench.load_model, bench.target)
        expect(bench.loss(full) < first, f"{who}: merged into the full base, nothing is left of what was learned")
    merged = merged.eval()
    expect(
        hasattr(merged, "save_pretrained") and (not adapter.merges or not hasattr(merged, "peft_config")),
        f"{who}: merge() returns no plain model",
    )
    odd = {str(value.dtype) for value in merged.parameters() if not value.is_floating_point()}
    expect(not odd, f"{who}: the merged model holds weights of {', '.join(odd)}")
    told = difference(bench.loss(merged), last, slack, "the loss of the merged model")
    expect(told is None, f"{who}: {told}, as that of the adapted one")
    return merged


def merges_and_loads(
    bench: Workbench, pipeline: Pipeline, *, settings: Mapping[str, Any] | None = None, bf16: bool = False
) -> None:
    """Train and merge as :func:`trains_and_merges`, and fail where the merged model is another once it was written."""
    merged = trains_and_merges(bench, pipeline, settings=settings, bf16=bf16)
    writer = None if pipeline.adapter.merges else pipeline.adapter
    loaded = bench.write_and_read(merged, writer, "none")
    told = difference(bench.loss(loaded.model), bench.loss(merged), TOLERANCE, "the loss")
    expect(told is None, f"{pipeline.name}: the merged model that was written and read is another: {told}")
    if writer is None:
        return
    together = bench.task.predict(loaded.model, bench.inputs, loaded.context)
    alone = [bench.task.predict(loaded.model, [row], loaded.context)[0] for row in bench.inputs]
    told = difference(alone, together, TOLERANCE, "predictions")
    expect(told is None, f"{pipeline.name}: says of a row alone something else than of a row among others: {told}")


def defaults(space: SearchSpace) -> dict[str, Any]:
    """Return every parameter at its default."""
    return {name: domain.default for name, domain in space.items()}


def extremes(space: SearchSpace) -> list[dict[str, Any]]:
    """Return the defaults, all numbers at their lowest and at their highest, and each further choice."""
    usual = defaults(space)
    low = {name: domain.low for name, domain in space.items() if not isinstance(domain, Categorical)}
    high = {name: domain.high for name, domain in space.items() if not isinstance(domain, Categorical)}
    settings = [usual, {**usual, **low}, {**usual, **high}]
    for name, domain in space.items():
        if isinstance(domain, Categorical):
            settings += [{**usual, name: choice} for choice in domain.choices if choice != domain.default]
    return [setting for i, setting in enumerate(settings) if setting not in settings[:i]]
