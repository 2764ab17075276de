"""A fitted head: the optimum that scikit-learn finds, on any body, computed once, and nothing else touched."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from autoft import head_start
from autoft.contracts import TaskContext
from autoft.head_start import fit_head

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
ODD = {
    "distilbert": {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "modernbert": {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    "bart": {
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    },
}
CONTEXT = TaskContext(facts={}, options={}, params={"train.loss": "cross-entropy"}, max_length=32)


def make(model_type, head="SequenceClassification", labels=3):
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **SIZES, **ODD.get(model_type, {}), num_labels=labels)
    return getattr(transformers, f"AutoModelFor{head}").from_config(config).train()


class Rows(list):
    """Encoded rows with their lengths."""

    @property
    def lengths(self):
        return np.array([len(row["input_ids"]) for row in self])


def rows(count=90, label="row", seed=0):
    """Texts whose first words say something of their label; each ends with the same token."""
    generator = np.random.default_rng(seed)
    found = Rows()
    for _ in range(count):
        ids = [1, *generator.integers(3, 40, generator.integers(3, 12)).tolist(), 2]
        kind = ids[1] % 3 if generator.random() < 0.8 else int(generator.integers(3))
        labels = {"row": kind, "token": [token % 3 for token in ids], "span": [1 + kind, len(ids) - 1]}[label]
        found.append({"input_ids": ids, "labels": labels})
    return found


def padded(values, fill):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(value) for value in values], True, fill)


class Task:
    """Reads rows, and has the loss that the model computes, as most tasks of plugins do."""

    def collate(self, features, context):
        ids = padded([row["input_ids"] for row in features], 0)
        labels = [row["labels"] for row in features]
        one = isinstance(labels[0], int)
        batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        return {**batch, "labels": torch.tensor(labels) if one else padded(labels, -100)}

    def loss(self, model, batch, context):
        return model(**batch).loss


class Spans(Task):
    def loss(self, model, batch, context):
        starts, ends = batch["labels"].unbind(1)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return model(**inputs, start_positions=starts, end_positions=ends).loss


def whole_loss(model, task, some):
    """The mean over rows, of the whole model, one row at a time: no padding."""
    model.eval()
    with torch.no_grad():
        return float(np.mean([float(task.loss(model, task.collate([row], CONTEXT), CONTEXT)) for row in some]))


@pytest.mark.parametrize(
    ("model_type", "head", "label", "task"),
    [
        *((name, "SequenceClassification", "row", Task()) for name in ("bert", "distilbert", "roberta", "electra")),
        *((name, "SequenceClassification", "row", Task()) for name in ("deberta-v2", "modernbert", "gpt2", "bart")),
        ("bert", "TokenClassification", "token", Task()),
        ("roberta", "QuestionAnswering", "span", Spans()),
        ("distilbert", "QuestionAnswering", "span", Spans()),
    ],
)
def test_the_whole_model_has_the_loss_that_the_fit_promises(model_type, head, label, task):
    model, some = make(model_type, head, 2 if label == "span" else 3), rows(label=label)
    before = copy.deepcopy(model)
    found = fit_head(model, task=task, context=CONTEXT, features=some)
    assert found is not None
    assert model.training
    if label == "row":
        # The mean over tokens of a batch is no mean over its rows, and transformers' spans compete with padding.
        assert whole_loss(before, task, some) == pytest.approx(found.before, abs=2e-3)
        assert whole_loss(model, task, some) == pytest.approx(found.loss, abs=2e-3)
    assert whole_loss(model, task, some) < whole_loss(before, task, some)
    for (name, weight), old in zip(model.named_parameters(), before.parameters(), strict=True):
        own = name.startswith(f"{found.layer}.")
        assert torch.equal(weight, old) != own, name
    for name, module in model.named_modules():
        assert "forward" not in vars(module), name


@pytest.mark.parametrize("strength", [1e-1, 1e-3])
def test_the_weights_are_those_of_logistic_regression(strength, monkeypatch):
    """scikit-learn's C is the inverse of the strength times twice the rows, as its loss is a sum."""
    from sklearn.linear_model import LogisticRegression

    model, some = make("bert"), rows()
    monkeypatch.setattr(head_start, "STRENGTHS", (strength,))
    monkeypatch.setattr(head_start, "ITERATIONS", 300)
    given = []
    hook = model.classifier.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    model.eval()
    with torch.no_grad():
        for row in some:
            model(input_ids=torch.tensor([row["input_ids"]]))
    hook.remove()
    texts, labels = torch.cat(given).numpy(), [row["labels"] for row in some]
    texts /= np.sqrt(np.mean(texts**2))
    expected = LogisticRegression(C=1 / (2 * strength * len(some)), tol=1e-8, max_iter=10_000).fit(texts, labels)
    found = fit_head(model, task=Task(), context=CONTEXT, features=some)
    assert found is not None
    with torch.no_grad():
        logits = torch.cat([model(input_ids=torch.tensor([row["input_ids"]])).logits for row in some])
    probabilities = logits.softmax(1).numpy()
    np.testing.assert_allclose(probabilities, expected.predict_proba(texts), atol=2e-3)


def speaking():
    """A body whose answers differ much between texts; those of random weights hardly do."""
    model = make("bert")
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.self.value.weight.mul_(50)
            layer.attention.output.dense.weight.mul_(50)
        model.bert.pooler.dense.weight.mul_(20)
    return model


def pooled(some):
    with torch.no_grad():
        body = speaking().eval().bert
        return torch.cat([body(torch.tensor([row["input_ids"]])).pooler_output for row in some])


