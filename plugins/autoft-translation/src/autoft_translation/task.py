"""The task: sentence pairs of two languages, in one direction."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from autoft_generation.conditional import ConditionalGeneration, Tokenizers, conditional_options, shortened
from autoft_generation.metrics import Chrf

from autoft.contracts import (
    Baseline,
    Column,
    Detail,
    Examples,
    ModelSource,
    Option,
    Prediction,
    Row,
    Table,
    TaskCard,
    TaskContext,
)
from autoft.errors import DataError, ModelError
from autoft_translation.baselines import TranslationMemory, WordByWord, words
from autoft_translation.languages import (
    bleu_tokenizer,
    has_mecab,
    language_name,
    main_script,
    model_code,
    plain_language,
    script_language,
    unspaced,
)
from autoft_translation.metrics import METRICS, Bleu, signatures

__all__ = ["Translation"]

SHOWN = 8
"""Examples of each kind in the report."""
LENGTHS = 5
"""Groups of source lengths in the report."""
SCRIPT_ROWS = 1000
"""Rows whose targets are looked at to know their script."""
CHRF, BLEU = Chrf(), Bleu()


class Translation(ConditionalGeneration):
    """Sentence pairs of two languages, in one direction."""

    card = TaskCard(
        name="translation",
        summary="a sentence in another language",
        columns=(
            Column(
                "source",
                "text",
                "the sentence to translate",
                guesses=("source", "src", "source_text", "source_sentence", "input", "text", "sentence"),
            ),
            Column(
                "target",
                "texts",
                "its translation, or a list of several",
                target=True,
                guesses=(
                    "target",
                    "tgt",
                    "translation",
                    "translations",
                    "reference",
                    "references",
                    "target_text",
                    "target_sentence",
                    "output",
                ),
            ),
        ),
        metrics=("chrf", "bleu", "chrfpp", "ter"),
        architecture="conditional-generation",
        generates=True,
        ignores=("train.class_weights", "train.loss"),
        hub_pipeline="translation",
        models=("google/mt5-small", "facebook/nllb-200-distilled-600M"),
        options=(
            *conditional_options(),
            Option("source_language", "code of the language to translate from, as en", None),
            Option("target_language", "code of the language to translate into, as de", None),
            Option(
                "bleu_tokenizer",
                "how BLEU cuts words; auto goes by the target language, or the script of the targets",
                "auto",
                ("auto", "13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"),
            ),
        ),
        untrained=True,
    )

    def demo_rows(self) -> Sequence[Row]:
        """Return English sentences with German translations, one of them with two."""
        return (
            {"source": "The train is late again.", "target": ["Der Zug hat wieder Verspätung."]},
            {"source": "Where is the station?", "target": ["Wo ist der Bahnhof?"]},
            {"source": "She reads a book.", "target": ["Sie liest ein Buch.", "Sie liest in einem Buch."]},
            {"source": "We are going home now.", "target": ["Wir gehen jetzt nach Hause."]},
        )

    def likeness(self, rows: Sequence[Row], options: Mapping[str, Any]) -> float:
        """Return how much rows look like translations: other scripts, or texts of like length that share few words."""
        context = TaskContext({}, options, {}, 512)
        pairs = [(self.source_text(row, context), self.target_texts(row, context)[0]) for row in rows]
        scripts = [main_script(texts) for texts in zip(*pairs, strict=True)]
        shares = sorted(len(target) / max(1, len(source)) for source, target in pairs)
        low, middle = shares[len(shares) // 20], shares[len(shares) // 2]
        if scripts[0] != scripts[1] and None not in scripts:
            return 0.95 if 0.1 < middle < 10 else 0.1
        alike = sum(_shared(source, target) for source, target in pairs) / len(pairs)
        return 0.85 if 0.6 < middle < 1.7 and low > 0.25 and alike < 0.35 else 0.05

    def facts(self, rows: Sequence[Row], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return how the target language is cut into words, beside what the base class learns.

        Raises:
            DataError: a row has no translation that is a text, or an option names no language, or a tokenizer that is not
                installed.
        """
        learned = super().facts(rows, options)
        for option in ("source_language", "target_language"):
            if options.get(option) is not None:
                plain_language(str(options[option]), option)
        code = options.get("target_language")
        context = TaskContext(facts={}, options=options, params={}, max_length=512)
        shown = (self.target_texts(row, context)[0] for row in rows[:SCRIPT_ROWS])
        language = plain_language(str(code), "target_language") if code else script_language(shown)
        wanted = str(options.get("bleu_tokenizer") or "auto")
        if wanted.endswith("-mecab") and not has_mecab(wanted[:2]):
            raise DataError(
                f"task_options.bleu_tokenizer: {wanted} needs MeCab, which is not installed: "
                f"pip install 'sacrebleu[{wanted[:2]}]', or give auto"
            )
        return {
            **learned,
            "bleu_tokenizer": bleu_tokenizer(language) if wanted == "auto" else wanted,
            "unspaced": unspaced(language),
        }

    def target_texts(self, row: Row, context: TaskContext) -> list[str]:
        """Return the translations, of which the first is trained on; empty ones of a list are left out."""
        value = row["target"]
        texts = list(value) if isinstance(value, list | tuple) else [value]
        if len(texts) < 2:
            return texts
        return [text for text in texts if not isinstance(text, str) or text.strip()]

    def prompt(self, row: Row, context: TaskContext) -> str | list[dict[str, str]]:
        """Return an instruction and the sentence, as a chat message where the tokenizer has a template for chats.

        A text that is too long loses its end, as it does where an encoder reads it, and not the instruction above it.
        """
        room = self.room_within(self.framed("", context), context, row)
        return self.framed(self.beginning(self.source_text(row, context), room, context), context)

    def framed(self, text: str, context: TaskContext) -> str | list[dict[str, str]]:
        """Return the instruction and a sentence."""
        names = _language_names(context)
        wanted = f"Translate this from {names[0]} to {names[1]}:" if names else "Translate this:"
        if context.processor.source.chat_template:
            return [{"role": "user", "content": f"{wanted}\n{text}"}]
        # The form that ALMA is trained on (Xu et al. 2024, arXiv 2309.11674).
        left, right = names or ("Sentence", "Translation")
        return f"{wanted}\n{left}: {text}\n{right}:\n"

    def prefix(self, context: TaskContext) -> str:
        """Return what tells the model the language: T5's ``translate English to German: ``, MADLAD-400's ``<2de> ``, Marian's ``>>deu<< ``."""
        processor: Tokenizers = context.processor
        if processor.model_type == "t5" and (written := _madlad_languages(processor.source)):
            return f"<2{_model_code(context, 'target_language', written)}> "
        if processor.model_type == "t5" and (names := _language_names(context)):
            return f"translate {names[0]} to {names[1]}: "
        known = [token[2:-2] for token in getattr(processor.source, "supported_language_codes", ())]
        return f">>{_model_code(context, 'target_language', known)}<< " if known else ""

    def load_processor(self, source: ModelSource, context: TaskContext) -> Tokenizers:
        """Return the tokenizers; those of mBART, M2M100 and NLLB are told the two languages.

        Raises:
            ModelError: the files cannot be read, or the model writes no text, or does not know a language, or has to be
                told which.
        """
        # The base class wants the model's own codes: it gets none, and the tokenizer gets them here.
        processor = super().load_processor(source, _with_languages(context, None, None))
        tokenizer = processor.source
        if known := _tokenizer_languages(tokenizer):
            tokenizer.src_lang = _model_code(context, "source_language", known)
            tokenizer.tgt_lang = _model_code(context, "target_language", known)
        # Marian and MADLAD-400 are told in each text: what is missing for that is told now.
        self.prefix(replace(context, processor=processor))
        return processor

    def baselines(self, rows: Sequence[Row], context: TaskContext) -> Sequence[Baseline]:
        """Return the source as it is, the nearest sentence of a translation memory, and word by word."""
        sources = [self.source_text(row, context) for row in rows]
        targets = [self.target_texts(row, context)[0] for row in rows]
        memory = TranslationMemory(sources, targets)
        by_word = WordByWord(sources, targets, spaces=not context.facts["unspaced"])

        def baseline(name: str, translate: Callable[[Sequence[str]], Sequence[str]], trivial: bool = False) -> Baseline:
            def predict(given: Sequence[Row]) -> list[Prediction]:
                return [{"text": text} for text in translate([self.source_text(row, context) for row in given])]

            return Baseline(name, predict, trivial)

        return (
            baseline("copy of the source", list, trivial=True),
            baseline("translation memory", memory.translate),
            baseline("word by word (IBM model 1)", by_word.translate),
        )

    def details(self, rows: Sequence[Row], predictions: Sequence[Prediction], context: TaskContext) -> Sequence[Detail]:
        """Return figures by length of the source, the best, worst and some random translations, and signatures."""
        references = [self.reference(row, context) for row in rows]
        sources = [self.source_text(row, context) for row in rows]
        figures = {metric.name: metric for metric in (CHRF, *METRICS)}
        chrf = CHRF.aggregate(CHRF.statistics(predictions, references, context))
        lines = [
            (shortened(source), shortened(" / ".join(texts)), shortened(said["text"]), round(float(figure), 1))
            for source, texts, said, figure in zip(sources, references, predictions, chrf, strict=True)
        ]
        # Of translations that are all right, the long ones are worth more.
        order = sorted(range(len(rows)), key=lambda i: (-chrf[i], -len(sources[i]), i))
        drawn = random.Random(0).sample(range(len(rows)), min(SHOWN, len(rows)))
        return (
            self._by_length(sources, predictions, references, context),
            *(
                Examples(title, ("source", "reference", "output", "chrF"), tuple(lines[i] for i in chosen))
                for title, chosen in (
                    ("Best translations", order[:SHOWN]),
                    ("Worst translations", order[: -SHOWN - 1 : -1]),
                    ("Translations drawn at random", drawn),
                )
            ),
            Table(
                "Signatures of the metrics (sacrebleu)",
                ("metric", "figure", "signature"),
                tuple(
                    (name, figures[name].score(predictions, references, context), signature)
                    for name, signature in signatures(references, context).items()
                ),
            ),
        )

    def _generation(self, context: TaskContext) -> dict[str, Any]:
        """Return the settings, those of models of several languages under the model's own codes."""
        tokenizer = context.processor.source
        if _tokenizer_languages(tokenizer):
            context = _with_languages(context, tokenizer.src_lang, tokenizer.tgt_lang)
        return super()._generation(context)

    def _by_length(
        self,
        sources: Sequence[str],
        predictions: Sequence[Prediction],
        references: Sequence[Any],
        context: TaskContext,
    ) -> Table:
        import numpy as np

        lengths = np.asarray([len(words(source)) for source in sources])
        # Groups of about as many rows each; a length is in one group only.
        bounds = (
            np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTHS + 1)[1:], method="lower")) if len(lengths) else ()
        )
        lines = []
        low = 0
        for high in bounds:
            chosen = np.flatnonzero((lengths > low) & (lengths <= high)) if low else np.flatnonzero(lengths <= high)
            part = [predictions[i] for i in chosen], [references[i] for i in chosen]
            name = f"{lengths[chosen].min()}" if lengths[chosen].min() == high else f"{lengths[chosen].min()} to {high}"
            lines.append((name, len(chosen), CHRF.score(*part, context), BLEU.score(*part, context)))
            low = int(high)
        return Table("By length of the source", ("words", "rows", "chrF", "BLEU"), tuple(lines))


