"""From the scores of tags to what a prediction says."""

from __future__ import annotations

from typing import Any

import numpy as np

from autoft.contracts import Prediction, TaskContext
from autoft_token_classification.schemes import Transitions, read_entities
from autoft_token_classification.sentences import Sentence

__all__ = ["Decoder"]


class Decoder:
    """Chooses tags from their scores, and reads the entities that they stand for."""

    def __init__(self, context: TaskContext) -> None:
        self.labels = context.labels
        self.scheme = context.facts["scheme"]
        self.strict = bool(context.options.get("strict"))
        wanted = context.options.get("decoding") == "viterbi"
        self.transitions = Transitions.of(self.labels, self.scheme) if wanted else None

    def answer(self, sentence: Sentence, scores: np.ndarray) -> Prediction:
        """Return the prediction for a sentence.

        Args:
            sentence: its words.
            scores: log-probability of each tag for each word, ``(words, tags)``.
        """
        path = scores.argmax(-1) if self.transitions is None else self.transitions.best_path(scores)
        tags = [self.labels[i] for i in path]
        chances = np.exp(scores[np.arange(len(path)), path])
        answer: dict[str, Any] = {} if sentence.places is None else {"tokens": list(sentence.words)}
        answer |= {"tags": tags, "scores": [round(float(chance), 6) for chance in chances]}
        if self.scheme != "plain":
            answer["offsets"] = sentence.offsets
            answer["entities"] = []
            for entity in read_entities(tags, self.scheme, strict=self.strict):
                located = sentence.located(entity)
                answer["entities"].append(
                    {
                        **located._asdict(),
                        "text": sentence.excerpt(located),
                        "score": round(float(chances[entity.start : entity.end].mean()), 6),
                    }
                )
        return answer
