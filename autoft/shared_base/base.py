"""The frozen body that trials share: who takes part, and joined passes through it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from autoft.shared_base.calls import ALONE, FLOOR, ROWS, Call, cheapest, mask_of, same, shares_of
from autoft.shared_base.layers import (
    ATTENTION,
    JoinedDropout,
    JoinedLayer,
    Member,
    Part,
    SeparateModule,
    attention_rates,
    noticed_attention,
    offer_attention,
    passing,
)
from autoft.shared_base.models import (
    Unfit,
    body_of,
    forget_forward,
    is_quantized,
    owned_weights,
    put_in_place,
    settings_of,
    trained_in,
    unwrapped,
)
from autoft.strategies.peft_adapter import ADAPTER

if TYPE_CHECKING:
    import torch

    from autoft.shared_base.cohort import Seat

__all__ = ["Base"]


class Base:
    """The frozen body that trials share, and how their updates are added to it.

    Args:
        model: the first trial's, as its adapter returned it.

    Raises:
        Unfit: it is no LoRA over one frozen body.
    """

    def __init__(self, model: Any) -> None:
        self.members: list[Member] = []
        self.layers: dict[str, JoinedLayer] = {}
        """By name, the linear layers of the body that a trial adapts."""
        self.weights: dict[str, tuple[Any, str]] = {}
        """By name, the frozen weights: the module that owns each, and as what."""
        self.body_name, body = body_of(model)
        self.signature = inspect.signature(body.forward)
        self.stacked: tuple[tuple[int, int], ...] = ()
        """By seat and rows, whose matrices lie behind each other now."""
        self.pending: set[int] = set()
        """Seats that have a joined pass whose losses have not gone backwards."""
        self.settings = settings_of(body)
        for name, owner, attribute, weight in owned_weights(model.get_base_model()):
            if not weight.requires_grad:
                self.weights[name] = owner, attribute
        self.body = self._copied(body)
        self.modules: dict[int, str] = {id(module): name for name, module in self.body.named_modules()}
        self.attending: set[str] = set()
        """Modules whose attention transformers computes by the function that it was given."""
        self.implementation = getattr(getattr(self.body, "config", None), "_attn_implementation", None)
        for name, module in self.body.named_modules():
            if type(module).__name__ == "Dropout":
                module.forward = JoinedDropout(self, name)
            elif any(buffer.is_floating_point() for buffer in module.buffers(recurse=False)) and hasattr(
                module, "running_mean"
            ):
                raise Unfit(f"{name} counts over all rows of a batch")

    def _copied(self, body: Any) -> Any:
        """Return the body's modules over the same weights, without adapters."""
        from peft.tuners.lora import LoraLayer

        memo: dict[int, Any] = {id(one): one for one in (*body.parameters(), *body.buffers()) if not one.requires_grad}
        for _, module in body.named_modules():
            if is_quantized(module):
                # What bitsandbytes keeps beside the weight belongs to both.
                memo[id(module)] = copy.copy(module)
        with unwrapped(body):
            copied = copy.deepcopy(body, memo)
        for name, module in list(copied.named_modules()):
            if isinstance(module, LoraLayer):
                copied.set_submodule(name, module.base_layer)
        return copied.train()

    # -- who takes part -----------------------------------------------------------------------------------------

    def join(self, seat: Seat, model: Any) -> None:
        """Have a trial's model use these weights, and ask here where it would compute its body in training.

        Raises:
            Unfit: its frozen weights or its settings are others, or it trains something that cannot be joined.
        """
        name, body = body_of(model)
        if name != self.body_name or settings_of(body) != self.settings:
            raise Unfit("its model is another one")
        member = Member(seat, model, body, *trained_in(body))
        mine = {
            name: (owner, attribute, weight)
            for name, owner, attribute, weight in owned_weights(model.get_base_model())
            if not weight.requires_grad
        }
        self._compare(mine)
        for name in member.adapted:
            if name not in self.layers:
                self.layers[name] = JoinedLayer(self, name, self.body.get_submodule(name))
        for name in member.saved:
            self.body.get_submodule(name).forward = SeparateModule(name)
        self._use(mine, member)
        self._meet(member)
        self.members.append(member)

    def _compare(self, mine: Mapping[str, tuple[Any, str, Any]]) -> None:
        import torch

        body = f"{self.body_name}."
        ours = {name for name in self.weights if name.startswith(body)}
        if {name for name in mine if name.startswith(body)} != ours:
            raise Unfit("other weights are frozen")
        for name in ours:
            owner, attribute = self.weights[name]
            weight, other = getattr(owner, attribute), mine[name][2]
            if weight is other:
                continue
            alike = type(weight) is type(other) and weight.shape == other.shape and weight.dtype == other.dtype
            if not alike or weight.device != other.device or not torch.equal(weight.data, other.data):
                raise Unfit(f"its {name} is another one, as where an adapter changes the base")

    def _use(self, mine: Mapping[str, tuple[Any, str, Any]], member: Member) -> None:
        """Put the cohort's frozen weights in the place of the model's own, which are freed."""
        import torch

        own: dict[int, Any] = {}

        def given_back(owner: Any, attribute: str, weight: Any) -> Callable[[], None]:
            def undo() -> None:
                if id(weight) not in own:
                    # The last one may keep what there is; what is tied stays tied.
                    last = not self.members
                    own[id(weight)] = (
                        weight if last else torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
                    )
                owner._parameters[attribute] = own[id(weight)]

            return undo

        for name, (owner, attribute, other) in mine.items():
            if name not in self.weights:
                continue
            holder, as_what = self.weights[name]
            weight = getattr(holder, as_what)
            if is_quantized(owner):
                if holder is not owner:
                    put_in_place(member.model.get_base_model(), owner, holder)
                continue
            alike = weight.dtype == other.dtype and weight.device == other.device
            if weight is not other and not (alike and torch.equal(weight, other)):
                # Outside of the body, where nothing is joined.
                continue
            owner._parameters[attribute] = weight
            member.undo.append(given_back(owner, attribute, weight))

    def _meet(self, member: Member) -> None:
        """Have calls of the body in training, and of a frozen output layer, ask the cohort."""
        import torch

        own, seat = member.body.forward, member.seat

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not (member.body.training and torch.is_grad_enabled()):
                return own(*args, **kwargs)
            try:
                call = self._called(member, args, kwargs)
            except Unfit:
                seat.cohort.counts.alone += 1
                return own(*args, **kwargs)
            answer = seat.ask(call)
            return own(*args, **kwargs) if answer is ALONE else answer

        member.body.forward = forward
        member.undo.append(lambda: forget_forward(member.body, own))
        output: Any = getattr(member.model.get_base_model(), "get_output_embeddings", lambda: None)()
        if type(output).__name__ != "Linear" or output.weight.requires_grad or output.bias is not None:
            return
        holder = next((pair for pair in self.weights.values() if getattr(*pair) is output.weight), None)
        if holder is None:
            return

        def words(states: torch.Tensor) -> Any:
            if not (member.body.training and torch.is_grad_enabled()) or seat.why_alone:
                return plain(states)
            device = states.device.type
            kind = ("output", device, torch.is_autocast_enabled(device), str(torch.get_autocast_dtype(device)))
            answer = seat.ask(Call("output", kind, {"weight": output.weight, "states": states}, 1, 1))
            return plain(states) if answer is ALONE else answer

        plain = output.forward
        output.forward = words
        member.undo.append(lambda: forget_forward(output, plain))

    def leave(self, seat: Seat) -> None:
        """Give a trial's model its own weights again."""
        import torch

        member = next(one for one in self.members if one.seat is seat)
        self.members.remove(member)
        self.pending.discard(seat.number)
        for undo in reversed(member.undo):
            undo()
        for layer in member.adapted.values():
            for weight in (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight):
                weight.grad = None
                weight.data = weight.data.clone(memory_format=torch.contiguous_format)

    def _stack(self) -> None:
        """Lay the trials' matrices behind each other, those of trials with equally many rows side by side.

        Nothing is moved while a pass has not gone backwards, whose gradients are of the matrices as they lie.
        """
        if self.pending or tuple((member.seat.number, member.rows) for member in self.members) == self.stacked:
            return
        self.members.sort(key=lambda member: (member.rows, member.rank, member.seat.number))
        for name, layer in self.layers.items():
            layer.stack([(member, member.adapted[name]) for member in self.members if name in member.adapted])
        self.stacked = tuple((member.seat.number, member.rows) for member in self.members)

    # -- a call -------------------------------------------------------------------------------------------------

    def _called(self, member: Member, args: Any, kwargs: Any) -> Call:
        """Return what a body is called with, by name.

        Raises:
            Unfit: something else than rows of tokens, or pictures of one size, is given.
        """
        import torch

        if member.seat.why_alone:
            raise Unfit(member.seat.why_alone)
        bound = self.signature.bind(*args, **kwargs).arguments
        further = bound.pop("kwargs", {})
        given = {name: value for name, value in {**bound, **further}.items() if value is not None}
        if "use_cache" in self.signature.parameters:
            given["use_cache"] = False
        tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        rest = {name: value for name, value in given.items() if name not in tensors}
        if any(isinstance(value, list | tuple | dict) or hasattr(value, "get_seq_length") for value in rest.values()):
            raise Unfit("its body is given more than tensors")
        if rest.get("output_attentions"):
            raise Unfit("attention weights are asked for")
        tokens = {name: value for name, value in tensors.items() if name in ROWS}
        others = {name: value for name, value in tensors.items() if name not in ROWS}
        if not tensors or ("position_ids" in tokens and "attention_mask" not in tokens):
            # Positions without a mask say where packed texts begin.
            raise Unfit("its rows are packed")
        some = next(iter(tensors.values()))
        rows, length = some.shape[0], 0
        if tokens:
            length = next(iter(tokens.values())).shape[1]
        fits = all(value.ndim >= 2 and value.shape[:2] == (rows, length) for value in tokens.values())
        mask = tokens.get("attention_mask")
        if (
            not fits
            or any(value.shape[0] != rows for value in others.values())
            or (mask is not None and mask.ndim != 2)
        ):
            raise Unfit("its body is given tensors of other shapes")
        device = some.device.type
        kind = (
            "body",
            device,
            torch.is_autocast_enabled(device),
            str(torch.get_autocast_dtype(device)),
            tuple(sorted((name, str(value)) for name, value in rest.items())),
            tuple(sorted((name, str(value.dtype), *value.shape[2:]) for name, value in tokens.items())),
            tuple(sorted((name, str(value.dtype), *value.shape[1:]) for name, value in others.items())),
        )
        if not member.rows:
            member.rows = rows
        return Call("body", kind, given, rows, length)

    def parts(self, seats: Sequence[Seat], floor: int | None) -> list[list[Seat]]:
        """Return which calls to compute together, such that passes and padding cost least."""
        calls = [seat.asked for seat in seats]
        if calls[0].site != "body":
            return [list(seats)]
        self._stack()
        places = {number: place for place, (number, _) in enumerate(self.stacked)}
        least = FLOOR.get(calls[0].kind[1], 1) if floor is None else floor
        there = [(seat.asked.length, seat.asked.rows, seat) for seat in seats if seat.number in places]
        found = [sorted(part, key=lambda seat: places[seat.number]) for part in cheapest(there, least)]
        return [*found, *([seat] for seat in seats if seat.number not in places)]

    def compute(self, seats: Sequence[Seat], calls: Sequence[Call]) -> list[Any]:
        """Return the answer to each call.

        Raises:
            Unfit: a layer of the body does something else than rows by themselves.
        """
        import torch

        device, enabled, named = calls[0].kind[1:4]
        dtype = getattr(torch, named.removeprefix("torch."))
        with torch.autocast(device, dtype=dtype, enabled=enabled):
            if calls[0].site == "output":
                return self._words([call.given for call in calls])
            members = [next(one for one in self.members if one.seat is seat) for seat in seats]
            fresh = [member for member in members if not member.seat.checked]
            if fresh:
                self._check(members, calls, fresh)
                if any(member.seat.why_alone for member in members):
                    # The others come together again at their next call.
                    return [ALONE] * len(seats)
            counts = seats[0].cohort.counts
            counts.tokens += sum(call.rows * max(1, call.length) for call in calls)
            counts.computed += sum(call.rows for call in calls) * max(1, *(call.length for call in calls))
            return self._forward(members, calls)

    def _forward(self, members: Sequence[Member], calls: Sequence[Call]) -> list[Any]:
        parts, begin = [], 0
        for member, call in zip(members, calls, strict=True):
            parts.append(Part(member, begin, begin + call.rows))
            begin += call.rows
        length = max(call.length for call in calls)
        inputs = {name: self._joined(name, [call.given[name] for call in calls], length) for name in calls[0].given}
        if length > min(call.length for call in calls) and "attention_mask" not in inputs:
            inputs["attention_mask"] = mask_of(calls, length)
        token = passing.set(tuple(parts))
        try:
            with self._attention(members):
                found = self.body(**inputs)
        finally:
            passing.reset(token)
        return shares_of(found, calls, length)

    def _joined(self, name: str, values: Sequence[Any], length: int) -> Any:
        """Return the values of one argument below each other, rows filled up at their ends."""
        import torch
        from torch.nn import functional

        if not isinstance(values[0], torch.Tensor):
            return values[0]
        if name in ROWS:
            # Behind the rows, so that each token keeps its place, on whichever side a trial fills up its own.
            padding = getattr(getattr(self.body, "config", None), "pad_token_id", None) if name == "input_ids" else 0
            values = [
                value
                if value.shape[1] == length
                else functional.pad(value, (0, 0) * (value.ndim - 2) + (0, length - value.shape[1]), value=padding or 0)
                for value in values
            ]
        return torch.cat(list(values))

    def _words(self, given: Sequence[Mapping[str, Any]]) -> list[Any]:
        import torch
        from torch.nn import functional

        states = [one["states"] for one in given]
        flat = torch.cat([one.reshape(-1, one.shape[-1]) for one in states])
        found = functional.linear(flat, given[0]["weight"])
        pieces = torch.split(found, [one.numel() // one.shape[-1] for one in states])
        return [piece.reshape(*one.shape[:-1], -1) for piece, one in zip(pieces, states, strict=True)]

    def _attention(self, members: Sequence[Member]) -> AbstractContextManager[None]:
        """Have attention take each row's own dropout, where the trials' differ."""
        if not self.body.training or len({attention_rates(member.body) for member in members}) == 1:
            return nullcontext()
        return self._by_rows()

    @contextmanager
    def _by_rows(self) -> Iterator[None]:
        if self.implementation != "sdpa":
            raise Unfit("dropout differs, and attention is not torch's")
        offer_attention()
        config = self.body.config
        config._attn_implementation = ATTENTION
        try:
            yield
        finally:
            config._attn_implementation = self.implementation

    def _check(self, members: Sequence[Member], calls: Sequence[Call], fresh: Sequence[Member]) -> None:
        """Compare what the joined pass says of new trials' rows, without dropout, with what their own bodies say."""
        import torch

        self.body.eval()
        try:
            with torch.no_grad(), self._by_rows() if self.implementation == "sdpa" else nullcontext():
                token = noticed_attention.set(self.attending)
                try:
                    found = self._forward(members, calls)
                finally:
                    noticed_attention.reset(token)
        finally:
            self.body.train()
        for member, call, mine in zip(members, calls, found, strict=True):
            if member not in fresh:
                continue
            member.seat.checked = True
            member.body.eval()
            try:
                with torch.no_grad():
                    own = member.body(**call.given)
            finally:
                member.body.train()
            if not same(mine, own, call.given.get("attention_mask")):
                member.seat.why_alone = "its body says something else of its rows beside those of others"
            elif other := self._unserved(member):
                member.seat.why_alone = f"its {other} has a dropout of its own, which rows cannot have"

    def _unserved(self, member: Member) -> str | None:
        """Return a module that has another dropout than the body's, and applies it where rows cannot have their own."""
        theirs = dict(member.body.named_modules())
        for name, module in self.body.named_modules():
            own = theirs.get(name)
            if name in self.attending or own is None:
                continue
            for attribute, value in vars(module).items():
                if isinstance(value, float) and "drop" in attribute and getattr(own, attribute, value) != value:
                    return f"{name}.{attribute}"
        return None

    # -- gradients ----------------------------------------------------------------------------------------------

    def hand_out(self, seats: Sequence[Seat]) -> None:
        """Give each of these trials the gradients of its matrices, as views of the joined ones."""
        known = {id(seat) for seat in seats}
        for layer in self.layers.values():
            layer.hand_out(known)

    def forget_gradients(self) -> None:
        """Drop what a backward pass left that did not end."""
        for layer in self.layers.values():
            layer.forget_gradients()
