"""A training that was broken off and goes on from its checkpoint is the training that was not."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoft import checkpoints
from autoft.checkpoints import Checkpoints, plain, share_done
from autoft.contracts import ModelSource, Target, TaskContext
from autoft.data.features import encoded
from autoft.data.rows import Split
from autoft.hardware import Hardware
from autoft.optimizers import OPTIMIZERS
from autoft.testing.models import texts_of, tiny_model
from autoft.training import Augmentation, Regularization, train
from autoft.used_rows import asked_for, used_rows_alone

STEPS = 24


class Broken(Exception):
    """In place of a process that is killed."""


class Training:
    """The same training as often as it is called, with dropout: 3 epochs of 8 batches, a checkpoint after each step."""

    def __init__(
        self, catalog, model_folder, folder, *, adapter="full", regularize=None, augment=None, small=False, **changes
    ):
        from autoft.plans.efforts import TRAIN_SPACE

        self.catalog, self.folder, self.adapter, self.small = catalog, folder, catalog.adapters[adapter], small
        self.task = task = catalog.task("text-classification")
        self.chain = (
            [(catalog.regularizers[regularize], defaults(catalog.regularizers[regularize]))] if regularize else []
        )
        self.augmenter = catalog.augmenters[augment] if augment else None
        self.rows = [dict(row) for row in task.demo_rows()] * 5
        options = {option.name: option.default for option in task.card.options}
        params = {name: domain.default for name, domain in {**TRAIN_SPACE, **task.space()}.items()}
        params |= {"train.epochs": 3, "train.batch_size": 4, "train.dropout": 0.2, **changes}
        self.source = ModelSource("tiny", str(model_folder))
        context = TaskContext(task.facts(self.rows, options), options, params, 32, seed=3)
        self.context = TaskContext(**{**vars(context), "processor": task.load_processor(self.source, context)})
        self.notes = []

    def __call__(self, until=None, *, keep=True, told=lambda point: False, of="this", place="checkpoint"):
        """Train, up to a step if one is given, and return the model, the outcome and the steps that were taken."""
        import torch

        torch.manual_seed(11)
        target = Target(self.task, self.source, {}, self.context, Hardware.probe_cpu())
        model = self.adapter.attach(self.task.load_model(self.source, self.context), target, defaults(self.adapter))
        features = encoded(Split.from_rows(self.rows), self.task, self.context, self.folder, "tiny")
        steps = []

        def after_step(model, step, total):
            assert total == STEPS / self.context.params["train.gradient_accumulation"]
            steps.append(step)
            if step == until:
                raise Broken

        def validate(network):
            batch = self.task.collate(self.task.encode(self.rows[:12], self.context), self.context)
            with torch.no_grad():
                # It rises and falls, so that the best is in the middle.
                return {"x": math.sin(20 * float(self.task.loss(network.eval(), batch, self.context)))}

        def loss():
            return self.task.loss(model, self.task.collate([features[0]], self.context), self.context)

        tokens = asked_for(features, model, self.context.processor)
        kept = Checkpoints(self.folder / place, {"of": of}, self.notes.append, every=0, share=math.inf)
        with (
            used_rows_alone(model, tokens, loss, grows=bool(self.augmenter)) if self.small else nullcontext((0, 1)) as (
                rows,
                of,
            ),
            Regularization(self.chain, model, target) as regularization,
        ):
            assert rows < of
            assert plain(regularization.states)
            outcome = train(
                model, task=self.task, context=self.context, features=None if self.augmenter else features, rows=self.rows,
                augmentation=self.augmenter and Augmentation(self.augmenter, defaults(self.augmenter), None),
                learning_rate=2e-3, precision="fp32", objective="x", higher_is_better=True, validate=validate,
                on_validation=told, on_progress=lambda progress: None, regularization=regularization,
                after_step=after_step, checkpoints=kept if keep else None,
            )  # fmt: skip
        return model, outcome, steps


def defaults(strategy):
    return {name: domain.default for name, domain in strategy.space.items()}


def same(one, other):
    """Say that two trainings came to the same, to the bit."""
    import torch

    for (name, mine), theirs in zip(one[0].state_dict().items(), other[0].state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    untimed = {"seconds": 0.0, "validate_seconds": 0.0}
    told = [[point.model_copy(update=untimed) for point in outcome.curve] for _, outcome, _ in (one, other)]
    assert told[0] == told[1]
    assert one[1].best.samples == other[1].best.samples


@pytest.fixture(scope="module")
def model_folder(catalog, tmp_path_factory):
    rows = catalog.task("text-classification").demo_rows()
    return tiny_model("encoder", tmp_path_factory.mktemp("checkpoints") / "model", texts_of(rows))


@pytest.fixture
def training(catalog, model_folder, tmp_path):
    return Training(catalog, model_folder, tmp_path)


@pytest.mark.parametrize(
    "setting",
    [
        *({"train.optimizer": name} for name in OPTIMIZERS if "8bit" not in name),
        {"train.gradient_accumulation": 2, "train.schedule": "plateau"},
        {"adapter": "lora", "augment": "random-swap"},
        {"small": True},
        {"small": True, "augment": "random-swap"},
        {"regularize": "ema"},
        {"regularize": "l2-sp"},
    ],
    ids=lambda setting: "-".join(map(str, setting.values())),
)
def test_broken_off_anywhere_it_takes_the_steps_that_were_to_come(catalog, model_folder, tmp_path, setting):
    training = Training(catalog, model_folder, tmp_path, **setting)
    whole = training(keep=False)
    steps = len(whole[2])
    # In the first epoch, and after the last validation but one.
    breaks = [steps // 5, steps - 2]
    for until in breaks:
        with pytest.raises(Broken):
            training(until)
    rest = training()
    same(whole, rest)
    assert rest[2] == list(range(breaks[-1], steps))
    assert rest[1].gone_on_after == pytest.approx(3 * breaks[-1] / steps, abs=0.1)
    assert rest[1].seconds > rest[1].earlier > 0
    assert training.notes == []


def test_what_a_regularizer_kept_goes_on_where_the_model_is(catalog, training):
    """A checkpoint is read to the CPU, and a model may be on a GPU; here it is on the device without memory."""
    import torch

    average = (catalog.regularizers["ema"], defaults(catalog.regularizers["ema"]))
    model = torch.nn.Linear(2, 2, device="meta")
    target = Target(training.task, training.source, {}, training.context, Hardware.probe_cpu())
    with Regularization([average], model, target) as regularization:
        regularization.put_states([{"steps": 3, "weights": {"weight": torch.ones(2, 2)}}])
        (state,) = regularization.states
    assert (state["steps"], state["weights"]["weight"].device.type) == (3, "meta")


def test_a_training_that_was_done_takes_no_step_more(training):
    whole = training()
    again = training()
    same(whole, again)
    assert again[2] == []
    assert share_done(training.folder / "checkpoint") == 1.0


def test_validations_are_told_again_and_may_end_it(training):
    with pytest.raises(Broken):
        training(18)
    seen = []
    _, outcome, steps = training(told=lambda point: seen.append(point.samples) or len(seen) == 2)
    assert seen == [30, 60]
    assert outcome.stopped
    assert steps == []


def test_one_of_another_training_is_left_and_then_replaced(training):
    with pytest.raises(Broken):
        training(10)
    whole = training(keep=False)
    other = training(of="that")
    same(whole, other)
    assert len(other[2]) == STEPS
    assert json.loads((training.folder / "checkpoint" / "state.json").read_text())["of"] == {"of": "that"}
    assert training.notes == []


def cut(folder):
    path = folder / "0.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def flip(folder):
    path = folder / "0.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def without_tensors(folder):
    (folder / "0.safetensors").unlink()


def without_state(folder):
    (folder / "state.json").unlink()


def cut_state(folder):
    path = folder / "state.json"
    path.write_text(path.read_text()[:900])


def another_state(folder):
    path = folder / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": {"mapping": 3}}))


@pytest.mark.parametrize("damage", [cut, flip, without_tensors, without_state, cut_state, another_state])
def test_a_damaged_one_is_told_and_the_training_begins_anew(training, damage):
    whole = training(keep=False)
    with pytest.raises(Broken):
        training(10)
    damage(training.folder / "checkpoint")
    again = training()
    same(whole, again)
    assert len(again[2]) == STEPS
    (note,) = training.notes
    assert note.startswith("A training begins anew, as its checkpoint cannot be read: ")


def test_where_none_can_be_written_that_is_told_once_and_the_training_goes_on(training):
    (training.folder / "file").write_text("")
    whole, other = training(keep=False), training(place="file/checkpoint")
    same(whole, other)
    (note,) = training.notes
    assert note.startswith("A training goes on without checkpoints: ")


def test_what_the_trial_needs_itself_is_left(tmp_path):
    import torch

    notes, state = [], {"weights": torch.zeros(100)}
    Checkpoints(tmp_path / "checkpoint", {}, notes.append, lambda: 400).write(state, 0.5)
    assert notes == []
    kept = Checkpoints(tmp_path / "other", {}, notes.append, lambda: 399, every=0)
    kept.write(state, 0.5)
    assert not (tmp_path / "other").exists()
    assert not kept.due
    (note,) = notes
    assert note.endswith("would take 400 B, which the trial may need itself")


def test_what_takes_long_to_write_is_written_seldom(tmp_path):
    import torch

    kept = Checkpoints(tmp_path / "checkpoint", {}, every=0.0, share=1e-6)
    assert kept.due
    kept.write({"weights": torch.zeros(3)}, 0.5)
    assert not kept.due
    assert share_done(tmp_path / "checkpoint") == 0.5


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text()
        | st.lists(st.floats(width=32, allow_nan=False)).map(lambda values: ("tensor", values)),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
        max_leaves=8,
    )
)
def test_what_is_written_is_what_is_read(tmp_path_factory, value):
    import torch

    def with_tensors(value):
        if isinstance(value, tuple):
            return torch.tensor(value[1], dtype=torch.float32)
        if isinstance(value, list):
            return [with_tensors(one) for one in value]
        return {key: with_tensors(one) for key, one in value.items()} if isinstance(value, dict) else value

    def without(value):
        if isinstance(value, torch.Tensor):
            return ("tensor", value.tolist())
        if isinstance(value, list):
            return [without(one) for one in value]
        return {key: without(one) for key, one in value.items()} if isinstance(value, dict) else value

    kept = Checkpoints(tmp_path_factory.mktemp("kept") / "checkpoint", {"of": 1})
    assert plain(with_tensors(value))
    kept.write({"it": with_tensors(value)}, 0.1)
    assert without(kept.read()) == {"it": value}


@given(sizes=st.lists(st.integers(0, 9), max_size=20))
def test_files_hold_no_more_than_is_held_in_memory_at_once(sizes):
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "FILE_BYTES", 40)
        tensors = [torch.zeros(size) for size in sizes]
        files = list(checkpoints._in_files(tensors))
    assert [place for places in files for place in places] == list(range(len(sizes)))
    assert all(places for places in files)
    assert all(sum(tensors[place].nbytes for place in places) <= 40 for places in files)


def test_what_is_no_number_nor_tensor_is_no_state():
    assert not plain({"layer": object()})
    assert not plain([{"a": [object()]}])


@pytest.mark.slow
def test_a_search_that_is_killed_in_a_long_training_goes_on_in_its_middle(tmp_path, model_folder):
    rng = random.Random(0)
    rows = [
        (rng.choices(["the", "film", "plot", "scene", "noise"], k=rng.randint(3, 9)), rng.random() < 0.5)
        for _ in range(480)
    ]
    lines = [f"{' '.join([*words, 'clever' if good else 'dull'])},{'good' if good else 'bad'}" for words, good in rows]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *lines]))
    recipe = {
        "task": "text-classification", "name": "long", "model": str(model_folder),
        "data": {"train": "rows.csv", "validation_size": 40, "test_size": 40},
        "budget": {"time": "1h", "trials": 1}, "effort": "quick", "compress": ["none"], "executor": {"threads": 1},
        "space": {"train.epochs": 100, "train.batch_size": 2, "train.dropout": 0.1},
    }  # fmt: skip
    (tmp_path / "long.yaml").write_text(json.dumps(recipe))

    def command(run):
        return [sys.executable, "-m", "autoft", "search", "long.yaml", "--run", run, "--json"]

    def ended(run):
        done = subprocess.run(command(run), cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, json.loads((tmp_path / run / "trials/0000/result.json").read_text())

    process = subprocess.Popen(command("broken"), cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True)
    state = tmp_path / "broken/trials/0000/checkpoint/state.json"
    while not state.is_file():
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    share = share_done(state.parent)
    said, broken = ended("broken")
    assert f"Trial 0 goes on from its checkpoint, at {share:.0%} of its training." in said
    assert f"training was broken off, and gone on with after {100 * share:.3g} epochs" in broken["reason"]
    assert not state.parent.exists()
    _, whole = ended("whole")
    for one in (broken, whole):
        for point in one["curve"]:
            del point["seconds"], point["validate_seconds"]
    assert broken["curve"] == whole["curve"]
    assert broken["validation"] == whole["validation"]
