from __future__ import annotations

import importlib.util

import pytest
from autoft_translation.languages import (
    bleu_tokenizer,
    language_name,
    model_code,
    plain_language,
    script_language,
    unspaced,
)

from autoft.errors import DataError, ModelError

NLLB = [
    "arb_Arab",
    "deu_Latn",
    "eng_Latn",
    "fra_Latn",
    "jpn_Jpan",
    "kor_Hang",
    "lvs_Latn",
    "pes_Arab",
    "srp_Cyrl",
    "swh_Latn",
    "zho_Hans",
    "zho_Hant",
]
MBART = ["ar_AR", "de_DE", "en_XX", "fr_XX", "ja_XX", "ko_KR", "zh_CN"]
M2M100 = ["ar", "de", "en", "fr", "ja", "ko", "lb", "zh"]


@pytest.mark.parametrize(
    ("code", "nllb", "mbart", "m2m100"),
    [
        ("de", "deu_Latn", "de_DE", "de"),
        ("en-GB", "eng_Latn", "en_XX", "en"),
        ("zh", "zho_Hans", "zh_CN", "zh"),
        ("ko", "kor_Hang", "ko_KR", "ko"),
        ("ar", "arb_Arab", "ar_AR", "ar"),
        ("fra_Latn", "fra_Latn", "fr_XX", "fr"),
        ("ja_XX", "jpn_Jpan", "ja_XX", "ja"),
    ],
)
def test_a_language_has_the_code_that_each_model_gives_it(code, nllb, mbart, m2m100):
    assert model_code(code, NLLB, "target_language") == nllb
    assert model_code(code, MBART, "target_language") == mbart
    assert model_code(code, M2M100, "target_language") == m2m100


def test_scripts_and_standard_languages_are_told_apart():
    assert model_code("zh-TW", NLLB, "x") == "zho_Hant"
    assert model_code("fa", NLLB, "x") == "pes_Arab"
    assert model_code("lv", NLLB, "x") == "lvs_Latn"
    assert model_code("sw", NLLB, "x") == "swh_Latn"
    assert model_code("zh-HK", NLLB, "x") == "zho_Hant"
    assert model_code("zh-SG", NLLB, "x") == "zho_Hans"
    assert model_code("sr", ["srp_Latn", "srp_Cyrl"], "x") == "srp_Cyrl"
    # OPUS-MT writes regions like this; a code that names one is no worse for its spelling.
    assert model_code("pt-BR", ["pt", "pt_br", "pt_PT"], "x") == "pt_br"


def test_a_language_that_a_model_does_not_know_is_told_with_those_it_knows():
    with pytest.raises(
        ModelError, match=r"target_language: the model knows ar_AR, de_DE, .*; given 'fi', which is none of them"
    ):
        model_code("fi", MBART, "target_language")
    with pytest.raises(ModelError):
        model_code("lb", NLLB, "target_language")


@pytest.mark.parametrize("code", ["German", "und", "", "en de"])
def test_what_is_no_language_code_is_told(code):
    with pytest.raises(
        DataError, match=rf"task_options.language: allowed are codes of languages, as de, .*; given '{code}'"
    ):
        plain_language(code)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("de", "German"),
        ("zho_Hans", "Chinese"),
        ("cmn", "Chinese"),
        ("yue_Hant", "Cantonese"),
        ("en_XX", "English"),
        ("nb", "Norwegian"),
        ("ht", "Haitian Creole"),
    ],
)
def test_languages_have_english_names(code, name):
    assert language_name(code) == name


def test_a_language_without_a_known_name_keeps_its_code():
    assert language_name("ace") == "ace"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ein Haus am Meer.", None),
        ("Дом у моря", None),
        ("海边的房子 (house)", "zh"),
        ("海辺の家", "ja"),
        ("바닷가의 집", "ko"),
        ("บ้านริมทะเล", "th"),
        ("一 2021", "zh"),
        ("2021", None),
        ("", None),
    ],
)
def test_the_script_of_texts_tells_how_they_are_cut(text, expected):
    assert script_language([text]) == expected


def test_each_language_is_cut_by_what_sacrebleu_offers_for_it():
    expected = {"de": "13a", None: "13a", "zh": "zh", "cmn": "zh", "yue": "zh", "th": "char"}
    assert {language: bleu_tokenizer(language) for language in expected} == expected
    there = importlib.util.find_spec("MeCab") and importlib.util.find_spec("ipadic")
    assert bleu_tokenizer("ja") == ("ja-mecab" if there else "char")
    assert [unspaced(language) for language in ("zh", "ja", "th", "ko", "de", None)] == [True] * 3 + [False] * 3
