"""What ROUGE counts, by script."""

import pytest
from autoft_generation.words import choose_tokenizer, tokenizer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Für die Straße, 3.5 km", ["für", "die", "straße", "3", "5", "km"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("中文abc テスト", ["中", "文", "abc", "テ", "ス", "ト"]),
        ("Cafe\u0301", ["caf\u00e9"]),
    ],
)
def test_tokens_of_any_script_are_words_or_characters_where_words_are_not_spaced(text, expected):
    assert tokenizer("unicode").tokenize(text) == expected


def test_the_ascii_tokenizer_is_that_of_rouge_and_its_stemmer_is_porters():
    assert tokenizer("ascii").tokenize("The mice's 2 tails") == ["the", "mice", "s", "2", "tails"]
    assert tokenizer("ascii", stemmer=True).tokenize("running ponies") == ["run", "poni"]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["The café of José reopened on Monday", "“Quoted” – and so on" * 40], "ascii"),
        (["Die Straße über den Fluss ist für Fußgänger gesperrt"], "unicode"),
        (["他来了"], "unicode"),
        (["123"], "ascii"),
    ],
)
def test_what_is_counted_depends_on_the_letters(texts, expected):
    assert choose_tokenizer(texts) == expected