def test_labels_that_the_text_says_nothing_of_are_not_learned_by_heart():
    generator, some = np.random.default_rng(1), rows(200)
    noise = Rows({**row, "labels": int(generator.integers(3))} for row in some)
    said = pooled(some)
    widest = said[:, said.std(0).argmax()]
    places = (widest > widest.median()).int().tolist()
    told = Rows({**row, "labels": place} for row, place in zip(some, places, strict=True))
    learned = fit_head(speaking(), task=Task(), context=CONTEXT, features=told)
    guessed = fit_head(speaking(), task=Task(), context=CONTEXT, features=noise)
    assert learned is not None
    assert learned.loss < 0.5
    # As good as guessing, and not much better than it on rows that it knows.
    assert guessed is not None
    assert guessed.loss > 0.9 * np.log(3)
    assert guessed.weight.norm() < 0.2 * learned.weight.norm()


def test_inputs_that_hardly_vary_do_not_get_weights_that_a_training_cannot_bear():
    """What stars are a linear function of, in the last digits of a number near 1: dropout alone would make it noise."""

    class Stars(Task):
        def collate(self, features, context):
            batch = super().collate(features, context)
            return {**batch, "labels": batch["labels"].float()[:, None]}

        def loss(self, model, batch, context):
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            return functional.mse_loss(model(**inputs).logits, batch["labels"])

    model, some = make("bert", labels=1), rows(200)
    with torch.no_grad():
        model.bert.pooler.dense.weight.mul_(1e-3)
        model.bert.pooler.dense.bias.fill_(1.0)
    found = fit_head(model, task=Stars(), context=CONTEXT, features=some)
    assert found is not None
    labels = np.array([row["labels"] for row in some])
    assert found.loss == pytest.approx(labels.var(), rel=0.1)
    # Inputs are about .76 each, and the label about 1.
    assert found.weight.norm() < 1


def test_the_body_computes_once_whatever_the_trial_changes():
    model, some, known = make("bert"), rows(), {}
    calls = []
    first = fit_head(model, task=Task(), context=CONTEXT, features=some, known=known)
    again = make("bert")
    again.bert.encoder.register_forward_hook(lambda *_: calls.append(1))
    context = replace(CONTEXT, params={"train.loss": "focal", "train.label_smoothing": 0.1})
    second = fit_head(again, task=Task(), context=context, features=some, known=known)
    assert second is first
    assert len(known) == 1
    # To see which layer is the last.
    assert len(calls) == 1
    torch.testing.assert_close(again.classifier.weight, model.classifier.weight)
    other = make("bert")
    with torch.no_grad():
        other.bert.encoder.layer[0].output.dense.weight.mul_(1.5)
    assert fit_head(other, task=Task(), context=CONTEXT, features=some, known=known) is not first
    assert len(known) == 2


def test_where_memory_ran_out_the_next_trial_gets_its_head():
    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    model, some, known, calls = make("bert"), rows(), {}, []
    # The first call only shows which layer is the last.
    hook = model.bert.encoder.register_forward_hook(lambda *_: calls.append(1) if not calls else full())
    with pytest.raises(torch.OutOfMemoryError):
        fit_head(model, task=Task(), context=CONTEXT, features=some, known=known)
    hook.remove()
    found = fit_head(model, task=Task(), context=CONTEXT, features=some, known=known)
    assert found is not None
    assert list(known.values()) == [found]


def test_chance_goes_on_as_if_nothing_had_been_fitted():
    model = make("bert")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert fit_head(model, task=Task(), context=CONTEXT, features=rows()) is not None
    torch.testing.assert_close(torch.rand(3), expected)


def test_models_that_write_have_no_new_head():
    model = make("gpt2", "CausalLM")

    class Writing(Task):
        def collate(self, features, context):
            batch = super().collate(features, context)
            return {**batch, "labels": batch["input_ids"]}

    before = copy.deepcopy(model.state_dict())
    assert fit_head(model, task=Writing(), context=CONTEXT, features=rows()) is None
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_a_head_of_the_checkpoint_is_left_as_it_is(tmp_path):
    from transformers import AutoModelForSequenceClassification

    make("bert").save_pretrained(tmp_path)
    same = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert fit_head(same, task=Task(), context=CONTEXT, features=rows()) is None
    make("bert").bert.save_pretrained(tmp_path)
    new = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert fit_head(new, task=Task(), context=CONTEXT, features=rows()) is not None


def test_a_loss_that_the_last_layer_does_not_decide_is_left_alone():
    """Something of the body that goes around the layer into the loss: what stands in for it would be wrong."""

    class Around(Task):
        def loss(self, model, batch, context):
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            texts = model.bert(**inputs).last_hidden_state.mean((1, 2))
            return (
                functional.cross_entropy(model(**inputs).logits + texts[:, None] * 50, batch["labels"]) + texts.mean()
            )

    model = make("bert")
    before = copy.deepcopy(model.state_dict())
    # A bias that no row can do without.
    with torch.no_grad():
        model.bert.encoder.layer[1].output.LayerNorm.bias.add_(1.0)
        before = copy.deepcopy(model.state_dict())
    assert fit_head(model, task=Around(), context=CONTEXT, features=rows()) is None
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_no_more_rows_are_looked_at_than_said(monkeypatch):
    monkeypatch.setattr(head_start, "ROWS", 30)
    seen = []

    class Counting(Task):
        def collate(self, features, context):
            seen.append(len(features))
            return super().collate(features, context)

    assert fit_head(make("bert"), task=Counting(), context=CONTEXT, features=rows(90), batch_size=4) is not None
    assert sum(seen) == 1 + 30
    assert max(seen) <= 32
