from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.contracts import Augmenter, Column, ModelSource, Regularizer, Target, Task, TaskCard, TaskContext
from autoft.data.features import encoded
from autoft.data.rows import Split
from autoft.errors import ModelError
from autoft.hardware import Hardware
from autoft.optimizers import OPTIMIZERS
from autoft.strategies.averaging import Ema, Swa
from autoft.training import Augmentation, Auxiliary, Regularization, learning_rate_factor, share_body, train

SCHEDULES = ["constant", "linear", "cosine", "inverse-sqrt", "plateau"]


@given(
    schedule=st.sampled_from(SCHEDULES),
    total=st.integers(1, 2000),
    share=st.floats(0, 0.5),
)
def test_the_factor_stays_between_0_and_1_and_rises_only_while_warming_up(schedule, total, share):
    warmup = round(share * total)
    factors = [learning_rate_factor(schedule, step, total, warmup) for step in range(total)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert np.all(np.diff(factors[:warmup]) > 0)
    assert np.all(np.diff(factors[warmup:]) <= 1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")]
)
def test_schedules_follow_transformers_after_the_warm_up(ours, theirs):
    import torch
    from transformers.optimization import get_scheduler

    total, warmup = 50, 10
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    expected = []
    for _ in range(total):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    factors = [learning_rate_factor(ours, step, total, warmup) for step in range(total)]
    assert factors[warmup:] == pytest.approx(expected[warmup:], abs=1e-9)


def test_inverse_square_root_halves_when_the_steps_are_four_times_the_warm_up():
    assert learning_rate_factor("inverse-sqrt", 400, 1000, 100) == pytest.approx(0.5)


def test_an_unknown_schedule_is_an_error():
    with pytest.raises(ValueError, match="triangular"):
        learning_rate_factor("triangular", 5, 10, 0)


def test_a_cosine_ends_near_nothing():
    assert learning_rate_factor("cosine", 99, 100, 0) < 1e-3
    assert math.isclose(learning_rate_factor("cosine", 50, 100, 0), 0.5)


class Points(Task):
    """A straight line through points, in place of a model of text."""

    card = TaskCard(
        name="points", summary="points", columns=(Column("x", "text", "where"),), metrics=("error",), architecture=""
    )
    demo_rows = load_model = predict = reference = None

    def encode(self, rows, context):
        return [{"x": row["x"], "labels": row["y"], "length": row.get("length", 1)} for row in rows]

    def collate(self, features, context):
        import torch

        return {name: torch.tensor([feature[name] for feature in features]) for name in ("x", "labels")}

    def length(self, feature):
        return feature["length"]

    def loss(self, model, batch, context):
        return ((model(batch["x"]).squeeze(-1) - batch["labels"]) ** 2).mean()


class Unchanged(Augmenter):
    name = "unchanged"
    summary = "changes nothing"

    def augment(self, row, card, rng, params, learned=None):
        return row


PARAMS = {
    "train.epochs": 3,
    "train.batch_size": 4,
    "train.gradient_accumulation": 1,
    "train.weight_decay": 0.01,
    "train.schedule": "constant",
    "train.warmup": 0.0,
    "train.max_grad_norm": 1.0,
}


def points(count=24, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": [float(a), float(b)], "y": float(3 * a - b + 0.5)} for a, b in rng.normal(size=(count, 2))]


def line():
    import torch

    torch.manual_seed(0)
    return torch.nn.Linear(2, 1)


def fit(
    model,
    rows,
    validate=None,
    told=None,
    deadline=None,
    higher_is_better=False,
    auxiliary=(),
    chain=(),
    task=None,
    after_step=None,
    **params,
):
    """Train the line; the validation is the error over all rows unless a script of figures is given."""
    import torch

    def error(network):
        with torch.no_grad():
            batch = Points().collate(Points().encode(rows, None), None)
            return {"error": float(Points().loss(network, batch, None))}

    with Regularization(chain, model, None) as regularization:
        judge = validate or error
        return run(
            model, rows, judge, told, deadline, higher_is_better, auxiliary, regularization, task, after_step, params
        )


def run(model, rows, validate, told, deadline, higher_is_better, auxiliary, regularization, task, after_step, params):
    return train(
        model,
        task=task or Points(),
        context=TaskContext(facts={}, options={}, params={**PARAMS, **params}, max_length=8, seed=3),
        features=None,
        rows=rows,
        augmentation=Augmentation(Unchanged(), {}, None),
        learning_rate=0.05,
        precision="fp32",
        objective="error",
        higher_is_better=higher_is_better,
        validate=validate,
        on_validation=told or (lambda point: False),
        on_progress=lambda progress: None,
        deadline=deadline,
        auxiliary=auxiliary,
        regularization=regularization,
        after_step=after_step,
    )


def weights(model):
    return np.concatenate([value.detach().numpy().ravel() for value in model.parameters()])


def test_the_loop_takes_the_steps_that_a_plain_loop_takes():
    import torch

    from autoft.data.batches import grouped_batches

    rows, ours, theirs = points(), line(), line()
    fit(ours, rows)
    rng = np.random.default_rng(3)
    optimizer = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.01}, {"params": [theirs.bias], "weight_decay": 0.0}], lr=0.05
    )
    x, y = torch.tensor([row["x"] for row in rows]), torch.tensor([row["y"] for row in rows])
    for _ in range(3):
        for batch in grouped_batches(np.ones(len(rows)), 4, rng):
            optimizer.zero_grad()
            ((theirs(x[batch]).squeeze(-1) - y[batch]) ** 2).mean().backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
            optimizer.step()
    np.testing.assert_allclose(weights(ours), weights(theirs), rtol=1e-5)
    assert not np.allclose(weights(ours), weights(line()), rtol=1e-2)


