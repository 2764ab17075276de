"""What all tasks share that answer a text with a text: translation, summarization, dialogue, free-form answers.

:class:`ConditionalGeneration` trains and serves three kinds of models, told apart by their configuration:

- sequence-to-sequence models (Marian, T5, BART, mBART, Pegasus, LED, M2M100 ...),
- a pair joined from an encoder and a decoder of its own (:class:`transformers.EncoderDecoderModel`; Rothe et al. 2020,
  arXiv 1907.12461), where the base model is an encoder (BERT, RoBERTa, DistilBERT ...),
- causal models (GPT-2, Llama, Qwen ...), with the loss on the answer only.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autoft.contracts import (
    Detail,
    Examples,
    ModelSource,
    Option,
    Output,
    Prediction,
    Row,
    Task,
    TaskContext,
)
from autoft.errors import DataError, ModelError, closest
from autoft.pretrained import OFFSET_POSITIONS, load_tokenizer, loading, read_weights, set_dropout
from autoft_generation.chat import Piece, answer_end, conversation, prompt_text

if TYPE_CHECKING:
    import torch

__all__ = [
    "ConditionalGeneration",
    "Kind",
    "Tokenizers",
    "conditional_options",
    "kind_of",
    "shortened",
    "train_tokenizer",
]

Kind = Literal["seq2seq", "joined", "causal"]

IGNORED = -100
"""Label of positions that have no loss, as in torch."""
SMALLEST_VOCABULARY = 300
"""The 256 bytes, the special tokens, and some room for merges."""
LOGITS_AT_ONCE = 64_000_000
"""Numbers in the logits of one scored batch: with large vocabularies these, and not the model, fill the memory."""
NEW_DECODER_POSITIONS = 512
"""Tokens that a new decoder can write."""
SHOWN_EXAMPLES = 20
SHOWN_CHARACTERS = 400
SAMPLING = frozenset({"temperature", "top_k", "top_p"})
"""Settings of generation that mean nothing to a search for the likeliest text."""
_MARK = "mark"
"""Stands for a text where what is around it is looked at."""
SEAMS = 4
"""Tokens that a cut text may need more where it is tokenized together with what stands around it."""


def conditional_options(
    max_new_tokens: int = 128, num_beams: int = 1, *, languages: bool = False, encoders: bool = True
) -> tuple[Option, ...]:
    """Return the options of a task of this kind, for its card.

    Args:
        max_new_tokens: default of that option.
        num_beams: default of that option.
        languages: add ``source_language`` and ``target_language``.
        encoders: add what says which decoder an encoder gets.
    """
    codes = (
        Option("source_language", "code of the language of the inputs, where a model needs it, as eng_Latn", None),
        Option("target_language", "code of the language of the outputs, where a model needs it, as deu_Latn", None),
    )
    decoder = (
        Option("decoder_layers", "layers of the decoder that an encoder gets; 0: as many as the encoder has", 0),
        Option(
            "target_vocabulary",
            "tokens of a vocabulary that the decoder of an encoder gets, found in the training targets; 0: that of "
            "the encoder",
            0,
        ),
    )
    return (
        Option("max_new_tokens", "tokens after which an output ends", max_new_tokens),
        Option("num_beams", "beams that are searched for an output; 1 takes the likeliest token each time", num_beams),
        *(decoder if encoders else ()),
        *(codes if languages else ()),
    )


def kind_of(config: Any) -> Kind | None:
    """Return which kind of model a configuration of transformers describes, or None where it writes no text."""
    from transformers.models.auto import modeling_auto as auto

    model_type = config.model_type
    if model_type == "encoder-decoder":
        return "joined"
    if model_type in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "seq2seq"
    if model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return "joined"
    return "causal" if model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else None


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizers of both sides, and what has to be known of the model to use them.

    Attributes:
        kind: of the model.
        model_type: as in its configuration.
        source: of the inputs.
        target: of the outputs; the same object where there is one for both.
        positions: tokens that the model takes at most, on the side of the inputs; None where there is no limit.
        target_positions: the same of the outputs; of a causal model those of both together.
        thinks: answers of a chat begin with reasoning, as :func:`~autoft_generation.chat.prompt_text` says.
    """

    kind: Kind
    model_type: str
    source: Any
    target: Any
    positions: int | None = None
    target_positions: int | None = None
    thinks: bool = False

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer of the inputs into the folder, one of the outputs into ``target`` below it."""
        self.source.save_pretrained(folder)
        if self.target is not self.source:
            self.target.save_pretrained(Path(folder) / "target")

    @cached_property
    def opening(self) -> str:
        """What a causal model reads before a plain prompt: a start token, where the tokenizer adds one."""
        starts = self.source.bos_token_id is not None and self.source("").input_ids[:1] == [self.source.bos_token_id]
        return str(self.source.bos_token) if starts else ""

    @cached_property
    def start(self) -> str:
        """What a causal model reads where it has nothing else to read: something has to stand before the first token."""
        return self.opening or self.source.bos_token or self.source.eos_token or ""

    @cached_property
    def chat_end(self) -> str:
        """The token with which an answer in a chat ends."""
        return answer_end(self.source)

    def ids(self, rows: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Return the tokens of each piece of texts that a causal model reads as wholes.

        Pieces are tokenized alone: so a prompt has the same tokens in training as when its answer is asked for. But
        tokenizers that put a space before whatever they are given, as that of Llama 2, would put one into the text
        before each piece: with these a piece is what the text gains by it, where the tokens before it stay the same.

        Args:
            rows: the pieces of each text.
        """
        flat = iter(self._plain([piece for pieces in rows for piece in pieces]))
        alone = [[next(flat) for _ in pieces] for pieces in rows]
        return [self._in_context(*both) for both in zip(rows, alone, strict=True)] if self._adds_space else alone

    def _in_context(self, pieces: Sequence[str], alone: Sequence[list[int]]) -> list[list[int]]:
        grown = self._plain(["".join(pieces[:count]) for count in range(1, len(pieces) + 1)])
        return [
            whole[len(before) :] if whole[: len(before)] == before else own
            for before, whole, own in zip([[], *grown], grown, alone, strict=False)
        ]

    @cached_property
    def _adds_space(self) -> bool:
        line, letter, both = self._plain(["\n", "a", "\na"])
        return both != line + letter

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = self.source(list(texts), add_special_tokens=False).input_ids if texts else []
        return found

    @property
    def start_id(self) -> int:
        """The token that a joined decoder starts from."""
        first = self.target.bos_token_id
        return int(first if first is not None else self.target.cls_token_id)

    @property
    def end_id(self) -> int:
        """The token with which outputs of a joined decoder end."""
        last = self.target.eos_token_id
        return int(last if last is not None else self.target.sep_token_id)


