"""Augmentation of texts by words and characters, in any script and without a lexical resource.

A text is cut into words and the gaps between them (spaces, punctuation, emoji). Words move, go and come; gaps stay
where they are, so that punctuation keeps its place. In scripts without spaces (Chinese, Japanese, Thai and their
neighbours) each character counts as a word. Where a column of kind ``span`` holds places of a text (an answer,
entities), the text is changed around them and the places are counted anew; where words have tags, only words outside
of entities change.
"""

from __future__ import annotations

import functools
import json
import math
import random
import re
import unicodedata
from abc import abstractmethod
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar

from autoft.contracts import Augmenter, Column, Refusal, Row, Target, TaskCard
from autoft.space import Categorical, Float, SearchSpace
from autoft.strategies.places import UNSPACED, change_around

__all__ = [
    "CharacterNoise",
    "RandomDeletion",
    "RandomInsertion",
    "RandomReplacement",
    "RandomSwap",
    "TextAugmenter",
    "Vocabulary",
    "WordAugmenter",
    "insert_words",
    "read_tagged",
    "split_words",
    "with_words",
]

_KEYBOARD = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")
_CONFUSED = (
    ("0", "O"), ("0", "o"), ("0", "D"), ("1", "l"), ("1", "I"), ("1", "7"), ("2", "Z"), ("2", "z"), ("5", "S"),
    ("5", "s"), ("6", "b"), ("6", "G"), ("8", "B"), ("8", "S"), ("9", "g"), ("9", "q"), ("l", "I"), ("i", "l"),
    ("c", "e"), ("o", "u"), ("h", "b"), ("f", "t"), ("C", "G"), ("O", "D"), ("O", "U"), ("E", "B"), ("rn", "m"),
    ("cl", "d"), ("vv", "w"), ("ii", "u"),
)  # fmt: skip
"""What scanned print confuses, either way."""
_MAX_ROWS = 100_000
_MAX_WORDS = 50_000


class TextAugmenter(Augmenter):
    """What the augmenters of text share: they rewrite the input columns of kind ``text``, each text by itself.

    Attributes:
        by_piece: the parts of a text between the places of a span may be rewritten each by itself.
    """

    realigns: ClassVar[frozenset[str]] = frozenset({"span"})
    by_piece: ClassVar[bool] = True

    # As EDA (arXiv:1901.11196, table 3) recommends for up to 2,000 rows; .1 for more.
    space: ClassVar[SearchSpace] = {"rate": Float(0.02, 0.3, default=0.05)}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"rate": 0.05}, {"rate": 0.1})

    def check(self, target: Target) -> Refusal | None:
        """Refuse tasks with a column that a change of the text would make wrong, and tasks without text."""
        card = target.task.card
        if refusal := super().check(target):
            return refusal
        if not any(column.kind in self.rewrites for column in card.inputs):
            kinds = ", ".join(sorted(self.rewrites))
            return Refusal(f"{self.name}: rewrites columns of kind {kinds}, and {card.name} reads none")
        return None

    def breaks(self, column: Column, card: TaskCard) -> bool:
        """Say whether a change would make a column wrong: spans stay right where their text changes around them."""
        if column.kind not in self.invalidates:
            return False
        if column.kind != "span" or not column.of:
            return True
        return not self.by_piece and card.column(column.of).kind in self.rewrites

    def augment(
        self, row: Row, card: TaskCard, rng: random.Random, params: Mapping[str, Any], learned: Any = None
    ) -> Row:
        """Return a copy of the row with each text of its inputs rewritten; a text never becomes empty.

        Args:
            row: the example; absent and empty texts are left.
            card: says which columns are text.
            rng: all randomness comes from it.
            params: ``rate``, the share of words (for :class:`CharacterNoise`, of characters) to change.
            learned: as :meth:`learn` returned it; without it, words are drawn from the row itself.
        """
        changed = dict(row)
        for role in self._roles(card):
            text = row.get(role)
            if isinstance(text, str) and text:
                spans = {
                    column.role: row[column.role]
                    for column in card.columns
                    if column.of == role and row.get(column.role) is not None
                }
                if spans:
                    told = change_around(text, spans, lambda part: self.change(part, rng, params, learned), _whole)
                    changed[role], values = told or (text, spans)
                    changed.update(values)
                else:
                    changed[role] = self.change(text, rng, params, learned)
        return changed

    def change(self, text: str, rng: random.Random, params: Mapping[str, Any], learned: Any) -> str:
        """Return the changed text; :meth:`rewrite` with ``rate``, where that is all there is to know."""
        return self.rewrite(text, rng, float(params["rate"]), learned)

    @abstractmethod
    def rewrite(self, text: str, rng: random.Random, rate: float, learned: Any = None) -> str:
        """Return the changed text, of which nothing is empty unless ``text`` is."""

    def _roles(self, card: TaskCard) -> list[str]:
        return [column.role for column in card.inputs if column.kind == "text"]


