"""The last layer of an encoder for its first token alone, where nothing else of what it says is read.

A classifier reads the state of the first token (``[CLS]``; Devlin et al. 2019, arXiv:1810.04805, section 3). What the last
layer makes of the others goes nowhere: they are its keys and values, and need no query, no output and no feed-forward.
The answers and the gradients are the same; dropout draws fewer numbers. Trainings do so, and graphs that are traced.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from autoft.strategies.partial import body_and_layers

if TYPE_CHECKING:
    import numpy as np
    import torch

    from autoft.contracts import ExportSpec

__all__ = ["ASKED", "first_token_alone", "first_token_traced", "put_forward", "shortest_and_longest"]

ASKED = ("output_attentions", "output_hidden_states", "past_key_values", "use_cache")
"""Arguments of a body by which it says more than its last states, or goes on from what it said."""

PROJECTIONS = (("query", "key", "value", None), ("q_lin", "k_lin", "v_lin", "out_lin"))
"""Query, key, value and, where it is a part of the same module, output: of BERT and its kin, and of DistilBERT."""

ALL = "states_of_all_tokens"
"""Attribute of what comes into the layer, of the first token."""

TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}
"""How much an answer may differ, relative to it or to 1, by the type of the hidden states."""


@contextmanager
def first_token_alone(
    model: torch.nn.Module, compute: Callable[[], torch.Tensor], *, trained: bool = True
) -> Iterator[bool]:
    """Have the last layer compute for the first token alone while the context lasts; say whether it does.

    It does not where a gradient of what is computed reaches another token's last state, or where an answer is not the one
    of the whole layer. A call that asks the body for more than its last states is answered by the whole layer.

    Args:
        model: an encoder of a known kind with a head, with an adapter of PEFT or without; others compute all.
        compute: calls the model once with texts of different lengths, and returns one number that hangs on all that is
            to be the same, in the precision of the weights: a loss for a training.
        trained: only where something of the last layer is trained; a frozen one is recalled.
    """
    last = _LastLayer.of(model)
    if last is None or (trained and not any(parameter.requires_grad for parameter in last.layer.parameters())):
        yield False
        return
    training = model.training
    # Dropout would make every answer another one.
    model.eval()
    found, alone = _answers(model, last.layer, compute)
    if alone:
        try:
            with last:
                again, _ = _answers(model, last.layer, compute)
            alone = _alike(found, again)
        except (IndexError, RuntimeError):
            # A layer or a loss that cannot do with one token: the whole layer computes, and says so itself where it cannot.
            alone = False
    model.train(training)
    if not alone:
        yield False
        return
    with last:
        yield True


@contextmanager
def first_token_traced(model: torch.nn.Module, spec: ExportSpec) -> Iterator[bool]:
    """The same for a model as it is traced by these inputs; say whether its last layer computes for the first token alone."""
    import torch

    def compute() -> torch.Tensor:
        device = next(model.parameters()).device
        found = model(**{name: value.to(device) for name, value in spec.inputs.items()})
        # The squares of outputs that always have the same sum, as those of a softmax, do not.
        return torch.stack([getattr(found, name).float().square().sum() for name in spec.outputs]).sum()

    with first_token_alone(model, compute, trained=False) as alone:
        yield alone


def shortest_and_longest(texts: Sequence[Any], lengths: Sequence[int] | np.ndarray) -> list[Any]:
    """Return two of the first 64 texts, between which a batch is padded; their lengths are those of all texts."""
    order = sorted(range(min(len(texts), 64)), key=lambda i: int(lengths[i]))
    return [texts[i] for i in (*order[:1], *order[-1:])]


def put_forward(module: Any, forward: Callable[..., Any]) -> Callable[[], None]:
    """Have a module compute by another function; return what puts its own back."""
    own, replaced = module.forward, "forward" in vars(module)

    def undo() -> None:
        if replaced:
            module.forward = own
        else:
            del module.forward

    module.forward = forward
    return undo


def _answers(
    model: torch.nn.Module, layer: torch.nn.Module, compute: Callable[[], torch.Tensor]
) -> tuple[dict[str, torch.Tensor], bool]:
    """Return what a model says, and whether what is computed of it hangs on the first token of its last layer only."""
    import torch

    states: list[Any] = []
    said: list[Any] = []

    def cut_off(module: Any, given: Any, found: Any) -> Any:
        """Keep the states as where the gradient ends."""
        states.append(found.detach().requires_grad_() if isinstance(found, torch.Tensor) else found)
        return states[-1]

    hooks = [
        layer.register_forward_hook(cut_off),
        model.register_forward_hook(lambda _, given, found: said.append(found)),
    ]
    try:
        with torch.enable_grad():
            value = compute()
    finally:
        for hook in hooks:
            hook.remove()
    answers = {"value": value.detach()}
    if len(said) == 1 and isinstance(said[0], Mapping):
        answers |= {name: value.detach() for name, value in said[0].items() if isinstance(value, torch.Tensor)}
    read = len(states) == len(said) == 1 and isinstance(states[0], torch.Tensor) and states[0].ndim == 3
    if not read or not value.requires_grad:
        return answers, False
    (gradient,) = torch.autograd.grad(value, states[0], allow_unused=True)
    return answers, gradient is not None and bool((gradient[:, 1:] == 0).all()) and bool(gradient[:, 0].any())


def _alike(found: Mapping[str, torch.Tensor], again: Mapping[str, torch.Tensor]) -> bool:
    """Say whether answers are the same, in their names and shapes too."""
    import torch

    if {name: one.shape for name, one in found.items()} != {name: one.shape for name, one in again.items()}:
        return False
    tolerance = max(TOLERANCE.get(str(one.dtype).removeprefix("torch."), 0.0) for one in found.values())
    return all(torch.allclose(again[name], one, rtol=tolerance, atol=tolerance) for name, one in found.items())


class _LastLayer:
    """The last layer of a model while it computes for the first token alone."""

    def __init__(
        self, body: torch.nn.Module, layer: torch.nn.Module, attention: Any, names: tuple[str, str, str, str | None]
    ) -> None:
        self.body, self.layer, self.attention, self.names = body, layer, attention, names
        self.signature = inspect.signature(body.forward)
        self.whole = False
        """The call that is under way asks for more than the last states."""
        self.undo: list[Callable[[], None]] = []

    @classmethod
    def of(cls, model: torch.nn.Module) -> _LastLayer | None:
        """Return the last layer of an encoder of the known kinds, or None where it is another or computes by a function put there."""
        found = body_and_layers(model)
        if found is None:
            return None
        body, (*_, layer) = found
        config = getattr(body, "config", None)
        if getattr(config, "_attn_implementation", "") != "sdpa" or getattr(config, "is_decoder", False):
            return None
        needed = ("attention_head_size", "dropout", "scaling")
        known = [
            (module, names)
            for module in layer.modules()
            for names in PROJECTIONS
            if all(name is None or hasattr(module, name) for name in (*names, *needed))
        ]
        # One that computes by another function may do so for the first token already.
        if len(known) != 1 or "forward" in vars(known[0][0]):
            return None
        return cls(body, layer, *known[0])

    def __enter__(self) -> _LastLayer:
        self.undo = [
            self.body.register_forward_pre_hook(self._begin, with_kwargs=True).remove,
            self.layer.register_forward_pre_hook(self._shorten).remove,
            put_forward(self.attention, self._attend(self.attention.forward)),
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        while self.undo:
            self.undo.pop()()

    def _begin(self, body: torch.nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        given = self.signature.bind(*args, **kwargs).arguments
        given = {**given, **given.pop("kwargs", {})}
        self.whole = any(given.get(name) for name in ASKED)

    def _shorten(self, layer: torch.nn.Module, args: Any) -> Any:
        if self.whole:
            return None
        first = args[0][:, :1]
        # With the tensor, which goes when nobody needs it any more, and comes again where activations are recomputed.
        setattr(first, ALL, args[0])
        return first, *args[1:]

    def _attend(self, own: Callable[..., Any]) -> Callable[..., Any]:
        from torch.nn.functional import scaled_dot_product_attention

        attention, (query, key, value, output) = self.attention, self.names

        def heads(name: str, states: torch.Tensor) -> torch.Tensor:
            projected: torch.Tensor = getattr(attention, name)(states)
            return projected.view(*projected.shape[:-1], -1, attention.attention_head_size).transpose(1, 2)

        def forward(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
            states: torch.Tensor | None = getattr(hidden_states, ALL, None)
            if states is None:
                return own(hidden_states, attention_mask=attention_mask, **kwargs)
            found = scaled_dot_product_attention(
                heads(query, hidden_states),
                heads(key, states),
                heads(value, states),
                attn_mask=attention_mask if attention_mask is None else attention_mask[:, :, :1],
                dropout_p=attention.dropout.p if attention.training else 0.0,
                scale=attention.scaling,
            )
            found = found.transpose(1, 2).flatten(2)
            return (found if output is None else getattr(attention, output)(found)), None

        return forward
