"""The checks of a task. Each is a function of a workbench, and fails with a sentence."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, get_args

import numpy as np

from autoft.contracts import (
    Augmenter,
    Chart,
    Column,
    Compressor,
    Detail,
    Examples,
    MarkedText,
    Matrix,
    Pictures,
    Row,
    Table,
    Task,
)
from autoft.data.columns import FILE_KINDS
from autoft.data.features import encoded
from autoft.data.rows import Split
from autoft.errors import DataError
from autoft.plans.efforts import WIDE
from autoft.space import Categorical, Float, Int
from autoft.testing.isolation import heavy_imports
from autoft.testing.strategies import (
    Pipeline,
    compress,
    keeps_quality,
    keeps_the_row,
    legal_pipelines,
    merges_and_loads,
)
from autoft.testing.values import difference, not_plain_json
from autoft.testing.workbench import TOLERANCE, Call, Workbench, expect, fail, skip

__all__ = ["task_checks"]

ODD_TEXTS = (
    "",
    " ",
    "\n\t",
    ".",
    "word " * 2000,
    "ÅNGSTRÖM ﬁ ½ ﷺ",
    "人工知能は面白い。",
    "مرحبا بالعالم",
    "👩‍👩‍👧 🏳️‍🌈",
    "a\u0000b\u200b\ufeff",
    "<s> [SEP] </s> [MASK] <|endoftext|>",
)
"""Texts that data has and nobody thinks of."""

BAD_VALUES: tuple[Any, ...] = (None, 3.5, True, b"\x00\xff", ["a", 1, None], {"a": 1}, [])
"""What a column of inputs may hold that it should not."""
BAD_TARGETS: tuple[Any, ...] = ({"a": 1}, [None], [], "", -1, [[1], "a"])
"""And a column of targets."""

LEARNED = 0.2
"""Largest share of the first loss that may be left once the demo rows are known by heart."""

RESAMPLES = 20


def task_checks(bench: Workbench) -> Iterator[Call]:
    """Yield the checks that suit a task."""
    task, planning = type(bench.task), bench.planning
    for function in FOR_ALL:
        yield Call(function, (bench,))
    for name in bench.metrics:
        yield Call(check_bootstrap_agrees_with_score, (bench, name), name)
    if task.score_targets is not Task.score_targets:
        yield Call(check_targets_are_scored, (bench,))
    if task.outputs is not Task.outputs:
        yield Call(check_predictions_are_as_outputs_say, (bench,))
    if task.combine is not Task.combine:
        yield Call(check_predictions_can_be_averaged, (bench,))
    if task.operating_point is not Task.operating_point:
        yield Call(check_operating_point_is_plain, (bench,))
    if task.export_inputs is not Task.export_inputs:
        yield Call(check_export_inputs_fit_the_model, (bench,))
    for augmenter in bench.catalog.augmenters.values():
        if augmenter.check(planning) is None:
            yield Call(check_augmenter, (bench, augmenter), augmenter.name)
    for pipeline in legal_pipelines(bench):
        # The rest differs in what happens inside of the body, which does not depend on the task.
        if pipeline.name in WIDE or pipeline.adapter.name == "lora":
            yield Call(check_pipeline, (bench, pipeline), pipeline.name)
    for compressor in bench.catalog.compressors.values():
        if "dense" in compressor.accepts and compressor.check(planning) is None:
            yield Call(check_compressor, (bench, compressor), compressor.name)


# ------------------------------------------------------------------------------------------ what needs no model


def check_import_is_light(bench: Workbench) -> None:
    """Its module loads no heavy library: every command imports every plugin."""
    heavy_imports(bench.task)


def check_card(bench: Workbench) -> None:
    """The card is complete, and names what exists."""
    card = bench.task.card
    one_line(card.summary, "the card's summary")
    expect(card.columns, "the card has no columns")
    roles = [column.role for column in card.columns]
    expect(len(set(roles)) == len(roles), f"the card has a role twice: {', '.join(roles)}")
    unknown = [role for wanted in card.alternatives for role in wanted if role not in roles]
    expect(not unknown, f"the card's alternatives name {', '.join(unknown)}, and it has no such column")
    expect(card.inputs, "the card has no column that is no target: a prediction has nothing to look at")
    for column in card.columns:
        expect(column.role.isidentifier(), f"the role {column.role!r} is no plain name")
        expect(column.kind, f"the column {column.role!r} has no kind")
        one_line(column.summary, f"the summary of the column {column.role!r}")
        expect(isinstance(column.guesses, tuple), f"guesses of the column {column.role!r} have to be a tuple of names")
    expect(card.metrics, "the card names no metric: a search has no objective")
    expect(len(set(card.metrics)) == len(card.metrics), "the card names a metric twice")
    absent = [name for name in card.metrics if name not in bench.catalog.quality_metrics]
    expect(not absent, f"no installed plugin offers the metrics {', '.join(absent)}, which the card names")
    expect(card.architecture, "the card's architecture is empty; say which kind of model it needs")
    for option in card.options:
        one_line(option.summary, f"the summary of the option {option.name!r}")
        allowed = option.choices is None or option.default in option.choices
        expect(allowed, f"the option {option.name!r} does not allow its own default {option.default!r}")
    names = [option.name for option in card.options]
    expect(len(set(names)) == len(names), "the card has an option twice")
    for name, domain in bench.task.space().items():
        expect(name.startswith("task."), f"the parameter {name!r} of space() has to begin with 'task.'")
        expect(
            isinstance(domain, Float | Int | Categorical), f"space() says {domain!r} of {name!r}, which is no domain"
        )
    for name in bench.task.default_pipelines():
        expect(isinstance(name, str), f"default_pipelines() names {name!r}, which is no text")


def check_demo_rows(bench: Workbench) -> None:
    """There are 3 to 8 demo rows, each as the card says."""
    rows, card = bench.rows, bench.task.card
    expect(3 <= len(rows) <= 8, f"there are {len(rows)} demo rows; give 3 to 8")
    known = {column.role: column for column in card.columns}
    for number, row in enumerate(rows, start=1):
        strange = sorted(set(row) - set(known))
        expect(not strange, f"demo row {number} has the roles {', '.join(strange)}, which the card does not have")
        for column in card.columns:
            value = row.get(column.role)
            if value is None:
                expect(not column.required, f"demo row {number} lacks {column.role!r}, which the card requires")
            else:
                fits, wanted = _fits(value, column, row, card.columns)
                expect(
                    fits, f"demo row {number}: {column.role!r} of kind {column.kind!r} is {value!r:.60}, not {wanted}"
                )
    told = difference(bench.rows, [dict(row) for row in bench.task.demo_rows()], 0.0, "a second call: the rows")
    expect(told is None, f"demo_rows() gives other rows each time: {told}")


def check_facts(bench: Workbench) -> None:
    """Facts are plain JSON, the same each time, and leave the rows as they are."""
    rows = bench.rows
    facts = bench.task.facts(rows, bench.options)
    expect(isinstance(facts, Mapping), f"facts() returned {type(facts).__name__}, not a mapping")
    plain(facts, "facts")
    unchanged(rows, bench.rows, "facts()")
    told = difference(bench.task.facts(bench.rows, bench.options), facts, 0.0, "facts")
    expect(told is None, f"facts() of the same rows differ: {told}")
    for row in bench.rows:
        stratum = bench.task.stratum(row)
        expect(stratum is None or isinstance(stratum, str), f"stratum() returned {stratum!r}, neither a text nor None")


# ------------------------------------------------------------------------------------------------ the model


def check_references_are_plain(bench: Workbench) -> None:
    """References are plain JSON and leave the row as it is."""
    for row, before in zip(bench.rows, bench.rows, strict=True):
        given = copy.deepcopy(dict(row))
        reference = bench.task.reference(given, bench.context)
        plain(reference, "a reference")
        unchanged([given], [before], "reference()")


def check_model_loads(bench: Workbench) -> None:
    """Processor and model load, on the CPU, and can be written."""
    import torch

    processor, model = bench.context.processor, bench.untrained
    expect(hasattr(processor, "save_pretrained"), f"the processor {type(processor).__name__} has no save_pretrained")
    expect(isinstance(model, torch.nn.Module), f"load_model() returned {type(model).__name__}, no torch module")
    expect(hasattr(model, "save_pretrained"), f"the model {type(model).__name__} has no save_pretrained")
    places = {str(parameter.device) for parameter in model.parameters()}
    expect(places == {"cpu"}, f"load_model() puts the model on {', '.join(sorted(places))}; it has to stay on the CPU")
    again = bench.load_model().state_dict()
    for name, value in model.state_dict().items():
        expect(name in again and torch.equal(value, again[name]), f"with the same seed, {name} has other weights")


def check_load_kwargs_are_honoured(bench: Workbench) -> None:
    """``source.load_kwargs`` reach from_pretrained: the door of quantizers."""
    import torch

    model = bench.load_model(dtype=torch.bfloat16)
    found = {parameter.dtype for parameter in model.parameters()}
    expect(
        torch.bfloat16 in found,
        "load_model() does not pass on source.load_kwargs: asked for bfloat16, the weights are "
        + ", ".join(str(kind) for kind in found),
    )


def check_encode_is_pure(bench: Workbench) -> None:
    """Encoding gives one feature a row, the same each time, and leaves rows as they are."""
    rows = bench.rows
    features = bench.task.encode(rows, bench.context)
    expect(len(features) == len(rows), f"encode() returned {len(features)} features for {len(rows)} rows")
    unchanged(rows, bench.rows, "encode()")
    told = difference(bench.task.encode(bench.rows, bench.context), features, 0.0, "features")
    expect(told is None, f"encode() of the same rows differs: {told}")
    for feature in features:
        length = bench.task.length(feature)
        expect(isinstance(length, int) and length > 0, f"length() of a feature is {length!r}, not a number of tokens")


def check_features_of_a_row_stand_alone(bench: Workbench) -> None:
    """A row's features do not depend on the other rows: no padding, no statistics of the batch."""
    for number, (row, feature) in enumerate(zip(bench.rows, bench.features, strict=True), start=1):
        (alone,) = bench.task.encode([row], bench.context)
        told = difference(alone, feature, 0.0, f"features of row {number}")
        expect(told is None, f"encode() of one row differs from that of all rows: alone, {told}")