class ConditionalGeneration(Task):
    """Base of tasks that answer a text with a text.

    A subclass gives ``card`` (with the options of :func:`conditional_options`) and ``demo_rows``, and overrides what
    differs of :meth:`source_text`, :meth:`target_texts`, :meth:`prompt` and :meth:`prefix`. Its models have no new
    head, so ``card.architecture`` is ``conditional-generation``, or ``causal-lm`` for causal models only.
    """

    def source_text(self, row: Row, context: TaskContext) -> str:
        """Return the text to answer; by default the first input column.

        Raises:
            DataError: the row has none; the number of the row is put before the message.
        """
        text: str = row[self.card.inputs[0].role]
        return text

    def target_texts(self, row: Row, context: TaskContext) -> list[str]:
        """Return the right answers, of which the first is trained on; by default the first target column."""
        value = row[self.card.targets[0].role]
        return [value] if isinstance(value, str) else list(value)

    def prompt(self, row: Row, context: TaskContext) -> str | list[dict[str, str]]:
        """Return what stands before the answer for a causal model: a text as it is, or messages of a chat."""
        return self.source_text(row, context) + "\n"

    def framed(self, text: str, context: TaskContext) -> str | list[dict[str, str]] | None:
        """Return the prompt around a text that loses its end where it is too long; None where prompts lose their beginning."""
        return None

    def answered(self, row: Row) -> bool:
        """Say whether a row has a right answer, as those have that a model is trained on."""
        return any(row.get(column.role) is not None for column in self.card.targets)

    def prefix(self, context: TaskContext) -> str:
        """Return what stands before each input of a sequence-to-sequence model, as T5's ``summarize: ``."""
        return ""

    def facts(self, rows: Sequence[Row], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tokenizer of the targets as JSON, where ``target_vocabulary`` asks for one.

        Raises:
            DataError: a row has no answer, or the vocabulary is too small to hold all bytes.
        """
        context = TaskContext(facts={}, options=options, params={}, max_length=512)
        answers = [self._answers(row, number, context)[0] for number, row in enumerate(rows, 1)]
        size = int(options.get("target_vocabulary") or 0)
        return {"target_tokenizer": train_tokenizer(answers, size)} if size else {}

    def default_pipelines(self) -> Sequence[str]:
        """Return full fine-tuning and LoRA: most of these models have no new head to train alone."""
        return ("full", "lora")

    def load_processor(self, source: ModelSource, context: TaskContext) -> Tokenizers:
        """Return the tokenizers of both sides.

        Raises:
            ModelError: the files cannot be read, or the model writes no text, or does not know a language.
        """
        from transformers import AutoConfig

        with loading(source, "the configuration"):
            config = AutoConfig.from_pretrained(source.path, **source.from_pretrained_kwargs())
        tokenizer = load_tokenizer(source)
        kind = kind_of(config)
        if kind is None:
            raise ModelError(
                f"{source.path}: a model of type {config.model_type!r} writes no text; give a sequence-to-sequence "
                "model, a causal one, or an encoder"
            )
        target = tokenizer
        if kind == "joined" and context.facts.get("target_tokenizer"):
            target = _built_tokenizer(context.facts["target_tokenizer"])
        encoder, decoder = (
            (config.encoder, config.decoder) if config.model_type == "encoder-decoder" else (config, config)
        )
        _set_languages(tokenizer, context, source)
        return Tokenizers(
            kind=kind,
            model_type=config.model_type,
            source=tokenizer,
            target=target,
            positions=_positions(encoder, "max_encoder_position_embeddings", context.reserved),
            target_positions=_positions(decoder, "max_decoder_position_embeddings", context.reserved)
            if target is tokenizer
            else NEW_DECODER_POSITIONS,
            thinks=bool(context.facts.get("thinks")),
        )

    def load_model(self, source: ModelSource, context: TaskContext) -> torch.nn.Module:
        """Return the model; an encoder gets a decoder.

        Where the decoder shares the encoder's vocabulary and transformers has its architecture as a decoder, it
        starts from the encoder's weights, and only the attention between the two is new. Otherwise its layers are new.
        """
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

        with loading(source):
            config = AutoConfig.from_pretrained(source.path, **source.from_pretrained_kwargs())
            parts = (config.encoder, config.decoder) if config.model_type == "encoder-decoder" else (config,)
            for part in parts:
                set_dropout(part, context.params.get("train.dropout"))
            # AdamW over weights of 16 bits loses small steps: bases stored so are trained in 32.
            dtype: dict[str, Any] = {"dtype": torch.float32, **source.load_kwargs}
            settings = {"use_safetensors": True, **source.from_pretrained_kwargs(), **dtype}
            kind = kind_of(config)
            model: Any
            if kind == "joined" and config.model_type != "encoder-decoder":
                model = _joined(source, config, context, settings)
            else:
                auto = AutoModelForCausalLM if kind == "causal" else AutoModelForSeq2SeqLM
                model = read_weights(auto, source, config=config, **dtype)
        # Who uses the files without this class gets the texts that were measured, and not the checkpoint's style. Of one that
        # has a max_length transformers would say at each batch that it does not count.
        for name, value in {**self._generation(context), "max_length": None}.items():
            setattr(model.generation_config, name, value)
        loaded: torch.nn.Module = model
        return loaded

    def encode(self, rows: Sequence[Row], context: TaskContext) -> list[dict[str, Any]]:
        """Return ``input_ids``, ``attention_mask`` and, of rows with an answer, ``labels``, as unpadded lists.

        Labels of a causal model are as long as its inputs, and -100 where nothing is to be learned; other models have
        the tokens of the answer there.

        Raises:
            DataError: a row lacks a text, or holds something else.
        """
        return [feature for feature, _ in self._encoded(rows, context)]

    def collate(self, features: Sequence[Mapping[str, Any]], context: TaskContext) -> dict[str, torch.Tensor]:
        """Return tensors ``(batch, seq)``, labels ``(batch, target_seq)`` padded with -100.

        With the option ``packing`` rows to learn stand one behind the other in one, ``(1, tokens)``, without padding and
        without a mask: where positions begin anew, attention does too.
        """
        if context.options.get("packing") and "labels" in features[0]:
            return _packed(features)
        return self._padded_rows(features, context)

    def _padded_rows(self, features: Sequence[Mapping[str, Any]], context: TaskContext) -> dict[str, torch.Tensor]:
        import torch

        batch = _padded(features, context, side="right")
        if "labels" in features[0]:
            longest = max(len(feature["labels"]) for feature in features)
            rows = [list(feature["labels"]) for feature in features]
            batch["labels"] = torch.tensor([row + [IGNORED] * (longest - len(row)) for row in rows])
        return batch

    def length(self, feature: Mapping[str, Any]) -> int:
        """Return the tokens of both sides."""
        labels = feature.get("labels")
        # The first label of a causal model is always ignored, for nothing stands before it; its inputs hold the answer.
        separate = labels is not None and len(labels) > 0 and labels[0] != IGNORED
        return len(feature["input_ids"]) + (len(labels) if labels is not None and separate else 0)

    def loss(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor], context: TaskContext) -> torch.Tensor:
        """Return the cross-entropy, mean over the tokens of the answers, with ``train.label_smoothing``."""
        from torch.nn import functional

        logits, labels = _logits(model, batch, context.processor.kind)
        smoothing = float(context.params.get("train.label_smoothing") or 0.0)
        return functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, label_smoothing=smoothing
        )

    def predict(self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32) -> list[Prediction]:
        """Return ``{"text": str}`` for each row: the likeliest output, by greedy or by beam search."""
        if not rows:
            return []
        features = self._questions(rows, context)
        return [{"text": text} for text in self.generate(model, features, context, batch_size)]

    def outputs(self, context: TaskContext) -> Sequence[Output]:
        """Return the text."""
        return (Output("text", str, "what the model writes"),)

    def score_targets(
        self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32
    ) -> Sequence[Mapping[str, Any]] | None:
        """Return how likely the first answer of each row is, token by token after the right ones before it.

        Returns:
            ``{"log_likelihood": nats, "target_tokens": int, "target_bytes": int}`` for each row, the token that ends
            the answer among the tokens; None where the card names no metric that reads them.
        """
        import torch
        from torch.nn import functional

        if not {"perplexity", "bits_per_byte"} & set(self.card.metrics):
            return None
        model.eval()
        encoded = self._encoded(rows, context)
        features = [feature for feature, _ in encoded]
        scored: list[Mapping[str, Any]] = [{}] * len(rows)
        with torch.inference_mode():
            for chosen in _by_length([self.length(feature) for feature in features], batch_size, _width(model)):
                batch = self._padded_rows([features[i] for i in chosen], context)
                batch = {name: value.to(context.device) for name, value in batch.items()}
                logits, labels = _logits(model, batch, context.processor.kind)
                losses = functional.cross_entropy(
                    logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
                )
                counts = (labels != IGNORED).sum(1).tolist()
                for i, total, count in zip(chosen, losses.double().sum(1).tolist(), counts, strict=True):
                    size = len(encoded[i][1].encode())
                    scored[i] = {"log_likelihood": -total, "target_tokens": count, "target_bytes": size}
        return scored

    def export_settings(self, context: TaskContext) -> dict[str, Any]:
        """Return how texts are written, what is put before an input, and demo rows as the tokenizer is given them."""
        settings = self._generation(context)
        rows = [
            {column.role: row[column.role] for column in self.card.inputs if column.role in row}
            for row in self.demo_rows()
        ]
        cut: dict[str, Any]
        if self._causal(context):
            ready, prefix = [self._prompt_text(row, i, context) for i, row in enumerate(rows, 1)], ""
            cut = self._cut_of_prompts(ready[0], context)
        else:
            prefix, room = self.prefix(context), _least(context.max_length, context.processor.positions)
            ready = [prefix + self._source(row, i, context) for i, row in enumerate(rows, 1)]
            cut = {"max_length": room, "truncation_side": context.processor.source.truncation_side}
        # As _padded() says it.
        sees_all = {"global_attention": "first token"} if context.processor.model_type == "led" else {}
        return {
            **cut,
            **sees_all,
            "prefix": prefix,
            # All of them, for the base model that an adapter is put onto has a style of its own.
            "generation": {
                name: value for name, value in settings.items() if name not in SAMPLING and value is not None
            },
            "example_texts": ready,
        }

    def reference(self, row: Row, context: TaskContext) -> Any:
        """Return all right answers."""
        return self.target_texts(row, context)

    def details(self, rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext) -> Sequence[Detail]:
        """Return the first rows with what the model made of them."""
        lines = tuple(
            (
                shortened(self.source_text(row, context)),
                shortened(self.target_texts(row, context)[0]),
                shortened(said["text"]),
            )
            for row, said in zip(rows[:SHOWN_EXAMPLES], predictions, strict=False)
        )
        return (Examples("Inputs and outputs", ("input", "reference", "output"), lines),)

    def generate(
        self,
        model: Any,
        features: Sequence[Mapping[str, Any]],
        context: TaskContext,
        batch_size: int = 32,
        **settings: Any,
    ) -> list[str]:
        """Return what the model writes after each of the inputs.

        Args:
            model: in any of the three kinds.
            features: ``input_ids`` and ``attention_mask`` of each row, without the answer.
            context: with the processor and the options.
            batch_size: rows that are generated together.
            settings: of :class:`transformers.GenerationConfig`, over the defaults of this class.
        """
        import torch
        from transformers import GenerationConfig

        processor: Tokenizers = context.processor
        model.eval()
        plain = GenerationConfig(**{**self._generation(context), **settings})
        texts = [""] * len(features)
        with torch.inference_mode():
            for chosen in _by_length([len(feature["input_ids"]) for feature in features], batch_size):
                batch = _padded(
                    [features[i] for i in chosen], context, side="left" if self._causal(context) else "right"
                )
                batch = {name: value.to(context.device) for name, value in batch.items()}
                written = model.generate(**batch, generation_config=plain)
                if self._causal(context):
                    written = written[:, batch["input_ids"].shape[1] :]
                for i, ids in zip(chosen, written.tolist(), strict=True):
                    texts[i] = processor.target.decode(ids, skip_special_tokens=True).strip()
        return texts

    def pieces(self, row: Row, number: int, context: TaskContext) -> list[Piece]:
        """Return what a causal model is trained on: the prompt, and the answer with its end."""
        processor: Tokenizers = context.processor
        answer, *_ = self._answers(row, number, context)
        prompt = self.prompt(row, context)
        if isinstance(prompt, str):
            end = processor.source.eos_token or ""
            return [Piece(_opened(processor, prompt), False), Piece(answer + end, True)]
        messages = [*prompt, {"role": "assistant", "content": answer}]
        return conversation(processor.source, messages, processor.chat_end, every=False, thinks=processor.thinks)

    def prompt_room(self, context: TaskContext) -> int:
        """Return how many tokens of a prompt a causal model reads, such that there is room to answer."""
        positions: int | None = context.processor.positions
        if positions is None:
            return context.max_length
        return min(context.max_length, positions - min(self._new_tokens(context), positions // 2))

    def room_within(
        self, around: str | Sequence[Mapping[str, str]], context: TaskContext, row: Row | None = None
    ) -> int:
        """Return how many tokens of a text a causal model reads in its prompt, such that there is room to answer.

        Args:
            around: the prompt, as :meth:`prompt` returns it, without the text.
            context: with the processor.
            row: that is asked. One with an answer, as for training, needs room for this.
        """
        processor: Tokenizers = context.processor
        whole = _least(context.max_length, processor.positions)
        asked = around if isinstance(around, str) else prompt_text(processor.source, around, thinks=processor.thinks)
        texts = [asked, *(self.target_texts(row, context)[:1] if row is not None and self.answered(row) else [])]
        prompt, *answers = map(len, processor.source(texts, add_special_tokens=False).input_ids)
        # The answer stands behind the prompt, within the same length.
        answer = min(max([self._new_tokens(context), *answers]), whole // 2)
        return max(1, whole - prompt - answer - SEAMS)

    def beginning(self, text: str, room: int, context: TaskContext) -> str:
        """Return as much of the beginning of a text as so many tokens hold."""
        # A token stands for a byte at least.
        if len(text.encode()) <= room:
            return text
        ids = context.processor.source(text, add_special_tokens=False).input_ids
        if len(ids) <= room:
            return text
        part: str = context.processor.source.decode(ids[:room], skip_special_tokens=True)
        return part

    def _cut_of_prompts(self, prompt: str, context: TaskContext) -> dict[str, int]:
        """Return how many tokens of a prompt a causal model reads, and how many of them are its last ones.

        Args:
            prompt: any.
            context: with the processor.
        """
        processor: Tokenizers = context.processor
        framed = self.framed(_MARK, context)
        if framed is None:
            room = self.prompt_room(context)
            # As _end() does.
            first = processor.source(prompt, add_special_tokens=False).input_ids[:1]
            return {"max_length": room, "last_tokens": room - (room > 1 and first == [processor.source.bos_token_id])}
        plain = isinstance(framed, str)
        whole = processor.opening + framed if plain else prompt_text(processor.source, framed, thinks=processor.thinks)
        before, _, after = whole.rpartition(_MARK)
        first, last = map(len, processor.source([before, after], add_special_tokens=False).input_ids)
        around: Any = self.framed("", context)
        return {"max_length": first + self.room_within(around, context) + last, "last_tokens": max(1, last)}

    def _causal(self, context: TaskContext) -> bool:
        return bool(context.processor.kind == "causal")

    def _answers(self, row: Row, number: int, context: TaskContext) -> list[str]:
        answers = self.target_texts(row, context) if self.answered(row) else []
        if not answers or not all(isinstance(answer, str) for answer in answers) or not answers[0].strip():
            role = self.card.targets[0].role
            raise DataError(f"row {number}: {role!r} has to be a text, given {row.get(role)!r:.60}")
        return answers

    def _source(self, row: Row, number: int, context: TaskContext) -> str:
        try:
            text: Any = self.source_text(row, context)
        except KeyError:
            text = None
        except DataError as error:
            told = str(error)
            raise DataError(told if told.startswith("row ") else f"row {number}: {told}") from error
        if not isinstance(text, str):
            given = "nothing" if text is None else f"{type(text).__name__} {text!r:.60}"
            raise DataError(f"row {number}: {self.card.inputs[0].role!r} has to be a text, given {given}")
        return text

    def _encoded(self, rows: Sequence[Row], context: TaskContext) -> list[tuple[dict[str, Any], str]]:
        """Return the features of each row, and the text that its labels stand for."""
        for number, row in enumerate(rows, 1):
            self._source(row, number, context)
        answered = [self.answered(row) for row in rows]
        if self._causal(context):
            return self._encoded_causal(rows, answered, context)
        encoded: list[tuple[dict[str, Any], str]] = [(feature, "") for feature in self._questions(rows, context)]
        answers = {i: self._answers(row, i + 1, context)[0] for i, row in enumerate(rows) if answered[i]}
        labels = self._target_ids(list(answers.values()), context)
        for (i, answer), ids in zip(answers.items(), labels, strict=True):
            longest = _least(context.max_length, context.processor.target_positions)
            kept = ids[:longest]
            text = answer if len(ids) <= longest else context.processor.target.decode(kept, skip_special_tokens=True)
            encoded[i] = ({**encoded[i][0], "labels": kept}, text)
        return encoded

    def _target_ids(self, answers: Sequence[str], context: TaskContext) -> list[list[int]]:
        processor: Tokenizers = context.processor
        if not answers:
            return []
        if processor.kind == "joined":
            # The start token is the decoder's first input, and no label.
            ids = processor.target(list(answers), add_special_tokens=False).input_ids
            return [[*row, processor.end_id] for row in ids]
        found: list[list[int]] = processor.target(text_target=list(answers)).input_ids
        return found

    def _questions(self, rows: Sequence[Row], context: TaskContext) -> list[dict[str, Any]]:
        """Return the features of the inputs alone."""
        if not rows:
            return []
        processor: Tokenizers = context.processor
        if not self._causal(context):
            longest = _least(context.max_length, processor.positions)
            prefix = self.prefix(context)
            texts = [prefix + self._source(row, number, context) for number, row in enumerate(rows, 1)]
            batch = processor.source(texts, truncation=True, max_length=longest)
            return [
                {"input_ids": ids, "attention_mask": mask}
                for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
            ]
        prompts = [self._prompt_text(row, number, context) for number, row in enumerate(rows, 1)]
        # The oldest part of a prompt goes where it leaves no room to answer.
        room, first = self.prompt_room(context), processor.source.bos_token_id
        kept = [_end(ids, room, first) for ids in processor.source(prompts, add_special_tokens=False).input_ids]
        return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in kept]

    def _prompt_text(self, row: Row, number: int, context: TaskContext) -> str:
        self._source(row, number, context)
        prompt = self.prompt(row, context)
        processor: Tokenizers = context.processor
        if isinstance(prompt, str):
            return _opened(processor, prompt)
        return prompt_text(processor.source, prompt, thinks=processor.thinks)

    def _encoded_causal(
        self, rows: Sequence[Row], answered: Sequence[bool], context: TaskContext
    ) -> list[tuple[dict[str, Any], str]]:
        tokenizer = context.processor.source
        longest = _least(context.max_length, context.processor.positions)
        pieces = {i: self.pieces(row, i + 1, context) for i, row in enumerate(rows) if answered[i]}
        ids = context.processor.ids([[piece.text for piece in row] for row in pieces.values()])
        tokens = (piece for row in ids for piece in row)
        questions = iter(self._questions([row for i, row in enumerate(rows) if i not in pieces], context))
        encoded: list[tuple[dict[str, Any], str]] = []
        for i in range(len(rows)):
            if i not in pieces:
                encoded.append((next(questions), ""))
                continue
            parts = [(next(tokens), piece.learned) for piece in pieces[i]]
            feature, whole = _cut(parts, longest, tokenizer.bos_token_id)
            ends = (context.processor.chat_end, tokenizer.eos_token or "")
            learned = [piece.text for piece in pieces[i] if piece.learned]
            text = "".join(next((t.removesuffix(end) for end in ends if end and t.endswith(end)), t) for t in learned)
            if not whole:
                text = tokenizer.decode(
                    [label for label in feature["labels"] if label != IGNORED], skip_special_tokens=True
                )
            encoded.append((feature, text))
        return encoded

    def _new_tokens(self, context: TaskContext) -> int:
        return int(context.options.get("max_new_tokens") or 128)

    def _generation(self, context: TaskContext) -> dict[str, Any]:
        """Return the settings of a deterministic search; what a checkpoint says of its style is left out."""
        processor: Tokenizers = context.processor
        settings: dict[str, Any] = {
            "max_new_tokens": self._new_tokens(context),
            "num_beams": int(context.options.get("num_beams") or 1),
            "do_sample": False,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
            "min_length": 0,
            "early_stopping": False,
            "length_penalty": 1.0,
            "repetition_penalty": 1.0,
            "no_repeat_ngram_size": 0,
            "pad_token_id": processor.target.pad_token_id,
        }
        if processor.target_positions is not None:
            # Of a causal model the prompt has at least half of the places.
            most = processor.target_positions // 2 if processor.kind == "causal" else processor.target_positions - 1
            settings["max_new_tokens"] = min(settings["max_new_tokens"], most)
        if processor.kind == "joined":
            settings |= {"decoder_start_token_id": processor.start_id, "eos_token_id": processor.end_id}
        elif processor.kind == "causal":
            ends = {processor.source.eos_token_id, processor.source.convert_tokens_to_ids(processor.chat_end)}
            settings["eos_token_id"] = sorted(end for end in ends if end is not None)
        else:
            settings |= _forced_language(processor.target, context)
        return settings


def train_tokenizer(texts: Sequence[str], size: int) -> str:
    """Return a byte-level BPE tokenizer of some texts, as JSON of the library tokenizers.

    It can write every text, whatever the script (Sennrich et al. 2016; bytes as in Radford et al. 2019).

    Args:
        texts: to find frequent pieces in.
        size: tokens of the vocabulary, at most.

    Raises:
        DataError: the size leaves no room for all bytes.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    if size < SMALLEST_VOCABULARY:
        raise DataError(
            f"task_options.target_vocabulary: {size} leaves no room beside the 256 bytes; give 0 for the vocabulary "
            f"of the encoder, or at least {SMALLEST_VOCABULARY}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def _built_tokenizer(content: str) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(content),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def _joined(source: ModelSource, config: Any, context: TaskContext, settings: Mapping[str, Any]) -> Any:
    """Return an encoder and a decoder as one model."""
    from transformers import AutoModel, EncoderDecoderModel

    processor: Tokenizers = context.processor
    encoder = AutoModel.from_pretrained(source.path, config=config, **settings)
    layers = int(context.options.get("decoder_layers") or 0) or config.num_hidden_layers
    # A quantized base is the encoder alone: the new layers of a decoder have to be trained in full.
    dense = {name: value for name, value in settings.items() if name not in source.load_kwargs or name == "dtype"}
    decoder = _decoder(source, config, encoder, context, layers, dense)
    model: Any = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    model.config.decoder_start_token_id = processor.start_id
    model.config.pad_token_id = processor.target.pad_token_id
    return model


def _decoder(
    source: ModelSource,
    config: Any,
    encoder: Any,
    context: TaskContext,
    layers: int,
    settings: Mapping[str, Any],
) -> Any:
    from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    processor: Tokenizers = context.processor
    shared = processor.target is processor.source
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if shared and known is not None and "encoder_hidden_states" in inspect.signature(known.forward).parameters:
        own = copy.deepcopy(config)
        own.is_decoder, own.add_cross_attention, own.num_hidden_layers = True, True, layers
        return AutoModelForCausalLM.from_pretrained(source.path, config=own, **settings)
    fresh = BertConfig(
        vocab_size=len(processor.target),
        hidden_size=config.hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=4 * config.hidden_size,
        max_position_embeddings=NEW_DECODER_POSITIONS,
        type_vocab_size=1,
        is_decoder=True,
        add_cross_attention=True,
        pad_token_id=processor.target.pad_token_id,
        bos_token_id=processor.start_id,
        eos_token_id=processor.end_id,
    )
    set_dropout(fresh, context.params.get("train.dropout"))
    decoder = BertLMHeadModel(fresh)
    words = encoder.get_input_embeddings().weight.data
    own_words = decoder.get_input_embeddings().weight.data
    if shared and words.shape == own_words.shape:
        own_words.copy_(words)
    return decoder


def _positions(config: Any, name: str, reserved: int) -> int | None:
    value = getattr(config, name, None) or getattr(config, "max_position_embeddings", None)
    if not isinstance(value, int) or value <= 0:
        return None
    return (value - 2 if config.model_type in OFFSET_POSITIONS else value) - reserved


def _set_languages(tokenizer: Any, context: TaskContext, source: ModelSource) -> None:
    for option, attribute in (("source_language", "src_lang"), ("target_language", "tgt_lang")):
        code = context.options.get(option)
        if code is None or not hasattr(tokenizer, attribute):
            continue
        known = _language_ids(tokenizer)
        if code not in known:
            near = closest(str(code), known)
            hint = f"; did you mean {near!r}?" if near else ""
            raise ModelError(f"{source.path}: task_options.{option}: the model knows no language {code!r}{hint}")
        setattr(tokenizer, attribute, code)


def _language_ids(tokenizer: Any) -> dict[str, int]:
    """Return the token of each language: by its code, or by that of M2M100, whose token is ``__en__``."""
    tokens = [str(token) for token in tokenizer.added_tokens_decoder.values()] + list(tokenizer.all_special_tokens)
    return {
        token.strip("_") if token.startswith("__") else token: tokenizer.convert_tokens_to_ids(token)
        for token in tokens
    }


def _forced_language(tokenizer: Any, context: TaskContext) -> dict[str, int]:
    """Return how a model is told the language to write in: by the token that its targets begin or end with."""
    code = context.options.get("target_language")
    if code is None or not hasattr(tokenizer, "tgt_lang"):
        return {}
    language = _language_ids(tokenizer)[str(code)]
    ids = tokenizer(text_target="").input_ids
    return {"forced_bos_token_id": language} if ids and ids[0] == language else {"decoder_start_token_id": language}


def _opened(processor: Tokenizers, text: str) -> str:
    """Return a text as a causal model reads it first."""
    return processor.opening + text or processor.start


def _end(ids: list[int], room: int, first: int | None) -> list[int]:
    """Return the last of so many tokens, behind the one that begins every text, where that is ``first``.

    Models that were pretrained with it attend to it whatever they read, and are lost without (Xiao et al. 2024, arXiv
    2309.17453).
    """
    if len(ids) <= room:
        return ids
    start = ids[:1] if room > 1 and ids[0] == first else []
    return start + ids[len(ids) - room + len(start) :]


def _cut(
    parts: Sequence[tuple[list[int], bool]], longest: int, first: int | None = None
) -> tuple[dict[str, Any], bool]:
    """Return one training row of at most ``longest`` tokens, and whether nothing was cut.

    The prompt loses its beginning, down to half of the room; what is still too much goes from the end.
    """
    total = sum(len(ids) for ids, _ in parts)
    parts = list(parts)
    if total > longest and not parts[0][1]:
        lead = parts[0][0]
        parts[0] = (_end(lead, max(longest - (total - len(lead)), min(len(lead), longest // 2)), first), False)
    input_ids = [token for ids, _ in parts for token in ids][:longest]
    labels = [token if learned else IGNORED for ids, learned in parts for token in ids][:longest]
    labels[:1] = [IGNORED]
    return {"input_ids": input_ids, "attention_mask": [1] * len(input_ids), "labels": labels}, total <= longest


def _padded(features: Sequence[Mapping[str, Any]], context: TaskContext, side: str) -> dict[str, torch.Tensor]:
    import torch

    processor: Tokenizers = context.processor
    inputs = [{name: list(feature[name]) for name in ("input_ids", "attention_mask")} for feature in features]
    batch = dict(processor.source.pad(inputs, padding_side=side, return_tensors="pt"))
    if processor.model_type == "led":
        # Without a token that sees all others, LED sees windows only (Beltagy et al. 2020, section 4).
        batch["global_attention_mask"] = torch.zeros_like(batch["input_ids"])
        batch["global_attention_mask"][:, 0] = 1
    return batch


def _packed(features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    from transformers import DataCollatorWithFlattening

    rows = [{name: list(feature[name]) for name in ("input_ids", "labels")} for feature in features]
    return {**DataCollatorWithFlattening(separator_id=IGNORED)(rows, return_tensors="pt")}


def keeps_packed_rows_apart(model: Any) -> bool:
    """Say whether a causal model reads packed rows as it reads each alone; it is asked, for names tell little.

    Models with a memory that positions do not reset, as Mamba, or that make their mask themselves, do not.
    """
    import torch

    rows = [{"input_ids": row, "labels": row} for row in ([5, 6, 7, 8, 9], [9, 8, 7, 6])]
    device = model.get_input_embeddings().weight.device
    training = model.training
    model.eval()
    with torch.inference_mode():
        packed = {name: value.to(device) for name, value in _packed(rows).items() if name != "labels"}
        # Without a cache: transformers looks for several rows in one only where none came before.
        together = model(**packed, use_cache=False).logits[0]
        alone = torch.cat([model(input_ids=torch.tensor([row["input_ids"]], device=device)).logits[0] for row in rows])
    model.train(training)
    near = float(torch.finfo(together.dtype).eps) ** 0.5
    return bool((together - alone).abs().max() <= near * alone.abs().max())


def _logits(model: Any, batch: Mapping[str, torch.Tensor], kind: Kind) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits ``(batch, seq, vocabulary)`` and the labels that they predict, ``(batch, seq)``."""
    inputs: dict[str, Any] = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"]
    if kind == "causal":
        if "position_ids" in batch:
            inputs["use_cache"] = False
        first = int((labels != IGNORED).any(0).int().argmax())
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        if first and "logits_to_keep" in inspect.signature(base.forward).parameters:
            # The last position has no label; of prompts, whose logits nobody reads, only the last token's are needed.
            kept = model(**inputs, logits_to_keep=labels.shape[1] - first + 1).logits
            return kept[:, :-1], labels[:, first:]
        return model(**inputs).logits[:, :-1], labels[:, 1:]
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        shifted = model.prepare_decoder_input_ids_from_labels(labels=labels)
        return model(**inputs, decoder_input_ids=shifted).logits, labels
    # Some models, as M2M100, shift the labels inside of forward only.
    return model(**inputs, labels=labels).logits, labels


def _width(model: Any) -> int:
    """Return the logits of one token."""
    config = model.config
    return int(getattr(config, "decoder", config).vocab_size)


def _by_length(lengths: Sequence[int], batch_size: int, width: int = 0) -> Iterator[list[int]]:
    """Yield positions in batches, rows of like length together, so that little is computed on padding.

    Args:
        lengths: of each row.
        batch_size: rows of a batch at most.
        width: numbers that the model returns for a token; 0 for no limit by memory.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    start = 0
    while start < len(order):
        stop = min(start + batch_size, len(order))
        while stop - start > 1 and (stop - start) * lengths[order[stop - 1]] * width > LOGITS_AT_ONCE:
            stop -= 1
        yield order[start:stop]
        start = stop


def _least(length: int, positions: int | None) -> int:
    return length if positions is None else min(length, positions)


def shortened(text: str, *, end: bool = False) -> str:
    """Return the beginning of a long text, or its end, for a report."""
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"... {text[-SHOWN_CHARACTERS:]}" if end else f"{text[:SHOWN_CHARACTERS]} ..."
