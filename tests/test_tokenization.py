"""Patterns as in https://owasp.org/www-community/attacks/Regular_expression_Denial_of_Service_-_ReDoS."""

from __future__ import annotations

import copy
import json
import pickle
import shutil

import pytest

from autoft import tokenization
from autoft.contracts import ModelSource, Task, TaskContext
from autoft.errors import ModelError
from autoft.pretrained import load_tokenizer, loading


@pytest.fixture
def with_pattern(tiny_model, tmp_path):
    """The tiny model, before whose pre-tokenizer comes a split at a regular expression."""

    def write(pattern: str) -> ModelSource:
        folder = shutil.copytree(tiny_model, tmp_path / "model")
        definition = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        usual = definition["pre_tokenizer"]
        definition["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, usual]}
        (folder / "tokenizer.json").write_text(json.dumps(definition), encoding="utf-8")
        return ModelSource("m", str(folder))

    return write


def test_a_pattern_that_needs_exponential_time_is_told_when_the_tokenizer_is_loaded(with_pattern):
    with pytest.raises(ModelError, match=r"model: its tokenizer fails on a text \(Onig: .*retry-limit-in-match over\)"):
        load_tokenizer(with_pattern(r"(\w+\s?)+$"))


def test_so_it_is_where_a_task_leaves_the_loading_to_its_base(with_pattern):
    context = TaskContext({}, {}, {}, 64, "cpu")
    with pytest.raises(ModelError, match="its tokenizer fails on a text"):
        Task.load_processor(None, with_pattern(r"(\w+\s?)+$"), context)


def test_a_pattern_that_stays_below_the_limit_of_the_library_and_takes_long_is_told(with_pattern, monkeypatch):
    # It takes the fourth power of the length: 0.7 s for 64 characters, three minutes for 256.
    monkeypatch.setattr(tokenization, "MOST_SECONDS", 0.02)
    with pytest.raises(ModelError, match=r"its tokenizer takes .* s for a text of (32|64|128) characters"):
        load_tokenizer(with_pattern(r".*.*.*(?<=%)"))


def test_what_one_text_alone_brings_about_is_told_then(with_pattern, tmp_path):
    tokenizer = load_tokenizer(with_pattern(r"(?:z|zz)+(?<=%)"))
    assert tokenizer(["the film"])["input_ids"] == [[2, 17, 18, 3]]
    text = "z" * 60
    for call in (lambda: tokenizer([text]), lambda: tokenizer.encode(text), lambda: copy.deepcopy(tokenizer)(text)):
        with pytest.raises(ModelError, match="its tokenizer fails on a text"):
            call()
    again = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301 - written on this line
    assert again(["the film"])["input_ids"] == [[2, 17, 18, 3]]
    with pytest.raises(ModelError, match="its tokenizer fails on a text"):
        again(text)
    tokenizer.save_pretrained(tmp_path / "saved")
    written = json.loads((tmp_path / "saved/tokenizer_config.json").read_text(encoding="utf-8"))
    known = json.loads((tmp_path / "model/tokenizer_config.json").read_text(encoding="utf-8"))
    assert written["tokenizer_class"] == known["tokenizer_class"]


def test_a_panic_while_files_are_read_is_told(tiny_model):
    from tokenizers import Regex, normalizers

    source = ModelSource("m", str(tiny_model))
    with pytest.raises(ModelError, match=r"the tokenizer cannot be loaded: Onig"), loading(source, "the tokenizer"):
        normalizers.Replace(Regex(r"(a+)+$"), "b").normalize_str("a" * 40 + "!")
    with pytest.raises(KeyboardInterrupt), loading(source, "the tokenizer"):
        raise KeyboardInterrupt