def check_features_can_be_kept(bench: Workbench) -> None:
    """Features come back from the search's cache such that they make the same batch."""
    try:
        splits = [Split.from_rows(bench.rows)]
    except DataError:
        # Demo rows may show two forms of one column, which a data set cannot mix.
        splits = [Split.from_rows([row]) for row in bench.rows]
    folder = bench.new_folder()
    kept = [encoded(split, bench.task, bench.context, folder, "tiny") for split in splits]
    batch = bench.collate([feature for features in kept for feature in features])
    told = difference(batch, bench.batch(), 0.0, "the batch")
    expect(told is None, f"features that were kept on disk make another batch: {told}")


def check_encode_reads_own_parameters_only(bench: Workbench) -> None:
    """Encoding reads no parameter but those that begin with ``task.``: features are kept for all trials."""
    own = {name: value for name, value in bench.params.items() if name.startswith("task.")}
    told = difference(
        bench.task.encode(bench.rows, replace(bench.context, params=own)), bench.features, 0.0, "features"
    )
    expect(told is None, f"encode() depends on parameters that do not begin with 'task.': without them {told}")


def check_collate_makes_tensors(bench: Workbench) -> None:
    """One row and all rows make a batch of tensors with the same names."""
    import torch

    batch, single = bench.batch(), bench.collate(bench.features[:1])
    for name, value in batch.items():
        expect(isinstance(value, torch.Tensor), f"collate() gives {type(value).__name__} under {name!r}, no tensor")
        finite = not value.is_floating_point() or bool(torch.isfinite(value).all())
        expect(finite, f"{name!r} holds NaN or infinite numbers")
    expect(set(single) == set(batch), f"a batch of one row has {sorted(single)}, one of all rows {sorted(batch)}")