class WordAugmenter(TextAugmenter):
    """One that puts one word in the place of another, so that it serves tagged words too: those tagged ``O``."""

    rewrites: ClassVar[frozenset[str]] = frozenset({"text", "tokens"})
    invalidates: ClassVar[frozenset[str]] = frozenset({"span"})

    def augment(
        self, row: Row, card: TaskCard, rng: random.Random, params: Mapping[str, Any], learned: Any = None
    ) -> Row:
        """Return a copy of the row with words replaced; of tagged words only those outside of entities.

        Args:
            row: the example; absent and empty texts are left.
            card: says which columns are text, words and tags.
            rng: all randomness comes from it.
            params: ``rate``, the share of words to replace, among others.
            learned: as :meth:`learn_from` returned it.
        """
        tagged = read_tagged(row, card)
        if tagged is None:
            # Tags that cannot be told apart by words (of a text, say) would no longer fit a changed text.
            if any(column.kind == "tags" and row.get(column.role) is not None for column in card.columns):
                return dict(row)
            return super().augment(row, card, rng, params, learned)
        words = [
            self._one_word(word, rng, params, learned) if tag == "O" else word
            for word, tag in zip(tagged.words, tagged.tags, strict=True)
        ]
        return tagged.row(words, tagged.tags)

    def _one_word(self, word: str, rng: random.Random, params: Mapping[str, Any], learned: Any) -> str:
        new = self.change(word, rng, params, learned)
        return new if len(new.split()) == 1 else word

    def rewrite(self, text: str, rng: random.Random, rate: float, learned: Any = None) -> str:
        """Return the text with ``rate`` of its words replaced, where there is a replacement."""
        words, gaps = split_words(text)
        new = [(self.replacement(word, rng, learned) or word) if rng.random() < rate else word for word in words]
        return with_words(new, gaps) if new != words else text

    def replacement(self, word: str, rng: random.Random, learned: Any) -> str | None:
        """Return what may stand for a word, or None."""
        return None


class _VocabularyAugmenter(TextAugmenter):
    """One that draws new words from the training texts."""

    def learn(self, rows: Sequence[Row], card: TaskCard) -> Vocabulary:
        """Return the vocabulary of the training rows; at most 100,000 rows, evenly spread, are read."""
        step = max(1, math.ceil(len(rows) / _MAX_ROWS))
        texts = (row.get(role) for row in rows[::step] for role in self._roles(card))
        return Vocabulary.of([text for text in texts if isinstance(text, str)])


class RandomInsertion(_VocabularyAugmenter):
    """Insert words at random places: ``max(1, rate x words)`` of them, drawn by their frequency in the training texts.

    Method: random insertion of EDA (Wei and Zou 2019, arXiv:1901.11196), which inserts WordNet synonyms of the text's
    own words. Words of the training texts stand in for synonyms here, so that every language is served.
    """

    name: ClassVar[str] = "random-insertion"
    summary: ClassVar[str] = "insert words of the training texts at random places"

    def rewrite(self, text: str, rng: random.Random, rate: float, learned: Any = None) -> str:
        """Return the text with words inserted; its own characters keep their order."""
        words, gaps = split_words(text)
        vocabulary = learned or Vocabulary.of([text])
        if not words or not vocabulary.words:
            return text
        return insert_words(words, gaps, _count(rate, words), vocabulary.draw, rng)


