"""The task: texts that a causal model writes on: completions, whole texts, answers in a conversation."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autoft.contracts import (
    Baseline,
    Column,
    Detail,
    Examples,
    ModelSource,
    Option,
    Output,
    Prediction,
    Row,
    TaskCard,
    TaskContext,
)
from autoft.errors import DataError, ModelError
from autoft_generation.chat import PLAIN_TEMPLATE, Piece, checked_messages, conversation, recent
from autoft_generation.conditional import (
    SHOWN_EXAMPLES,
    ConditionalGeneration,
    Tokenizers,
    conditional_options,
    keeps_packed_rows_apart,
    shortened,
)
from autoft_generation.words import choose_tokenizer

if TYPE_CHECKING:
    import torch

__all__ = ["Generation"]

FORMS = ("messages", "completion", "text")
REASONED = "</think>"
"""What stands between reasoning and answer, in the data of those that begin with the first."""
SEAMS = 4
"""Tokens of a template around an answer."""


class Generation(ConditionalGeneration):
    """Completions of prompts, whole texts, or answers in conversations, by causal models.

    Which of the three it is, the columns say (``facts["form"]``): ``messages``, else ``completion``, else ``text``.
    """

    card = TaskCard(
        name="generation",
        summary="text that a causal model writes on: completions, whole texts, answers in a conversation",
        columns=(
            Column(
                "prompt",
                # Not of kind text: what an augmenter does to a prompt, its completion would no longer follow from.
                "prompt",
                "what stands before the completion; may be absent",
                required=False,
                guesses=("prompt", "instruction", "question", "query", "input", "context", "source"),
                looks_like="text",
            ),
            Column(
                "completion",
                "text",
                "what the model is to write",
                target=True,
                required=False,
                guesses=("completion", "response", "answer", "output", "target", "continuation", "reply"),
            ),
            Column(
                "text",
                "document",
                "a whole text to learn, instead of prompt and completion",
                required=False,
                guesses=("text", "content", "document", "story", "body", "review"),
                looks_like="text",
            ),
            Column(
                "messages",
                "messages",
                "a conversation that ends with an answer, as a list of {role, content}, instead of the others",
                required=False,
                guesses=("messages", "conversation", "conversations", "dialogue", "dialog", "chat"),
            ),
        ),
        metrics=("perplexity", "bits_per_byte", "chrf", "rouge_l", "distinct_1", "distinct_2"),
        architecture="causal-lm",
        generates=True,
        ignores=("train.class_weights", "train.loss"),
        hub_pipeline="text-generation",
        options=(
            *conditional_options(max_new_tokens=64, encoders=False),
            Option("chat", "write prompt and completion as a conversation of two turns", False, (True, False)),
            Option("learn", "which answers of a conversation are learned", "all", ("all", "last")),
            Option("packing", "train on rows one behind the other, without padding", False, (True, False)),
            Option("samples", "sampled outputs that a prediction holds beside the likeliest one", 0),
            Option("temperature", "what logits are divided by before sampling", 0.8),
            Option("top_p", "probability that the tokens to sample from have together", 0.95),
        ),
        untrained=True,
        alternatives=(("messages",), ("prompt", "completion"), ("completion",), ("text",)),
        models=(
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "HuggingFaceTB/SmolLM2-360M-Instruct",
            "Qwen/Qwen2.5-0.5B-Instruct",
        ),
    )

    def demo_rows(self) -> Sequence[Row]:
        """Return prompts about animals with completions."""
        pairs = (
            ("A dog says", " woof."),
            ("A cat says", " meow."),
            ("A cow says", " moo."),
            ("A duck says", " quack."),
            ("A sheep says", " baa."),
        )
        return [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]

    def facts(self, rows: Sequence[Row], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return in which form the rows are, what ROUGE counts of the answers, and whether these begin with reasoning.

        Raises:
            DataError: they are in none, or rows have nothing to learn from.
        """
        form = next((form for form in FORMS if any(row.get(form) is not None for row in rows)), None)
        if form is None:
            raise DataError(
                "no row has something to learn from: map a column to 'completion' (with or without 'prompt'), to "
                "'text' (whole texts) or to 'messages' (conversations), with data.columns"
            )
        faults = [fault for number, row in enumerate(rows, 1) if (fault := _fault(row, form, number))]
        if faults:
            raise DataError(f"{len(faults)} of {len(rows)} rows cannot be learned from; {faults[0]}")
        context = TaskContext({"form": form}, options, {}, 512)
        answers = [self.target_texts(row, context)[0] for row in rows]
        thinks = any(REASONED in answer for answer in answers)
        return {"form": form, "rouge_tokenizer": choose_tokenizer(answers), **({"thinks": True} if thinks else {})}

    def likeness(self, rows: Sequence[Row], options: Mapping[str, Any]) -> float:
        """Return that conversations are made for this task, and that any other text could be."""
        conversations = sum(row.get("messages") is not None for row in rows)
        asked = sum(row.get("prompt") is not None for row in rows)
        return 0.95 if 2 * conversations > len(rows) else 0.4 if 2 * asked > len(rows) else 0.2

    def load_processor(self, source: ModelSource, context: TaskContext) -> Tokenizers:
        """Return the tokenizer; one for conversations has a chat template, a plain one where none came with it.

        Raises:
            ModelError: the files cannot be read, or the model is not causal.
        """
        processor = super().load_processor(source, context)
        if processor.kind != "causal":
            raise ModelError(
                f"{source.path}: a model of type {processor.model_type!r} is no causal language model, which generation "
                "needs, as GPT-2, Llama, Qwen and SmolLM are; other tasks take encoders and sequence-to-sequence models"
            )
        if processor.source.chat_template is None and _chats(context):
            processor.source.chat_template = PLAIN_TEMPLATE
        return processor

    def load_model(self, source: ModelSource, context: TaskContext) -> torch.nn.Module:
        """Return the model.

        Raises:
            ModelError: it cannot be loaded, or rows are to be packed and it does not keep them apart.
        """
        model = super().load_model(source, context)
        if context.options.get("packing") and not keeps_packed_rows_apart(model):
            raise ModelError(
                f"{source.path}: task_options.packing: a model of type {model.config.model_type!r} does not keep packed "
                "rows apart; leave the option out, rows are batched by length then"
            )
        return model

    def source_text(self, row: Row, context: TaskContext) -> str:
        """Return what stands before the answer, of a conversation the last message; empty where nothing does.

        Raises:
            DataError: it is no text, or no conversation.
        """
        if row.get("messages") is not None:
            asked = _asked(row)
            return asked[-1]["content"] if asked else ""
        role = "text" if row.get("prompt") is None else "prompt"
        value = row.get(role)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise DataError(f"{role!r} has to be a text, given {type(value).__name__} {value!r:.60}")
        return _halves(value)[0] if role == "text" else value

    def target_texts(self, row: Row, context: TaskContext) -> list[str]:
        """Return the completion, the last answer of a conversation, or the second half of a text."""
        if row.get("messages") is not None:
            return [checked_messages(row["messages"])[-1]["content"]]
        return [row["completion"]] if row.get("completion") is not None else [_halves(row["text"])[1]]

    def answered(self, row: Row) -> bool:
        """Say whether a row has a completion, is a whole text, or a conversation that ends with an answer."""
        if row.get("messages") is not None:
            return checked_messages(row["messages"])[-1]["role"] == "assistant"
        return row.get("completion") is not None or row.get("text") is not None

    def prompt(self, row: Row, context: TaskContext) -> str | list[dict[str, str]]:
        """Return the prompt; the last messages before the answer; or the first half of a text, by words."""
        processor: Tokenizers = context.processor
        if row.get("messages") is not None:
            return recent(_asked(row), processor.source, self.prompt_room(context), thinks=processor.thinks)
        text = self.source_text(row, context)
        if _chats(context) and text:
            return [{"role": "user", "content": text}]
        # Whole texts begin with a token of their own in training.
        whole = context.facts.get("form") == "text" and not processor.opening
        return processor.start + text if whole else text

    def pieces(self, row: Row, number: int, context: TaskContext) -> list[Piece]:
        """Return the prompt and the completion; a whole text; or a conversation with its answers marked."""
        processor: Tokenizers = context.processor
        if row.get("messages") is not None:
            messages = self._shortened(checked_messages(row["messages"], f"row {number}"), context)
            every = context.options.get("learn", "all") == "all"
            return conversation(processor.source, messages, processor.chat_end, every=every, thinks=processor.thinks)
        if row.get("completion") is not None:
            return super().pieces(row, number, context)
        return [Piece(processor.start, False), Piece(row["text"] + (processor.source.eos_token or ""), True)]

    def predict(self, model: Any, rows: Sequence[Row], context: TaskContext, batch_size: int = 32) -> list[Prediction]:
        """Return ``{"text"}`` for each row, and ``samples``, a list of texts, where the option asks for any.

        Samples are seeded by the prompt: they depend neither on other rows nor on what was sampled before.
        """
        predictions = super().predict(model, rows, context, batch_size)
        count = int(context.options.get("samples") or 0)
        if not count:
            return predictions
        features = self._questions(rows, context)
        return [
            {**prediction, "samples": self._samples(model, feature, count, context)}
            for prediction, feature in zip(predictions, features, strict=True)
        ]

    def inputs(self, context: TaskContext) -> Sequence[Column]:
        """Return the prompt and the messages, first what the model was trained on: a whole text is for training only."""
        roles = ("messages", "prompt") if context.facts.get("form") == "messages" else ("prompt", "messages")
        return tuple(self.card.column(role) for role in roles)

    def outputs(self, context: TaskContext) -> Sequence[Output]:
        """Return the text, and the samples where the option asks for any."""
        found = tuple(super().outputs(context))
        if not int(context.options.get("samples") or 0):
            return found
        return (*found, Output("samples", list[str], "sampled outputs beside the likeliest one"))

    def baselines(self, rows: Sequence[Row], context: TaskContext) -> Sequence[Baseline]:
        """Return the prompt once more, and the most frequent answer, where answers are no halves of texts."""
        repeat = Baseline(
            "repeat of the prompt",
            lambda given: [{"text": self.source_text(row, context).strip()} for row in given],
        )
        if context.facts["form"] == "text":
            return (repeat,)
        counts = Counter(self.target_texts(row, context)[0].strip() for row in rows)
        top: Prediction = {"text": min(counts, key=lambda text: (-counts[text], text))}
        return (Baseline("most frequent answer", lambda given: [top for _ in given], trivial=True), repeat)

    def details(self, rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext) -> Sequence[Detail]:
        """Return prompts with outputs and samples, and the references that the model expects least."""
        count = max((len(entry.get("samples", ())) for entry in predictions), default=0)
        lines = tuple(
            (
                shortened(self.source_text(row, context), end=True),
                shortened(self.target_texts(row, context)[0]),
                shortened(entry["text"]),
                *map(shortened, entry.get("samples", ())),
            )
            for row, entry in zip(rows[:SHOWN_EXAMPLES], predictions, strict=False)
        )
        columns = ("prompt", "reference", "output", *(f"sample {i}" for i in range(1, count + 1)))
        found = [Examples("Prompts and outputs", columns, lines)]
        if predictions and "log_likelihood" in predictions[0]:
            found.append(self._least_expected(rows, predictions, context))
        return found

    def _shortened(self, messages: list[dict[str, str]], context: TaskContext) -> list[dict[str, str]]:
        """Return a conversation without the old turns that there is no room for, as a prediction reads it too."""
        *before, answer = messages
        longest = min(context.max_length, context.processor.positions or context.max_length)
        rest = longest - len(context.processor.source(answer["content"], add_special_tokens=False).input_ids) - SEAMS
        processor: Tokenizers = context.processor
        return [*recent(before, processor.source, max(rest, longest // 2), thinks=processor.thinks), answer]

    def _least_expected(self, rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext) -> Examples:
        nats = [-entry["log_likelihood"] / entry["target_tokens"] for entry in predictions]
        order = sorted(range(len(rows)), key=lambda i: -nats[i])[:10]
        lines = tuple(
            (
                shortened(self.source_text(rows[i], context), end=True),
                shortened(self.target_texts(rows[i], context)[0]),
                round(nats[i], 3),
            )
            for i in order
        )
        return Examples("References that the model expects least", ("prompt", "reference", "nats a token"), lines)

    def _samples(self, model: Any, feature: Mapping[str, Any], count: int, context: TaskContext) -> list[str]:
        import torch

        settings = {
            "do_sample": True,
            "num_beams": 1,
            "temperature": float(context.options.get("temperature") or 1.0),
            "top_p": float(context.options.get("top_p") or 1.0),
            "top_k": 0,
        }
        devices = [torch.cuda.current_device()] if context.device == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(zlib.crc32(repr(feature["input_ids"]).encode()))
            return self.generate(model, [feature] * count, context, count, **settings)


def _chats(context: TaskContext) -> bool:
    return context.facts.get("form") == "messages" or bool(context.options.get("chat"))


def _fault(row: Row, form: str, number: int) -> str | None:
    """Return what a training row lacks, or None."""
    if form == "messages":
        try:
            messages = checked_messages(row.get("messages"), f"row {number}")
        except DataError as error:
            return str(error)
        if messages[-1]["role"] != "assistant":
            return (
                f"row {number}: the last message has the role {messages[-1]['role']!r}, and has to be the assistant's"
            )
        return None if len(messages) > 1 else f"row {number}: nothing stands before the assistant's answer"
    prompt = row.get("prompt")
    if form == "completion" and prompt is not None and not isinstance(prompt, str):
        return f"row {number}: 'prompt' has to be a text, given {type(prompt).__name__} {prompt!r:.60}"
    if form == "completion" and prompt is None and row.get("text") is not None:
        return (
            f"row {number}: 'text' stands beside 'completion', and is for whole texts; if it is what the completion "
            "answers, map its column to 'prompt', with data.columns"
        )
    value = row.get(form)
    if not isinstance(value, str) or not value.strip():
        beside = f" (its prompt: {prompt!r:.60})" if prompt is not None else ""
        return f"row {number}: {form!r} has to be a text, given {value!r:.60}{beside}"
    return None


def _asked(row: Row) -> list[dict[str, str]]:
    """Return the messages before the answer that a conversation ends with, if it ends with one."""
    messages = checked_messages(row["messages"])
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _halves(text: str) -> tuple[str, str]:
    """Return both halves of a text, by words, or by characters where it is one word."""
    words = re.findall(r"\s*\S+\s*\Z|\s*\S+", text)
    if len(words) < 2:
        middle = len(text.rstrip()) // 2
        return text[:middle], text[middle:]
    return "".join(words[: len(words) // 2]), "".join(words[len(words) // 2 :])
