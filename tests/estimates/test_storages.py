"""What is traced is what is allocated: against counts by hand, and against the same steps with real tensors."""

from __future__ import annotations

import dataclasses
import gc
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from autoft.estimates.probe import loaded_model
from autoft.estimates.setting import Setting, Work, longest_features
from autoft.estimates.steps import run_steps, task_batch, trace_training
from autoft.estimates.storages import KnownIntegers, StorageTracker, Timeline, fake_model
from autoft.plugins import load_plugins
from autoft.testing.strategies import defaults
from autoft.testing.workbench import Workbench
from autoft.used_rows import used_rows_alone

KIB = 1024
FLOATS = KIB // 4


def traced(function):
    with StorageTracker() as tracker:
        result = function()
        del result
        gc.collect()
    return tracker.timeline


def test_a_tensor_is_counted_once_however_many_look_at_it():
    def views():
        whole = torch.zeros(FLOATS)
        return [whole, whole[10:], whole.view(2, -1), whole.add_(1.0)]

    timeline = traced(views)
    assert [size for _, size in timeline.events] == [KIB, -KIB]
    assert timeline.peak == KIB
    assert timeline.left == 0


def test_temporaries_are_there_as_long_as_somebody_holds_them():
    def chain():
        first = torch.zeros(FLOATS)
        second = first + 1  # two
        del first  # one
        return second * 2 + second  # the product lives until the sum is made: three

    assert traced(chain).peak == 3 * KIB


def test_what_was_there_before_counts_when_it_is_named():
    old = torch.zeros(FLOATS)
    with StorageTracker() as tracker:
        tracker.add(old, old[5:])
        assert tracker.timeline.left == KIB
        new = old + 1
    assert tracker.timeline.peak == 2 * KIB
    assert new.sum() == FLOATS


def test_the_graph_keeps_what_the_gradient_needs():
    """x -> tanh -> tanh -> sum: each tanh keeps its result; the first gradient is made beside both results."""
    weight = torch.zeros(FLOATS, requires_grad=True)

    def step():
        loss = weight.tanh().tanh().sum()
        loss.backward()
        return loss

    timeline = traced(step)
    small = {size for _, size in timeline.events if abs(size) < KIB}
    assert {abs(size) for size in small} == {4}  # the sum, and the gradient 1 that is expanded
    kilobytes = [size // KIB for _, size in timeline.events if abs(size) >= KIB]
    # Two results; the gradient of the outer tanh, with whose result the graph is done; that of the inner one stays.
    assert kilobytes == [1, 1, 1, -1, 1, -1, -1] or max(itertools.accumulate(kilobytes)) == 3
    assert timeline.left == KIB  # the gradient of the weight


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 300)), min_size=1, max_size=30))
def test_any_order_of_making_and_freeing(actions):
    held, expected, peak = [], 0, 0
    with StorageTracker() as tracker:
        for make, size in actions:
            if make or not held:
                held.append(torch.empty(size))
                expected += 4 * size
            else:
                expected -= 4 * held.pop(0).numel()
            peak = max(peak, expected)
            assert tracker.timeline.left == expected
        assert tracker.timeline.peak == peak
        held.clear()
    assert tracker.timeline.left == 0


def test_fake_weights_that_are_shared_stay_shared():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model.register_buffer("seen", torch.zeros(3, dtype=torch.long))
    fake_model(model, FakeTensorMode())
    assert model[0].weight is model[1].weight
    assert len(list(model.parameters())) == 3
    assert model.seen.dtype == torch.long
    with StorageTracker() as tracker:
        tracker.add(*model.parameters(), *model.buffers())
    assert tracker.timeline.left == 4 * (16 + 4 + 4) + 8 * 3


class TestKnownIntegers:
    def ask(self, question, *tensors):
        mode = FakeTensorMode()
        known = KnownIntegers(mode)
        with mode, known:
            return question(*(known.fake(tensor) for tensor in tensors))

    def test_a_number_that_follows_from_labels(self):
        labels = torch.tensor([[-100, -100, 3], [-100, 2, 3]])
        assert self.ask(lambda given: int((given != -100).any(0).int().argmax()), labels) == 1

    def test_a_mask_makes_a_shape(self):
        labels = torch.tensor([[-100, 2, 3], [-100, -100, 3]])
        hidden = torch.zeros(2, 3, 5)
        shape = self.ask(lambda given, values: values[given != -100].shape, labels, hidden)
        assert shape == (3, 5)

    def test_lists(self):
        assert self.ask(lambda given: given.tolist(), torch.tensor([4, 1])) == [4, 1]

    def test_what_follows_from_activations_is_not_known(self):
        with pytest.raises(RuntimeError):
            self.ask(lambda values: bool((values > 0).any()), torch.zeros(3))

    def test_a_known_tensor_that_is_overwritten_by_an_unknown_one_is_known_no_longer(self):
        def question(numbers, values):
            numbers.copy_(values)
            return int(numbers[0])

        with pytest.raises(RuntimeError):
            self.ask(question, torch.tensor([1, 2]), torch.zeros(2))