class RandomDeletion(TextAugmenter):
    """Delete each word with probability ``rate``; one is always left.

    Method: random deletion of EDA (Wei and Zou 2019, arXiv:1901.11196). Its authors take 0.05 for up to 2,000 rows;
    single sentences lose by it what makes them positive or negative, and 0.02 cost nothing (docs/augmentation.md).
    """

    name: ClassVar[str] = "random-deletion"
    summary: ClassVar[str] = "delete random words"
    space: ClassVar[SearchSpace] = {"rate": Float(0.005, 0.3, default=0.02)}

    def rewrite(self, text: str, rng: random.Random, rate: float, learned: Any = None) -> str:
        """Return the text with words deleted; the characters left keep their order."""
        words, gaps = split_words(text)
        kept = [rng.random() >= rate for _ in words]
        if all(kept):
            return text
        if not any(kept):
            kept[rng.randrange(len(words))] = True
        left: list[str] = []
        between = gaps[:1]
        for index, (word, keep) in enumerate(zip(words, kept, strict=True)):
            if keep:
                left.append(word)
                between.append(gaps[index + 1])
            else:
                last = index == len(words) - 1
                between[-1] = _joined_gap(between[-1], gaps[index + 1], first=not left, last=last)
        return with_words(left, between)


class RandomSwap(TextAugmenter):
    """Swap two random words, ``max(1, rate x words)`` times.

    Method: random swap of EDA (Wei and Zou 2019, arXiv:1901.11196).
    """

    name: ClassVar[str] = "random-swap"
    summary: ClassVar[str] = "swap random words"

    def rewrite(self, text: str, rng: random.Random, rate: float, learned: Any = None) -> str:
        """Return the text with words swapped; all else keeps its place."""
        words, gaps = split_words(text)
        if len(words) < 2:
            return text
        for _ in range(_count(rate, words)):
            first, second = rng.sample(range(len(words)), 2)
            words[first], words[second] = words[second], words[first]
        return with_words(words, gaps)


class RandomReplacement(_VocabularyAugmenter):
    """Replace words that say little by other words that say little; ``rate`` of the words on average.

    Method: TF-IDF word replacement of UDA (Xie et al. 2020, arXiv:1904.12848, appendix B). With C the largest TF-IDF
    of the text, a word is replaced with a probability in proportion to C - TF-IDF(word), so that keywords stay. New
    words are drawn in proportion to S - score(word), where score sums a word's TF-IDF over the training texts and S is
    the largest score, so that keywords of the corpus do not slip in.
    """

    name: ClassVar[str] = "random-replacement"
    summary: ClassVar[str] = "replace uninformative words by uninformative words of the training texts (TF-IDF)"

    def rewrite(self, text: str, rng: random.Random, rate: float, learned: Any = None) -> str:
        """Return the text with words replaced; their number and all between them stays."""
        words, gaps = split_words(text)
        vocabulary = learned or Vocabulary.of([text])
        if not words or not vocabulary.words:
            return text
        chances = vocabulary.replacement_chances(words, rate)
        new = [
            vocabulary.draw_uninformative(rng) if rng.random() < chance else word
            for word, chance in zip(words, chances, strict=True)
        ]
        return with_words(new, gaps) if new != words else text


class CharacterNoise(WordAugmenter):
    """Make errors in ``rate`` of the letters, of one ``kind``.

    ``typing``, the default: swap two, drop one, hit a neighbouring key, or hit it as well. Method: the swap and
    keyboard noise of Belinkov and Bisk 2018 (arXiv:1711.02173, section 3.2), who leave the first and last letter and
    words of three letters or fewer untouched, with the two other classes of single errors of Damerau 1964 (omission
    and insertion). Keys are those of a QWERTY keyboard; letters that it does not have are swapped or dropped. In
    scripts without spaces the same is done between neighbouring characters. Digits stay.

    ``edit``: drop, insert, replace or swap letters, new ones drawn from the word itself, so that every script is served
    (Karpukhin et al. 2019, arXiv:1902.01509, who draw from all characters). ``ocr``: letters and digits that scanned
    print confuses, as 0 and O, 1 and l, rn and m (pairs as in nlpaug's OcrAug, Ma 2019, and Nguyen et al. 2021,
    doi:10.1145/3453476, section 2). ``case``: upper case for lower and the reverse (Dhole et al. 2021, NL-Augmenter,
    arXiv:2112.02721).
    """

    space: ClassVar[SearchSpace] = {
        "rate": Float(0.01, 0.3, default=0.05),
        "kind": Categorical(("typing", "edit", "ocr", "case")),
    }
    published: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"rate": 0.1, "kind": "typing"},
        {"rate": 0.05, "kind": "edit"},
    )

    name: ClassVar[str] = "character-noise"
    summary: ClassVar[str] = "make typing, editing, scanning or case errors inside words"

    def change(self, text: str, rng: random.Random, params: Mapping[str, Any], learned: Any) -> str:
        """Return the text with errors of the kind in it; every run of letters keeps one at least."""
        rate, kind = float(params["rate"]), params.get("kind", "typing")
        if kind == "ocr":
            return _confusable().sub(lambda found: _confuse(found.group(), rng, rate), text)
        if kind == "case":
            return "".join(letter.swapcase() if rng.random() < rate else letter for letter in text)
        error = _mistype if kind == "typing" else _edit
        return _letter_runs().sub(lambda run: error(run.group(), rng, rate), text)

    def rewrite(self, text: str, rng: random.Random, rate: float, learned: Any = None) -> str:
        """Return the text with typing errors in it."""
        return self.change(text, rng, {"rate": rate}, learned)


