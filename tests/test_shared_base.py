"""Trials that train together over one base learn what each learns alone."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.contracts import Column, Task, TaskCard
from autoft.shared_base import Cohort
from autoft.training import train

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 48,
    "pad_token_id": 0,
}
ODD = {
    "distilbert": {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    "llama": {"num_key_value_heads": 1},
}
DROPOUTS = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "dropout",
    "embd_pdrop",
    "hidden_dropout_prob",
    "resid_pdrop",
)
HEADS = {"sequence": "SequenceClassification", "token": "TokenClassification", "causal": "CausalLM"}

# Minutes that the gate has not.
pytestmark = pytest.mark.slow


class Texts(Task):
    """Numbers in place of words: a text's class is its length, a token's its remainder, the next token is the next."""

    card = TaskCard(
        name="texts", summary="texts", columns=(Column("x", "text", "what"),), metrics=("loss",), architecture=""
    )
    demo_rows = load_model = predict = reference = None
    side = "right"
    head = "sequence"
    fails_at = math.inf
    masks = True

    def encode(self, rows, context):
        return rows

    def length(self, feature):
        return len(feature)

    def collate(self, features, context):
        width = max(map(len, features))

        def filled(row, value):
            padding = [value] * (width - len(row))
            return padding + row if self.side == "left" else row + padding

        labels = {
            "sequence": [len(row) % 3 for row in features],
            "token": [filled([token % 3 for token in row], -100) for row in features],
            "causal": [filled(row, -100) for row in features],
        }[self.head]
        batch = {
            "input_ids": torch.tensor([filled(row, 0) for row in features]),
            "labels": torch.tensor(labels),
        }
        if self.masks:
            batch["attention_mask"] = torch.tensor([filled([1] * len(row), 0) for row in features])
        return batch

    def loss(self, model, batch, context):
        self.fails_at -= 1
        if self.fails_at < 0:
            raise ValueError("this task fails")
        return model(**batch).loss


def texts(count, seed, lengths=(3, 14)):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 40, size=rng.integers(*lengths)).tolist() for _ in range(count)]


def made(
    model_type, *, head="sequence", dropout=0.0, seed=1, targets="all-linear", rank=4, alpha=8, pooler=False, **lora
):
    """The base is the same for all; adapter and head are by the seed."""
    import transformers
    from peft import LoraConfig, get_peft_model

    from autoft.strategies.head_only import find_head
    from autoft.strategies.peft_adapter import find_targets, pattern_of, savable

    torch.manual_seed(0)
    rates = dict.fromkeys(DROPOUTS, dropout) if dropout is not None else {}
    config = transformers.AutoConfig.for_model(model_type, **SIZES, **ODD.get(model_type, {}), num_labels=3)
    for name, rate in rates.items():
        if hasattr(config, name):
            setattr(config, name, rate)
    model = getattr(transformers, f"AutoModelFor{HEADS[head]}").from_config(config)
    torch.manual_seed(seed)
    for name in find_head(model).parameters:
        torch.nn.init.normal_(model.get_parameter(name), std=0.3)
    layers = find_targets(model, targets, find_head(model))
    saved = [*savable(model, find_head(model)), *(["pooler"] if pooler else [])]
    if pooler:
        layers = [name for name in layers if "pooler" not in name]
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=pattern_of(layers),
            modules_to_save=saved or None,
            fan_in_fan_out=model_type == "gpt2",
            init_lora_weights=False,
            **lora,
        ),
    )
    # Not so far from nothing that a training of a few steps cannot leave it.
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.mul_(0.3)
    return adapted


def trial(
    number=0,
    *,
    rate=1e-2,
    batch=4,
    epochs=2,
    count=12,
    accumulation=1,
    optimizer="adamw",
    stop_after=None,
    fails_at=math.inf,
    side="right",
    head="sequence",
    lengths=(3, 14),
    masks=True,
    precision="fp32",
    parts=1,
    device="cpu",
    **model,
):
    return SimpleNamespace(**locals())


def go(one, model_type, seat=None, waits=None):
    """Train as a search does, and return the losses, the trained weights and what was seen."""
    task = Texts()
    task.side, task.head, task.fails_at, task.masks = one.side, one.head, one.fails_at, one.masks
    rows = texts(one.count, one.number, one.lengths)
    model = made(model_type, seed=one.number, head=one.head, **one.model).to(one.device)
    features = SimpleNamespace(lengths=np.array([len(row) for row in rows]))
    features = type("Rows", (list,), {"lengths": features.lengths})(rows)
    context = SimpleNamespace(
        params={
            "train.epochs": one.epochs,
            "train.batch_size": one.batch,
            "train.gradient_accumulation": one.accumulation,
            "train.weight_decay": 0.01,
            "train.schedule": "linear",
            "train.warmup": 0.1,
            "train.max_grad_norm": 1.0,
            "train.optimizer": one.optimizer,
        },
        seed=one.number,
        device=one.device,
    )
    points = []

    def validate(trained):
        trained.eval()
        batch = {name: value.to(one.device) for name, value in task.collate(rows, context).items()}
        with torch.no_grad():
            return {"loss": float(Texts.loss(SimpleNamespace(fails_at=9), trained, batch, context))}

    def told(point):
        points.append(point)
        return one.stop_after is not None and len(points) >= one.stop_after

    torch.manual_seed(one.number)

    def run(backward):
        return train(
            model,
            task=task,
            context=context,
            features=features,
            rows=rows,
            augmentation=None,
            learning_rate=one.rate,
            precision=one.precision,
            objective="loss",
            higher_is_better=False,
            validate=validate,
            on_validation=told,
            on_progress=lambda progress: None,
            parts=one.parts,
            backward=backward,
        )

    if seat is None:
        outcome = run(None)
    else:
        with seat.sharing(model) as backward:
            assert (backward is None) == bool(seat.why_alone)
            outcome = run(backward)
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    losses = [(point.train_loss, point.validation["loss"]) for point in points]
    return SimpleNamespace(
        losses=losses, weights=weights, frozen=frozen, outcome=outcome, model=model, draw=torch.rand(1)
    )


def together(trials, model_type, floor=10**6):
    cohort = Cohort(floor=floor)
    found = cohort.run([lambda seat, one=one: go(one, model_type, seat) for one in trials])
    return cohort, found


def assert_alike(found, alone, tolerance=2e-4):
    assert not isinstance(found, Exception), found
    np.testing.assert_allclose(found.losses, alone.losses, rtol=tolerance, atol=tolerance)
    assert found.weights.keys() == alone.weights.keys()
    for name, weight in alone.weights.items():
        torch.testing.assert_close(found.weights[name], weight, rtol=10 * tolerance, atol=tolerance, msg=name)
        assert found.weights[name].stride() == weight.stride(), name


DIFFERENT = (
    trial(1, rank=4, alpha=8, rate=1e-2, batch=4),
    trial(2, rank=2, alpha=16, rate=3e-3, batch=6, epochs=3, targets="attention"),
    trial(3, rank=8, alpha=4, rate=2e-2, batch=4, count=18, accumulation=2, use_rslora=True),
    trial(4, rank=4, alpha=8, rate=1e-2, batch=5, epochs=1, optimizer="lion"),
)


@pytest.mark.parametrize(
    ("model_type", "head", "side"),
    [
        ("bert", "sequence", "right"),
        ("bert", "token", "right"),
        ("roberta", "sequence", "right"),
        ("distilbert", "sequence", "right"),
        ("modernbert", "sequence", "right"),
        ("llama", "causal", "right"),
        ("llama", "causal", "left"),
        ("llama", "sequence", "right"),
        ("gpt2", "causal", "left"),
    ],
)
def test_losses_and_weights_are_those_of_trainings_one_by_one(model_type, head, side):
    trials = [SimpleNamespace(**{**vars(one), "head": head, "side": side}) for one in DIFFERENT]
    alone = [go(one, model_type) for one in trials]
    cohort, found = together(trials, model_type)
    for one, expected in zip(found, alone, strict=True):
        assert_alike(one, expected)
        assert torch.equal(one.draw, expected.draw), "chance is each trial's own"
    assert not any(seat.why_alone for seat in cohort.seats)
    # 9, 6, 9 and 3 steps of batches; whatever a trial computed was computed with another one's as long as there was one.
    steps = sorted(math.ceil(one.count / one.batch) * one.epochs for one in trials)
    assert cohort.counts.calls + cohort.counts.alone == sum(steps)
    assert cohort.counts.passes == steps[-2]
    assert cohort.counts.alone == steps[-1] - steps[-2]


@pytest.mark.gpu
@pytest.mark.parametrize(("model_type", "head"), [("bert", "sequence"), ("llama", "causal")])
def test_on_a_gpu_they_are_too(model_type, head):
    trials = [SimpleNamespace(**{**vars(one), "head": head, "device": "cuda"}) for one in DIFFERENT]
    alone = [go(one, model_type) for one in trials]
    cohort, found = together(trials, model_type)
    assert not any(seat.why_alone for seat in cohort.seats)
    assert cohort.counts.passes
    for one, expected in zip(found, alone, strict=True):
        assert_alike(one, expected, tolerance=1e-3)


def test_base_weights_are_read_once_meanwhile_and_each_model_has_its_own_afterwards():
    storages = []

    def work(seat, one):
        model = made("bert", seed=one)
        with seat.sharing(model):
            storages.append(
                {p.data_ptr() for name, p in model.named_parameters() if "encoder" in name and "base_layer" in name}
            )
        return model

    first, second = Cohort().run([lambda seat, one=one: work(seat, one) for one in (1, 2)])
    trials = [trial(1), trial(2)]
    _, found = together(trials, "bert")
    for a, b in ((first, second), (found[0].model, found[1].model)):
        mine = {p.data_ptr() for p in a.parameters()}
        assert mine.isdisjoint(p.data_ptr() for p in b.parameters())
    fresh = made("bert", seed=2)
    for name, weight in found[1].frozen.items():
        torch.testing.assert_close(weight, fresh.get_parameter(name), rtol=0, atol=0)
    merged = found[0].model.merge_and_unload().eval()
    again = go(trials[0], "bert").model.merge_and_unload().eval()
    ids = torch.tensor([[3, 4, 5, 6]])
    torch.testing.assert_close(merged(input_ids=ids).logits, again(input_ids=ids).logits, rtol=1e-3, atol=1e-4)


def test_models_share_their_frozen_weights_while_they_train():
    seen = {}

    def work(seat, one):
        model = made("llama", head="causal", seed=one)
        with seat.sharing(model) as backward:
            ids = torch.tensor([[3, 4, 5, 6]])
            backward(model(input_ids=ids, labels=ids).loss)
            seen[one] = {p.data_ptr() for p in model.parameters() if not p.requires_grad}

    Cohort(floor=10**6).run([lambda seat, one=one: work(seat, one) for one in (1, 2)])
    assert seen[1] == seen[2]
    assert seen[1]


def test_one_that_is_stopped_leaves_and_changes_nothing_for_the_others():
    trials = [trial(1, epochs=4), trial(2, epochs=4, stop_after=1), trial(3, epochs=3)]
    alone = [go(one, "bert") for one in trials]
    _, found = together(trials, "bert")
    assert found[1].outcome.stopped
    assert [len(one.losses) for one in found] == [4, 1, 3]
    for one, expected in zip(found, alone, strict=True):
        assert_alike(one, expected)


@pytest.mark.parametrize("where", ["loss", "not finite", "bad rows"])
def test_one_that_fails_does_no_harm_to_the_others(where, monkeypatch):
    failing = {
        "loss": trial(2, fails_at=4, epochs=3),
        "not finite": trial(2, rate=1e30, epochs=6),
        "bad rows": trial(2, epochs=3),
    }[where]
    if where == "bad rows":
        good = texts

        def rows(count, seed, lengths=(3, 14)):
            found = good(count, seed, lengths)
            # A token that the vocabulary does not have.
            return [[*row, 99] for row in found] if seed == 2 and count == 12 else found

        monkeypatch.setitem(globals(), "texts", rows)
    trials = [trial(1, epochs=4), failing, trial(3, epochs=3, batch=6)]
    alone = [go(one, "bert") for one in trials[::2]]
    _, found = together(trials, "bert")
    kind = {"loss": ValueError, "not finite": FloatingPointError, "bad rows": IndexError}[where]
    assert isinstance(found[1], kind)
    for one, expected in zip(found[::2], alone, strict=True):
        assert_alike(one, expected)


def test_repeats_are_bitwise_the_same_with_dropout_too():
    trials = [trial(1, dropout=0.2, lora_dropout=0.1), trial(2, dropout=0.3, batch=6), trial(3, lora_dropout=0.3)]
    _, first = together(trials, "bert")
    _, second = together(trials, "bert")
    for a, b in zip(first, second, strict=True):
        assert a.losses == b.losses
        assert all(torch.equal(weight, b.weights[name]) for name, weight in a.weights.items())
    assert not np.allclose(first[0].losses, go(trial(1), "bert").losses), "there is dropout"


@pytest.mark.parametrize(
    ("model_type", "head"), [("bert", "sequence"), ("llama", "causal"), ("gpt2", "causal"), ("distilbert", "token")]
)
def test_each_has_its_own_dropout(model_type, head):
    trials = [
        trial(1, head=head),
        trial(2, head=head, dropout=0.5, lora_dropout=0.5),
        trial(3, head=head, lora_dropout=0.2),
    ]
    alone = go(trials[0], model_type)
    cohort, found = together(trials, model_type)
    assert not any(seat.why_alone for seat in cohort.seats)
    assert_alike(found[0], alone)
    for other in (1, 2):
        plain = SimpleNamespace(**{**vars(trials[other]), "model": {}})
        assert not np.allclose(found[other].losses, go(plain, model_type).losses, rtol=1e-3)


@pytest.mark.parametrize("rates", [(0.5, 0.5, 0.5), (0.0, 0.5, 0.25)])
def test_dropout_keeps_the_mean_and_drops_the_share_of_each(rates):
    from autoft.shared_base.layers import dropped

    torch.manual_seed(0)
    rows = (40, 20, 60)
    found = dropped(torch.ones(120, 400), rates, rows)
    for part, rate in zip(found.split(rows), rates, strict=True):
        assert float((part == 0).float().mean()) == pytest.approx(rate, abs=0.01)
        assert float(part.mean()) == pytest.approx(1.0, abs=0.03)
        assert part.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)] if rate else [1.0])


def test_a_head_inside_of_the_body_is_each_trials_own():
    trials = [trial(1, pooler=True), trial(2, pooler=True, batch=6, epochs=3)]
    alone = [go(one, "bert") for one in trials]
    cohort, found = together(trials, "bert")
    assert cohort.counts.passes == 6
    for one, expected in zip(found, alone, strict=True):
        assert any("pooler" in name for name in one.weights)
        assert_alike(one, expected)


@pytest.mark.parametrize("head", ["sequence", "causal"])
def test_rows_without_masks_are_joined_where_their_lengths_differ(head):
    trials = [trial(1, masks=False, head=head, lengths=(7, 8)), trial(2, masks=False, head=head, lengths=(11, 12))]
    alone = [go(one, "gpt2") for one in trials]
    # A classifier that reads the last token that is no padding needs to know what is padding.
    cohort, found = together(trials, "gpt2")
    assert cohort.counts.passes == 6
    for one, expected in zip(found, alone, strict=True):
        assert_alike(one, expected)


def test_accumulated_parts_are_those_of_a_training_alone():
    trials = [trial(1, accumulation=3, parts=2), trial(2, accumulation=2, batch=6, count=20, parts=4), trial(3)]
    alone = [go(one, "bert") for one in trials]
    _, found = together(trials, "bert")
    for one, expected in zip(found, alone, strict=True):
        assert_alike(one, expected)


def test_where_memory_runs_out_all_take_their_batches_in_more_parts(monkeypatch):
    from autoft.shared_base.base import Base

    compute = Base._forward

    def limited(self, members, calls):
        if sum(call.rows for call in calls) > 6:
            raise torch.OutOfMemoryError("out of memory")
        return compute(self, members, calls)

    trials = [trial(1), trial(2, batch=6), trial(3)]
    alone = [go(one, "bert") for one in trials]
    monkeypatch.setattr(Base, "_forward", limited)
    _, found = together(trials, "bert")
    for one, expected in zip(found, alone, strict=True):
        assert one.outcome.parts > 1
        assert_alike(one, expected)


def test_bf16_stays_close():
    trials = [trial(1, precision="bf16"), trial(2, precision="bf16", rank=8), trial(3, precision="bf16", batch=6)]
    alone = [go(one, "bert") for one in trials]
    cohort, found = together(trials, "bert")
    assert cohort.counts.passes == 6
    for one, expected in zip(found, alone, strict=True):
        np.testing.assert_allclose(one.losses, expected.losses, rtol=0.05, atol=0.05)


def test_what_does_not_fit_trains_by_itself():
    from peft import IA3Config, get_peft_model

    def other_weights(seat):
        model = made("bert", seed=5)
        with torch.no_grad():
            model.get_base_model().bert.encoder.layer[0].intermediate.dense.weight.add_(0.1)
        with seat.sharing(model) as backward:
            assert backward is None
        return seat.why_alone

    def other_adapter(seat):
        base = made("bert").unload()
        model = get_peft_model(base, IA3Config(target_modules=["key"], feedforward_modules=[]))
        with seat.sharing(model) as backward:
            assert backward is None
        return seat.why_alone

    def other_method(seat):
        with seat.sharing(made("bert", use_dora=True)) as backward:
            assert backward is None
        return seat.why_alone

    alone = [go(trial(number), "bert") for number in (1, 2)]
    found = Cohort(floor=10**6).run(
        [
            lambda seat: go(trial(1), "bert", seat),
            other_weights,
            other_adapter,
            other_method,
            lambda seat: go(trial(3), "roberta", seat),
            lambda seat: go(trial(2), "bert", seat),
        ]
    )
    assert "encoder.layer.0.intermediate.dense.weight is another one" in found[1]
    assert "not LoRA" in found[2]
    assert "another way" in found[3]
    assert_alike(found[0], alone[0])
    assert_alike(found[5], alone[1])
    assert_alike(found[4], go(trial(3), "roberta"))


def test_a_body_whose_layers_read_more_than_the_rows_is_found_out():
    # DeBERTa projects its table of relative positions by the layers that are adapted.
    trials = [trial(1), trial(2)]
    alone = [go(one, "deberta-v2") for one in trials]
    cohort, found = together(trials, "deberta-v2")
    assert all(seat.why_alone for seat in cohort.seats)
    assert cohort.counts.passes == 0
    for one, expected in zip(found, alone, strict=True):
        assert_alike(one, expected)


def test_pictures_are_joined():
    import transformers
    from peft import LoraConfig, get_peft_model

    def work(number, seat=None):
        torch.manual_seed(0)
        config = transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=8,
            patch_size=4,
            num_labels=3,
        )
        model = transformers.ViTForImageClassification(config)
        torch.manual_seed(number)
        lora = LoraConfig(
            r=2 * number, target_modules="all-linear", modules_to_save=["classifier"], init_lora_weights=False
        )
        model = get_peft_model(model, lora).train()
        pictures, labels = torch.rand(3 + number, 3, 8, 8), torch.arange(3 + number) % 3

        def steps(backward):
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
            losses = []
            for _ in range(4):
                loss = model(pixel_values=pictures, labels=labels).loss
                (backward or torch.Tensor.backward)(loss)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss))
            return losses

        if seat is None:
            return steps(None)
        with seat.sharing(model) as backward:
            return steps(backward)

    cohort = Cohort(floor=10**6)
    found = cohort.run([lambda seat, n=n: work(n, seat) for n in (1, 2, 3)])
    assert cohort.counts.passes == 4
    np.testing.assert_allclose(found, [work(n) for n in (1, 2, 3)], rtol=1e-4)


def test_several_calls_a_step_go_backwards_once_all_are_there():
    def work(number, seat=None):
        model = made("bert", seed=number).train()
        ids = torch.tensor(texts(4, number, (6, 7))).clamp(max=38)

        def steps(backward):
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
            losses = []
            for _ in range(4):
                loss = sum(model(input_ids=ids + i % 2, labels=ids[:, 0] % 3).loss for i in range(number))
                (backward or torch.Tensor.backward)(loss)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss))
            return losses

        if seat is None:
            return steps(None)
        with seat.sharing(model) as backward:
            return steps(backward)

    found = Cohort(floor=10**6).run([lambda seat, n=n: work(n, seat) for n in (1, 2, 3)])
    for one, expected in zip(found, [work(n) for n in (1, 2, 3)], strict=True):
        np.testing.assert_allclose(one, expected, rtol=1e-4)


def test_an_interruption_ends_all_of_them():
    left = []

    def waits(seat):
        try:
            with seat.sharing(made("bert")) as backward:
                model = made("bert")
                backward(sum(p.sum() for p in model.parameters() if p.requires_grad))
        finally:
            left.append(seat.number)

    cohort = Cohort()

    def interrupted(seats):
        raise KeyboardInterrupt

    cohort._backward = interrupted
    with pytest.raises(KeyboardInterrupt):
        cohort.run([waits, waits])
    assert left == [0, 1]


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.tuples(st.integers(1, 64), st.integers(1, 16)), min_size=1, max_size=6),
    floor=st.integers(1, 2000),
)
def test_calls_are_divided_as_costs_least(calls, floor):
    from autoft.shared_base.calls import cheapest

    def cost(parts):
        return sum(max(floor, sum(rows for _, rows in part) * max(length for length, _ in part)) for part in parts)

    def divisions(items):
        """All cuts of calls in the order of their lengths."""
        if not items:
            yield []
            return
        for end in range(1, len(items) + 1):
            for rest in divisions(items[end:]):
                yield [items[:end], *rest]

    named = [(length, rows, SimpleNamespace(number=i)) for i, (length, rows) in enumerate(calls)]
    found = cheapest(named, floor)
    assert sorted(one.number for part in found for one in part) == list(range(len(calls)))
    assert cost([[calls[one.number] for one in part] for part in found]) == min(map(cost, divisions(sorted(calls))))


@pytest.mark.parametrize(("bits", "tolerance"), [(4, 2e-4), (8, 2e-2)])
def test_a_quantized_base_is_shared(tmp_path, bits, tolerance):
    """In 8 bits a column of activations is kept in 16 where any row of the batch is large in it, so that rows matter to others."""
    pytest.importorskip("bitsandbytes")
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, BitsAndBytesConfig

    folder = tmp_path / "base"
    wide = {**SIZES, "hidden_size": 128, "intermediate_size": 128}
    torch.manual_seed(0)
    config = BertConfig(**wide, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    BertModel(config).save_pretrained(folder)
    how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if bits == 4 else {"load_in_8bit": True}

    def work(number, seat=None):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=3,
            quantization_config=BitsAndBytesConfig(**how, llm_int8_skip_modules=["classifier", "pooler"]),
        )
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                # As autoft's quantizers do: with bitsandbytes' layout for evaluation nothing can be trained any more.
                module.support_avx512bf16_for_cpu = False
        torch.manual_seed(number)
        lora = LoraConfig(
            r=4 * number,
            target_modules=["query", "value", "dense"],
            exclude_modules=".*pooler.*",
            modules_to_save=["classifier"],
            init_lora_weights=False,
        )
        model = get_peft_model(model, lora).train()
        ids = torch.tensor(texts(3 + number, number, (5 + number, 6 + number)))

        def steps(backward):
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
            losses = []
            for _ in range(4):
                mask = torch.ones_like(ids)
                loss = model(input_ids=ids, attention_mask=mask, labels=ids[:, 0] % 3).loss
                (backward or torch.Tensor.backward)(loss)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss))
            return losses

        if seat is None:
            return steps(None)
        with seat.sharing(model) as backward:
            return steps(backward)

    cohort = Cohort(floor=10**6)
    found = cohort.run([lambda seat, n=n: work(n, seat) for n in (1, 2, 3)])
    expected = [work(n) for n in (1, 2, 3)]
    assert not any(isinstance(one, Exception) for one in found), found
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    assert [seat.why_alone for seat in cohort.seats] == [""] * 3
    assert cohort.counts.passes == 4


def test_a_pass_that_fails_by_nobodys_fault_is_said_and_not_tried_again(monkeypatch):
    from autoft.shared_base.base import Base

    tried = []

    def broken(self, members, calls):
        tried.append(len(calls))
        raise ZeroDivisionError("this is broken")

    trials = [trial(1), trial(2)]
    alone = [go(one, "bert") for one in trials]
    monkeypatch.setattr(Base, "_forward", broken)
    cohort, found = together(trials, "bert")
    assert tried == [2]
    assert [seat.why_alone for seat in cohort.seats] == ["ZeroDivisionError: this is broken"] * 2
    for one, expected in zip(found, alone, strict=True):
        assert_alike(one, expected)