def _language_names(context: TaskContext) -> tuple[str, str] | None:
    """Return the names of both languages, or None where one is not known."""
    codes = [context.options.get(option) for option in ("source_language", "target_language")]
    return (language_name(str(codes[0])), language_name(str(codes[1]))) if all(codes) else None


def _with_languages(context: TaskContext, source: str | None, target: str | None) -> TaskContext:
    return replace(context, options={**context.options, "source_language": source, "target_language": target})


def _model_code(context: TaskContext, option: str, known: Sequence[str]) -> str:
    code = context.options.get(option)
    if code is None:
        raise ModelError(f"the model has to be told the language: set task_options.{option}, as de")
    return model_code(str(code), known, f"task_options.{option}")


def _tokenizer_languages(tokenizer: Any) -> list[str]:
    """Return the codes of the languages that a tokenizer has to be told, as deu_Latn; none for most."""
    if not hasattr(tokenizer, "src_lang") or not hasattr(tokenizer, "tgt_lang"):
        return []
    tokens = dict.fromkeys([*map(str, tokenizer.added_tokens_decoder.values()), *tokenizer.all_special_tokens])
    # M2M100 writes __de__ where others write de_DE or deu_Latn.
    return [
        found[1] for token in tokens if (found := re.fullmatch(r"(?:__)?([a-z]{2,3}(?:_[A-Za-z]{2,4})?)(?:__)?", token))
    ]


@lru_cache(maxsize=4)
def _madlad_languages(tokenizer: Any) -> tuple[str, ...]:
    """Return the codes of the languages that a T5 has tokens for, to write in (Kudugunta et al. 2023, arXiv 2309.04662)."""
    found = (
        re.fullmatch(r"<2([a-z]{2,3}(?:_(?:[A-Z][a-z]{3}|[A-Z]{2}))?)>", token)
        for token in sorted(tokenizer.get_vocab())
    )
    return tuple(one[1] for one in found if one)


def _shared(source: str, target: str) -> float:
    """Return which share of the target's words the source has too."""
    known, found = set(words(source.lower())), words(target.lower())
    return sum(word in known for word in found) / max(1, len(found))