@dataclass(frozen=True)
class Vocabulary:
    """The words of the training texts, with what it takes to draw them quickly.

    Attributes:
        words: the most frequent first, 50,000 at most.
        by_frequency: running sums of the words' counts.
        by_score: running sums of ``S - score``, as :class:`RandomReplacement` defines them.
        idf: inverse document frequency ``log(texts / texts with the word)`` of each word.
        unseen_idf: of a word that no training text has; as if one had it.
    """

    words: tuple[str, ...]
    by_frequency: tuple[int, ...]
    by_score: tuple[float, ...]
    idf: Mapping[str, float]
    unseen_idf: float

    @classmethod
    def of(cls, texts: Sequence[str]) -> Vocabulary:
        """Return the vocabulary of some texts, in one pass over them."""
        count: Counter[str] = Counter()
        documents: Counter[str] = Counter()
        frequency: defaultdict[str, float] = defaultdict(float)  # summed over texts: occurrences / words of the text
        for text in texts:
            words = _word().findall(text)
            own = Counter(words)
            count.update(own)
            documents.update(own.keys())
            for word, times in own.items():
                frequency[word] += times / len(words)
        common = count.most_common(_MAX_WORDS)
        total = max(1, len(texts))
        idf = {word: math.log(total / documents[word]) for word, _ in common}
        scores = [frequency[word] * idf[word] for word, _ in common]
        largest = max(scores, default=0.0)
        return cls(
            words=tuple(word for word, _ in common),
            by_frequency=tuple(accumulate(times for _, times in common)),
            by_score=tuple(accumulate(largest - score for score in scores)),
            idf=idf,
            unseen_idf=math.log(total),
        )

    def draw(self, rng: random.Random) -> str:
        """Return a word, as often as the training texts have it."""
        return self.words[bisect(self.by_frequency, rng.random() * self.by_frequency[-1], 0, len(self.words) - 1)]

    def draw_uninformative(self, rng: random.Random) -> str:
        """Return a word, the more likely the less it says; evenly where all say the same."""
        total = self.by_score[-1]
        if total <= 0:
            return self.words[rng.randrange(len(self.words))]
        return self.words[bisect(self.by_score, rng.random() * total, 0, len(self.words) - 1)]

    def replacement_chances(self, words: Sequence[str], rate: float) -> list[float]:
        """Return for each word of a text the probability of being replaced; their mean is ``rate`` or less."""
        times = Counter(words)
        informative = [times[word] / len(words) * self.idf.get(word, self.unseen_idf) for word in words]
        slack = [max(informative) - value for value in informative]
        mean = sum(slack) / len(slack)
        if mean <= 0:
            return [rate] * len(words)
        return [min(1.0, rate * value / mean) for value in slack]


def split_words(text: str) -> tuple[list[str], list[str]]:
    """Return the ``n`` words of a text and the ``n + 1`` gaps around them.

    A word keeps its inner apostrophes and hyphens, a number its inner points and commas, a hashtag or mention its
    mark; a web address is one word. Everything else (spaces, quotes, punctuation, emoji) lies in the gaps.
    """
    words: list[str] = []
    gaps: list[str] = []
    end = 0
    for match in _word().finditer(text):
        words.append(match.group())
        gaps.append(text[end : match.start()])
        end = match.end()
    return words, [*gaps, text[end:]]