def check_loss_has_gradients(bench: Workbench) -> None:
    """The loss is one finite number with finite gradients."""
    import torch

    model = copy.deepcopy(bench.untrained).train()
    loss = bench.task.loss(model, bench.batch(), bench.context)
    expect(isinstance(loss, torch.Tensor) and loss.dim() == 0, "loss() has to return a tensor with one number")
    expect(bool(torch.isfinite(loss)), f"the loss of the demo rows is {loss.item()}")
    expect(loss.requires_grad, "the loss has no gradient")
    torch.autograd.backward(loss)
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    wrong = [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
    expect(not wrong, f"gradients are not finite: {', '.join(wrong[:3])}")
    expect(any(gradient.abs().sum() > 0 for gradient in gradients.values()), "all gradients of the loss are zero")


def check_card_names_what_is_ignored(bench: Workbench) -> None:
    """``ignores`` of the card says what has no effect, of dropout, label smoothing, class weights and the loss."""
    ignored = bench.task.card.ignores

    def compare(name: str, differs: bool) -> None:
        if differs:
            expect(name not in ignored, f"the card ignores {name}, but it changes the loss")
        else:
            expect(name in ignored, f"{name} has no effect on the loss; honour it, or name it in the card's ignores")

    compare("train.label_smoothing", _losses_differ(bench, "train.label_smoothing", 0.0, 0.4))
    compare("train.class_weights", _losses_differ(bench, "train.class_weights", "none", "balanced", uneven=True))
    compare("train.loss", _losses_differ(bench, "train.loss", "cross-entropy", "focal"))
    compare("train.dropout", _losses_differ(bench, "train.dropout", 0.0, 0.5, load=True))


def check_learns_demo_rows_by_heart(bench: Workbench) -> None:
    """Training on the demo rows alone brings their loss near zero: labels and inputs go together."""
    losses = bench.trained.losses
    share = abs(losses[-1]) / abs(losses[0]) if losses[0] else math.inf
    expect(
        share <= LEARNED,
        f"after {len(losses) - 1} steps on its demo rows the loss of a tiny model is {losses[-1]:.3g}, from "
        f"{losses[0]:.3g}: it cannot learn them by heart",
    )


def check_scores_near_perfect(bench: Workbench) -> None:
    """The model that knows the demo rows by heart scores near perfect on the objective."""
    metric = bench.objective
    value, before, best = bench.score(bench.predictions), bench.score(bench.first_predictions), bench.best_known
    expect(math.isfinite(value), f"{metric.name} of the demo rows is {value}")
    sign = 1.0 if metric.higher_is_better else -1.0
    if best is not None and sign * best > sign * value and math.isfinite(before):
        near = sign * (value - before) >= 0.8 * sign * (best - before)
    elif metric.higher_is_better and value >= 0:
        near = value >= 0.9
    else:
        near = abs(value) <= LEARNED * abs(before)
    expect(
        near,
        f"the model knows its demo rows by heart, yet {metric.name} is {value:.3g} (untrained: {before:.3g}): do "
        "predictions and references go together?",
    )


# ------------------------------------------------------------------------------------------------ predictions


def check_predictions_are_plain(bench: Workbench) -> None:
    """There is one prediction a row, a mapping of plain JSON, and rows stay as they are."""
    rows = bench.inputs
    predictions = bench.task.predict(bench.trained.model, rows, bench.context)
    expect(len(predictions) == len(rows), f"predict() returned {len(predictions)} predictions for {len(rows)} rows")
    for prediction in predictions:
        expect(isinstance(prediction, Mapping), f"a prediction is {type(prediction).__name__}, not a mapping")
        plain(dict(prediction), "a prediction")
    unchanged(rows, bench.inputs, "predict()")


def check_predictions_are_as_outputs_say(bench: Workbench) -> None:
    """``outputs()`` names what predictions hold, and nothing else, each of the type that it says."""
    from pydantic import TypeAdapter, ValidationError

    outputs = {one.name: one for one in bench.task.outputs(bench.context)}
    for one in outputs.values():
        one_line(one.summary, f"the summary of the output {one.name!r}")
    for prediction in bench.task.predict(bench.trained.model, bench.inputs, bench.context):
        strange = sorted(set(prediction) - set(outputs))
        expect(not strange, f"a prediction has {', '.join(strange)}, which outputs() does not name")
        for name, one in outputs.items():
            if name not in prediction:
                expect(not one.required, f"a prediction lacks {name!r}, which outputs() says every one has")
                continue
            try:
                TypeAdapter(one.type).validate_python(prediction[name], strict=True)
            except ValidationError as error:
                fail(f"{name!r} of a prediction is not as outputs() says: {error.errors()[0]['msg']}")


def check_predictions_keep_the_order(bench: Workbench) -> None:
    """What is said of a row depends neither on its place, nor on the other rows, nor on ``batch_size``."""
    rows, model = bench.inputs, bench.trained.model
    wanted = bench.task.predict(model, rows, bench.context)
    backwards = bench.task.predict(model, rows[::-1], bench.context, batch_size=2)[::-1]
    _same_predictions(backwards, wanted, "in another order and with batch_size=2")
    alone = [answer for row in rows for answer in bench.task.predict(model, [row], bench.context, batch_size=1)]
    _same_predictions(alone, wanted, "each row by itself")


def check_predict_turns_dropout_off(bench: Workbench) -> None:
    """Predictions of a model in training mode are those of one in evaluation mode."""
    import torch

    model = copy.deepcopy(bench.trained.model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    found = bench.task.predict(model.train(), bench.inputs, bench.context)
    wanted = bench.task.predict(bench.trained.model, bench.inputs, bench.context)
    _same_predictions(found, wanted, "after model.train(), so call model.eval():")


def check_no_rows_no_predictions(bench: Workbench) -> None:
    """No rows give no predictions."""
    found = bench.task.predict(bench.trained.model, [], bench.context)
    expect(list(found) == [], f"predict() of no rows returned {found!r:.60}")


def check_odd_texts_are_predicted(bench: Workbench) -> None:
    """Empty, long and strange texts are predicted, or refused as DataError."""
    shown = bench.inputs[0]
    roles = [
        column.role
        for column in bench.task.card.inputs
        if column.kind not in FILE_KINDS and isinstance(shown.get(column.role), str) and " " in shown[column.role]
    ]
    if not roles:
        skip("no input is a text")
    refused = []
    rows: list[Row] = [{**shown, **dict.fromkeys(roles, text)} for text in ODD_TEXTS]
    for row in rows:
        try:
            (found,) = bench.task.predict(bench.trained.model, [row], bench.context)
        except DataError:
            refused.append(row)
        else:
            plain(dict(found), f"the prediction for {row[roles[0]]!r:.40}")
    expect(len(refused) <= len(rows) // 2, f"most odd texts are refused, as {refused[0] if refused else None!r:.60}")


def check_bad_rows_are_told(bench: Workbench) -> None:
    """A row that lacks what it needs, or holds something else, is a DataError or is predicted; never another error."""
    for column in bench.task.card.inputs:
        lacking: Row = {role: value for role, value in bench.inputs[0].items() if role != column.role}
        bad: list[Row] = [{**bench.inputs[0], column.role: value} for value in BAD_VALUES]
        for row in [lacking, *bad]:
            given = repr(row[column.role])[:40] if column.role in row else "nothing"
            try:
                found = bench.task.predict(bench.trained.model, [row], bench.context)
            except DataError:
                continue
            except Exception as error:  # noqa: BLE001 - whatever it is, it is not what a user should meet
                fail(f"{column.role!r} of a row is {given}: predict() raises {_named(error)}, not DataError")
            absent_is_fine = not column.required and column.role not in row
            expect(
                absent_is_fine or column.role in row,
                f"a row lacks {column.role!r}, which the card requires, and predict() does not mind: {found!r:.60}",
            )
    for column in bench.task.card.targets:
        for value in BAD_TARGETS:
            rows = bench.rows
            rows[0] = {**rows[0], column.role: value}
            try:
                bench.task.encode(rows, replace(bench.context, facts=bench.task.facts(rows, bench.options)))
            except DataError:
                continue
            except Exception as error:  # noqa: BLE001 - as above
                fail(
                    f"{column.role!r} of a training row is {value!r}: facts() or encode() raises {_named(error)}, not DataError"
                )


def check_optional_columns_may_be_absent(bench: Workbench) -> None:
    """Rows without the optional columns can be learned and predicted, unless facts() refuses them with DataError."""
    optional = {column.role for column in bench.task.card.columns if not column.required}
    present = sorted(optional & {role for row in bench.rows for role in row})
    if not present:
        skip("no demo row has an optional column")
    rows = [{role: value for role, value in row.items() if role not in optional} for row in bench.rows]
    inputs = [{role: value for role, value in row.items() if role not in optional} for row in bench.inputs]
    try:
        facts = bench.task.facts(rows, bench.options)
    except DataError:
        return
    context = replace(bench.context, facts=facts)
    batch = bench.collate(bench.task.encode(rows, context), context)
    model = bench.task.load_model(bench.source, context).eval()
    loss = float(bench.task.loss(model, batch, context).detach())
    expect(math.isfinite(loss), f"without {', '.join(present)} the loss is {loss}")
    found = bench.task.predict(model, inputs, context)
    expect(len(found) == len(inputs), f"without {', '.join(present)} predict() returns {len(found)} predictions")


# ------------------------------------------------------------------------------------ metrics, baselines, details


def check_bootstrap_agrees_with_score(bench: Workbench, name: str) -> None:
    """Sums of the metric's statistics give its score, over all rows and over resampled ones."""
    metric = bench.metrics[name]
    # Some right and some wrong, so that the figure is neither its best nor its worst.
    mixed = [
        one if i % 2 else other
        for i, (one, other) in enumerate(zip(bench.first_predictions, bench.predictions, strict=True))
    ]
    refs, rows = bench.references, len(mixed)
    value = metric.score(mixed, refs, bench.context)
    expect(isinstance(value, float), f"{name} scores {value!r}, which is no float")
    expect(not math.isinf(value), f"{name} of the demo rows is infinite")
    rng = np.random.default_rng(0)
    draws = [np.arange(rows), *(rng.integers(0, rows, rows) for _ in range(RESAMPLES))]
    counts = np.stack([np.bincount(draw, minlength=rows) for draw in draws]).astype(np.float64)
    statistics = metric.statistics(mixed, refs, bench.context)
    if statistics is not None:
        array = np.asarray(statistics)
        expect(
            array.ndim == 2 and len(array) == rows,
            f"statistics() of {name} have the shape {array.shape} for {rows} rows",
        )
    figures = metric.resampled(mixed, refs, bench.context, counts)
    if figures is None:
        return
    expect(np.shape(figures) == (len(draws),), f"{name}: {np.shape(figures)} figures for {len(draws)} resamples")
    for number, (draw, figure) in enumerate(zip(draws, np.asarray(figures), strict=True)):
        wanted = metric.score([mixed[i] for i in draw], [refs[i] for i in draw], bench.context)
        if math.isfinite(wanted):
            what = "of all rows" if number == 0 else f"of the resample {draw.tolist()}"
            told = difference(float(figure), wanted, 1e-6, f"{name} {what}, by sums,")
            expect(told is None, f"{told}, which score() says")


def check_targets_are_scored(bench: Workbench) -> None:
    """Figures of the targets are plain, one mapping a row, and stay the same whatever the order and the batch."""
    rows, model = bench.rows, bench.trained.model
    figures = bench.task.score_targets(model, rows, bench.context)
    if figures is None:
        skip("score_targets() has nothing to say of the demo rows")
    expect(len(figures) == len(rows), f"score_targets() returned {len(figures)} figures for {len(rows)} rows")
    for figure in figures:
        plain(dict(figure), "what score_targets() says of a row")
    backwards = bench.task.score_targets(model, bench.rows[::-1], bench.context, batch_size=2) or []
    told = difference(list(backwards)[::-1], list(figures), TOLERANCE, "score_targets()")
    expect(told is None, f"in another order and with batch_size=2, {told}")
    unchanged(rows, bench.rows, "score_targets()")


def check_predictions_can_be_averaged(bench: Workbench) -> None:
    """A model averaged with itself says the same; of two models, which one comes first makes no difference."""
    task, context = bench.task, bench.context
    own, other = (task.member_predictions(m, bench.inputs, context) for m in (bench.trained.model, bench.untrained))
    alone = task.combine([own], context)
    if alone is None:
        skip("combine() cannot average these predictions")
    said = task.predict(bench.trained.model, bench.inputs, context)
    _same_predictions(alone, said, "where they are averaged alone:")
    _same_predictions(task.combine([own, own], context) or [], said, "where they are averaged with themselves:")
    both = task.combine([own, other], context) or []
    for prediction in both:
        plain(dict(prediction), "an averaged prediction")
    _same_predictions(
        task.combine([other, own], context) or [], both, "where the models are averaged in another order:"
    )


def check_operating_point_is_plain(bench: Workbench) -> None:
    """The operating point is plain JSON, and the task predicts with it."""
    point = bench.task.operating_point(bench.rows, bench.predictions, bench.context)
    expect(isinstance(point, Mapping), f"operating_point() returned {type(point).__name__}, not a mapping")
    plain(dict(point), "operating_point()")
    context = replace(bench.context, facts={**bench.context.facts, "operating_point": dict(point)})
    for prediction in bench.judge(bench.trained.model, context):
        plain(dict(prediction), "a prediction at the operating point")


def check_baselines(bench: Workbench) -> None:
    """One baseline is trivial; all predict every row, and what they say can be scored."""
    baselines = bench.task.baselines(bench.rows, bench.context)
    if not baselines:
        skip("offers no baselines: reports cannot say what a model is worth")
    expect(
        bench.task.card.untrained or any(baseline.trivial for baseline in baselines),
        f"none of the baselines is trivial: {', '.join(baseline.name for baseline in baselines)}",
    )
    for baseline in baselines:
        one_line(baseline.name, "the name of a baseline")
        found = baseline.predict(bench.inputs)
        expect(len(found) == len(bench.inputs), f"the baseline {baseline.name!r} predicts {len(found)} rows")
        plain([dict(answer) for answer in found], f"a prediction of the baseline {baseline.name!r}")
        if bench.objective.uses == "predictions":
            value = bench.score(found)
            # A correlation is not defined for a baseline that says the same of all rows.
            defined = math.isfinite(value) or (baseline.trivial and math.isnan(value))
            expect(defined, f"{bench.objective.name} of the baseline {baseline.name!r} is {value}")


def check_details_can_be_shown(bench: Workbench) -> None:
    """Details are of the kinds that reports show, complete and plain, for right and for wrong predictions."""
    for predictions in (bench.predictions, bench.first_predictions):
        for detail in bench.task.details(bench.rows, predictions, bench.context):
            kinds = get_args(Detail)
            names = ", ".join(kind.__name__ for kind in kinds)
            expect(isinstance(detail, kinds), f"details() has a {type(detail).__name__}; reports show {names}")
            one_line(detail.title, f"the title of a {type(detail).__name__}")
            told = _incomplete(detail)
            expect(told is None, f"the {type(detail).__name__} {detail.title!r}: {told}")
            plain(_lists(asdict(detail)), f"the {type(detail).__name__} {detail.title!r}")


# ------------------------------------------------------------------------------------------- files and strategies


def check_files_keep_predictions(bench: Workbench) -> None:
    """A model that was written and read says the same."""
    loaded = bench.write_and_read(bench.trained.model, None, "none")
    _same_predictions(bench.judge(loaded.model, loaded.context), bench.predictions, "from its files")


def check_export_inputs_fit_the_model(bench: Workbench) -> None:
    """The model takes the example tensors and gives the outputs that export_inputs() names."""
    import torch

    spec = bench.task.export_inputs(bench.context)
    if spec is None:
        skip("export_inputs() says that this model cannot be exported")
    for name, tensor in spec.inputs.items():
        axes = spec.dynamic.get(name, {})
        for axis in axes:
            expect(axis < tensor.dim(), f"{name!r} has {tensor.dim()} axes, so the axis {axis} cannot vary")
            expect(tensor.shape[axis] >= 2, f"the axis {axis} of {name!r} varies, but the example has 1 there; give 2")
    strange = sorted(set(spec.dynamic) - set(spec.inputs))
    expect(not strange, f"axes of {', '.join(strange)} vary, which no input is")
    with torch.no_grad():
        answer = bench.untrained(**spec.inputs)
    for name in spec.outputs:
        expect(isinstance(getattr(answer, name, None), torch.Tensor), f"the model's output has no tensor {name!r}")


def check_augmenter(bench: Workbench, augmenter: Augmenter) -> None:
    """Augmented rows keep their targets and can be encoded."""
    bench.task.encode(keeps_the_row(bench, augmenter, bench.rows, bench.task.card), bench.context)


def check_pipeline(bench: Workbench, pipeline: Pipeline) -> None:
    """The adapter (over the quantized base, where one is named) trains, merges, and the merged model can be written."""
    merges_and_loads(bench, pipeline)


def check_compressor(bench: Workbench, compressor: Compressor) -> None:
    """The compressed model loads from its files, predicts every row, and keeps half of what was learned."""
    keeps_quality(bench, compressor, compress(bench, compressor))


FOR_ALL: tuple[Callable[[Workbench], None], ...] = (
    check_import_is_light,
    check_card,
    check_demo_rows,
    check_facts,
    check_model_loads,
    check_load_kwargs_are_honoured,
    check_references_are_plain,
    check_encode_is_pure,
    check_features_of_a_row_stand_alone,
    check_features_can_be_kept,
    check_encode_reads_own_parameters_only,
    check_collate_makes_tensors,
    check_loss_has_gradients,
    check_card_names_what_is_ignored,
    check_learns_demo_rows_by_heart,
    check_scores_near_perfect,
    check_predictions_are_plain,
    check_predictions_keep_the_order,
    check_predict_turns_dropout_off,
    check_no_rows_no_predictions,
    check_odd_texts_are_predicted,
    check_bad_rows_are_told,
    check_optional_columns_may_be_absent,
    check_baselines,
    check_details_can_be_shown,
    check_files_keep_predictions,
)
"""What every task is asked, in this order: what a check needs stands before it."""


# --------------------------------------------------------------------------------------------------- small things


def one_line(text: Any, what: str) -> None:
    """Fail unless a text is one line that says something."""
    expect(
        isinstance(text, str) and text.strip() and "\n" not in text, f"{what} has to be one line, given {text!r:.60}"
    )


def plain(value: Any, what: str) -> None:
    """Fail unless a value is plain JSON."""
    told = not_plain_json(value, what)
    expect(told is None, str(told))


def unchanged(rows: Sequence[Row], before: Sequence[Row], who: str) -> None:
    """Fail where rows are not what they were."""
    told = difference([dict(row) for row in rows], [dict(row) for row in before], 0.0, "rows")
    expect(told is None, f"{who} changes the rows that it is given: {told}")


def _same_predictions(found: Sequence[Any], wanted: Sequence[Any], how: str) -> None:
    told = difference(list(map(dict, found)), list(map(dict, wanted)), TOLERANCE, "predictions")
    expect(told is None, f"predictions differ {how} {told}")


def _named(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__} ({lines[0]:.80})" if lines else type(error).__name__


def _fits(value: Any, column: Column, row: Row, columns: Sequence[Column]) -> tuple[bool, str]:
    """Say whether a value is of its column's kind, and what would be. Kinds of a plugin's own hold what they like."""
    if column.kind == "text":
        return isinstance(value, str), "a text"
    if column.kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool), "a number"
    if column.kind == "label":
        single = isinstance(value, str | int | float | bool)
        return single or (isinstance(value, list) and all(isinstance(one, str | int) for one in value)), "a label"
    if column.kind == "labels":
        return isinstance(value, list | tuple), "a list of labels"
    if column.kind == "tokens":
        return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value), "a list of texts"
    if column.kind == "tags":
        words = next((row.get(other.role) for other in columns if other.kind == "tokens"), None)
        same = words is None or (isinstance(value, list | tuple) and len(words) == len(value))
        return isinstance(value, list | tuple) and same, "a list with a tag for each token"
    return True, ""


def _losses_differ(
    bench: Workbench, name: str, one: Any, other: Any, *, uneven: bool = False, load: bool = False
) -> bool:
    """Say whether a parameter changes the training loss, as it should unless the card ignores it."""
    import torch

    # Some targets more frequent than others, or balancing them would change nothing.
    rows = bench.rows + (bench.rows[:1] * 3 if uneven else [])
    facts = bench.task.facts(rows, bench.options) if uneven else bench.facts
    losses = []
    for value in (one, other):
        context = replace(bench.context, facts=facts, params={**bench.params, name: value})
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            model = bench.task.load_model(bench.source, context) if load else copy.deepcopy(bench.untrained)
            batch = bench.collate(bench.task.encode(rows, context), context)
            torch.manual_seed(1)
            losses.append(float(bench.task.loss(model.train(), batch, context)))
    return not math.isclose(*losses, rel_tol=1e-5)


def _incomplete(detail: Any) -> str | None:
    """Return what of a detail does not go together."""
    if isinstance(detail, Table | Examples):
        wrong = [row for row in detail.rows if len(row) != len(detail.columns)]
        return f"a row has {len(wrong[0])} cells for {len(detail.columns)} columns" if wrong else None
    if isinstance(detail, Matrix):
        count = len(detail.labels)
        square = len(detail.values) == count and all(len(row) == count for row in detail.values)
        return None if square else f"is not {count} by {count}, as its labels are"
    if isinstance(detail, MarkedText):
        for _, text, marks in detail.rows:
            for mark in marks:
                if not 0 <= mark.start <= mark.end <= len(text):
                    return f"a mark from {mark.start} to {mark.end} in a text of {len(text)} characters"
                if mark.verdict not in {"right", "wrong", "missed"}:
                    return f"a mark has the verdict {mark.verdict!r}"
    if isinstance(detail, Pictures):
        foreign = [one.image for one in detail.pictures if not one.image.startswith("data:image/")]
        if foreign:
            return f"a picture is at {foreign[0]!r:.40}; reports show data:image/ addresses only"
        largest = max((len(one.image) for one in detail.pictures), default=0)
        return f"a picture has {largest} bytes; make it smaller" if largest > 200_000 else None
    if isinstance(detail, Chart):
        uneven = [series.name for series in detail.series if len(series.x) != len(series.y)]
        return f"the line {uneven[0]!r} has not as many places as values" if uneven else None
    return None


def _lists(value: Any) -> Any:
    """Return a value with its tuples as lists, as JSON writes them."""
    if isinstance(value, Mapping):
        return {name: _lists(inner) for name, inner in value.items()}
    return [_lists(inner) for inner in value] if isinstance(value, list | tuple) else value
