"""The task: a short text for a long one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from autoft_generation.conditional import ConditionalGeneration, conditional_options
from autoft_generation.words import TOKENIZERS, choose_tokenizer, tokenizer

from autoft.contracts import (
    Baseline,
    Column,
    Detail,
    Examples,
    Option,
    Prediction,
    Row,
    Table,
    TaskCard,
    TaskContext,
)
from autoft_summarization.baselines import Lead, TextRank
from autoft_summarization.metrics import METRICS, manner, rouge_tokenizer
from autoft_summarization.texts import document_text

__all__ = ["Summarization"]

GENERATION = ("min_new_tokens", "length_penalty", "no_repeat_ngram_size")
"""Options that are settings of :class:`transformers.GenerationConfig` by the same name."""
SHORTEST_SUMMARY, SHORTEST_DOCUMENT = 12, 80
"""Characters that most summaries and most documents have at least, where rows are guessed to be such."""
SHOWN = 15
SHOWN_CHARACTERS = 600
LENGTH_GROUPS = 4


class Summarization(ConditionalGeneration):
    """Summaries of news, dialogues, papers and other documents, against one or several references."""

    card = TaskCard(
        name="summarization",
        summary="a short text that says what a document, a dialogue or a paper is about",
        columns=(
            Column(
                "document",
                # Not `text`: a dialogue may be a list of turns, and the references of a row a list.
                "texts",
                "the document, or the turns of a dialogue",
                guesses=(
                    "document",
                    "article",
                    "dialogue",
                    "text",
                    "source",
                    "content",
                    "body",
                    "story",
                    "transcript",
                    "messages",
                    "input",
                ),
            ),
            Column(
                "summary",
                "texts",
                "the summary, or a list of such of which each is right; the first is trained on",
                target=True,
                guesses=("summary", "summaries", "highlights", "abstract", "target", "tldr", "headline", "output"),
            ),
        ),
        metrics=tuple(metric.name for metric in METRICS),
        architecture="conditional-generation",
        generates=True,
        models=("google-t5/t5-small", "facebook/bart-base", "facebook/bart-large"),
        options=(
            *conditional_options(max_new_tokens=128),
            Option("min_new_tokens", "tokens before which no output ends", 0),
            Option("length_penalty", "above 0 favours long outputs, below 0 short ones; with more than one beam", 1.0),
            Option("no_repeat_ngram_size", "length of token runs that an output has once only; 0: no such limit", 0),
            Option(
                "instruction",
                "what a model with a chat template is asked for, above the document; {words} is the usual number of "
                "words of a summary; empty: it is not asked, and continues the document after TL;DR: as others do",
                "Summarize the following text in about {words} words.",
            ),
            Option(
                "rouge_tokenizer",
                "what ROUGE counts: ascii is that of the literature; unicode has words of any script, and characters "
                "where a script has no spaces; auto looks at the summaries",
                "auto",
                ("auto", *TOKENIZERS),
            ),
            Option("stemmer", "ROUGE compares stems of English words (Porter); with ascii only", False, (False, True)),
        ),
        ignores=("train.class_weights", "train.loss"),
        untrained=True,
    )

    def demo_rows(self) -> Sequence[Row]:
        """Return short documents, one of them a dialogue, one with two references."""
        return (
            {
                "document": "The bridge over the river Aller was closed on Tuesday. Engineers had found cracks in two "
                "of its pillars. Repairs will take until the autumn, the town said.",
                "summary": "The Aller bridge is closed until autumn because of cracks in its pillars.",
            },
            {
                "document": "Ann: Are you coming to the rehearsal tonight?\nBen: I have a cold, sorry.\n"
                "Ann: Then I will ask Carla to play your part.",
                "summary": "Ben is ill and misses the rehearsal; Ann asks Carla to replace him.",
            },
            {
                "document": "Trees beside streets lower the temperature of the air. We measured it at forty places in "
                "three cities over two summers. Rows of old trees cool most, by up to two degrees.",
                "summary": ["Old street trees cool the air by up to two degrees.", "Street trees cool three cities."],
            },
            {
                "document": "The library opens an hour later from Monday. It lacks staff for the early shift. Books "
                "can still be returned at any time through the flap beside the door.",
                "summary": "The library opens later for lack of staff.",
            },
        )

    def likeness(self, rows: Sequence[Row], options: Mapping[str, Any]) -> float:
        """Return how much rows look like documents with summaries: long ones with something much shorter."""
        context = TaskContext({}, options, {}, 512)
        lengths = [(len(self.source_text(row, context)), len(self.target_texts(row, context)[0])) for row in rows]
        document, share = median(one for one, _ in lengths), median(two / max(1, one) for one, two in lengths)
        if median(two for _, two in lengths) < SHORTEST_SUMMARY or document < SHORTEST_DOCUMENT or share > 0.8:
            return 0.05
        return 0.7 if share < 0.5 else 0.3

    def facts(self, rows: Sequence[Row], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return what ROUGE counts and how long summaries are, beside what the base says.

        Returns:
            ``rouge_tokenizer``, one of :data:`~autoft_generation.words.TOKENIZERS`; ``summary_words``, the median
            over first references.

        Raises:
            DataError: a row lacks a document or a summary.
        """
        found = super().facts(rows, options)
        for number, row in enumerate(rows, 1):
            document_text(row.get("document"), f"row {number}: 'document'")
        summaries = [self.target_texts(row, TaskContext({}, options, {}, 512))[0] for row in rows]
        wanted = str(options.get("rouge_tokenizer", "auto"))
        cut = tokenizer("unicode")
        return {
            **found,
            "rouge_tokenizer": choose_tokenizer(summaries) if wanted == "auto" else wanted,
            "summary_words": max(1, round(median(len(cut.tokenize(summary)) for summary in summaries))),
        }

    def source_text(self, row: Row, context: TaskContext) -> str:
        """Return the document; a dialogue with a turn a line.

        Raises:
            DataError: there is none.
        """
        return document_text(row.get("document"), "'document'")

    def target_texts(self, row: Row, context: TaskContext) -> list[str]:
        """Return the references, blank ones left out."""
        value = row["summary"]
        return [text for text in value if text] if isinstance(value, list | tuple) else [value]

    def prefix(self, context: TaskContext) -> str:
        """Return what T5 was trained to read before a document (Raffel et al. 2020); nothing for other models."""
        return "summarize: " if context.processor.model_type == "t5" else ""

    def prompt(self, row: Row, context: TaskContext) -> str | list[dict[str, str]]:
        """Return the request of a chat, or the document and ``TL;DR:`` (Radford et al. 2019) where there is none.

        A document that is too long loses its end, not its beginning or the request.
        """
        return self.framed(self.beginning(self.source_text(row, context), self._room(context, row), context), context)

    def framed(self, text: str, context: TaskContext) -> str | list[dict[str, str]]:
        """Return the request of a chat and a document, or the document and ``TL;DR:``."""
        instruction = str(context.options.get("instruction") or "")
        if not instruction or not context.processor.source.chat_template:
            return f"{text}\n\nTL;DR:\n"
        words = str(context.facts.get("summary_words", 50))
        return [{"role": "user", "content": f"{instruction.replace('{words}', words)}\n\n{text}"}]

    def baselines(self, rows: Sequence[Row], context: TaskContext) -> Sequence[Baseline]:
        """Return the first and the most central sentences, each about as long as a reference of the training rows."""
        cut = rouge_tokenizer(context)
        target = median(len(cut.tokenize(self.target_texts(row, context)[0])) for row in rows)
        central = TextRank([self.source_text(row, context) for row in rows], target, cut)

        def predict(given: Sequence[Row], summarize: Lead | TextRank) -> list[Prediction]:
            return [{"text": text} for text in summarize([self.source_text(row, context) for row in given])]

        return (
            Baseline("lead", lambda given: predict(given, Lead(target, cut)), trivial=True),
            Baseline("TextRank", lambda given: predict(given, central)),
        )

    def details(self, rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext) -> Sequence[Detail]:
        """Return figures by length of the document, how summaries are written, and summaries from worst to best."""
        documents = [self.source_text(row, context) for row in rows]
        references = [self.target_texts(row, context) for row in rows]
        return (
            self._by_length(documents, references, predictions, context),
            _written(documents, references, predictions, context),
            _ranked(documents, references, predictions, context),
        )

    def _generation(self, context: TaskContext) -> dict[str, Any]:
        """Return the settings, with the lengths that the options ask for."""
        settings = super()._generation(context)
        own = {name: context.options[name] for name in GENERATION if context.options.get(name) is not None}
        if settings["num_beams"] == 1:
            # It would do nothing, and transformers writes no file that says such a thing.
            own.pop("length_penalty", None)
        return {**settings, **own}

    def _room(self, context: TaskContext, row: Row | None = None) -> int:
        """Return how many tokens of a document the model reads, beside the summary that a row for training has."""
        processor = context.processor
        if processor.kind == "causal":
            return self.room_within(self.framed("", context), context, row)
        whole = min(context.max_length, processor.positions or context.max_length)
        return max(1, whole - len(processor.source(self.prefix(context)).input_ids))

    def _by_length(
        self,
        documents: Sequence[str],
        references: Sequence[Sequence[str]],
        predictions: Sequence[Prediction],
        context: TaskContext,
    ) -> Table:
        """Return figures for documents of about the same length: as many in each group as in the others."""
        cut, room = rouge_tokenizer(context), self._room(context)
        lengths = [len(cut.tokenize(document)) for document in documents]
        whole = [
            len(ids) <= room for ids in context.processor.source(list(documents), add_special_tokens=False).input_ids
        ]
        order = sorted(range(len(documents)), key=lengths.__getitem__)
        groups = min(LENGTH_GROUPS, len(order))
        lines = []
        for group in range(groups):
            chosen = order[group * len(order) // groups : (group + 1) * len(order) // groups]
            said, true = [predictions[i] for i in chosen], [references[i] for i in chosen]
            lines.append(
                (
                    f"{lengths[chosen[0]]} to {lengths[chosen[-1]]}",
                    len(chosen),
                    fmean(whole[i] for i in chosen),
                    *(metric.score(said, true, context) for metric in METRICS),
                )
            )
        names = tuple(metric.name for metric in METRICS)
        return Table("By words of the document", ("words", "rows", "share read whole", *names), tuple(lines))


def _written(
    documents: Sequence[str],
    references: Sequence[Sequence[str]],
    predictions: Sequence[Prediction],
    context: TaskContext,
) -> Table:
    cut = rouge_tokenizer(context)
    said = manner([prediction["text"] for prediction in predictions], documents, cut)
    several = [(text, document) for texts, document in zip(references, documents, strict=True) for text in texts]
    true = manner([text for text, _ in several], [document for _, document in several], cut)
    ratio = said.words / true.words if true.words else None
    return Table(
        "How summaries are written",
        ("", "words", "sentences", "length over that of the references", "new words", "new word pairs"),
        (
            ("model", said.words, said.sentences, ratio, *said.novel),
            ("references", true.words, true.sentences, 1.0, *true.novel),
        ),
    )


def _ranked(
    documents: Sequence[str],
    references: Sequence[Sequence[str]],
    predictions: Sequence[Prediction],
    context: TaskContext,
) -> Examples:
    objective = METRICS[0]
    figures = [objective.score([said], [true], context) for said, true in zip(predictions, references, strict=True)]
    order = sorted(range(len(figures)), key=figures.__getitem__)
    count = min(SHOWN, len(order))
    # From the worst to the best in equal steps, so that a page shows what is usual too.
    chosen = [order[round(i * (len(order) - 1) / max(count - 1, 1))] for i in range(count)]
    lines = tuple(
        (_short(documents[i]), _short(" | ".join(references[i])), _short(predictions[i]["text"]), round(figures[i], 3))
        for i in chosen
    )
    title = "Summaries from the worst to the best, in equal steps"
    return Examples(title, ("document", "reference", "summary", objective.name), lines)


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " ..."
