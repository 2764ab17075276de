from __future__ import annotations

import numpy as np
import pytest
import torch

from autoft.strategies.magnitude_pruning import MagnitudePruning


def linear_weights(model):
    """The linear weights of the body, which the test names by hand for each architecture."""
    kinds = ("query.weight", "key.weight", "value.weight", "dense.weight")
    if model.config.model_type == "gpt2":
        kinds = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    body = f"{model.base_model_prefix}."
    return {name: value for name, value in model.named_parameters() if name.startswith(body) and name.endswith(kinds)}


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("sparsity", [0.05, 0.3, 0.95])
def test_the_smallest_weights_of_all_layers_together_become_zero(
    model_type, sparsity, make_checkpoint, make_target, load
):
    target = make_target(make_checkpoint(model_type))
    model = load(target)
    pruned = MagnitudePruning().apply(model, target, [], {"sparsity": sparsity, "pattern": "none"})
    before, after = linear_weights(model), linear_weights(pruned)
    everything = np.concatenate([value.detach().numpy().ravel() for value in before.values()])
    limit = np.sort(np.abs(everything))[round(sparsity * everything.size)]
    for name, value in before.items():
        array = value.detach().numpy()
        expected = np.where(np.abs(array) < limit, 0, array)
        np.testing.assert_array_equal(after[name].detach().numpy(), expected, err_msg=name)
    others = {name: value for name, value in model.state_dict().items() if name not in before}
    assert all(torch.equal(pruned.state_dict()[name], value) for name, value in others.items()), "head and tables stay"


def test_ties_prune_no_more_than_was_asked(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    model = load(target)
    with torch.no_grad():
        for value in linear_weights(model).values():
            value.fill_(0.5)
    pruned = linear_weights(MagnitudePruning().apply(model, target, [], {"sparsity": 0.3, "pattern": "none"}))
    zeros = sum(int((value == 0).sum()) for value in pruned.values())
    assert zeros == round(0.3 * sum(value.numel() for value in pruned.values()))


def test_the_given_model_stays_as_it_is(make_checkpoint, make_target, load):
    target = make_target(make_checkpoint("bert"))
    model = load(target)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    MagnitudePruning().apply(model, target, [], {"sparsity": 0.9, "pattern": "none"})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize(("pattern", "zeros", "group"), [("2:4", 2, 4), ("4:8", 4, 8)])
def test_a_pattern_zeroes_the_smallest_of_each_group_of_inputs(
    model_type, pattern, zeros, group, make_checkpoint, make_target, load
):
    target = make_target(make_checkpoint(model_type))
    model = load(target)
    pruned = MagnitudePruning().apply(model, target, [], {"sparsity": 0.3, "pattern": pattern})
    before, after = linear_weights(model), linear_weights(pruned)
    for name, value in before.items():
        given, found = (
            v.detach().numpy().T if model_type == "gpt2" else v.detach().numpy() for v in (value, after[name])
        )
        for row, left in zip(given, found, strict=True):
            for start in range(0, len(row), group):
                part = row[start : start + group]
                gone = sorted(range(group), key=lambda i: abs(part[i]))[:zeros]
                expected = [0.0 if i in gone else part[i] for i in range(group)]
                assert left[start : start + group].tolist() == expected
