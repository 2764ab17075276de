"""What stands beside a model: its card in words."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from autoft.card import templates
from autoft.rundir import Interval

DEFINED = Interval(value=0.79, low=0.7, high=0.86, n=50)


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        (0.5, "0.5000"),
        (math.nan, "not defined"),
        (DEFINED, "0.7900 (95 % interval 0.7000 to 0.8600, n = 50)"),
        (DEFINED.model_dump(), "0.7900 (95 % interval 0.7000 to 0.8600, n = 50)"),
        (Interval(value=0.5, low=math.nan, high=math.nan, n=1), "0.5000 (n = 1)"),
        (Interval(value=math.nan, low=math.nan, high=math.nan, n=7), "not defined (n = 7)"),
    ],
)
def test_a_figure_is_told_as_far_as_it_is_defined(figure, words):
    assert templates().from_string("{{ figure | figure }}").render(figure=figure) == words


def card(length: float, threads: int) -> str:
    costs = {"model_size_bytes": 1e6, "latency_p50_ms": 2.0, "latency_p95_ms": 3.0, "inference_memory_bytes": 1e8}
    plan = SimpleNamespace(
        name="captions",
        task="generation",
        metrics={"perplexity": {"higher_is_better": False}},
        request={"batch_size": 1},
        threads=threads,
        device="cpu",
        hardware={"cpu": "a processor"},
        data={"sizes": {"train": 3, "validation": 2, "test": 1}},
    )
    return (
        templates()
        .get_template("model_card.md.j2")
        .render(
            front="",
            plan=plan,
            selection=SimpleNamespace(variant="none", trial=0, reason="it is"),
            result=SimpleNamespace(
                config=SimpleNamespace(model="m", pipeline="full", seed=0, params={}, kind="default")
            ),
            final=SimpleNamespace(
                test={"best": {"perplexity": DEFINED, "other": DEFINED}},
                costs={"best": {**costs, "request_length": length}},
                example="a",
            ),
            members=[],
            notice="",
            operating_point={},
            bytes=str,
            runtime="",
            name="best",
        )
    )


def test_the_card_says_which_way_is_better_and_what_a_request_was():
    text = card(27.0, 2)
    assert text.startswith("---\n")
    assert "- test perplexity: 0.7900 (95 % interval 0.7000 to 0.8600, n = 50); lower is better\n- test other: " in text
    assert "(batch 1, about 27 tokens, 2 threads, a processor): 2.00 ms median" in text
    # A picture has no tokens; one is what its caption begins with.
    assert "(batch 1, 1 thread, a processor): 2.00 ms median" in card(1.0, 1)
