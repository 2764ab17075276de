"""Attention in blocks against torch's own, and its dropout against what dropout is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from autoft import attention_dropout
from autoft.attention_dropout import attention_in_blocks, dropped_attention

NEARLY_NONE = 2**-18
"""A share of dropout that is none, when it is rounded to what can be drawn."""


def inputs(batch, heads, queries, keys, width, dtype=torch.float64):
    shapes = ((queries, width), (keys, width), (keys, width))
    return [torch.randn(batch, heads, *shape, dtype=dtype, requires_grad=True) for shape in shapes]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 5)] * 5),
    block=st.sampled_from([1, 7, 60, 2**18]),
    masked=st.sampled_from(["no", "bool", "numbers", "heads"]),
)
def test_without_dropout_it_is_torchs_attention_whatever_the_blocks_are(sizes, block, masked):
    batch, heads, queries, keys, _ = sizes
    torch.manual_seed(sum(sizes))
    given = inputs(*sizes)
    mask = {
        "no": None,
        "bool": torch.rand(batch, 1, 1, keys) < 0.5,
        "numbers": torch.randn(batch, 1, queries, keys, dtype=torch.float64),
        "heads": torch.randn(1, heads, queries, keys, dtype=torch.float64, requires_grad=True),
    }[masked]
    if masked == "bool":
        mask[..., 0] = True
    known = [*given, mask] if masked == "heads" else given
    wanted = scaled_dot_product_attention(*given, attn_mask=mask, scale=0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_dropout, "BLOCK", block)
        found = dropped_attention(*given, mask, NEARLY_NONE, 0.3)
        weights = torch.randn_like(wanted)
        gradients = torch.autograd.grad((found * weights).sum(), known)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradients, torch.autograd.grad((wanted * weights).sum(), known))


@pytest.mark.parametrize("block", [20, 2**18])
def test_gradients_with_dropout_are_those_of_small_differences(monkeypatch, block):
    monkeypatch.setattr(attention_dropout, "BLOCK", block)
    torch.manual_seed(0)
    given = inputs(2, 3, 5, 6, 4)
    bias = torch.randn(1, 3, 5, 6, dtype=torch.float64, requires_grad=True)

    def attend(query, key, value, bias):
        # The same scores are dropped each time.
        torch.manual_seed(1)
        return dropped_attention(query, key, value, bias, 0.3, 0.5)

    assert torch.autograd.gradcheck(attend, (*given, bias))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_each_score_is_dropped_with_the_same_chance_and_the_mean_is_kept(share):
    torch.manual_seed(0)
    tokens = 64
    query, key = torch.zeros(40, 4, tokens, 2), torch.zeros(40, 4, tokens, 2)
    # All scores are alike, and each value shows one of them.
    value = tokens * torch.eye(tokens).expand(40, 4, tokens, tokens)
    shown = dropped_attention(query, key, value, None, share, 1.0)
    kept = shown > 0
    assert torch.allclose(shown[kept], torch.tensor(1 / (1 - share)), rtol=1e-4)
    # Five standard errors, of all and of the scores of one query.
    for found, count in ((kept.double().mean(), kept.numel()), (kept.double().mean((0, 1, 3)), 40 * 4 * tokens)):
        assert (found - (1 - share)).abs().max() < 5 * (share * (1 - share) / count) ** 0.5
    # Neighbours know nothing of each other.
    pairs = (kept[..., 1:] & kept[..., :-1]).double().mean()
    assert abs(pairs - (1 - share) ** 2) < 0.005


def test_what_is_dropped_hangs_on_the_seed():
    given = inputs(2, 2, 8, 8, 4)
    first, again, other = (
        (torch.manual_seed(seed), dropped_attention(*given, None, 0.5, 1.0))[1] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_backward_pass_draws_the_same_with_another_number_of_threads(monkeypatch):
    monkeypatch.setattr(attention_dropout, "BLOCK", 50)
    given, before = inputs(3, 3, 5, 5, 4), torch.get_num_threads()

    def gradients(threads):
        torch.manual_seed(1)
        said = dropped_attention(*given, None, 0.5, 1.0)
        try:
            torch.set_num_threads(threads)
            return torch.autograd.grad(said.square().sum(), given)
        finally:
            torch.set_num_threads(before)

    torch.testing.assert_close(gradients(before), gradients(before + 1))


SMALL = {
    "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 32},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50},
    "bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
             "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 50, "max_position_embeddings": 32},
}  # fmt: skip
SHARES = {
    "bert": "attention_probs_dropout_prob",
    "gpt2": "attn_pdrop",
    "t5": "dropout_rate",
    "bart": "attention_dropout",
}


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("padded", [False, True])
def test_models_say_the_same_and_learn_the_same(kind, padded, monkeypatch):
    shares = {"hidden_dropout_prob": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "dropout": 0.0}
    config = AutoConfig.for_model(kind, **SMALL[kind], **{**shares, SHARES[kind]: NEARLY_NONE})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config) if kind == "gpt2" else AutoModel.from_config(config)
    model.train()
    ids = torch.randint(3, 50, (3, 7))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, 4:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids[:, :5]
    calls = []
    monkeypatch.setattr(attention_dropout, "FEW", 0)
    plain = attention_dropout.dropped_attention
    monkeypatch.setattr(attention_dropout, "dropped_attention", lambda *given: (calls.append(1), plain(*given))[1])

    def gradients():
        # Padding says nothing that counts.
        said = model(**batch)[0] * (1 if config.is_encoder_decoder else mask[..., None])
        return said, torch.autograd.grad(said.square().sum(), [*model.parameters()], allow_unused=True)

    wanted = gradients()
    with attention_in_blocks():
        found = gradients()
        counted = len(calls)
        model.eval()
        model(**batch)
    assert counted == {"bert": 2, "gpt2": 2, "t5": 6, "bart": 3}[kind]
    assert len(calls) == counted, "nothing is dropped where nothing is learned"
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-5)
    model.train()
    gradients()
    assert len(calls) == counted, "it ends with the context"
    monkeypatch.setattr(attention_dropout, "FEW", 3 * 2 * 7 * 7)
    with attention_in_blocks():
        gradients()
    assert len(calls) == counted, "few scores are left to torch"


def test_half_precision_is_near_the_whole_one():
    torch.manual_seed(0)
    given = inputs(2, 2, 16, 16, 8, torch.float32)
    half = [one.detach().bfloat16().requires_grad_() for one in given]

    def out(some):
        torch.manual_seed(1)
        said = dropped_attention(*some, None, 0.2, 0.35)
        return [said, *torch.autograd.grad(said.square().sum(), some)]

    for low, high in zip(out(half), out(given), strict=True):
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), high, rtol=0.1, atol=0.1)


def test_a_model_is_exported_for_all_shapes_after_a_training():
    with attention_in_blocks():
        model = AutoModel.from_config(AutoConfig.for_model("bert", **SMALL["bert"])).eval()
    batch = {"input_ids": torch.randint(3, 50, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    shapes = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in batch}
    program = torch.export.export(model, (), kwargs=batch, dynamic_shapes=shapes)
    longer = {name: torch.cat([value] * 3, dim=1)[:1].repeat(3, 1) for name, value in batch.items()}
    torch.testing.assert_close(program.module()(**longer)[0], model(**longer)[0])