# -------------------------------------------------------------------------------------------------- whole trainings


@pytest.fixture(scope="module")
def catalog():
    return load_plugins()


def setting_of(bench, adapter, catalog, quantizer="", **params):
    given = {**bench.params, "train.batch_size": 3, **params}
    for name in (adapter, quantizer):
        if name:
            values = defaults(catalog.strategies[name].space)
            given.update({f"{name}.{key}": value for key, value in values.items()})
    model = {"name": "tiny", "path": bench.source.path, "config": dict(bench.config)}
    card = bench.task.card.name
    return Setting(card, model, bench.facts, bench.options, given, adapter, quantizer, length=24)


def really(setting, catalog):
    """Return the timeline of the same step on real weights and real tensors."""
    work = Work.of(setting, catalog)
    target = work.target
    model = work.task.load_model(target.source, target.context)
    own = {k.split(".", 1)[1]: v for k, v in setting.params.items() if k.startswith(f"{setting.adapter}.")}
    model = work.adapter.attach(model, target, own)
    batch = task_batch(work, setting.batch_size)
    gc.collect()
    with StorageTracker() as tracker:
        tracker.add(*model.parameters(), *model.buffers())
        given = {name: tensor.clone() for name, tensor in batch.items()}
        tracker.add(*given.values())
        run_steps(model, work, setting, given, tracker.timeline)
    return tracker.timeline


@pytest.mark.parametrize(
    ("task", "kind"),
    [("text-classification", "encoder"), ("generation", "decoder"), ("translation", "seq2seq")],
)
@pytest.mark.parametrize(
    ("adapter", "params"),
    [
        ("full", {}),
        ("lora", {}),
        ("full", {"train.gradient_checkpointing": True}),
        ("lora", {"train.gradient_accumulation": 4}),
        ("full", {"train.optimizer": "adafactor"}),
    ],
    ids=["full", "lora", "checkpointing", "accumulation", "adafactor"],
)
def test_fake_tensors_take_what_real_ones_do(task, kind, adapter, params, catalog):
    bench = Workbench(catalog.tasks[task], catalog, kind=kind)
    setting = setting_of(bench, adapter, catalog, **params)
    fake, real = trace_training(setting, catalog), really(setting, catalog)
    assert fake.timeline.peak == pytest.approx(real.peak, rel=0.002)


def test_bf16_too(catalog):
    bench = Workbench(catalog.tasks["text-classification"], catalog)
    setting = Setting.from_json({**setting_of(bench, "full", catalog).to_json(), "precision": "bf16"})
    assert trace_training(setting, catalog).timeline.peak == pytest.approx(really(setting, catalog).peak, rel=0.002)


def test_so_does_a_table_of_some_tokens(catalog):
    bench = Workbench(catalog.tasks["text-classification"], catalog)
    setting = setting_of(bench, "full", catalog)
    work = Work.of(setting, catalog)
    target = work.target
    model = work.adapter.attach(work.task.load_model(target.source, target.context), target, {})
    batch = task_batch(work, setting.batch_size)
    tokens = np.unique(batch["input_ids"].numpy())
    gc.collect()
    with StorageTracker() as tracker:
        tracker.add(*model.parameters(), *model.buffers())
        given = {name: tensor.clone() for name, tensor in batch.items()}
        tracker.add(*given.values())
        with used_rows_alone(model, tokens, lambda: work.task.loss(model, given, target.context)) as (rows, of):
            run_steps(model, work, setting, given, tracker.timeline)
    fake = trace_training(dataclasses.replace(setting, tokens=rows), catalog).timeline.peak
    assert fake == pytest.approx(tracker.timeline.peak, rel=0.01)
    # Of each row that is left out two moments, and what is there with them at the peak: a gradient or a copy of the best weights.
    row = 4 * model.get_input_embeddings().embedding_dim
    spared = trace_training(setting, catalog).timeline.peak - fake
    assert spared > 2 * (of - rows) * row


