from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft.contracts import Augmenter, Column, Task, TaskCard, TaskContext
from autoft.data import Split, encoded
from autoft.errors import ModelError
from autoft.training import Augmentation, Auxiliary, learning_rate_factor, share_body, train

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
    after_step=None,
    **params,
):
    """Train the line; the validation is the error over all rows unless a script of figures is given."""
    import torch

    def error(network):
        with torch.no_grad():
            batch = Points().collate(Points().encode(rows, None), None)
            return {"error": float(Points().loss(network, batch, None))}

    return train(
        model,
        task=Points(),
        context=TaskContext(facts={}, options={}, params={**PARAMS, **params}, max_length=8, seed=3),
        features=None,
        rows=rows,
        augmentation=Augmentation(Unchanged(), {}, None),
        learning_rate=0.05,
        precision="fp32",
        objective="error",
        higher_is_better=higher_is_better,
        validate=validate or error,
        on_validation=told or (lambda point: False),
        on_progress=lambda progress: None,
        deadline=deadline,
        auxiliary=auxiliary,
        after_step=after_step,
    )


def weights(model):
    return np.concatenate([value.detach().numpy().ravel() for value in model.parameters()])


def test_the_loop_takes_the_steps_that_a_plain_loop_takes():
    import torch

    from autoft.data import grouped_batches

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


def test_the_rate_halves_when_validation_stalls():
    script = iter([0.5, 0.6, 0.4, 0.4])
    outcome = fit(
        line(), points(), lambda model: {"error": next(script)}, **{"train.epochs": 4, "train.schedule": "plateau"}
    )
    rates = [point.learning_rate for point in outcome.curve]
    assert rates == pytest.approx([0.05, 0.05, 0.025, 0.025])


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


def test_parameters_with_a_rate_of_their_own_take_steps_of_that_length():
    import torch

    from autoft.training import _optimizer

    # Adam's first step is the learning rate, whatever the gradient.
    model = torch.nn.Linear(3, 2)
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = _optimizer([model], 1e-3, 0.0, [{"params": [model.weight], "lr": 1.6e-2}])
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    assert torch.allclose((model.weight - start["weight"]).abs(), torch.tensor(1.6e-2), rtol=1e-3)
    assert torch.allclose((model.bias - start["bias"]).abs(), torch.tensor(1e-3), rtol=1e-3)
    assert sorted(group["lr"] for group in optimizer.param_groups) == [1e-3, 1.6e-2]


def test_weights_are_decayed_and_vectors_are_not_whatever_their_rate():
    import torch

    from autoft.training import _optimizer

    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    own = [{"params": list(model[1].parameters()), "lr": 1e-2}]
    decay = {
        id(value): (group["lr"], group["weight_decay"])
        for group in _optimizer([model], 1e-3, 0.1, own).param_groups
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
