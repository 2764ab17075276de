"""Models that write captions: those of transformers, and a vision encoder joined to a new decoder.

All take pictures and the caption so far, and give the logits of the next tokens; only the names of arguments differ.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autoft.contracts import ModelSource, TaskContext
from autoft.errors import ModelError
from autoft.pretrained import loading, read_weights, set_dropout

if TYPE_CHECKING:
    import torch

__all__ = [
    "CAPTIONERS",
    "generate",
    "load_captioner",
    "longest_caption",
    "next_token_logits",
    "positions",
    "vision_config",
]

CAPTIONERS = {
    "blip": "BlipForConditionalGeneration",
    "git": "GitForCausalLM",
    "vision-encoder-decoder": "VisionEncoderDecoderModel",
}
"""Model types that write captions, and their classes in transformers."""

ENCODERS = "vit, deit, beit, swin, dinov2, clip or siglip"
"""Encoders that messages name: the ones that are tried."""

HEAD_WIDTH = 64
"""Of an attention head of a new decoder, where the width allows it."""


def vision_config(config: Any) -> Any:
    """Return the part of a configuration that describes what sees."""
    for name in ("encoder", "vision_config"):
        part = getattr(config, name, None)
        if part is not None and not isinstance(part, dict):
            return part
    return config


def longest_caption(context: TaskContext) -> int:
    """Return how many tokens a generated caption may have."""
    given = context.options.get("max_new_tokens")
    # Tokenizers of the hub cut captions into more pieces than the one that was learned from them.
    usual = math.ceil(1.5 * context.facts["usual"]) + 4
    return int(min(given or usual, context.max_length - 1))


def positions(context: TaskContext) -> int:
    """Return the positions of a new decoder: for the longest training caption, and for the longest generated one."""
    return int(min(context.max_length, max(context.facts["longest"] + 2, longest_caption(context) + 1)))


def load_captioner(source: ModelSource, context: TaskContext) -> torch.nn.Module:
    """Return a captioner, or a vision encoder joined to a new decoder.

    Raises:
        ModelError: the files are damaged, or the model can neither write captions nor be joined.
    """
    from transformers import AutoConfig

    with loading(source):
        config = AutoConfig.from_pretrained(source.path, **source.from_pretrained_kwargs())
        model = (
            _captioner(source, config, context) if config.model_type in CAPTIONERS else _joined(source, config, context)
        )
    _say_how_to_generate(model, context)
    return model


def _captioner(source: ModelSource, config: Any, context: TaskContext) -> torch.nn.Module:
    import torch
    import transformers

    text = getattr(config, "decoder", None) or getattr(config, "text_config", None) or config
    set_dropout(text, context.params.get("train.dropout"))
    model: torch.nn.Module = read_weights(
        getattr(transformers, CAPTIONERS[config.model_type]),
        source,
        config=config,
        # AdamW over weights of 16 bits loses small steps: bases stored so are trained in 32.
        **{"dtype": torch.float32, **source.load_kwargs},
    )
    return model


def _joined(source: ModelSource, config: Any, context: TaskContext) -> torch.nn.Module:
    """Return the encoder with a new GPT-2 decoder that attends to it, as one model of transformers."""
    import torch
    from transformers import AutoModel, GPT2LMHeadModel, VisionEncoderDecoderConfig, VisionEncoderDecoderModel

    vision = vision_config(config)
    _check_encoder(source, vision)
    encoder = AutoModel.from_pretrained(
        source.path,
        config=vision,
        use_safetensors=True,
        **source.from_pretrained_kwargs(),
        **{"dtype": torch.float32, **source.load_kwargs},
    )
    decoder = GPT2LMHeadModel(_decoder_config(context))
    tokens = {
        "decoder_start_token_id": context.processor.start,
        "eos_token_id": context.processor.end,
        "pad_token_id": context.processor.tokenizer.pad_token_id,
    }
    joint = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config, **tokens)
    # A quantized encoder was loaded onto the device where it stays.
    model: torch.nn.Module = VisionEncoderDecoderModel(joint, encoder, decoder).to(encoder.device)
    for name, value in tokens.items():
        setattr(model.generation_config, name, value)
    return model


def _check_encoder(source: ModelSource, vision: Any) -> None:
    """Refuse what does not see, and what does not give one vector for each patch."""
    from transformers import MODEL_MAPPING

    known = type(vision) in MODEL_MAPPING
    if not known or MODEL_MAPPING[type(vision)].main_input_name != "pixel_values":
        raise ModelError(
            f"{source.path}: {vision.model_type} is neither a captioner nor a vision encoder; this task takes "
            f"{', '.join(CAPTIONERS)}, and {ENCODERS} with a new decoder"
        )
    if not isinstance(getattr(vision, "hidden_size", None), int):
        raise ModelError(
            f"{source.path}: {vision.model_type} gives maps of features, where a text decoder needs a sequence; take an "
            f"encoder that works on patches, as {ENCODERS}"
        )
    if hasattr(vision, "mask_ratio"):
        raise ModelError(
            f"{source.path}: {vision.model_type} hides patches at random; save its encoder as ViTModel, or take another"
        )


def _decoder_config(context: TaskContext) -> Any:
    from transformers import GPT2Config

    width, layers = (int(context.options[name]) for name in ("decoder_width", "decoder_layers"))
    tokenizer = context.processor.tokenizer
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions(context),
        n_embd=width,
        n_layer=layers,
        n_head=next(count for count in range(max(1, width // HEAD_WIDTH), 0, -1) if width % count == 0),
        add_cross_attention=True,
        is_decoder=True,
        bos_token_id=context.processor.start,
        eos_token_id=context.processor.end,
        pad_token_id=tokenizer.pad_token_id,
    )
    set_dropout(config, context.params.get("train.dropout"))
    return config


def _say_how_to_generate(model: Any, context: TaskContext) -> None:
    """Write into the model how captions are made, for those who use its files without autoft."""
    for name, value in {**_generation(context), "max_length": None}.items():
        setattr(model.generation_config, name, value)


def _generation(context: TaskContext) -> dict[str, Any]:
    return {
        "do_sample": False,
        "num_beams": int(context.options.get("num_beams") or 1),
        "max_new_tokens": longest_caption(context),
    }


def next_token_logits(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits of the token after each of ``input_ids``, ``(batch, seq, vocabulary)``.

    Args:
        model: of one of the kinds above, or an adapter over one.
        batch: ``pixel_values`` ``(batch, 3, height, width)``, ``input_ids`` and ``attention_mask`` ``(batch, seq)``.
    """
    prefix = "decoder_" if model.config.model_type == "vision-encoder-decoder" else ""
    logits: torch.Tensor = model(
        pixel_values=batch["pixel_values"],
        use_cache=False,
        **{f"{prefix}{name}": batch[name] for name in ("input_ids", "attention_mask")},
        **_resizing(model, batch["pixel_values"]),
    ).logits
    # GIT puts the picture's tokens in front of the caption's.
    return logits[:, -batch["input_ids"].shape[1] :]


def generate(model: Any, pixels: torch.Tensor, context: TaskContext) -> torch.Tensor:
    """Return the token ids of a caption for each picture, ``(batch, seq)``."""
    ids: torch.Tensor = model.generate(pixel_values=pixels, **_generation(context), **_resizing(model, pixels))
    return ids


def _resizing(model: Any, pixels: torch.Tensor) -> dict[str, bool]:
    """Return the argument that fits position embeddings to pictures of another size than the encoder was made for."""
    size = vision_config(model.config).image_size
    height, width = (size, size) if isinstance(size, int) else size
    if (height, width) == tuple(pixels.shape[-2:]):
        return {}
    sees = model.encoder.forward if model.config.model_type == "vision-encoder-decoder" else None
    takes = sees is None or "interpolate_pos_encoding" in inspect.signature(sees).parameters
    return {"interpolate_pos_encoding": True} if takes else {}