class Hungry(Points):
    """Asks for more memory than any machine has, for batches of more rows than it was told."""

    def __init__(self, most):
        self.most = most

    def loss(self, model, batch, context):
        import torch

        loss = super().loss(model, batch, context)
        if len(batch["labels"]) > self.most:
            torch.empty(2**48, dtype=torch.uint8)
        return loss


@pytest.mark.parametrize(("most", "parts"), [(4, 1), (3, 2), (2, 2), (1, 4)])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_where_memory_runs_out_a_batch_is_computed_in_parts_and_the_steps_are_the_same(most, parts, accumulation):
    rows, plain, cut = points(23), line(), line()
    settings = {"train.gradient_accumulation": accumulation}
    fit(plain, rows, **settings)
    outcome = fit(cut, rows, task=Hungry(most), **settings)
    assert outcome.parts == parts
    np.testing.assert_allclose(weights(cut), weights(plain), rtol=1e-4)


def test_memory_that_is_too_small_for_a_single_row_is_told():
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        fit(line(), points(8), task=Hungry(0))


@pytest.mark.parametrize("count", [24, 22, 23])
def test_accumulated_gradients_are_those_of_the_whole(count):
    # One epoch in one group: the same rows in one batch, or in parts that are averaged before the step.
    rows, whole, parts = points(count), line(), line()
    settings = {"train.epochs": 1, "train.max_grad_norm": 1e9}
    fit(whole, rows, **settings, **{"train.batch_size": count})
    fit(parts, rows, **settings, **{"train.batch_size": 1, "train.gradient_accumulation": count})
    np.testing.assert_allclose(weights(parts), weights(whole), rtol=1e-4)


def test_the_weights_of_the_best_validation_are_kept():
    script = iter([0.5, 0.2, 0.4, float("nan")])
    seen = []

    def validate(model):
        seen.append(weights(model).copy())
        return {"error": next(script)}

    model = line()
    outcome = fit(model, points(), validate, **{"train.epochs": 4})
    assert outcome.best.validation == {"error": 0.2}
    assert [point.validation["error"] for point in outcome.curve][:3] == [0.5, 0.2, 0.4]
    np.testing.assert_array_equal(weights(model), seen[1])
    assert not np.array_equal(seen[1], seen[3])


def test_a_higher_figure_is_the_best_one_where_higher_is_better():
    script = iter([0.5, 0.2, 0.4])
    outcome = fit(line(), points(), lambda model: {"error": next(script)}, higher_is_better=True)
    assert outcome.best.epoch == 1


def test_a_training_ends_where_it_is_told_to_or_out_of_time():
    stopped = fit(line(), points(), told=lambda point: point.epoch >= 2)
    assert (stopped.stopped, len(stopped.curve)) == (True, 2)
    late = fit(line(), points(), deadline=0.0)
    assert late.out_of_time
    assert late.best.samples == 4, "one batch, then the validation that every trial gets"


