"""Tiny models with random weights: real architectures and real tokenizers, in a folder as transformers writes it.

Each has well under a megabyte and is made in a fraction of a second, without a network. They learn a handful of rows by
heart in seconds, which is what the checks need.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from autoft.contracts import Row
from autoft.errors import ModelError, unknown_name

__all__ = ["PLANNED", "Kind", "kind_of", "texts_of", "tiny_model"]

Kind = Literal["encoder", "decoder", "decoder-conv1d", "seq2seq", "vision", "vision-to-text"]
"""BERT, Llama, GPT-2, T5, ViT, and ViT with a GPT-2 that reads it."""

POSITIONS = 512
WIDTH = 32
IMAGE = 32
ENDOFTEXT = "<|endoftext|>"

PLANNED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "encoder": {"model_type": "bert", "max_position_embeddings": POSITIONS},
        "decoder": {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": POSITIONS,
        },
        "decoder-conv1d": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_positions": POSITIONS},
        "seq2seq": {"model_type": "t5", "is_encoder_decoder": True},
        "vision": {"model_type": "vit"},
        "vision-to-text": {"model_type": "vision-encoder-decoder", "is_encoder_decoder": True},
    }
)
"""What a plan reads of each kind's ``config.json``, before anything is made."""

_ARCHITECTURES: tuple[tuple[str, Kind], ...] = (
    ("vision-to-text", "vision-to-text"),
    ("vision2seq", "vision-to-text"),
    ("vision-encoder-decoder", "vision-to-text"),
    ("image-to-text", "vision-to-text"),
    ("image-text-to-text", "vision-to-text"),
    ("image", "vision"),
    ("vision", "vision"),
    ("seq2seq", "seq2seq"),
    ("conditional-generation", "seq2seq"),
    ("causal-lm", "decoder"),
)
"""Beginnings of architectures, as cards name them. What begins otherwise is for encoders, as the contract's defaults."""


def kind_of(architecture: str) -> Kind:
    """Return the kind of tiny model that suits a card's ``architecture``."""
    return next((kind for start, kind in _ARCHITECTURES if architecture.startswith(start)), "encoder")


def texts_of(rows: Iterable[Row]) -> list[str]:
    """Return all texts in rows, those inside of lists and mappings too, to train a tokenizer on."""

    def walk(value: Any) -> Iterable[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            for inner in value.values():
                yield from walk(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                yield from walk(inner)

    return [text for row in rows for text in walk(row)]


def tiny_model(kind: Kind, folder: str | Path, texts: Iterable[str] = (), *, seed: int = 0) -> Path:
    """Write a tiny model with random weights, and its tokenizer or image processor, into a folder.

    Args:
        kind: ``encoder`` (BERT), ``decoder`` (Llama, without a padding token, as is usual), ``decoder-conv1d`` (GPT-2, which
            keeps its weights transposed), ``seq2seq`` (T5), ``vision`` (ViT) or ``vision-to-text`` (ViT and GPT-2).
        folder: made where it is absent.
        texts: what the tokenizer is trained on; it can write any other text too, in more tokens. The encoder's makes
            letters lower case and knows printable ASCII and what the texts hold; the others' keep every byte.
        seed: of the weights.

    Returns:
        the folder.

    Raises:
        ModelError: there is no such kind.
    """
    if kind not in get_args(Kind):
        raise ModelError(unknown_name("kind of tiny model", str(kind), get_args(Kind)))
    import torch

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    make = {
        "encoder": _encoder,
        "decoder": _decoder,
        "decoder-conv1d": _gpt2,
        "seq2seq": _seq2seq,
        "vision": _vision,
        "vision-to-text": _vision_to_text,
    }[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, *processors = make(list(texts))
    model.save_pretrained(folder)
    for processor in processors:
        processor.save_pretrained(folder)
    return folder


# Dropout is off: what learns by heart needs none. Weights begin large, so that outputs depend on inputs at once.


def _encoder(texts: list[str]) -> tuple[Any, ...]:
    from transformers import BertConfig, BertModel

    tokenizer = _word_pieces(texts)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=POSITIONS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertModel(config), tokenizer


def _decoder(texts: list[str]) -> tuple[Any, ...]:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _bytes(texts, single="<s> $A", pair="<s> $A $B", bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=POSITIONS,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config), tokenizer


def _seq2seq(texts: list[str]) -> tuple[Any, ...]:
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = _bytes(
        texts, single="$A </s>", pair="$A </s> $B </s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        d_kv=WIDTH,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config), tokenizer


def _vit_config() -> Any:
    from transformers import ViTConfig

    return ViTConfig(
        image_size=IMAGE,
        patch_size=IMAGE // 4,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
    )


def _image_processor() -> Any:
    # By Pillow: the one that needs torchvision is what the plain name stands for.
    from transformers import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": IMAGE, "width": IMAGE})


def _vision(texts: list[str]) -> tuple[Any, ...]:
    from transformers import ViTModel

    return ViTModel(_vit_config(), add_pooling_layer=False), _image_processor()


def _gpt2(texts: list[str]) -> tuple[Any, ...]:
    from transformers import GPT2LMHeadModel

    tokenizer = _bytes(texts, pad_token="<pad>", bos_token=ENDOFTEXT, eos_token=ENDOFTEXT)
    return GPT2LMHeadModel(_gpt2_config(tokenizer)), tokenizer


def _gpt2_config(tokenizer: Any) -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _vision_to_text(texts: list[str]) -> tuple[Any, ...]:
    from transformers import VisionEncoderDecoderConfig, VisionEncoderDecoderModel

    tokenizer = _bytes(texts, pad_token="<pad>", bos_token=ENDOFTEXT, eos_token=ENDOFTEXT)
    decoder = _gpt2_config(tokenizer)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        _vit_config(),
        decoder,
        decoder_start_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return VisionEncoderDecoderModel(config), _image_processor(), tokenizer


def _word_pieces(texts: list[str]) -> Any:
    """Return BERT's kind of tokenizer: lower case, word pieces, segments of a pair."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    # Whole words, the most frequent first. The trainer of word pieces breaks ties by chance, so that two processes would
    # have different models. As in BERT's own vocabulary, every letter stands at the start and inside of words.
    counts = Counter(
        word
        for text in texts
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
    )
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    alphabet = sorted({*letters, *"".join(counts)})
    within = {letter for word in counts for letter in word[1:]}
    inner = [f"##{one}" for one in alphabet if one.isalnum() or one in within]
    words = sorted(counts, key=lambda word: (-counts[word], word))[:600]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*special, *alphabet, *inner, *words]))}
    tokenizer.model = models.WordPiece(vocabulary, unk_token="[UNK]")
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _bytes(texts: list[str], single: str = "", pair: str = "", **special: str) -> Any:
    """Return GPT-2's kind of tokenizer, whose decoding gives every text back; ``special`` are its special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    names = list(dict.fromkeys(special.values()))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=800,
            special_tokens=names,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    template: Any = processors.ByteLevel(trim_offsets=True)
    if single:
        ids = [(name, tokenizer.token_to_id(name)) for name in names]
        template = processors.Sequence(
            [template, processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)]
        )
    tokenizer.post_processor = template
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **special,
    )