def test_the_profiler_of_torch_agrees(catalog):
    """What torch's CPU allocator reports of the same step, kernels' own buffers among it."""
    bench = Workbench(catalog.tasks["text-classification"], catalog)
    setting = setting_of(bench, "full", catalog)
    work = Work.of(setting, catalog)
    model = work.adapter.attach(work.task.load_model(work.target.source, work.target.context), work.target, {})
    batch = task_batch(work, setting.batch_size)
    weights = sum(p.untyped_storage().nbytes() for p in [*model.parameters(), *model.buffers()])

    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, record_shapes=False
    ) as profile:
        run_steps(model, work, setting, batch, Timeline())
    changes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = weights + max(itertools.accumulate(changes))
    assert trace_training(setting, catalog).timeline.peak == pytest.approx(peak, rel=0.03)


@pytest.mark.parametrize("quantizer", ["nf4", "int8"])
def test_a_quantized_base_takes_what_its_bits_take(quantizer, catalog):
    pytest.importorskip("bitsandbytes")
    bench = Workbench(catalog.tasks["text-classification"], catalog)
    setting = setting_of(bench, "lora", catalog, quantizer)
    work = Work.of(setting, catalog)
    loaded = bench.load_model(**work.quantizer.load_kwargs(work.target, {}))
    real = sum(p.untyped_storage().nbytes() for p in [*loaded.parameters(), *loaded.buffers()])
    for module in loaded.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None:
            nested = [state.state2.absmax, state.state2.code] if state.nested else []
            real += sum(t.untyped_storage().nbytes() for t in [state.absmax, *nested])
        scales = getattr(getattr(module, "weight", None), "SCB", None)
        real += 0 if scales is None else scales.untyped_storage().nbytes()
    trace = trace_training(setting, catalog)
    dense = trace_training(setting_of(bench, "lora", catalog), catalog)
    adapters = dense.weights_bytes - sum(
        t.untyped_storage().nbytes() for t in [*bench.load_model().parameters(), *bench.load_model().buffers()]
    )
    assert trace.weights_bytes == pytest.approx(real + adapters, rel=0.001)
    assert trace.parameters == pytest.approx(dense.parameters, rel=0.25)
    assert trace.trainable_parameters == dense.trainable_parameters


@pytest.mark.parametrize("quantizer", ["nf4", "int8"])
def test_the_profiler_agrees_where_layers_are_made_dense(quantizer, catalog, tmp_path):
    """Wide layers and few tokens: the peak of the allocator is that of the dense weights of one layer."""
    pytest.importorskip("bitsandbytes")
    import transformers

    tokenizer = Workbench(catalog.tasks["text-classification"], catalog).context.processor
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=256, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4096
    )
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    bench = Workbench(catalog.tasks["text-classification"], catalog, model=tmp_path)
    setting = setting_of(bench, "lora", catalog, quantizer).with_batch(1)
    setting = Setting.from_json({**setting.to_json(), "length": 8})
    work = Work.of(setting, catalog)
    model = loaded_model(work, setting)
    batch = task_batch(work, 1)
    trace = trace_training(setting, catalog)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, record_shapes=False
    ) as profile:
        run_steps(model, work, setting, batch, Timeline())
    changes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert trace.timeline.peak - trace.weights_bytes == pytest.approx(max(itertools.accumulate(changes)), rel=0.05)


def test_more_rows_take_more_in_proportion(catalog):
    bench = Workbench(catalog.tasks["text-classification"], catalog)
    setting = setting_of(bench, "full", catalog)
    two, four, eight = (trace_training(setting.with_batch(rows), catalog).timeline.peak for rows in (32, 64, 128))
    assert eight - four == pytest.approx(2 * (four - two), rel=0.01)


def test_rows_are_as_long_as_asked(catalog):
    for name in ("text-classification", "token-classification", "question-answering", "generation"):
        bench = Workbench(catalog.tasks[name], catalog)
        for length in (16, 40):
            work = Work.of(
                Setting.from_json({**setting_of(bench, "full", catalog).to_json(), "length": length}), catalog
            )
            features = longest_features(work.task, work.target.context, 2)
            assert len(features) == 2
            batch = work.task.collate(features, work.target.context)
            assert batch["input_ids"].shape[-1] == length