def test_a_loss_that_is_no_number_is_told_with_the_rate():
    rows = [{"x": [1e30, 1e30], "y": 0.0}] * 4
    with pytest.raises(FloatingPointError, match=r"lower the learning rate \(0\.05\)"):
        fit(line(), rows)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ([0.5, 0.6, 0.4, 0.4], [0.05, 0.05, 0.025, 0.025]),
        # A metric that is not defined yet is nothing to stall at.
        ([math.nan, 0.5, 0.4, 0.3], [0.05, 0.05, 0.05, 0.05]),
    ],
)
def test_the_rate_halves_when_validation_stalls(figures, expected):
    script = iter(figures)
    outcome = fit(
        line(), points(), lambda model: {"error": next(script)}, **{"train.epochs": 4, "train.schedule": "plateau"}
    )
    rates = [point.learning_rate for point in outcome.curve]
    assert rates == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------- auxiliary tasks


def shared_pair(tiny_model):
    """A classifier of sentences and one of words over the same body, heads of their own."""
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
    other = AutoModelForTokenClassification.from_pretrained(tiny_model, num_labels=2)
    return model, other


def test_a_body_is_shared_and_heads_of_the_same_shape_are_not(tiny_model):
    model, other = shared_pair(tiny_model)
    assert share_body(model, other) == ["bert.embeddings", "bert.encoder"]
    mine = {id(parameter) for parameter in model.parameters()}
    own = [name for name, parameter in other.named_parameters() if id(parameter) not in mine]
    assert own == ["classifier.weight", "classifier.bias"]


def test_what_an_adapter_puts_into_a_shared_body_is_shared(tiny_model):
    import torch
    from peft import LoraConfig, get_peft_model

    model, other = shared_pair(tiny_model)
    share_body(model, other)
    ids = torch.tensor([[2, 5, 6, 3]])
    before = other.eval()(input_ids=ids).logits
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    assert not torch.allclose(other(input_ids=ids).logits, before)
    other(input_ids=ids).logits.sum().backward()
    assert all(p.grad is not None for n, p in adapted.named_parameters() if "lora_" in n and "pooler" not in n)


def test_models_with_nothing_in_common_are_told(tiny_model, small_model):
    model, _ = shared_pair(tiny_model)
    _, other = shared_pair(small_model)
    with pytest.raises(ModelError, match="no modules in common"):
        share_body(model, other)


def along(model, rows, steps, folder, task=None) -> Auxiliary:
    """The points as an auxiliary task."""
    task, context = task or Points(), TaskContext({}, {}, dict(PARAMS), 8, seed=0)
    return Auxiliary(task, context, model, encoded(Split.from_rows(rows), task, context, folder, ""), steps, 1.0)


@pytest.mark.parametrize("steps", [0.5, 1.0, 2.25])
def test_an_auxiliary_task_takes_its_share_of_steps_and_learns(steps, tmp_path):
    taken = []

    class Counted(Points):
        def loss(self, model, batch, context):
            taken.append(len(batch["labels"]))
            return super().loss(model, batch, context)

    rows, other = points(20, seed=1), line()
    further = along(other, rows, steps, tmp_path, Counted())
    whole = Points().collate(Points().encode(rows, None), None)
    before = float(Points().loss(other, whole, None).detach())
    fit(line(), points(), auxiliary=[further])
    # 24 rows in batches of 4, three times; of the auxiliary task's 20 rows each is seen once before any comes again.
    assert len(taken) == int(18 * steps)
    assert sum(taken[:5]) == 20
    assert float(Points().loss(other, whole, None).detach()) < before


def test_an_auxiliary_task_that_shares_nothing_leaves_the_training_as_it_is(tmp_path):
    alone, together = line(), line()
    fit(alone, points())
    fit(together, points(), auxiliary=[along(line(), points(20, seed=1), 1.0, tmp_path)])
    np.testing.assert_allclose(weights(together), weights(alone), rtol=1e-5)


