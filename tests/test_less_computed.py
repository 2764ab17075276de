"""What a training need not compute: what frozen layers said before, and what of the last layer nothing reads.

The same answers, losses and weights as computing it, and no computation.
"""

from __future__ import annotations

import copy
import gc
import resource
import signal
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.frozen_layers import ActivationStore, recalled
from autoft.strategies.first_token import first_token_alone

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
TYPES = ["bert", "roberta", "electra", "distilbert", "deberta-v2", "modernbert", "gpt2", "llama"]


def make(model_type, trained=1):
    """A classifier with random weights whose upper layers and head are trained."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from autoft.strategies.head_only import find_head
    from autoft.strategies.partial import layer_stacks

    torch.manual_seed(0)
    odd = {
        "distilbert": {"dim": 16, "hidden_dim": 24, "n_layers": 4, "n_heads": 2},
        "gpt2": {"n_embd": 16, "n_layer": 4, "n_head": 2},
        "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
        "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    }.get(model_type, {})
    config = AutoConfig.for_model(model_type, **SIZES, **odd, num_labels=3)
    model = AutoModelForSequenceClassification.from_config(config)
    (stack,) = layer_stacks(model).values()
    head = set(find_head(model).parameters)
    above = {id(p) for layer in list(stack)[len(stack) - trained :] for p in layer.parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head or id(parameter) in above)
    return model


def texts(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 40, (length,), generator=generator).tolist() for length in lengths]


def collate(rows):
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([len(row) % 3 for row in rows])}


def trained_on(model, rows):
    """Train without dropout, so that what computes less does the same; return the losses."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.eval()
    losses = []
    for epoch in range(3):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(epoch)).tolist()
        for start in range(0, len(rows), 3):
            loss = model(**collate([rows[i] for i in order[start : start + 3]])).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


def assert_same_weights(model, other):
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def computed_layers(model):
    """Count how often the first layer's attention computes."""
    from autoft.strategies.partial import layer_stacks

    (stack,) = layer_stacks(model).values()
    first = next(module for name, module in stack[0].named_modules() if "attn" in name or "attention" in name)
    seen = []
    first.register_forward_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize("trained", [0, 1, 3])
@pytest.mark.parametrize("model_type", TYPES)
def test_a_training_that_recalls_ends_with_the_weights_of_one_that_computes(model_type, trained, tmp_path):
    rows = texts([5, 9, 3, 12, 7, 7, 4, 10])
    plain = make(model_type, trained)
    model = copy.deepcopy(plain)

    expected = trained_on(plain, rows)
    store = ActivationStore(tmp_path)
    short = sorted(rows, key=len)
    with recalled(model, store, lambda some: model(**collate(some)).loss, short) as layers:
        assert layers == 4 - trained
        seen = computed_layers(model)
        found = trained_on(model, rows)
    assert found == pytest.approx(expected, abs=1e-5)
    assert_same_weights(plain, model)
    # All texts were read together before the first step.
    assert not seen
    model(**collate(rows))
    assert seen, "behind the context it computes again"


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whatever_the_batch_the_answers_are_those_that_are_computed(tmp_path_factory, data):
    model = make("bert", 2).eval()
    rows = texts([4, 6, 9, 5])
    batches = data.draw(st.lists(st.lists(st.sampled_from(rows), min_size=1, max_size=4), min_size=1, max_size=6))
    with torch.no_grad():
        expected = [model(**collate(batch)).logits for batch in batches]
        store = ActivationStore(tmp_path_factory.mktemp("store"))
        with recalled(model, store, lambda some: model(**collate(some)).loss, rows[:2]) as layers:
            assert layers == 2
            found = [model(**collate(batch)).logits for batch in batches]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_layers_that_recall_have_no_dropout_and_those_above_have(tmp_path):
    model = make("bert").train()
    rows = texts([6, 8])
    states = []
    layers = model.bert.encoder.layer
    with recalled(model, ActivationStore(tmp_path, limit=0), lambda some: model(**collate(some)).loss, rows) as count:
        # Nothing can be kept, so nothing is recalled.
        assert count == 0
    with recalled(model, ActivationStore(tmp_path), lambda some: model(**collate(some)).loss, rows) as count:
        assert count == 3
        layers[2].register_forward_hook(lambda _, args, found: states.append(found))
        new = texts([5, 5], seed=1)
        model.train()
        answers = [model(**collate(new)).logits for _ in range(3)]
    torch.testing.assert_close(states[0], states[1])
    assert not torch.equal(answers[0], answers[1])


def test_other_weights_are_not_taken_for_those_that_were_kept(tmp_path):
    store, rows = ActivationStore(tmp_path), texts([6, 8])
    for scale in (1.0, 1.5):
        model = make("bert").eval()
        with torch.no_grad():
            model.bert.encoder.layer[0].output.dense.weight.mul_(scale)
            expected = model(**collate(rows)).logits
            with recalled(model, store, lambda some, model=model: model(**collate(some)).loss, rows):
                torch.testing.assert_close(model(**collate(rows)).logits, expected)


