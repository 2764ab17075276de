"""Models that write token after token, as graphs: each with what the attention of earlier tokens left as inputs and outputs.

The graphs are traced by the exporters of transformers. A causal model is one graph, ``decoder.onnx``, that reads any
number of tokens after any number of others. A model with an encoder is three: ``encoder.onnx``; ``decoder_first.onnx``,
which reads the first token and the encoder's states; and ``decoder.onnx``, which reads one token after others. Weights
that several graphs have are stored once.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from autoft.errors import ModelError
from autoft.formats.base import Origin

if TYPE_CHECKING:
    import torch

__all__ = ["GENERATION", "GraphWriter", "is_written", "write_generative"]

ENCODER, FIRST, DECODER = "encoder.onnx", "decoder_first.onnx", "decoder.onnx"
WEIGHTS = "weights.bin"
GENERATION = "generation.json"
"""How texts are written: the settings that the loop reads."""

PLAIN: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
}
"""What the loop over graphs does: it takes the likeliest token each time."""
LARGE = 1024
"""Bytes from which a weight is stored beside the graphs."""


def is_written(folder: Path) -> bool:
    """Say whether a folder holds graphs of a model that writes."""
    return (folder / GENERATION).is_file()


def write_generative(origin: Origin, folder: Path, converted: Callable[[Any], Any]) -> None:
    """Write the graphs of a model that writes texts, and how to use them.

    Args:
        origin: the model.
        folder: for the files.
        converted: makes of a graph in 32 bits what the format has.

    Raises:
        ModelError: the exporters are missing, or the model or its search for texts is of a kind that has no graphs.
    """
    try:
        from transformers.exporters import OnnxExporter
    except ImportError as error:
        raise ModelError(
            "graphs of models that write need a transformers with exporters, as 5.23; pip install -U transformers"
        ) from error
    from autoft.strategies.onnx import bare, quiet

    model = origin.loaded.model
    asked = _asked(origin)
    settings = _settings(asked, model)
    exporter = OnnxExporter()
    parts = _decoder_alone(model, asked) if not model.config.is_encoder_decoder else _with_encoder(model, asked)
    protos = {}
    for name, (part, inputs) in parts.items():
        with quiet(), _silent():
            import onnx_ir

            program = exporter.export(part, inputs, {"dynamic": True}).program
            proto = _bare_of_states(bare(onnx_ir.to_proto(program)))
            _say_sizes(proto, inputs.get("past_key_values"))
            protos[name] = converted(proto)
    _write_sharing(protos, folder)
    model.config.save_pretrained(folder)
    (folder / GENERATION).write_text(json.dumps(settings, indent=1), encoding="utf-8")


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what the exporters say while they work off the terminal: each step, that they are experimental, what they fix."""
    loggers = [logging.getLogger(name) for name in ("torch._export", "torch.export", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _asked(origin: Origin) -> dict[str, Any]:
    """Return what the task gives the model's ``generate`` for a row, with the settings of the search for texts."""
    from autoft.formats.agreement import shown_rows

    model = origin.loaded.model
    caught: list[dict[str, Any]] = []

    class Caught(Exception):
        pass

    def note(**given: Any) -> Any:
        caught.append(given)
        raise Caught

    model.generate = note
    try:
        rows = shown_rows(origin).inputs
        origin.task.predict(model, [max(rows, key=lambda row: len(str(row)))], origin.context)
    except Caught:
        pass
    finally:
        del model.generate
    if not caught:
        raise ModelError(f"{origin.task.card.name}: does not call the model's generate(), whose inputs graphs need")
    return caught[0]


def _settings(asked: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Return how texts are written, as plain values.

    Raises:
        ModelError: not by taking the likeliest token each time.
    """
    given = asked.get("generation_config")
    merged = {
        **{name: value for name, value in model.generation_config.to_dict().items() if value is not None},
        **({name: value for name, value in given.to_dict().items() if value is not None} if given else {}),
        **{name: value for name, value in asked.items() if name in PLAIN or name == "max_new_tokens"},
    }
    for name, plain in PLAIN.items():
        if merged.get(name, plain) != plain:
            raise ModelError(
                f"graphs of a model that writes are used with a loop that takes the likeliest token each time, and this "
                f"one was measured with {name} = {merged[name]}; export safetensors, or search with {name} = {plain}"
            )
    ends = merged.get("eos_token_id")
    start = merged.get("decoder_start_token_id", getattr(model.config, "decoder_start_token_id", None))
    pad = merged.get("pad_token_id")
    return {
        "kind": "encoder-decoder" if model.config.is_encoder_decoder else "decoder",
        "max_new_tokens": int(merged["max_new_tokens"]),
        "end_token_ids": ends if isinstance(ends, list) else [] if ends is None else [ends],
        "pad_token_id": 0 if pad is None else pad,
        "start_token_id": start,
        "forced_first_token_id": merged.get("forced_bos_token_id"),
        "forced_last_token_id": merged.get("forced_eos_token_id"),
        "never_token_ids": [ids[0] for ids in merged.get("bad_words_ids") or [] if len(ids) == 1],
    }


def _decoder_alone(model: Any, asked: Mapping[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return the parts of a causal model, with inputs to trace them by."""
    import torch
    from transformers.exporters.utils import decompose_for_generation

    ids = asked["input_ids"][:1].repeat(2, 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    parts = decompose_for_generation(model, inputs, multi_token_decode=True)
    if set(parts) != {"prefill", "decode"}:
        raise ModelError(
            f"graphs of {type(model).__name__} would be {', '.join(parts)}, which no loop of this version knows how to "
            "use; export safetensors"
        )
    return {DECODER: parts["decode"]}


def _with_encoder(model: Any, asked: Mapping[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return the parts of a model with an encoder, with inputs to trace them by.

    The exporters' own cut into parts, as of transformers 5.23, leaves the encoder out and traces the later steps after
    one token, whose cache the graph then takes to be of that length always. So the cache here is one of three tokens.
    """
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    encoder = model.get_encoder()
    names = {"input_ids", "attention_mask", "pixel_values", "interpolate_pos_encoding"}
    source = {
        name: value[:1].repeat(2, *(1 for _ in value.shape[1:])) if isinstance(value, torch.Tensor) else value
        for name, value in asked.items()
        if name in names
    }
    mask = {"attention_mask": source["attention_mask"]} if "attention_mask" in source else {}
    token = torch.full((2, 1), _settings(asked, model)["start_token_id"], dtype=torch.long)
    with torch.no_grad():
        states = BaseModelOutput(last_hidden_state=encoder(**source).last_hidden_state)
        step = {"decoder_input_ids": token, "encoder_outputs": states, "use_cache": True, **mask}
        past = None
        for _ in range(3):
            past = model(**step, past_key_values=past).past_key_values
    return {ENCODER: (encoder, source), FIRST: (model, step), DECODER: (model, {**step, "past_key_values": past})}


def _bare_of_states(proto: Any) -> Any:
    """Take out what a loop has already: states of the encoder, and attention to them that goes through unchanged."""
    given = {value.name for value in proto.graph.input}
    made = {name: node for node in proto.graph.node for name in node.output}
    kept = []
    for value in proto.graph.output:
        maker = made.get(value.name)
        through = value.name in given or (maker is not None and maker.op_type == "Identity" and maker.input[0] in given)
        if through:
            if maker is not None:
                proto.graph.node.remove(maker)
        else:
            kept.append(value)
    del proto.graph.output[:]
    proto.graph.output.extend(kept)
    used = {name for node in proto.graph.node for name in node.input} | {value.name for value in kept}
    inputs = [value for value in proto.graph.input if value.name in used]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    return proto


def _say_sizes(proto: Any, past: Any) -> None:
    """Write heads and widths of the cache into the inputs: the exporter gives them names, and a loop begins with none of it."""
    layers = getattr(past, "layers", None)
    if not layers:
        return
    for value in proto.graph.input:
        found = re.search(r"past_key_values\.layers\.(\d+)\.(keys|values)", value.name)
        if found:
            sizes = getattr(layers[int(found[1])], found[2]).shape
            for place in (1, 3):
                value.type.tensor_type.shape.dim[place].dim_value = sizes[place]


def _write_sharing(protos: Mapping[str, Any], folder: Path) -> None:
    """Write graphs; large weights go into one file, each once."""
    import onnx
    from onnx import TensorProto, numpy_helper

    places: dict[str, tuple[int, int]] = {}
    with (folder / WEIGHTS).open("wb") as file:
        for name, proto in protos.items():
            for tensor in proto.graph.initializer:
                if not tensor.HasField("raw_data"):
                    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
                content = tensor.raw_data
                if len(content) < LARGE:
                    continue
                key = hashlib.sha256(content).hexdigest()
                if key not in places:
                    file.write(b"\0" * (-file.tell() % 64))
                    places[key] = file.tell(), len(content)
                    file.write(content)
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                del tensor.external_data[:]
                offset, length = places[key]
                for field, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
                    tensor.external_data.add(key=field, value=value)
            onnx.save_model(proto, str(folder / name))


class GraphWriter:
    """Writes with the graphs of a folder, in place of a model's ``generate``: the likeliest token each time."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoConfig

        from autoft.strategies.onnx import OnnxModel

        self.settings: dict[str, Any] = json.loads((folder / GENERATION).read_text(encoding="utf-8"))
        self.config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        self.sessions = {
            name: OnnxModel(folder / name).session for name in (ENCODER, FIRST, DECODER) if (folder / name).is_file()
        }
        # What asks a model whether its encoder takes pictures of other sizes: the graph takes the one it was traced at.
        self.encoder = SimpleNamespace(forward=lambda pixel_values: None)

    def eval(self) -> GraphWriter:
        """Return itself, as it has no other mode."""
        return self

    def generate(self, *, generation_config: Any = None, **given: Any) -> torch.Tensor:
        """Return the written ids, ``(batch, seq)``: after those of the prompt, or after the start token.

        Args:
            generation_config: taken for how many tokens are written at most.
            given: what the model reads, as tensors.
        """
        import numpy as np
        import torch

        arrays = {name: value.cpu().numpy() for name, value in given.items() if isinstance(value, torch.Tensor)}
        most = int(getattr(generation_config, "max_new_tokens", None) or self.settings["max_new_tokens"])
        causal = self.settings["kind"] == "decoder"
        mask: Any
        states: Any
        batch = len(next(iter(arrays.values())))
        if causal:
            written = arrays["input_ids"]
            mask, past, states = arrays["attention_mask"], self._nothing(batch), None
        else:
            written = np.full((batch, 1), self.settings["start_token_id"], dtype=np.int64)
            mask = arrays.get("attention_mask")
            states = self._run(ENCODER, arrays)["last_hidden_state"]
            past = {}
        done = np.zeros(batch, dtype=bool)
        new = written
        for step in range(most):
            feed = {
                **past,
                "decoder_input_ids": new,
                "encoder_outputs.last_hidden_state": states,
                "attention_mask": mask,
            }
            if causal:
                # A padded prompt has its first position where its first token is.
                at = np.maximum(mask.cumsum(1) - 1, 0)[:, -new.shape[1] :]
                feed = {**past, "input_ids": new, "attention_mask": mask, "position_ids": at}
            said = self._run(FIRST if not causal and step == 0 else DECODER, feed)
            past |= {
                f"input.{name.removeprefix('output.')}": value
                for name, value in said.items()
                if "past_key_values" in name
            }
            token = self._likeliest(said["logits"][:, -1], step, most)
            token[done] = self.settings["pad_token_id"]
            new = token[:, None]
            written = np.concatenate([written, new], axis=1)
            if causal:
                mask = np.concatenate([mask, np.ones_like(new)], axis=1)
            done |= np.isin(token, self.settings["end_token_ids"])
            if done.all():
                break
        return torch.from_numpy(written)

    def _likeliest(self, logits: Any, step: int, most: int) -> Any:
        import numpy as np

        for place, forced in ((0, "forced_first_token_id"), (most - 1, "forced_last_token_id")):
            if step == place and self.settings[forced] is not None:
                return np.full(len(logits), self.settings[forced], dtype=np.int64)
        logits[:, self.settings["never_token_ids"]] = -np.inf
        return logits.argmax(-1)

    def _nothing(self, batch: int) -> dict[str, Any]:
        """Return the cache before the first token."""
        import numpy as np

        found = {}
        for node in self.sessions[DECODER].get_inputs():
            if "past" in node.name:
                heads, width = node.shape[1], node.shape[3]
                kind = np.float16 if node.type == "tensor(float16)" else np.float32
                found[node.name] = np.zeros((batch, heads, 0, width), dtype=kind)
        return found

    def _run(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        session = self.sessions[name]
        names = [node.name for node in session.get_outputs()]
        feed = {node.name: given[node.name] for node in session.get_inputs()}
        return dict(zip(names, session.run(names, feed), strict=True))