def test_an_auxiliary_task_over_the_same_weights_moves_them(tmp_path):
    alone, together = line(), line()
    fit(alone, points())
    opposite = [{**row, "y": -row["y"]} for row in points(20, seed=1)]
    fit(together, points(), auxiliary=[along(together, opposite, 1.0, tmp_path)])
    assert not np.allclose(weights(together), weights(alone), rtol=1e-2)


def test_accumulation_leaves_the_steps_of_an_auxiliary_task_as_they_are(tmp_path):
    # Of plain gradients, whose size decides the step.
    settings = {"train.optimizer": "sgd", "train.epochs": 1, "train.max_grad_norm": 1e9}
    others = []
    for accumulation in (1, 2):
        other = line()
        further = along(other, points(20, seed=1), 1.0, tmp_path / str(accumulation))
        rows = points(4 * accumulation)
        fit(line(), rows, auxiliary=[further], **settings, **{"train.gradient_accumulation": accumulation})
        others.append(weights(other))
    assert not np.allclose(others[0], weights(line()), rtol=1e-2)
    np.testing.assert_allclose(others[1], others[0], rtol=1e-6)


# ------------------------------------------------------------------------------- optimisers, losses and regularizers


def sentences_task(catalog, folder, seed=0):
    """A classifier of sentences over words that it knows, with what the loop needs of it, and dropout."""
    import torch

    from autoft.plans.efforts import TRAIN_SPACE
    from autoft.testing.models import texts_of, tiny_model

    task = catalog.task("text-classification")
    params = {name: domain.default for name, domain in {**TRAIN_SPACE, **task.space()}.items()}
    rows = [dict(row) for row in task.demo_rows()] * 4
    options = {option.name: option.default for option in task.card.options}
    source = ModelSource("tiny", str(tiny_model("encoder", folder / "model", texts_of(rows))))
    context = TaskContext(task.facts(rows, options), options, {**params, "train.batch_size": 4}, 32, seed=seed)
    context = TaskContext(**{**vars(context), "processor": task.load_processor(source, context)})
    torch.manual_seed(seed)
    return task, context, rows, task.load_model(source, context).train()


def fit_sentences(task, context, rows, model, folder, chain=(), changes=None, precision="fp32"):
    here = TaskContext(**{**vars(context), "params": {**context.params, **(changes or {})}})
    target = Target(task, ModelSource("tiny", ""), {}, here, Hardware.probe_cpu())
    with Regularization(chain, model, target) as regularization:
        return train(
            model,
            task=task,
            context=here,
            features=encoded(Split.from_rows(rows), task, context, folder, "tiny"),
            rows=rows,
            augmentation=None,
            learning_rate=1e-3,
            precision=precision,
            objective="x",
            higher_is_better=True,
            validate=lambda model: {"x": 0.0},
            on_validation=lambda point: False,
            on_progress=lambda progress: None,
            regularization=regularization,
        )


def test_with_all_defaults_a_training_is_to_the_bit_the_loop_of_before(catalog, tmp_path):
    import torch
    from torch.nn import functional

    from autoft.attention_dropout import attention_in_blocks
    from autoft.data.batches import grouped_batches

    task, context, rows, ours = sentences_task(catalog, tmp_path)
    torch.manual_seed(7)
    fit_sentences(task, context, rows, ours, tmp_path, changes={"train.epochs": 1})
    # The loop as it stood before losses, optimisers and regularizers could be chosen, written out.
    task, context, rows, theirs = sentences_task(catalog, tmp_path)
    features = encoded(Split.from_rows(rows), task, context, tmp_path, "tiny")
    steps = math.ceil(len(rows) / 4)
    assert steps >= 5
    decayed = [p for p in theirs.parameters() if p.ndim >= 2]
    plain = [p for p in theirs.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}], lr=1e-3, fused=True
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor("linear", step, steps, round(0.06 * steps))
    )
    torch.manual_seed(7)
    for indices in grouped_batches(features.lengths, 4, np.random.default_rng(0)):
        batch = task.collate([features[int(i)] for i in indices], context)
        labels = batch.pop("labels")
        # What is dropped of attention is drawn otherwise there.
        with attention_in_blocks():
            functional.cross_entropy(theirs(**batch).logits.float(), labels).backward()
        torch.nn.utils.clip_grad_norm_([*decayed, *plain], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        scheduler.step()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_gradient_checkpointing_changes_nothing_but_memory(catalog, tmp_path):
    import torch

    found = []
    for on in (False, True):
        task, context, rows, model = sentences_task(catalog, tmp_path)
        torch.manual_seed(7)
        fit_sentences(task, context, rows, model, tmp_path, changes={"train.gradient_checkpointing": on})
        found.append(model)
        assert not model.is_gradient_checkpointing
    for (name, one), other in zip(found[0].named_parameters(), found[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)


def test_gradient_checkpointing_of_a_model_that_does_not_offer_it_is_told():
    with pytest.raises(ModelError, match=r"pin train\.gradient_checkpointing to false"):
        fit(line(), points(), **{"train.gradient_checkpointing": True})


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if "8bit" not in name])
def test_every_optimiser_learns_sentences(catalog, tmp_path, optimizer):
    task, context, rows, model = sentences_task(catalog, tmp_path)
    changes = {"train.optimizer": optimizer, "train.epochs": 16}
    losses = [point.train_loss for point in fit_sentences(task, context, rows, model, tmp_path, changes=changes).curve]
    assert losses[-1] < 0.8 * losses[0]