def everything(model):
    for parameter in model.parameters():
        parameter.requires_grad_()


def biases(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))


def words(model):
    model.get_input_embeddings().weight.requires_grad_()


@pytest.mark.parametrize("train", [everything, biases, words])
def test_nothing_is_recalled_where_something_below_is_trained(train, tmp_path):
    model = make("bert")
    train(model)
    with recalled(model, ActivationStore(tmp_path), lambda some: model(**collate(some)).loss, texts([3, 6])) as layers:
        assert layers == 0


def test_layers_below_those_with_an_adapter_are_recalled(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make("bert"), LoraConfig(target_modules=["query"], layers_to_transform=[3]))
    with recalled(model, ActivationStore(tmp_path), lambda some: model(**collate(some)).loss, texts([3, 6])) as layers:
        assert layers == 3


def test_layers_that_hand_on_more_than_states_compute(tmp_path):
    """T5's first layer gives its position biases to the others."""
    from transformers import T5Config, T5ForSequenceClassification

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2, eos_token_id=1, decoder_start_token_id=0
    )
    model = T5ForSequenceClassification(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("classification_head" in name)

    def loss_of(some):
        batch = collate([[*row, 1] for row in some])
        return model(**batch).loss

    with recalled(model, ActivationStore(tmp_path), loss_of, texts([3, 6])) as layers:
        assert layers == 0


def test_what_is_asked_beside_the_last_states_is_computed(tmp_path):
    model = make("bert").eval()
    rows = texts([6, 6])
    with torch.no_grad():
        expected = model(**collate(rows), output_hidden_states=True).hidden_states
        with recalled(model, ActivationStore(tmp_path), lambda some: model(**collate(some)).loss, rows):
            found = model(**collate(rows), output_hidden_states=True).hidden_states
            padded_left = {"input_ids": torch.tensor([[0, 5, 6]]), "attention_mask": torch.tensor([[0, 1, 1]])}
            left = model(**padded_left).logits
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(left, model(**padded_left).logits)


def test_a_store_keeps_no_more_than_it_may(tmp_path):
    store = ActivationStore(tmp_path, limit=3 * 4 * 8)
    states = torch.arange(24, dtype=torch.float32).view(6, 4)
    store.put(b"one", states[:3])
    store.put(b"two", states[3:])
    store.put(b"three", states[:1])
    assert b"three" not in store
    torch.testing.assert_close(store.get(b"two"), states[3:])
    torch.testing.assert_close(store.get(b"one"), states[:3])
    half = ActivationStore(tmp_path)
    half.put(b"x", states.to(torch.bfloat16))
    assert torch.equal(half.get(b"x"), states.to(torch.bfloat16))
    assert not list(tmp_path.iterdir()), "the file has no name"


def test_a_full_disk_ends_the_keeping_only(tmp_path):
    """The system refuses a file that grows over a limit, as it does where there is no room."""
    store = ActivationStore(tmp_path)
    states = torch.ones(8, 16)
    store.put(b"before", states)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        store.put(b"over", states)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert b"over" not in store
    torch.testing.assert_close(store.get(b"before"), states)


def test_segments_tell_texts_apart(tmp_path):
    model = make("bert").eval()
    (row,) = texts([6])
    batches = [{**collate([row]), "token_type_ids": torch.tensor([kinds])} for kinds in ([0] * 6, [0, 0, 0, 1, 1, 1])]
    with torch.no_grad():
        expected = [model(**batch).logits for batch in batches]
        with recalled(model, ActivationStore(tmp_path), lambda some: model(**collate(some)).loss, [row]) as layers:
            assert layers == 3
            found = [model(**batch).logits for batch in (*batches, *batches)]
    for one, other in zip(found, [*expected, *expected], strict=True):
        torch.testing.assert_close(one, other)


READ_FIRST = ["bert", "roberta", "electra", "distilbert"]


def loss_of(model, rows=None):
    return lambda: model(**collate(rows or texts([4, 6]))).loss


def last_layer(model):
    from autoft.strategies.partial import layer_stacks

    (stack,) = layer_stacks(model).values()
    return stack[-1]


def tokens_seen(model):
    """Note of how many tokens the feed-forward of the last layer is asked."""
    widest = max(
        (one for one in last_layer(model).modules() if isinstance(one, torch.nn.Linear)), key=lambda m: m.out_features
    )
    seen = []
    widest.register_forward_hook(lambda _, given, found: seen.append(given[0].shape[1]))
    return seen


@pytest.mark.parametrize("trained", [1, 4])
@pytest.mark.parametrize("model_type", READ_FIRST)
def test_a_training_ends_with_the_weights_of_one_that_computes_the_whole_layer(model_type, trained):
    rows = texts([5, 9, 3, 12, 7, 7, 4, 10])
    plain = make(model_type, trained)
    model = copy.deepcopy(plain)

    expected = trained_on(plain, rows)
    with first_token_alone(model, loss_of(model, rows[2:4])) as alone:
        assert alone
        seen = tokens_seen(model)
        found = trained_on(model, rows)
    assert set(seen) == {1}
    assert found == pytest.approx(expected, abs=1e-5)
    assert_same_weights(plain, model)
    seen.clear()
    torch.testing.assert_close(model(**collate(rows)).logits, plain(**collate(rows)).logits, rtol=1e-4, atol=1e-5)
    assert seen == [12], "behind the context the whole layer computes"


@settings(max_examples=25, deadline=None)
@given(batch=st.lists(st.sampled_from(texts([4, 6, 9, 5, 1])), min_size=1, max_size=5))
def test_whatever_the_batch_the_answers_are_those_of_the_whole_layer(batch):
    model = make("bert").eval()
    expected = model(**collate(batch)).logits
    with first_token_alone(model, loss_of(model)) as alone:
        assert alone
        torch.testing.assert_close(model(**collate(batch)).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["deberta-v2", "modernbert", "gpt2", "llama"])
def test_other_kinds_of_layers_compute_all(model_type):
    model = make(model_type)
    with first_token_alone(model, loss_of(model)) as alone:
        assert not alone


@pytest.mark.parametrize("auto", ["AutoModelForTokenClassification", "AutoModelForQuestionAnswering"])
def test_a_task_of_every_token_computes_all(auto):
    import transformers

    config = transformers.AutoConfig.for_model("bert", **SIZES, num_labels=2)
    model = getattr(transformers, auto).from_config(config)

    def loss():
        batch = {name: value for name, value in collate(texts([4, 6])).items() if name != "labels"}
        return sum(one.square().mean() for one in model(**batch).values())

    with first_token_alone(model, loss) as alone:
        assert not alone


@pytest.mark.parametrize("reads", ["mean", "second", "what is asked beside"])
def test_a_loss_that_reads_more_than_the_first_token_has_it_all(reads):
    model = make("bert")

    def loss():
        batch = collate(texts([4, 6]))
        found = model(**batch, output_hidden_states=reads == "what is asked beside")
        if reads == "what is asked beside":
            return found.loss + 1e-6 * found.hidden_states[-1].mean()
        states = model.bert(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        return found.loss + 1e-6 * (states.mean() if reads == "mean" else states[:, 1].mean())

    with first_token_alone(model, loss) as alone:
        assert not alone


def test_whoever_asks_for_all_states_meanwhile_has_them_all():
    model, rows = make("bert").eval(), texts([6, 8])
    expected = model(**collate(rows), output_hidden_states=True).hidden_states[-1]
    with first_token_alone(model, loss_of(model)) as alone:
        assert alone
        torch.testing.assert_close(model(**collate(rows), output_hidden_states=True).hidden_states[-1], expected)
        assert model(**collate(rows)).logits.shape == (2, 3)


def test_a_frozen_last_layer_computes_all_since_it_is_recalled():
    model = make("bert", trained=0)
    with first_token_alone(model, loss_of(model)) as alone:
        assert not alone
    with first_token_alone(model, loss_of(model), trained=False) as alone:
        assert alone


def test_attention_maps_can_be_asked_of_eager_attention():
    model = make("bert")
    model.set_attn_implementation("eager")
    with first_token_alone(model, loss_of(model)) as alone:
        assert not alone


@pytest.mark.parametrize("checkpointed", [False, True])
def test_adapters_and_recomputed_activations_have_the_same_gradients(checkpointed):
    from peft import LoraConfig, get_peft_model

    model = make("roberta")
    lora = LoraConfig(
        target_modules=["query", "value", "dense"], modules_to_save=["classifier"], init_lora_weights=False
    )
    model = get_peft_model(model, lora)
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def gradients():
        found = torch.autograd.grad(model(**collate(texts([5, 9]))).loss, list(trained.values()))
        return dict(zip(trained, found, strict=True))

    expected = gradients()
    with first_token_alone(model, loss_of(model)) as alone:
        assert alone
        assert model.training
        found = gradients()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_a_layer_that_cannot_do_with_one_token_computes_all():
    model = make("bert")
    dense = last_layer(model).intermediate.dense
    dense.register_forward_pre_hook(lambda _, given: given[0].view(2, 6, 16))
    with first_token_alone(model, loss_of(model)) as alone:
        assert not alone
    assert model(**collate(texts([4, 6]))).loss.isfinite()


def test_nothing_is_held_of_a_batch_that_failed():
    model = make("bert")
    read = []
    with first_token_alone(model, loss_of(model)) as alone:
        assert alone
        first = last_layer(model)
        first.register_forward_pre_hook(lambda _, given: read.append(weakref.ref(given[0]._base)))
        first.output.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**collate(texts([5, 9])))
        gc.collect()
        assert [one() for one in read] == [None]


def test_a_layer_that_computes_for_the_first_token_already_is_left_as_it_is():
    model = make("bert")
    expected = model.eval()(**collate(texts([5, 9]))).logits
    with first_token_alone(model, loss_of(model)) as outer, first_token_alone(model, loss_of(model)) as inner:
        assert (outer, inner) == (True, False)
        torch.testing.assert_close(model(**collate(texts([5, 9]))).logits, expected)
    assert "forward" not in vars(last_layer(model).attention.self)
