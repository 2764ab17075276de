"""Augmentation by other words for the same thing: from WordNet, from the base model, from a translation and back.

What a model is asked for is asked once, before training, for all training texts; changing a row then is a look-up.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import random
import re
import sys
import warnings
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from autoft.contracts import ModelSource, Refusal, Row, Target, TaskCard
from autoft.errors import ModelError
from autoft.pretrained import load_tokenizer, loading, named_model
from autoft.rundir import read_json, write_json
from autoft.space import Categorical, Float, SearchSpace
from autoft.strategies.augmentation import (
    TextAugmenter,
    WordAugmenter,
    insert_words,
    read_tagged,
    split_words,
    with_words,
)
from autoft.strategies.reordering import split_sentences

__all__ = ["BackTranslation", "EmbeddingNeighbours", "FillerWords", "MaskedReplacement", "Synonyms"]

_MAX_WORDS = 50_000
_MAX_TEXTS = 5_000
_NEIGHBOURS = 5
_ROUNDS = 3
_CANDIDATES = 10

FILLERS: Mapping[str, tuple[str, ...]] = {
    "en": ("um", "uh", "well", "you know", "like", "I mean", "actually", "basically"),
    "de": ("äh", "ähm", "also", "halt", "eigentlich", "sozusagen", "na ja", "quasi"),
    "zh": ("嗯", "呃", "那个", "就是", "其实", "然后"),
}
"""By language, words that speakers fill pauses with."""

_FUNCTION_WORDS: Mapping[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "en": "a an and are but for from he i in is it not of on she that the they this to was with you",
        "de": "aber auf das dem den der die ein eine es für ich im ist mit nicht sie und von war wir zu",
    }.items()
}


class FillerWords(TextAugmenter):
    """Insert words that speakers fill pauses with: ``max(1, rate x words)`` of them.

    English, German and Chinese texts get those of :data:`FILLERS`, other ones stay. The language is that of more
    function words in the text; a text with Han characters and no kana is Chinese.

    Method: filler word augmentation of NL-Augmenter (Dhole et al. 2021, arXiv:2112.02721); the English words are among
    those of Laserna, Seih and Pennebaker 2014 (doi:10.1177/0261927X14526993).
    """

    name: ClassVar[str] = "filler-words"
    summary: ClassVar[str] = "insert words that speakers fill pauses with (English, German, Chinese)"
    space: ClassVar[SearchSpace] = {"rate": Float(0.02, 0.3, default=0.05)}
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ({"rate": 0.05},)

    def rewrite(self, text: str, rng: random.Random, rate: float, learned: Any = None) -> str:
        """Return the text with fillers inserted; its own characters keep their order."""
        words, gaps = split_words(text)
        language = _language(text, words)
        if language is None:
            return text
        fillers = FILLERS[language]
        return insert_words(words, gaps, max(1, int(rate * len(words))), lambda chance: chance.choice(fillers), rng)


class Synonyms(WordAugmenter):
    """Replace ``rate`` of the words by synonyms of English WordNet, of the most frequent sense that has any.

    How frequent a sense is WordNet counted in tagged texts (cntlist(5WN)). All are of one part of speech, that of the
    most frequent sense.

    Only words that are themselves in the set of synonyms are replaced: an inflected form keeps its ending. Function
    words (those of scikit-learn's list) and words of one or two letters stay, which WordNet takes for units and
    elements. Needs NLTK and its copy of WordNet: ``python -m nltk.downloader wordnet``.

    Method: synonym replacement of EDA (Wei and Zou 2019, arXiv:1901.11196) and of Zhang et al. 2015
    (arXiv:1509.01626); of tagged words only those outside of entities, as entities have no synonyms (Dai and Adel
    2020, arXiv:2010.11683).
    """

    name: ClassVar[str] = "synonyms"
    summary: ClassVar[str] = "replace words by synonyms of English WordNet"

    def check(self, target: Target) -> Refusal | None:
        """Refuse where NLTK or its WordNet is not installed."""
        if importlib.util.find_spec("nltk") is None:
            return Refusal(f"{self.name}: needs nltk, which is not installed; pip install nltk")
        if not any((place / f"wordnet{ending}").exists() for place in _nltk_corpora() for ending in ("", ".zip")):
            return Refusal(
                f"{self.name}: needs WordNet, which NLTK does not find; fetch it: python -m nltk.downloader wordnet"
            )
        return super().check(target)

    def learn_from(self, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        """Return the synonyms of each word of the training rows; reading WordNet takes some seconds."""
        from nltk.corpus.reader.wordnet import WordNetCorpusReader
        from nltk.corpus.util import LazyCorpusLoader
        from nltk.data import path as places
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        places += [str(place.parent) for place in _nltk_corpora() if str(place.parent) not in places]
        wordnet = LazyCorpusLoader("wordnet", WordNetCorpusReader, None)
        with warnings.catch_warnings():
            # It says that other languages are not there, which nobody asks for.
            warnings.simplefilter("ignore", UserWarning)
            asked = (
                word for word in _words(rows, target.task.card) if len(word) > 2 and word not in ENGLISH_STOP_WORDS
            )
            found = {word: _synonyms(wordnet, word) for word in asked}
        return {word: synonyms for word, synonyms in found.items() if synonyms}

    def replacement(self, word: str, rng: random.Random, learned: Any) -> str | None:
        """Return a synonym, in capitals where the word is."""
        synonyms = (learned or {}).get(word.lower())
        return _cased(rng.choice(synonyms), word) if synonyms else None


class EmbeddingNeighbours(WordAugmenter):
    """Replace ``rate`` of the words by one of the five nearest words in the base model's input embeddings.

    Near is by cosine after the mean was taken off; only words that are one token of the model, and of letters, take
    part. Neighbours share a topic, and may say the opposite (``good`` and ``bad``): keep the rate low where words
    decide.

    Method: replacement by neighbours of word embeddings (Wang and Yang 2015, aclanthology.org/D15-1306; TinyBERT,
    Jiao et al. 2019, arXiv:1909.10351, section 4), here of the embeddings that the model itself has; taking off the
    mean is of Mu et al. 2017 (arXiv:1702.01417).
    """

    name: ClassVar[str] = "embedding-neighbours"
    summary: ClassVar[str] = "replace words by near words of the base model's own input embeddings"
    space: ClassVar[SearchSpace] = {"rate": Float(0.02, 0.3, default=0.1)}

    def check(self, target: Target) -> Refusal | None:
        """Refuse base models without a vocabulary."""
        if "vocab_size" not in target.config:
            return Refusal(
                f"{self.name}: needs the words of the base model, and {target.source.name} has no vocabulary; use a "
                "model of texts"
            )
        return super().check(target)

    def learn_from(self, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        """Return the neighbours of each word of the training rows, kept in the run's cache."""
        words = _words(rows, target.task.card)
        found: dict[str, tuple[str, ...]] = _kept(target, self.name, words, lambda: _neighbours(target.source, words))
        return found

    def replacement(self, word: str, rng: random.Random, learned: Any) -> str | None:
        """Return a neighbour, in capitals where the word is."""
        near = (learned or {}).get(word.lower())
        return _cased(rng.choice(near), word) if near else None


class MaskedReplacement(TextAugmenter):
    """Replace words by what the base model, as a masked language model, puts in their place.

    Before training, in each text three times an eighth of the words is masked, and of each the ten likeliest whole
    words are kept, with their probabilities; at most 5,000 texts, evenly spread, so that this takes three forward
    passes of those. A row then has ``rate`` of its words replaced, of those that were masked.

    Method: contextual augmentation (Kobayashi 2018, arXiv:1805.06201) by a masked language model that was not told the
    label (Kumar et al. 2020, arXiv:2003.02245, section 2.3); as there, a word may come that changes the label.
    """

    name: ClassVar[str] = "masked-replacement"
    summary: ClassVar[str] = "replace words by what the base model's masked-word head predicts"
    space: ClassVar[SearchSpace] = {"rate": Float(0.02, 0.3, default=0.1)}
    by_piece: ClassVar[bool] = False

    def check(self, target: Target) -> Refusal | None:
        """Refuse base models whose checkpoint is not one of a masked language model."""
        names = [str(name) for name in target.config.get("architectures") or ()]
        if not any(
            name.endswith("ForMaskedLM") or name in {"BertForPreTraining", "AlbertForPreTraining"} for name in names
        ):
            return Refusal(
                f"{self.name}: needs a checkpoint with a masked-word head, and {target.source.name} says "
                f"{', '.join(names) or 'nothing'} of its architecture; use a ...ForMaskedLM as distilbert-base-uncased"
            )
        return super().check(target)

    def learn_from(self, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> dict[str, Any]:
        """Return for each text ``{place of a word: [words, running sums of probabilities]}``, from the run's cache."""
        texts = _texts(rows, target.task.card)
        step = -(-len(texts) // _MAX_TEXTS) or 1
        asked = texts[::step]
        found: dict[str, Any] = _kept(target, self.name, asked, lambda: _predicted(target, asked))
        return found

    def rewrite(self, text: str, rng: random.Random, rate: float, learned: Any = None) -> str:
        """Return the text with words replaced; a text that was not asked about stays."""
        options = (learned or {}).get(text)
        if not options:
            return text
        words, gaps = split_words(text)
        # So many of the masked words that ``rate`` of all are replaced.
        chance = min(1.0, rate * len(words) / len(options))
        for place, (candidates, sums) in options.items():
            if rng.random() < chance:
                at = bisect(sums, rng.random() * sums[-1], 0, len(sums) - 1)
                words[int(place)] = _cased(candidates[at], words[int(place)])
        return with_words(words, gaps)


class BackTranslation(TextAugmenter):
    """Translate texts into another language and back, sentence by sentence, with models that the recipe names.

    Parameters: ``forward`` and ``backward``, a model for each way, or one for both where it knows several languages;
    then ``language`` and ``pivot`` are that model's codes of the texts' language and of the other (``eng_Latn``,
    ``en_XX``). A model is a folder, ``package://module/path`` or a hub id. Each text is translated once a run, by
    sampling; the run's cache keeps the translations. A row that is changed gets its text's translation whole.

    Method: back-translation as augmentation (Sennrich et al. 2016, arXiv:1511.06709; UDA, Xie et al. 2020,
    arXiv:1904.12848, appendix B: sentence by sentence, sampled at temperature .9).
    """

    name: ClassVar[str] = "back-translation"
    summary: ClassVar[str] = "translate into another language and back, with models named in the recipe"
    space: ClassVar[SearchSpace] = {
        "forward": Categorical((None,), open=True),
        "backward": Categorical((None,), open=True),
        "language": Categorical((None,), open=True),
        "pivot": Categorical((None,), open=True),
    }
    models: ClassVar[frozenset[str]] = frozenset({"forward", "backward"})
    published: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    by_piece: ClassVar[bool] = False

    def check(self, target: Target) -> Refusal | None:
        """Refuse where the recipe names no model, or one that is not there."""
        named = {key: target.context.params.get(f"{self.name}.{key}") for key in self.space}
        if not named["forward"] or not (named["backward"] or (named["language"] and named["pivot"])):
            return Refusal(
                f"{self.name}: needs translation models; name them in the recipe, as space: {{{self.name}: {{forward: "
                "Helsinki-NLP/opus-mt-en-de, backward: Helsinki-NLP/opus-mt-de-en}}, or forward with language and "
                "pivot where one model knows both languages"
            )
        for key in ("forward", "backward"):
            try:
                named_model(str(named[key] or named["forward"]))
            except ModelError as error:
                return Refusal(f"{self.name}: {key}: {error}")
        return super().check(target)

    def learn_from(self, target: Target, rows: Sequence[Row], params: Mapping[str, Any]) -> dict[str, str]:
        """Return the translation of each training text, from the run's cache where it is there."""
        texts = _texts(rows, target.task.card)
        asked = [*texts, *(str(params.get(key)) for key in self.space)]
        found: dict[str, str] = _kept(target, self.name, asked, lambda: _there_and_back(target, texts, params))
        return found

    def change(self, text: str, rng: random.Random, params: Mapping[str, Any], learned: Any) -> str:
        """Return the translation of the text, or the text where there is none."""
        return str((learned or {}).get(text) or text)

    def rewrite(self, text: str, rng: random.Random, rate: float, learned: Any = None) -> str:
        """Return the translation of the text; ``rate`` has no part in it."""
        return self.change(text, rng, {}, learned)


def _texts(rows: Sequence[Row], card: TaskCard) -> list[str]:
    """Return the different texts of the input columns of kind ``text``."""
    roles = [column.role for column in card.inputs if column.kind == "text"]
    values = (row.get(role) for row in rows for role in roles)
    return list(dict.fromkeys(value for value in values if isinstance(value, str) and value.strip()))


def _words(rows: Sequence[Row], card: TaskCard) -> list[str]:
    """Return the different words of texts and tagged words, in small letters; 50,000 at most."""
    found: dict[str, None] = {}
    for row in rows:
        tagged = read_tagged(row, card)
        texts = tagged.words if tagged else [row.get(column.role) for column in card.inputs if column.kind == "text"]
        for text in texts:
            if isinstance(text, str):
                found.update(dict.fromkeys(word.lower() for word in split_words(text)[0]))
        if len(found) > _MAX_WORDS:
            break
    return list(found)[:_MAX_WORDS]


def _language(text: str, words: Sequence[str]) -> str | None:
    if re.search("[\u4e00-\u9fff]", text):
        return None if re.search("[\u3040-\u30ff]", text) else "zh"
    own = [word.lower() for word in words]
    counts = {language: sum(word in known for word in own) for language, known in _FUNCTION_WORDS.items()}
    first, second = sorted(counts, key=lambda language: counts[language], reverse=True)
    return first if counts[first] > counts[second] else None


def _cased(new: str, like: str) -> str:
    """Return a word with the capitals of another: all, the first, or its own."""
    if len(like) > 1 and like.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if like[:1].isupper() else new


def _nltk_corpora() -> list[Path]:
    """Return where NLTK looks for corpora (https://www.nltk.org/data.html); importing it would take a second."""
    own = [Path(place) for place in os.environ.get("NLTK_DATA", "").split(os.pathsep) if place]
    prefix, system = Path(sys.prefix), ("/usr/share", "/usr/local/share", "/usr/lib", "/usr/local/lib")
    places = [Path.home(), prefix, prefix / "share", prefix / "lib", *map(Path, system)]
    return [place / "corpora" for place in [*own, *(place / "nltk_data" for place in places)]]


def _synonyms(wordnet: Any, word: str) -> tuple[str, ...]:
    # WordNet lists nouns first, whatever a word is mostly: "long" would be a yearning. The sort keeps its order else.
    own = [(sense, lemma) for sense in wordnet.synsets(word) for lemma in sense.lemmas() if lemma.name() == word]
    own.sort(key=lambda both: -both[1].count())
    for sense, _ in own:
        names = [name.replace("_", " ") for name in sense.lemma_names()]
        # Its "s" is an adjective that is near to another one.
        if len(names) > 1 and sense.pos().replace("s", "a") == own[0][0].pos().replace("s", "a"):
            return tuple(name for name in names if name != word)
    return ()


def _kept(target: Target, what: str, asked: Sequence[str], make: Callable[[], Any]) -> Any:
    """Return what ``make`` makes, from the run's cache where the same was asked of the same model before."""
    import torch

    # Loading a model draws random numbers, and a trial has to go on alike whether something was kept or not.
    devices = [torch.cuda.current_device()] if target.context.device == "cuda" else []
    if target.cache is None:
        with torch.random.fork_rng(devices):
            return make()
    key = "\0".join([target.source.path, str(target.source.revision), *asked])
    path = target.cache / f"{what}-{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}.json"
    if path.is_file():
        return read_json(path)
    with torch.random.fork_rng(devices):
        made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, made)
    return made


def _whole_words(tokenizer: Any) -> dict[str, int]:
    """Return the tokens that are whole words of letters, by their text."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    candidates = [(text.strip(), i) for i, text in enumerate(texts) if text.strip().isalpha()]
    # With a space in front, as in the middle of a text; a part of a word is cut otherwise, or not at all.
    encoded = tokenizer([f" {text}" for text, _ in candidates], add_special_tokens=False)["input_ids"]
    return {text: i for (text, i), ids in zip(candidates, encoded, strict=True) if ids == [i]}


def _neighbours(source: ModelSource, words: Sequence[str]) -> dict[str, list[str]]:
    import torch
    from transformers import AutoModel

    tokenizer = load_tokenizer(source)
    with loading(source):
        model = AutoModel.from_pretrained(source.path, use_safetensors=True, **source.from_pretrained_kwargs())
    known = _whole_words(tokenizer)
    names, places = list(known), list(known.values())
    with torch.no_grad():
        vectors = model.get_input_embeddings().weight[places].float()
        vectors = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=-1)
        where = {name: at for at, name in enumerate(names)}
        asked = [(word, where[word]) for word in words if word in where]
        found: dict[str, list[str]] = {}
        for start in range(0, len(asked), 512):
            part = asked[start : start + 512]
            # One more than is kept: each word is nearest to itself.
            best = (vectors[[at for _, at in part]] @ vectors.T).topk(min(len(names), 2 * _NEIGHBOURS + 1)).indices
            for (word, _), near in zip(part, best.tolist(), strict=True):
                others = [names[i] for i in near if names[i].lower() != word]
                found[word] = others[:_NEIGHBOURS]
    return {word: near for word, near in found.items() if near}


def _predicted(target: Target, texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    import torch
    from transformers import AutoModelForMaskedLM

    source = target.source
    tokenizer = load_tokenizer(source)
    if not tokenizer.is_fast or tokenizer.mask_token is None:
        raise ModelError(f"{source.path}: masked-replacement needs a tokenizer.json with a mask token")
    with loading(source):
        model = AutoModelForMaskedLM.from_pretrained(
            source.path, use_safetensors=True, **source.from_pretrained_kwargs()
        )
    model = model.eval().to(target.context.device)
    known = _whole_words(tokenizer)
    allowed = torch.full((model.get_input_embeddings().weight.shape[0],), float("-inf"), device=target.context.device)
    allowed[list(known.values())] = 0.0
    names = {i: name for name, i in known.items()}
    rng = random.Random(0)
    found: dict[str, dict[str, Any]] = {}
    ordered = sorted(texts, key=len)
    for start in range(0, len(ordered), 32):
        part = ordered[start : start + 32]
        batch = tokenizer(
            part,
            padding=True,
            truncation=True,
            max_length=min(target.context.max_length, 512),
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        chosen = [
            _maskable(text, places) for text, places in zip(part, batch.pop("offset_mapping").tolist(), strict=True)
        ]
        for own in chosen:
            rng.shuffle(own)
        for turn in range(_ROUNDS):
            asked = []
            for i, own in enumerate(chosen):
                size = max(1, len(own) // 8)
                asked += [(i, *entry) for entry in own[turn * size : (turn + 1) * size]]
            if not asked:
                continue
            rows, columns = [entry[0] for entry in asked], [entry[3] for entry in asked]
            ids = batch["input_ids"].clone()
            ids[rows, columns] = tokenizer.mask_token_id
            with torch.inference_mode():
                given = {**batch, "input_ids": ids}
                logits = model(**{name: value.to(target.context.device) for name, value in given.items()}).logits
                best = (logits[rows, columns].float() + allowed).softmax(-1).topk(min(_CANDIDATES + 1, len(known)))
            values, indices = best.values.tolist(), best.indices.tolist()
            for (i, number, word, _), chances, tokens in zip(asked, values, indices, strict=True):
                pairs = [(names[token], chance) for token, chance in zip(tokens, chances, strict=True) if chance > 0]
                pairs = [(name, chance) for name, chance in pairs if name.lower() != word.lower()][:_CANDIDATES]
                if pairs:
                    sums = list(itertools.accumulate(chance for _, chance in pairs))
                    found.setdefault(part[i], {})[str(number)] = [[name for name, _ in pairs], sums]
    return found


def _maskable(text: str, places: Sequence[Sequence[int]]) -> list[tuple[int, str, int]]:
    """Return number, word and token of each word of letters that is one token."""
    tokens = {tuple(place): at for at, place in enumerate(places) if place[1] > place[0]}
    # Byte-level tokens begin with the space in front of their word; some tokenizers count it in.
    tokens |= {(start + 1, end): at for (start, end), at in tokens.items() if text[start].isspace()}
    found, at = [], 0
    words, gaps = split_words(text)
    for number, (word, gap) in enumerate(zip(words, gaps[:-1], strict=True)):
        at += len(gap)
        token = tokens.get((at, at + len(word)))
        at += len(word)
        if token is not None and word.isalpha():
            found.append((number, word, token))
    return found


def _there_and_back(target: Target, texts: Sequence[str], params: Mapping[str, Any]) -> dict[str, str]:
    split = {text: split_sentences(text) for text in texts}
    sentences = list(dict.fromkeys(sentence for found, _ in split.values() for sentence in found))
    forward, backward = params["forward"], params.get("backward") or params["forward"]
    language, pivot = params.get("language"), params.get("pivot")
    abroad = _translate(sentences, named_model(forward, target), target, language, pivot)
    returned = _translate(abroad, named_model(backward, target), target, pivot, language)
    back = dict(zip(sentences, returned, strict=True))
    made = {}
    for text, (found, gaps) in split.items():
        # An empty translation is none.
        parts = [back[sentence].strip() or sentence for sentence in found]
        made[text] = "".join(part for pair in zip(gaps, [*parts, ""], strict=True) for part in pair)
    return {text: new for text, new in made.items() if new != text}


def _translate(
    texts: Sequence[str], source: ModelSource, target: Target, language: str | None, other: str | None
) -> list[str]:
    import torch
    from transformers import AutoModelForSeq2SeqLM

    tokenizer = load_tokenizer(source)
    with loading(source):
        model = AutoModelForSeq2SeqLM.from_pretrained(
            source.path, use_safetensors=True, **source.from_pretrained_kwargs()
        )
    model = model.eval().to(target.context.device)
    extra = {}
    if language and other:
        if not hasattr(tokenizer, "src_lang"):
            raise ModelError(
                f"{source.name}: its tokenizer knows no languages; name forward and backward without codes"
            )
        tokenizer.src_lang = language
        extra["forced_bos_token_id"] = tokenizer.convert_tokens_to_ids(other)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = [""] * len(texts)
    torch.manual_seed(0)
    with torch.inference_mode():
        for start in range(0, len(order), 32):
            part = order[start : start + 32]
            batch = tokenizer(
                [texts[i] for i in part], padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            made = model.generate(
                **batch.to(target.context.device),
                do_sample=True,
                temperature=0.9,
                num_beams=1,
                max_new_tokens=min(256, 2 * batch["input_ids"].shape[1] + 10),
                **extra,
            )
            for i, text in zip(part, tokenizer.batch_decode(made, skip_special_tokens=True), strict=True):
                found[i] = text
    return found