def test_every_regularizer_learns_with_bf16_accumulation_and_checkpointing(catalog, tmp_path):
    changes = {"train.epochs": 6, "train.gradient_accumulation": 2, "train.gradient_checkpointing": True}
    for name, one in catalog.regularizers.items():
        task, context, rows, model = sentences_task(catalog, tmp_path)
        chain = [(one, {key: domain.default for key, domain in one.space.items()})]
        curve = fit_sentences(task, context, rows, model, tmp_path, chain, changes, precision="bf16").curve
        assert curve[-1].train_loss < 0.95 * curve[0].train_loss, name
        assert all(value.dtype.is_floating_point and value.isfinite().all() for value in model.parameters()), name


class Slower(Regularizer):
    """The bias learns at a tenth."""

    name = "slower"
    summary = "a slow bias"

    def learning_rates(self, model, target, params):
        return {"bias": 0.1}


def test_rates_by_name_reach_the_optimiser():
    # Adam's first step is the rate by the sign of the gradient, whatever its size.
    plain, slow, start = line(), line(), line()
    settings = {"train.epochs": 1, "train.batch_size": 24, "train.weight_decay": 0.0}
    fit(plain, points(), **settings)
    outcome = fit(slow, points(), chain=[(Slower(), {})], **settings)
    np.testing.assert_allclose(np.abs(weights(plain) - weights(start)), 0.05, rtol=1e-3)
    np.testing.assert_allclose(np.abs(weights(slow) - weights(start)), [0.05, 0.05, 0.005], rtol=1e-3)
    assert outcome.curve[0].learning_rate == pytest.approx(0.05)


def recorded(chain, epochs=4, **params):
    """Train the line; return the weights after each step, those at each validation, the model and the outcome."""
    steps, seen = [], []

    class Recorder(Regularizer):
        name = "recorder"
        summary = "writes down"

        def after_step(self, model, params, state, done):
            steps.append(weights(model).copy())

    def validate(model):
        seen.append(weights(model).copy())
        return {"error": 1.0 / len(seen)}

    model = line()
    outcome = fit(model, points(), validate, chain=[*chain, (Recorder(), {})], **{"train.epochs": epochs, **params})
    return np.array(steps), np.array(seen), model, outcome


def test_the_mean_of_late_weights_is_validated_and_shipped_and_training_goes_on_from_the_weights_themselves():
    plain, *_ = recorded([])
    steps, seen, model, outcome = recorded([(Swa(), {"start": 0.5})])
    np.testing.assert_array_equal(steps, plain)
    assert len(steps) == 24
    np.testing.assert_allclose(seen[:2], steps[[5, 11]], rtol=1e-6)
    np.testing.assert_allclose(seen[2], steps[12:18].mean(0), rtol=1e-5)
    np.testing.assert_allclose(seen[3], steps[12:].mean(0), rtol=1e-5)
    assert outcome.best is outcome.curve[-1]
    np.testing.assert_array_equal(weights(model), seen[3])


