"""Each metric against sacrebleu's corpus scores, and its bootstrap statistics against resampled rows."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import sacrebleu
from autoft_generation.metrics import Chrf
from autoft_translation.metrics import METRICS, signatures

from autoft.contracts import TaskContext
from autoft.evaluation import bootstrap_interval

ALL = (Chrf(), *METRICS)
BY_NAME = {metric.name: metric for metric in ALL}
GERMAN = [
    "der",
    "die",
    "das",
    "Haus",
    "Hund",
    "(läuft)",
    "schnell,",
    "langsam.",
    "„nicht“",
    "über-morgen",
    "3,5",
    "12:30",
    "Straße!",
    "&",
    "ja?",
    "a",
    "I",
]
CHINESE = [*list("我你他的是不了在有这中大来上国，。？！"), "2021", "km", "A"]


CASES = 400
"""Random corpora for each metric, a quarter of them in each of the settings below."""


def context(**facts):
    return TaskContext(facts=facts, options={}, params={}, max_length=8)


SETTINGS = {
    "german": (context(bleu_tokenizer="13a", unspaced=False), GERMAN, " "),
    "chinese": (context(bleu_tokenizer="zh", unspaced=True), CHINESE, ""),
    "characters": (context(bleu_tokenizer="char", unspaced=True), CHINESE, ""),
    "unknown": (context(), GERMAN, " "),
}


def direct(name, here, outputs, references):
    """The figure by sacrebleu, from texts and lists of references of any length."""
    tokenizer = here.facts.get("bleu_tokenizer", "13a")
    unspaced = here.facts.get("unspaced", False)
    most = max(len(row) for row in references)
    streams = [[row[i] if i < len(row) else None for row in references] for i in range(most)]
    scored = {
        "bleu": lambda: sacrebleu.corpus_bleu(outputs, streams, tokenize=tokenizer, force=True),
        "chrf": lambda: sacrebleu.corpus_chrf(outputs, streams),
        "chrfpp": lambda: sacrebleu.corpus_chrf(outputs, streams, word_order=2),
        "ter": lambda: sacrebleu.corpus_ter(outputs, streams, normalized=unspaced, asian_support=unspaced),
    }
    return scored[name]().score


def corpus(rng, words, joint):
    """Rows of an output and one to three references that share words with it; some of them empty."""
    rows = []
    for _ in range(rng.randint(1, 8)):
        text = rng.choices(words, k=rng.choice([0, 1, 2, 5, 9]))
        references = []
        for _ in range(rng.choice([1, 1, 2, 3])):
            other = [word for word in text if rng.random() < 0.8] + rng.choices(words, k=rng.choice([0, 1, 3]))
            if rng.random() < 0.3:
                rng.shuffle(other)
            references.append(joint.join(other))
        rows.append((joint.join(text), references))
    return rows


@pytest.mark.parametrize("name", list(BY_NAME))
def test_scores_are_those_of_sacrebleu_also_on_resampled_rows(name):
    for case in range(CASES):
        rng = random.Random(case)
        here, words, joint = SETTINGS[list(SETTINGS)[case % len(SETTINGS)]]
        rows = corpus(rng, words, joint)
        predictions = [{"text": text} for text, _ in rows]
        references = [list(texts) if len(texts) > 1 or case % 2 else texts[0] for _, texts in rows]
        found = BY_NAME[name].score(predictions, references, here)
        assert found == pytest.approx(direct(name, here, *map(list, zip(*rows, strict=True))), abs=1e-9), case

        chosen = [rng.randrange(len(rows)) for _ in rows]
        counts = np.bincount(chosen, minlength=len(rows)).astype(float)[None]
        drawn = list(zip(*[rows[i] for i in chosen], strict=True))
        (resampled,) = BY_NAME[name].resampled(predictions, references, here, counts)
        assert resampled == pytest.approx(direct(name, here, *map(list, drawn)), abs=1e-6), case


@pytest.mark.parametrize(
    ("words", "joint", "language", "tokenizer"),
    [
        (GERMAN, " ", "de", "13a"),
        (GERMAN, " ", None, "13a"),
        (CHINESE, "", "zh", "zh"),
        (CHINESE, "", "cmn_Hans", "zh"),
        (CHINESE, "", None, "zh"),
        (list("รถไฟมาสาย"), "", "th", "char"),
    ],
)
def test_a_task_is_scored_with_the_tokenizer_of_its_language(words, joint, language, tokenizer, task):
    rng = random.Random(tokenizer)
    pairs = [(joint.join(rng.choices(words, k=12)), joint.join(rng.choices(words, k=12))) for _ in range(20)]
    rows = [{"source": "a", "target": reference} for _, reference in pairs]
    options = {option.name: option.default for option in task.card.options} | {"target_language": language}
    here = TaskContext(facts=task.facts(rows, options), options=options, params={}, max_length=8)
    outputs, references = (list(side) for side in zip(*pairs, strict=True))
    predictions = [{"text": text} for text in outputs]
    wanted = sacrebleu.BLEU(tokenize=tokenizer)
    assert BY_NAME["bleu"].score(predictions, [task.reference(row, here) for row in rows], here) == pytest.approx(
        wanted.corpus_score(outputs, [references]).score, abs=1e-9
    )
    assert signatures(references, here)["bleu"] == str(wanted.get_signature())
    asian = tokenizer != "13a"
    edits = sacrebleu.TER(normalized=asian, asian_support=asian)
    assert BY_NAME["ter"].score(predictions, references, here) == pytest.approx(
        edits.corpus_score(outputs, [references]).score, abs=1e-9
    )
    assert signatures(references, here)["ter"] == str(edits.get_signature())


def test_the_interval_of_a_figure_encloses_it():
    rng = random.Random(0)
    rows = corpus(rng, GERMAN, " ") + [row for seed in range(8) for row in corpus(random.Random(seed), GERMAN, " ")]
    predictions, references = [{"text": text} for text, _ in rows], [texts for _, texts in rows]
    for metric in ALL:
        interval = bootstrap_interval(metric, predictions, references, context())
        assert interval.low < interval.value < interval.high, metric.name


def test_figures_of_no_rows_are_not_defined():
    for metric in ALL:
        assert math.isnan(metric.score([], [], context()))
        assert metric.statistics([], [], context()).shape[0] == 0


def test_the_direction_of_each_metric_is_that_of_better_translations():
    references = ["Der Hund läuft schnell nach Hause."]
    for metric in ALL:
        good, bad = (
            metric.score([{"text": text}], references, context())
            for text in ("Der Hund läuft schnell heim.", "Die Katze schläft.")
        )
        assert (good > bad) == metric.higher_is_better, metric.name


def test_signatures_name_tokenizer_and_number_of_references():
    chinese = SETTINGS["chinese"][0]
    two = signatures([["a", "b"], ["c", "d"]], chinese)
    assert all("nrefs:2|" in text for text in two.values())
    assert "tok:zh" in two["bleu"]
    assert "nw:2" in two["chrfpp"]
    assert "asian:yes" in two["ter"]
    assert all("nrefs:var|" in text for text in signatures([["a", "b"], "c"], chinese).values())
    one = signatures(["a"], context())
    version = sacrebleu.__version__
    assert one["bleu"] == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"
    assert one["chrf"] == f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"