@dataclass(frozen=True)
class Tagged:
    """The words of a row and their tags, and how the row holds them.

    Attributes:
        source: the row.
        words: its words.
        tags: a tag for each, a name or a number.
        words_role: the column of the words.
        tags_role: the column of the tags.
    """

    source: Row
    words: tuple[str, ...]
    tags: tuple[Any, ...]
    words_role: str
    tags_role: str

    def row(self, words: Sequence[str], tags: Sequence[Any]) -> Row:
        """Return a copy of the row with these words and tags, written as the row had them; other columns stay."""
        changed = dict(self.source)
        if list(words) != list(self.words):
            changed[self.words_role] = _written(words, self.source[self.words_role])
        if list(tags) != list(self.tags):
            changed[self.tags_role] = _written(tags, self.source[self.tags_role])
        return changed


def read_tagged(row: Row, card: TaskCard) -> Tagged | None:
    """Return the tagged words of a row: lists, texts parted by white space, or JSON; None where there are none.

    The words are those of the column of kind ``tokens``, or without a value there those of the first text.
    """
    tags_role = next((c.role for c in card.columns if c.kind == "tags" and row.get(c.role) is not None), None)
    inputs = [column for kind in ("tokens", "text") for column in card.inputs if column.kind == kind]
    words_role = next((c.role for c in inputs if row.get(c.role) is not None), None)
    if tags_role is None or words_role is None:
        return None
    words, tags = _listed(row[words_role]), _listed(row[tags_role])
    if len(words) != len(tags) or not all(isinstance(word, str) and word.strip() for word in words):
        return None
    return Tagged(row, tuple(words), tuple(tags), words_role, tags_role)


def _listed(value: Any) -> list[Any]:
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                found = json.loads(value)
            except (ValueError, RecursionError):
                return value.split()
            # ``[ 12 ]`` may be three words of a text, as tasks read it.
            if isinstance(found, list) and found and all(isinstance(item, str) for item in found):
                return found
        return value.split()
    return list(value) if isinstance(value, list | tuple) else []


def _written(items: Sequence[Any], like: Any) -> Any:
    if not isinstance(like, str):
        return list(items)
    if like.split() == _listed(like):
        return " ".join(map(str, items))
    return json.dumps(list(items), ensure_ascii=False)


def insert_words(
    words: list[str], gaps: list[str], count: int, draw: Callable[[random.Random], str], rng: random.Random
) -> str:
    """Return a text with words inserted at random places.

    Args:
        words: of the text, one at least, as :func:`split_words` returns them.
        gaps: around them.
        count: how many to insert.
        draw: returns a word to insert.
        rng: all randomness comes from it.
    """
    for _ in range(count):
        at, word = rng.randint(0, len(words)), draw(rng)
        before, after = gaps[at], ""
        if at < len(words):
            after = _separator(word, words[at])
            if not before and at > 0:
                before = _separator(words[at - 1], word)
        else:
            # Behind the last word, but in front of the final punctuation.
            before, after = _separator(words[-1], word), gaps[-1]
        words.insert(at, word)
        gaps[at : at + 1] = [before, after]
    return _join(words, gaps)


def with_words(words: Sequence[str], gaps: Sequence[str]) -> str:
    """Return the text of some words in the gaps of others, a space where two would grow together."""
    return _join(words, _apart(words, gaps))


def _whole(text: str, start: int, end: int) -> tuple[int, int]:
    """Return a place widened to the ends of the words that it begins and ends in."""
    for match in _word().finditer(text):
        if match.start() < start < match.end():
            start = match.start()
        if match.start() < end < match.end():
            return start, match.end()
        if match.start() >= end:
            break
    return start, end


def _join(words: Sequence[str], gaps: Sequence[str]) -> str:
    return "".join(part for pair in zip(gaps, [*words, ""], strict=True) for part in pair)


def _count(rate: float, words: Sequence[str]) -> int:
    return max(1, int(rate * len(words)))


def _joined_gap(left: str, right: str, first: bool, last: bool) -> str:
    """Return the gap that is left of two when the word between them goes: of two spaces, one."""
    if first:
        return left + right.lstrip()
    if last:
        return left.rstrip() + right
    if not left or (right and left.isspace()):
        return right
    return left if right.isspace() else left + right


def _separator(left: str, right: str) -> str:
    return "" if _is_unspaced(left[-1]) and _is_unspaced(right[0]) else " "


def _apart(words: Sequence[str], gaps: Sequence[str]) -> list[str]:
    """Return the gaps with a space where two words of a spaced script would grow together."""
    inner = [
        " " if not gap and not _is_unspaced(left[-1]) and not _is_unspaced(right[0]) else gap
        for gap, (left, right) in zip(gaps[1:-1], pairwise(words), strict=True)
    ]
    return [gaps[0], *inner, gaps[-1]]


