"""How alike two sentences are."""

from __future__ import annotations

from autoft.hookspecs import hookimpl
from autoft_sentence_similarity.metrics import Pearson, Spearman
from autoft_sentence_similarity.task import SentenceSimilarity

__all__ = ["autoft_metrics", "autoft_tasks"]


@hookimpl
def autoft_tasks():
    """Return the task."""
    return [SentenceSimilarity()]


@hookimpl
def autoft_metrics():
    """Return its metrics."""
    return [Spearman(), Pearson()]
