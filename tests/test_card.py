"""What stands beside a model: its card in words."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from autoft.card import library_licenses, stated_license, templates
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


def test_a_text_is_no_html_no_link_and_one_cell():
    show = templates().from_string("{{ text | cell }}{% if code %}{{ code | python }}{% endif %}").render
    assert show(text="<img src=x onerror=a>\x1b[2J", code="") == "&lt;img src=x onerror=a>[2J"
    assert show(text="[a](javascript:b)", code="") == "[a]\\(javascript:b)"
    assert show(text="mit |\n# Title", code="<b>") == "mit \\| # Title'<b>'"


def card(length: float, threads: int) -> str:
    costs = {"model_size_bytes": 1e6, "latency_p50_ms": 2.0, "latency_p95_ms": 3.0, "inference_memory_bytes": 1e8}
    plan = SimpleNamespace(
        name="captions",
        task="generation",
        metrics={"perplexity": {"higher_is_better": False}},
        request={"batch_size": 1},
        threads=threads,
        processes=1,
        device="cpu",
        hardware={"cpu": "a processor"},
        data={"sizes": {"train": 3, "validation": 2, "test": 1}, "source": "hub://me/films", "license": "cc-by-4.0"},
    )
    return (
        templates()
        .get_template("model_card.md.j2")
        .render(
            front="",
            plan=plan,
            selection=SimpleNamespace(variant="none", trial=0, reason="it is"),
            result=SimpleNamespace(config=SimpleNamespace(pipeline="full", seed=0, kind="default")),
            final=SimpleNamespace(
                test={"best": {"perplexity": DEFINED, "other": DEFINED}},
                costs={"best": {**costs, "request_length": length}},
                example="a",
            ),
            members=[],
            notice="",
            operating_point={},
            bytes=str,
            trained_from="m",
            params={},
            base_license="mit",
            libraries=[("torch", "2.13.0", "BSD-3-Clause"), ("autoft", "0.1.0", "")],
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


def test_the_card_says_what_the_model_is_made_of():
    text = card(27.0, 1)
    assert "| weights before training | `m` | mit |" in text
    assert "| data | `hub://me/films` | cc-by-4.0 |" in text
    assert "| torch | 2.13.0 | BSD-3-Clause |\n| autoft | 0.1.0 | not stated |" in text


def test_licences_of_libraries_are_those_that_their_metadata_state():
    import peft
    import transformers

    known = {"python": "3.11", "transformers": transformers.__version__, "peft": peft.__version__, "no-such": "1"}
    found = {name: stated for name, _, stated in library_licenses(known)}
    assert found["python"] == "PSF-2.0"
    assert "Apache" in found["transformers"]
    assert "Apache" in found["peft"]
    assert found["no-such"] == ""
    assert all("\n" not in stated for stated in found.values())


@pytest.mark.parametrize(
    ("head", "stated"),
    [
        ("license: cc-by-4.0\n", "cc-by-4.0"),
        ("license:\n- mit\n- cc0-1.0\n", "mit, cc0-1.0"),
        ("pretty_name: Films\n", None),
        ("license: [\n", None),
        ("a: &a [1, 2]\nb: &b [*a, *a]\nlicense: " + "[" * 2000 + "*b" + "]" * 2000 + "\n", None),
        (
            "a0: &a0 [x]\n"
            + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
            + "license: *a8\n",
            None,
        ),
    ],
)
def test_the_licence_of_a_card_is_that_of_its_head(tmp_path, head, stated):
    (tmp_path / "README.md").write_text(f"---\n{head}---\n# Films\n")
    assert stated_license(tmp_path / "README.md") == stated