def _is_unspaced(character: str) -> bool:
    return re.match(f"[{UNSPACED}]", character) is not None


@functools.cache
def _marks() -> str:
    """Return the combining marks of the basic plane as ranges: part of a letter, but no letters to ``re``."""
    codes = {code for code in range(0x10000) if unicodedata.category(chr(code)) in {"Mn", "Mc"}}
    starts = sorted(code for code in codes if code - 1 not in codes)
    ends = sorted(code for code in codes if code + 1 not in codes)
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))


@functools.cache
def _word() -> re.Pattern[str]:
    marks = _marks()
    # A mark alone is no word: emoji carry some.
    letters = rf"(?![{UNSPACED}])\w(?:(?![{UNSPACED}])[\w{marks}])*"
    return re.compile(
        r"https?://\S+"
        rf"|[{UNSPACED}][{marks}]*"
        r"|\d+(?:[.,:]\d+)+"
        rf"|[#@]?{letters}(?:['’ʼ‐-]{letters})*"
    )


@functools.cache
def _letter_runs() -> re.Pattern[str]:
    """Runs of letters of a spaced script, or of characters of an unspaced one, each with its marks."""
    marks = _marks()
    return re.compile(rf"(?:[{UNSPACED}][{marks}]*)+|(?:(?![{UNSPACED}])[^\W\d_][{marks}]*)+")


@functools.cache
def _letters() -> re.Pattern[str]:
    return re.compile(rf".[{_marks()}]*", re.DOTALL)


@functools.cache
def _neighbours() -> Mapping[str, str]:
    """Return the letters around each letter of a QWERTY keyboard, whose rows are set off by about half a key."""
    around: dict[str, str] = {}
    for index, keys in enumerate(_KEYBOARD):
        for at, key in enumerate(keys):
            near = [(index, at - 1), (index, at + 1), (index - 1, at), (index - 1, at + 1)]
            near += [(index + 1, at - 1), (index + 1, at)]
            found = [_KEYBOARD[i][j] for i, j in near if 0 <= i < len(_KEYBOARD) and 0 <= j < len(_KEYBOARD[i])]
            around[key] = "".join(other for other in found if other.isalpha())
    return around


@functools.cache
def _confusions() -> Mapping[str, tuple[str, ...]]:
    pairs = [*_CONFUSED, *((right, left) for left, right in _CONFUSED)]
    return {left: tuple(right for other, right in pairs if other == left) for left, _ in pairs}


@functools.cache
def _confusable() -> re.Pattern[str]:
    return re.compile("|".join(sorted(_confusions(), key=len, reverse=True)))


def _confuse(found: str, rng: random.Random, rate: float) -> str:
    return rng.choice(_confusions()[found]) if rng.random() < rate else found


def _edit(run: str, rng: random.Random, rate: float) -> str:
    letters = _letters().findall(run)
    edited, at = [], 0
    while at < len(letters):
        letter = letters[at]
        at += 1
        if rng.random() >= rate:
            edited.append(letter)
            continue
        error = rng.choice(["omit", "insert", "replace", "swap"])
        if error == "swap" and at < len(letters):
            edited += [letters[at], letter]
            at += 1
        elif error != "omit":
            edited += [letter, rng.choice(letters)] if error == "insert" else [rng.choice(letters)]
    return "".join(edited) or rng.choice(letters)


def _mistype(run: str, rng: random.Random, rate: float) -> str:
    letters = _letters().findall(run)
    unspaced = _is_unspaced(letters[0])
    # Belinkov and Bisk leave short words, and the ends of long ones, as they are.
    if len(letters) < (2 if unspaced else 4):
        return run
    at, end = (0, len(letters)) if unspaced else (1, len(letters) - 1)
    typed = letters[:at]
    while at < end:
        letter = letters[at]
        at += 1
        if rng.random() >= rate:
            typed.append(letter)
            continue
        keys = _neighbours().get(letter.lower(), "")
        errors = ["omit", *(["swap"] if at < end else []), *(["key", "extra"] if keys else [])]
        error = rng.choice(errors)
        if error == "swap":
            typed += [letters[at], letter]
            at += 1
        elif error != "omit":
            key = rng.choice(keys)
            key = key.upper() if letter.isupper() else key
            typed += [key] if error == "key" else [letter, key]
    return "".join(typed + letters[end:]) or rng.choice(letters)
