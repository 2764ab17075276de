"""Metrics of captions: CIDEr-D, BLEU-4, chrF, ROUGE-L and perplexity.

A prediction is ``{"caption": text}``, with ``log_likelihood`` and ``tokens`` where the model has scored the target; a
reference is a list of texts. As in the evaluation of COCO captions, case does not count, and neither does punctuation
but for chrF.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import zip_longest
from typing import Any, ClassVar, Literal

import numpy as np

from autoft.contracts import Prediction, QualityMetric, TaskContext
from autoft_image_captioning.cider import cider_d

__all__ = ["METRICS", "Bleu", "CaptionPerplexity", "Chrf", "Cider", "RougeL", "caption_tokens"]

# What the PTBTokenizer wrapper of pycocoevalcap leaves out.
PUNCTUATION = frozenset({"''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"})
ABBREVIATIONS = frozenset({"dr", "ft", "jr", "mr", "mrs", "ms", "mt", "prof", "sr", "st", "vs"})
QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-"})
# Scripts that put no space between words count by character, as in the evaluation of Chinese captions.
UNSPACED = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


@lru_cache(maxsize=65536)
def caption_tokens(text: str) -> tuple[str, ...]:
    """Return the words of a caption as the evaluation of COCO captions counts them: lower case, no punctuation.

    The rules are those of the Penn Treebank (``isn't`` is ``is n't``, ``dog's`` is ``dog 's``) by nltk, as the Stanford
    tokenizer that pycocoevalcap runs needs Java.
    """
    from nltk.tokenize.treebank import TreebankWordTokenizer

    spaced = UNSPACED.sub(r" \1 ", text.lower().translate(QUOTES))
    words = []
    for token in TreebankWordTokenizer().tokenize(spaced):
        stem = token.rstrip(".")
        # nltk splits the last full stop only; one inside ends a sentence unless it belongs to the word.
        word = stem if stem and "." not in stem and stem not in ABBREVIATIONS else token
        if word not in PUNCTUATION:
            words.append(word)
    return tuple(words)


Words = tuple[str, ...]


def _words(predictions: Sequence[Prediction], references: Sequence[Any]) -> tuple[list[Words], list[list[Words]]]:
    """Return the words of captions and references."""
    said = [caption_tokens(prediction["caption"]) for prediction in predictions]
    return said, [[caption_tokens(text) for text in row] for row in references]


def _spoken(predictions: Sequence[Prediction], references: Sequence[Any]) -> tuple[list[str], list[list[str]]]:
    """Return captions and references as words joined by spaces."""
    said, true = _words(predictions, references)
    return [" ".join(words) for words in said], [[" ".join(words) for words in row] for row in true]


class Cider(QualityMetric):
    """CIDEr-D, as ``Cider`` of pycocoevalcap; papers show it times 100 (Vedantam et al. 2015, arXiv:1411.5726)."""

    name = "cider"
    summary = "CIDEr-D: shared n-grams, rare ones weighing more; 0 to 10"

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return the mean over rows; NaN without any."""
        if not predictions:
            return float("nan")
        return float(cider_d(*_words(predictions, references)).mean())

    def resampled(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext, counts: np.ndarray
    ) -> np.ndarray:
        """Return the means ``(resamples,)``, each with the document frequencies of the rows that were drawn."""
        scores = cider_d(*_words(predictions, references), counts)
        return np.asarray((scores * counts).sum(1) / counts.sum(1))


class RougeL(QualityMetric):
    """F1 over the longest common subsequence of words (Lin 2004), of the reference that fits best, by rouge-score."""

    name = "caption_rouge_l"
    summary = "ROUGE-L of the reference that fits best, mean over rows; 0 to 1"

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return the mean over rows; NaN without any."""
        if not predictions:
            return float("nan")
        return float(self.statistics(predictions, references, context)[:, 0].mean())

    def statistics(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
    ) -> np.ndarray:
        """Return the best F1 and a one of each row, ``(rows, 2)``."""
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rougeL"], tokenizer=_Words())
        said, true = _spoken(predictions, references)
        best = [scorer.score_multi(row, text)["rougeL"].fmeasure for text, row in zip(said, true, strict=True)]
        return np.stack([best, np.ones(len(best))], axis=1)

    def aggregate(self, sums: np.ndarray) -> np.ndarray:
        """Return the means, ``(resamples,)``."""
        return np.asarray(sums[:, 0] / sums[:, 1])


class _Words:
    """What rouge-score asks of a tokenizer; its own drops every letter outside of ASCII."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text that was split before."""
        return text.split()


