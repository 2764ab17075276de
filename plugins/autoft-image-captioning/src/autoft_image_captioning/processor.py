"""What turns pictures into arrays and captions into token ids, and back: an image processor and a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoft.contracts import ModelSource, TaskContext
from autoft.errors import ModelError
from autoft.pretrained import load_tokenizer, loading
from autoft_image_captioning.captioners import CAPTIONERS, vision_config
from autoft_image_captioning.pictures import open_pictures
from autoft_image_captioning.texts import END, PAD, START

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["CaptionProcessor", "load_processor"]


@dataclass(frozen=True)
class CaptionProcessor:
    """The two halves of a captioner's processor.

    Attributes:
        images: an image processor of transformers.
        tokenizer: of the text decoder.
        start: the token that a caption begins with, which is given to the decoder and never said.
        end: the token after a caption.
    """

    images: Any
    tokenizer: Any
    start: int
    end: int

    def pixels(self, rows: Sequence[Mapping[str, Any]], first: int = 1) -> list[np.ndarray]:
        """Return the pictures resized and cropped, bytes of ``(3, height, width)``: a quarter of what floats take.

        Args:
            rows: with ``image``.
            first: the number of the first row, for messages.

        Raises:
            DataError: a picture is not there, or damaged.
            ModelError: the image processor does not give one picture of fixed size.
        """
        import torch

        found: list[np.ndarray] = []
        for picture in open_pictures(rows, torch.get_num_threads(), first):
            # Scaling is left to the batch: it is exact on bytes, and floats would take four times the disk.
            array = self.images(images=[picture], do_rescale=False, do_normalize=False, return_tensors="np")
            pixels = array["pixel_values"][0]
            if pixels.dtype != "uint8" or pixels.ndim != 3 or (found and found[0].shape != pixels.shape):
                raise ModelError(
                    f"{type(self.images).__name__} gives {pixels.dtype} of {pixels.shape}; needed are whole pictures of "
                    "one size: set task_options.image_size, or use a model with another image processor"
                )
            found.append(pixels)
        return found

    def scaled(self, pixels: Sequence[np.ndarray]) -> torch.Tensor:
        """Return pictures as the model takes them, ``(batch, 3, height, width)`` in floating point."""
        import numpy as np
        import torch

        values = torch.from_numpy(np.stack(pixels)).float()
        if self.images.do_rescale:
            values *= self.images.rescale_factor
        if self.images.do_normalize:
            mean, deviation = (
                torch.tensor(part)[:, None, None] for part in (self.images.image_mean, self.images.image_std)
            )
            values.sub_(mean).div_(deviation)
        return values

    def ids(self, captions: Sequence[str], longest: int) -> list[list[int]]:
        """Return the token ids of captions, the end after each; cut so that none has more than ``longest``."""
        found = self.tokenizer(list(captions), add_special_tokens=False)["input_ids"]
        return [[*ids[: longest - 1], self.end] for ids in found]

    def texts(self, ids: Any) -> list[str]:
        """Return generated ids as captions."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the files of both, as ``AutoImageProcessor`` and ``AutoTokenizer`` read them."""
        self.images.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_processor(source: ModelSource, context: TaskContext) -> CaptionProcessor:
    """Return the processor of a captioner; for a vision encoder, its image processor and the tokenizer of the facts.

    Raises:
        ModelError: files are missing or damaged.
    """
    from transformers import AutoConfig

    with loading(source, "the image processor"):
        config = AutoConfig.from_pretrained(source.path, **source.from_pretrained_kwargs())
        images = _images(source, config, context.options.get("image_size"))
    if config.model_type not in CAPTIONERS:
        return CaptionProcessor(images, *_own_tokenizer(context))
    tokenizer = load_tokenizer(source)
    return CaptionProcessor(images, tokenizer, *_start_and_end(config, tokenizer, source))


def _own_tokenizer(context: TaskContext) -> tuple[Any, int, int]:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(context.facts["tokenizer"]),
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        clean_up_tokenization_spaces=False,
    )
    return tokenizer, tokenizer.bos_token_id, tokenizer.eos_token_id


def _start_and_end(config: Any, tokenizer: Any, source: ModelSource) -> tuple[int, int]:
    """Return the tokens around a caption, as the model was trained with them."""
    if config.model_type == "blip":
        text = config.text_config
        start, end = text.bos_token_id, text.sep_token_id
    elif config.model_type == "git":
        start, end = config.bos_token_id, config.eos_token_id
    else:
        given = _generation(source)
        start = _first(given.get("decoder_start_token_id"), getattr(config, "decoder_start_token_id", None))
        start = _first(start, config.decoder.bos_token_id, tokenizer.bos_token_id, tokenizer.cls_token_id)
        end = _first(given.get("eos_token_id"), getattr(config, "eos_token_id", None), config.decoder.eos_token_id)
        end = _first(end, tokenizer.eos_token_id, tokenizer.sep_token_id)
    start, end = (value[0] if isinstance(value, list) else value for value in (start, end))
    if start is None or end is None:
        raise ModelError(
            f"{source.path}: its configuration names no {'start' if start is None else 'end'} token of captions "
            "(decoder_start_token_id, eos_token_id)"
        )
    return start, end


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _generation(source: ModelSource) -> dict[str, Any]:
    from transformers import GenerationConfig

    try:
        found: dict[str, Any] = GenerationConfig.from_pretrained(
            source.path, **source.from_pretrained_kwargs()
        ).to_dict()
    except OSError:
        # Models from before transformers had this file say it in config.json.
        return {}
    return found


def _images(source: ModelSource, config: Any, side: Any) -> Any:
    """Return the model's image processor, by Pillow; the default of its kind where the model has no file of it."""
    from transformers import AutoImageProcessor
    from transformers.models.auto.image_processing_auto import get_image_processor_config

    given = get_image_processor_config(source.path, revision=source.revision)
    if given:
        try:
            images = AutoImageProcessor.from_pretrained(source.path, backend="pil", **source.from_pretrained_kwargs())
        except ImportError as error:
            raise ModelError(f"{source.path}: its image processor does not work with Pillow alone") from error
    else:
        images = _default_images(config)
    if side is not None:
        images.size = _square(images, int(side))
        images.do_center_crop = False
    return images


def _default_images(config: Any) -> Any:
    import transformers
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    vision = vision_config(config)
    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(config.model_type, IMAGE_PROCESSOR_MAPPING_NAMES.get(vision.model_type))
    images = getattr(transformers, (names or {}).get("pil") or "ViTImageProcessorPil")()
    size = getattr(vision, "image_size", None)
    if isinstance(size, int) and getattr(images.size, "height", None):
        # Where the shorter edge is scaled and the middle is cut out, the model takes pictures of other sizes too.
        images.size = _square(images, size)
    return images


def _square(images: Any, side: int) -> Any:
    return type(images.size)(height=side, width=side)
