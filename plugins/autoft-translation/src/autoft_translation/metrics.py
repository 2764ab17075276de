"""BLEU, chrF++ and TER by sacrebleu; their bootstrap statistics are the counts that sacrebleu sums too.

A prediction is ``{"text": str}``, a reference a text or a list of texts. How words are cut comes from the facts of the
translation task (``bleu_tokenizer``, ``unspaced``); without them, as in other tasks, sacrebleu's defaults hold.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from autoft_generation.metrics import Chrf, texts_of

from autoft.contracts import Prediction, QualityMetric, TaskContext

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU, TER
    from sacrebleu.metrics.base import Metric

__all__ = ["METRICS", "Bleu", "SacreBleuMetric", "Ter", "signatures"]

BLEU_ORDER = 4


class SacreBleuMetric(QualityMetric):
    """A metric of sacrebleu."""

    @abstractmethod
    def scorer(self, context: TaskContext) -> Metric:
        """Return sacrebleu's object for the language of the context."""

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext) -> float:
        """Return sacrebleu's corpus score, 0 to 100 and above for TER; NaN without rows."""
        if not len(references):
            return float("nan")
        scorer = self.scorer(context)
        return float(scorer.corpus_score([str(said["text"]) for said in predictions], _streams(references)).score)


class Bleu(SacreBleuMetric):
    """BLEU of the corpus (Papineni et al. 2002), up to 4-grams, of mixed case."""

    name = "bleu"
    summary = "BLEU by sacrebleu, cut into words as the target language asks (0 to 100)"

    def scorer(self, context: TaskContext) -> BLEU:
        """Return ``sacrebleu.metrics.BLEU`` with the tokenizer of the target language."""
        return _bleu(context.facts.get("bleu_tokenizer", "13a"), False)

    def statistics(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
    ) -> np.ndarray:
        """Return lengths of output and closest reference, then matched and all n-grams of each order, ``(rows, 10)``."""
        # Of single sentences only the counts are taken, which effective_order does not touch: it silences a warning.
        scorer = _bleu(context.facts.get("bleu_tokenizer", "13a"), True)
        rows = []
        for said, reference in zip(predictions, references, strict=True):
            found = scorer.sentence_score(str(said["text"]), texts_of(reference))
            rows.append([found.sys_len, found.ref_len, *found.counts, *found.totals])
        return np.asarray(rows, dtype=np.float64).reshape(len(rows), 2 + 2 * BLEU_ORDER)

    def aggregate(self, sums: np.ndarray) -> np.ndarray:
        """Return ``BLEU.compute_bleu`` of the sums, ``(resamples,)``."""
        from sacrebleu.metrics import BLEU

        figures = []
        for sys_len, ref_len, *counts in np.rint(sums).astype(np.int64).tolist():
            found = BLEU.compute_bleu(counts[:BLEU_ORDER], counts[BLEU_ORDER:], sys_len, ref_len, smooth_method="exp")
            figures.append(found.score)
        return np.asarray(figures)


class Ter(SacreBleuMetric):
    """Translation edit rate (Snover et al. 2006): edits and shifts over words of the reference; below is better.

    Languages without spaces are cut into characters (``normalized`` and ``asian_support`` of sacrebleu).
    """

    name = "ter"
    summary = "translation edit rate by sacrebleu: edits for each 100 words of the reference"
    higher_is_better = False

    def scorer(self, context: TaskContext) -> TER:
        """Return ``sacrebleu.metrics.TER``."""
        return _ter(bool(context.facts.get("unspaced", False)))

    def statistics(
        self, predictions: Sequence[Prediction], references: Sequence[Any], context: TaskContext
    ) -> np.ndarray:
        """Return edits to the nearest reference and the mean length of the references, ``(rows, 2)``."""
        scorer = self.scorer(context)
        rows = []
        for said, reference in zip(predictions, references, strict=True):
            found = scorer.sentence_score(str(said["text"]), texts_of(reference))
            rows.append([found.num_edits, found.ref_length])
        return np.asarray(rows, dtype=np.float64).reshape(len(rows), 2)

    def aggregate(self, sums: np.ndarray) -> np.ndarray:
        """Return 100 edits over words, ``(resamples,)``; edits of empty references alone make 100."""
        edits, words = sums[:, 0], sums[:, 1]
        return np.asarray(100 * np.divide(edits, words, out=(edits > 0).astype(np.float64), where=words > 0))


METRICS: tuple[QualityMetric, ...] = (Bleu(), Chrf("chrfpp", word_order=2), Ter())


def signatures(references: Sequence[Any], context: TaskContext) -> dict[str, str]:
    """Return sacrebleu's signature of each metric, which belongs to every published figure (Post 2018)."""
    from sacrebleu.metrics import CHRF

    scorers: dict[str, Metric] = {
        "chrf": CHRF(),
        "bleu": Bleu().scorer(context),
        "chrfpp": CHRF(word_order=2),
        "ter": Ter().scorer(context),
    }
    texts = [texts_of(reference) for reference in references]
    counts = {len(row) for row in texts}
    found = {}
    for name, scorer in scorers.items():
        # A scorer learns the number of references by scoring; -1 stands for rows with different numbers.
        scorer.sentence_score(texts[0][0], texts[0])
        scorer.num_refs = len(texts[0]) if len(counts) == 1 else -1
        found[name] = str(scorer.get_signature())
    return found


@lru_cache(maxsize=8)
def _bleu(tokenizer: str, single: bool) -> BLEU:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=tokenizer, effective_order=single, force=True)


@lru_cache(maxsize=2)
def _ter(characters: bool) -> TER:
    from sacrebleu.metrics import TER

    return TER(normalized=characters, asian_support=characters)


def _streams(references: Sequence[Any]) -> list[list[str | None]]:
    """Return one list for each reference of a row, None where a row has fewer: sacrebleu's form."""
    rows = [texts_of(reference) for reference in references]
    return [[row[i] if i < len(row) else None for row in rows] for i in range(max(map(len, rows)))]