class _Sacre(QualityMetric):
    """A corpus metric of sacrebleu: counts of matches add up over rows."""

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return the figure of the corpus, 0 to 100; NaN without rows."""
        if not predictions:
            return float("nan")
        return float(self.aggregate(self.statistics(predictions, references, context).sum(0, keepdims=True))[0])

    def statistics(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
    ) -> np.ndarray:
        """Return sacrebleu's counts of each row, ``(rows, k)``."""
        said, true = self.texts(predictions, references)
        # sacrebleu takes the first references of all rows, then the second ones; rows with fewer have None.
        columns = [list(column) for column in zip_longest(*true)]
        return np.asarray(self.scorer()._extract_corpus_statistics(said, columns), dtype=np.float64)

    def aggregate(self, sums: np.ndarray) -> np.ndarray:
        """Return the figures, ``(resamples,)``."""
        scorer = self.scorer()
        return np.asarray([scorer._compute_score_from_stats(row).score for row in sums.round().astype(int).tolist()])

    def scorer(self) -> Any:
        """Return sacrebleu's object."""
        raise NotImplementedError

    def texts(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> tuple[list[str], list[list[str]]]:
        """Return what it compares."""
        return _spoken(predictions, references)


class Bleu(_Sacre):
    """BLEU-4 (Papineni et al. 2002) of the corpus with all references, by sacrebleu over the words of CIDEr-D."""

    name = "caption_bleu"
    summary = "BLEU-4 of the corpus, all references; 0 to 100"

    def scorer(self) -> Any:
        """Return ``sacrebleu.BLEU`` without a tokenizer of its own."""
        from sacrebleu.metrics import BLEU

        return BLEU(tokenize="none", force=True)


class Chrf(_Sacre):
    """chrF (Popović 2015): F2 of character n-grams, of the reference that fits best, by sacrebleu without case."""

    name = "caption_chrf"
    summary = "chrF of the corpus, the best reference of each row; 0 to 100"

    def scorer(self) -> Any:
        """Return ``sacrebleu.CHRF``."""
        from sacrebleu.metrics import CHRF

        return CHRF(lowercase=True)

    def texts(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> tuple[list[str], list[list[str]]]:
        """Return the captions as they are: characters need no words."""
        return [prediction["caption"] for prediction in predictions], [list(row) for row in references]


class CaptionPerplexity(QualityMetric):
    """Perplexity of the first reference under the model, over its own tokens and the end.

    Tokens are those of the model's tokenizer, so that figures of models with different tokenizers do not compare.
    """

    name = "caption_perplexity"
    summary = "perplexity of the first reference, over the model's own tokens"
    higher_is_better: ClassVar[bool] = False
    uses: ClassVar[Literal["predictions", "targets"]] = "targets"
    per_token: ClassVar[bool] = True

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return the perplexity over all tokens; NaN where targets were not scored."""
        if not predictions or any("log_likelihood" not in prediction for prediction in predictions):
            return float("nan")
        return float(self.aggregate(self.statistics(predictions, references, context).sum(0, keepdims=True))[0])

    def statistics(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
    ) -> np.ndarray:
        """Return the log-likelihood and the number of tokens of each row, ``(rows, 2)``."""
        return np.asarray([[row["log_likelihood"], row["tokens"]] for row in predictions], dtype=np.float64)

    def aggregate(self, sums: np.ndarray) -> np.ndarray:
        """Return the perplexities, ``(resamples,)``."""
        # Beyond e^700 there is no number; a model so wrong is as bad as any.
        return np.asarray(np.exp(np.minimum(-sums[:, 0] / sums[:, 1], 700.0)))


METRICS: tuple[QualityMetric, ...] = (Cider(), Bleu(), Chrf(), RougeL(), CaptionPerplexity())