def test_the_best_average_is_shipped_where_it_is_not_the_last():
    script = iter([0.5, 0.1, 0.4])
    seen = []

    def validate(model):
        seen.append(weights(model).copy())
        return {"error": next(script)}

    model = line()
    fit(model, points(), validate, chain=[(Ema(), {"decay": 0.9})])
    np.testing.assert_array_equal(weights(model), seen[1])


def test_steps_are_counted_once_whatever_is_accumulated_and_trained_along(tmp_path):
    steps, *_ = recorded([], epochs=2, **{"train.gradient_accumulation": 4})
    # 6 batches an epoch in groups of 4 and 2.
    assert len(steps) == 4
    shares = []

    class Share(Regularizer):
        name = "share"
        summary = "writes down"

        def after_step(self, model, params, state, done):
            shares.append(done)

    fit(line(), points(), chain=[(Share(), {})], auxiliary=[along(line(), points(20, seed=1), 2.0, tmp_path)])
    assert shares == pytest.approx([(i + 1) / 18 for i in range(18)])


def test_an_auxiliary_task_is_trained_as_it_is_and_the_own_loss_is_changed(tmp_path):
    class Off(Regularizer):
        name = "off"
        summary = "nothing is learned"

        def loss(self, compute, model, batch, target, params, state):
            return compute(batch) * 0.0

    own, other = line(), line()
    settings = {"train.weight_decay": 0.0}
    fit(own, points(), chain=[(Off(), {})], auxiliary=[along(other, points(20, seed=1), 1.0, tmp_path)], **settings)
    np.testing.assert_array_equal(weights(own), weights(line()))
    assert not np.allclose(weights(other), weights(line()), rtol=1e-2)


def test_a_deadline_before_the_average_begins_ships_the_weights_as_they_are():
    model = line()
    late = fit(model, points(), deadline=0.0, chain=[(Swa(), {"start": 0.75})])
    assert late.out_of_time
    other = line()
    fit(other, points(), deadline=0.0)
    np.testing.assert_array_equal(weights(model), weights(other))


def test_what_regularizers_prepared_is_undone_after_a_training_that_fails():
    undone = []

    class Undone(Regularizer):
        name = "undone"
        summary = "says when it ends"

        def prepare(self, model, target, params):
            return "state"

        def finish(self, model, state):
            undone.append(state)

    with pytest.raises(FloatingPointError):
        fit(line(), [{"x": [1e30, 1e30], "y": 0.0}] * 4, chain=[(Undone(), {})])
    assert undone == ["state"]


def test_parameters_with_a_rate_of_their_own_take_steps_of_that_length():
    import torch

    from autoft.training import optimizer_of

    # Adam's first step is the learning rate, whatever the gradient.
    model = torch.nn.Linear(3, 2)
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = optimizer_of([model], 1e-3, 0.0, own_rates=[{"params": [model.weight], "lr": 1.6e-2}])
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    assert torch.allclose((model.weight - start["weight"]).abs(), torch.tensor(1.6e-2), rtol=1e-3)
    assert torch.allclose((model.bias - start["bias"]).abs(), torch.tensor(1e-3), rtol=1e-3)
    assert sorted(group["lr"] for group in optimizer.param_groups) == [1e-3, 1.6e-2]


def test_weights_are_decayed_and_vectors_are_not_whatever_their_rate():
    import torch

    from autoft.training import optimizer_of

    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    own = [{"params": list(model[1].parameters()), "lr": 1e-2}]
    decay = {
        id(value): (group["lr"], group["weight_decay"])
        for group in optimizer_of([model], 1e-3, 0.1, own_rates=own).param_groups
        for value in group["params"]
    }
    assert [decay[id(value)] for value in model.parameters()] == [(1e-3, 0.1), (1e-3, 0.0), (1e-2, 0.1), (1e-2, 0.0)]


@pytest.mark.parametrize(("count", "accumulation"), [(24, 1), (24, 2), (22, 4), (5, 3)])
def test_after_step_is_told_every_step_once_with_gradients_there(count, accumulation):
    told = []

    def after_step(model, step, total):
        told.append((step, total, model.weight.grad is not None))

    fit(line(), points(count), after_step=after_step, **{"train.gradient_accumulation": accumulation})
    batches = -(-count // PARAMS["train.batch_size"])
    steps = -(-batches // accumulation) * PARAMS["train.epochs"]
    assert told == [(step, steps, True) for step in range(steps)]
