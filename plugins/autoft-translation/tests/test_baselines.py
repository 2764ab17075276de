from __future__ import annotations

from autoft_translation.baselines import TranslationMemory, WordByWord, words

PAIRS = [
    ("the house", "das Haus"),
    ("the book", "das Buch"),
    ("a book", "ein Buch"),
]


def test_model_1_learns_the_dictionary_of_its_textbook_example():
    # Koehn, Statistical Machine Translation (2010), figure 4.4: the three pairs from which each word becomes clear.
    known = WordByWord(*zip(*PAIRS, strict=True)).dictionary
    assert known == {"the": "das", "house": "Haus", "book": "Buch", "a": "ein"}


def test_words_are_translated_in_order_and_unknown_ones_stay():
    by_word = WordByWord([*[a for a, _ in PAIRS], "yes.", "no."], [*[b for _, b in PAIRS], "ja.", "nein."])
    assert by_word.translate(["a house.", "the Atlantic", ""]) == ["ein Haus.", "das Atlantic", ""]


def test_languages_without_spaces_are_joined_without_them():
    by_word = WordByWord(["I go", "you go", "I see"], ["我去", "你去", "我看"], spaces=False)
    assert by_word.translate(["you see"]) == ["你看"]


def test_brackets_stay_brackets():
    by_word = WordByWord(["dog (big)", "cat (small)"], ["Hund (groß)", "Katze (klein)"])
    assert by_word.translate(["(dog)"])[0][0] + by_word.translate(["(dog)"])[0][-1] == "()"


def test_nothing_to_learn_from_leaves_the_source():
    assert WordByWord([""], [""]).translate(["a dog"]) == ["a dog"]


def test_words_are_cut_as_each_script_asks():
    assert words("Don't pay 1,250.50 at 3:05 o’clock!") == ["Don't", "pay", "1,250.50", "at", "3:05", "o’clock", "!"]
    assert words("我在2021年。über-Nacht") == ["我", "在", "2021", "年", "。", "über-Nacht"]


def test_the_memory_answers_with_the_nearest_sentence():
    memory = TranslationMemory(*zip(*PAIRS, strict=True))
    assert memory.translate(["the old house", "a cookbook", "the house"]) == ["das Haus", "ein Buch", "das Haus"]
    assert memory.translate([]) == []
