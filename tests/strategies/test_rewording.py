from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoft.contracts import Column, TaskCard
from autoft.strategies.augmentation import split_words
from autoft.strategies.rewording import BackTranslation, EmbeddingNeighbours, MaskedReplacement, Synonyms

WORDS = ["Film", "good", "IT", "今", "天", "don't", "3.5", ",", "!"]
ROWS = [
    {"text": "The film was very good and the plot was fine", "label": "pos"},
    {"text": "a dull film. the plot is awful but nice", "label": "neg"},
]


@pytest.fixture(scope="module")
def card():
    return TaskCard("texts", "", (Column("text", "text", ""),), ("accuracy",), "sequence-classification")


# ── WordNet


@pytest.fixture
def wordnet(tmp_path, monkeypatch):
    """A WordNet of nine sets of synonyms, in the format of wndb(5WN), where NLTK looks for it."""
    pytest.importorskip("nltk")
    import nltk

    folder = tmp_path / "nltk_data" / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    sets = [
        ("n", ["film", "movie", "motion_picture"]),
        ("n", ["and", "conjunction"]),
        ("n", ["it", "computing"]),
        ("a", ["good"]),
        ("a", ["good", "fine"]),
        ("n", ["shake", "shingle"]),
        ("v", ["shake", "agitate"]),
        ("a", ["long"]),
        ("v", ["long", "yearn"]),
    ]
    data, senses = dict.fromkeys("nav", "  1 licence\n"), {}
    for kind, words in sets:
        offset = len(data[kind].encode())
        listed = " ".join(f"{word} 0" for word in words)
        data[kind] += f"{offset:08d} 00 {kind} {len(words):02x} {listed} 000 {'00 ' * (kind == 'v')}| a gloss  \n"
        for word in words:
            senses.setdefault((kind, word), []).append(offset)
    for kind, name in (("n", "noun"), ("a", "adj"), ("v", "verb"), ("r", "adv")):
        (folder / f"data.{name}").write_text(data.get(kind, "  1 licence\n"))
        lines = [
            f"{word} {kind} {len(found)} 0 {len(found)} 0 {' '.join(f'{one:08d}' for one in found)}  \n"
            for (own, word), found in sorted(senses.items())
            if own == kind
        ]
        (folder / f"index.{name}").write_text("  1 licence\n" + "".join(lines))
        (folder / f"{name}.exc").write_text("")
    (folder / "lexnames").write_text("00\tadj.all\t3\n")
    (folder / "index.sense").write_text("")
    (folder / "cntlist.rev").write_text(
        "long%2:00:00:: 2 1\nlong%3:00:00:: 1 9\nshake%1:00:00:: 2 3\nshake%2:00:00:: 1 21\n"
    )
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "nltk_data"))
    monkeypatch.setattr(nltk.data, "path", [])
    return folder


def test_words_become_synonyms(wordnet, make_target, tmp_path):
    target = make_target(tmp_path)
    assert Synonyms().check(target) is None
    learned = Synonyms().learn_from(target, ROWS, {"rate": 0.5})
    # "good" alone in its most frequent sense, so that the next one is taken; "plot" is in no set, "and" no such word.
    assert learned == {"film": ("movie", "motion picture"), "good": ("fine",), "fine": ("good",)}
    seen = {Synonyms().rewrite("Film GOOD, films", random.Random(seed), 0.7, learned) for seed in range(200)}
    assert seen == {f"{a} {b}, films" for a in ("Film", "Movie", "Motion picture") for b in ("GOOD", "FINE")}


def test_the_sense_that_a_word_mostly_has_is_taken_whatever_part_of_speech_it_is(wordnet, make_target, tmp_path):
    """WordNet lists the noun first, and counted the verb seven times as often; "long" as an adjective has none."""
    learned = Synonyms().learn_from(make_target(tmp_path), [{"text": "shake it long"}], {"rate": 0.5})
    assert learned == {"shake": ("agitate",)}


def test_a_tagged_word_gets_a_synonym_of_one_word(wordnet, make_target, tmp_path):
    columns = (Column("tokens", "tokens", ""), Column("tags", "tags", "", target=True))
    target = make_target(tmp_path, columns=columns)
    row = {"tokens": ["film", "good", "film"], "tags": ["O", "O", "B-TITLE"]}
    assert Synonyms().check(target) is None
    learned = Synonyms().learn_from(target, [row], {"rate": 0.5})
    seen = {
        tuple(Synonyms().augment(row, target.task.card, random.Random(seed), {"rate": 0.7}, learned)["tokens"])
        for seed in range(200)
    }
    assert seen == {(a, b, "film") for a in ("film", "movie") for b in ("good", "fine")}


def test_without_wordnet_it_says_how_to_get_it(make_target, tmp_path, monkeypatch):
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    told = Synonyms().check(make_target(tmp_path))
    if told is None:
        pytest.skip("a WordNet is installed for everybody here")
    assert "python -m nltk.downloader wordnet" in told.reason or "pip install nltk" in told.reason


# ── the model's own embeddings


def test_neighbours_are_the_nearest_by_a_loop(make_checkpoint, make_target, toy_tokenizer):
    import numpy as np
    from transformers import AutoModel

    path = make_checkpoint("bert")
    target = make_target(path)
    learned = EmbeddingNeighbours().learn_from(target, ROWS, {"rate": 0.1})
    weights = AutoModel.from_pretrained(path).get_input_embeddings().weight.detach().double().numpy()
    names = [name for name in toy_tokenizer.get_vocab() if name.isalpha()]
    vectors = {name: weights[toy_tokenizer.get_vocab()[name]] for name in names}
    mean = np.mean(list(vectors.values()), axis=0)

    def cosine(one, other):
        a, b = vectors[one] - mean, vectors[other] - mean
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    for word in ("film", "good", "plot"):
        expected = sorted((other for other in names if other != word), key=lambda other: -cosine(word, other))[:5]
        assert list(learned[word]) == expected
    seen = {EmbeddingNeighbours().rewrite("Film!", random.Random(seed), 0.9, learned) for seed in range(200)}
    assert seen == {"Film!", *(f"{near.capitalize()}!" for near in learned["film"])}


def test_what_was_learned_comes_from_the_cache_of_the_run(make_checkpoint, make_target):
    target = make_target(make_checkpoint("bert"))
    first = EmbeddingNeighbours().learn_from(target, ROWS, {"rate": 0.1})
    (file,) = target.cache.glob("embedding-neighbours-*.json")
    file.write_text(json.dumps({"film": ["kept"]}))
    assert EmbeddingNeighbours().learn_from(target, ROWS, {"rate": 0.2}) == {"film": ["kept"]}
    assert EmbeddingNeighbours().learn_from(replace(target, cache=None), ROWS, {"rate": 0.1}) == first


def test_chance_goes_on_alike_whether_it_was_kept_or_not(make_checkpoint, make_target):
    import torch

    target = make_target(make_checkpoint("bert"))
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        EmbeddingNeighbours().learn_from(target, ROWS, {"rate": 0.1})
        drawn.append(torch.rand(3).tolist())
    torch.manual_seed(3)
    assert drawn == [torch.rand(3).tolist()] * 2


def test_models_without_words_are_refused(make_target, tmp_path):
    assert EmbeddingNeighbours().check(make_target(tmp_path)).reason.startswith("embedding-neighbours: needs the words")


# ── masked words


@pytest.fixture
def masked(make_checkpoint, make_target, toy_tokenizer):
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(toy_tokenizer) + 1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    path = make_checkpoint("bert", BertForMaskedLM(config))
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.save_pretrained(path)
    return make_target(path)


def test_candidates_are_the_likeliest_words_in_the_place_of_a_mask(masked):
    import torch
    from transformers import AutoTokenizer, BertForMaskedLM

    assert MaskedReplacement().check(masked) is None
    learned = MaskedReplacement().learn_from(masked, ROWS, {"rate": 0.1})
    tokenizer = AutoTokenizer.from_pretrained(masked.source.path)
    model = BertForMaskedLM.from_pretrained(masked.source.path).eval()
    text = ROWS[1]["text"]
    words = ["a", "dull", "film", "the", "plot", "is", "awful", "but", "nice"]
    # Nine words: three rounds of one each.
    assert len(learned[text]) == 3
    for place, (candidates, sums) in learned[text].items():
        batch = tokenizer(text, return_tensors="pt")
        ids = batch["input_ids"][0].tolist()
        (at,) = [i for i, token in enumerate(ids) if token == tokenizer.convert_tokens_to_ids(words[int(place)])]
        batch["input_ids"][0, at] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(**batch).logits[0, at]
        known = {i: name for name, i in tokenizer.get_vocab().items() if name.isalpha()}
        chances = {name: float(logits[i].exp()) for i, name in known.items()}
        total = sum(chances.values())
        ranked = sorted((name for name in chances if name != words[int(place)]), key=lambda name: -chances[name])
        assert candidates == ranked[: len(candidates)]
        assert 9 <= len(candidates) <= 10
        running = 0.0
        for name, upto in zip(candidates, sums, strict=True):
            running += chances[name] / total
            assert upto == pytest.approx(running, rel=1e-4)


def test_masked_words_are_replaced_at_the_rate_and_by_their_probability(masked):
    text = ROWS[1]["text"]
    learned = {text: {"1": [["bad", "good"], [0.3, 0.4]], "8": [["fine"], [0.5]]}}
    got = [MaskedReplacement().rewrite(text, random.Random(seed), 0.1, learned) for seed in range(4000)]
    # Nine words at .1 are .9 words, over the two that can be replaced.
    second = Counter(one.split()[1] for one in got)
    assert (second["bad"] + second["good"]) / 4000 == pytest.approx(0.45, abs=0.03)
    assert second["bad"] / (second["bad"] + second["good"]) == pytest.approx(0.75, abs=0.04)
    assert {one.split()[-1] for one in got} == {"nice", "fine"}
    assert MaskedReplacement().rewrite("another text", random.Random(0), 0.9, learned) == "another text"


def test_a_checkpoint_without_the_head_is_refused(make_checkpoint, make_target):
    assert "masked-word head" in MaskedReplacement().check(make_target(make_checkpoint("bert"))).reason


# ── there and back


@pytest.fixture
def translators(make_checkpoint, toy_tokenizer):
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = T5Config(
            vocab_size=len(toy_tokenizer),
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=1,
        )
        made.append(str(make_checkpoint("t5", T5ForConditionalGeneration(config))))
    return {"forward": made[0], "backward": made[1], "language": None, "pivot": None}


def pinned(target, params):
    own = {f"back-translation.{key}": value for key, value in params.items() if value}
    return replace(target, context=replace(target.context, params=own))


def test_texts_go_there_and_back_by_sentences(translators, make_target, make_checkpoint, toy_tokenizer):
    import torch
    from transformers import T5ForConditionalGeneration

    target = pinned(make_target(make_checkpoint("bert")), translators)
    assert BackTranslation().check(target) is None
    learned = BackTranslation().learn_from(target, ROWS, translators)
    # By hand: three sentences, shortest first, sampled at temperature .9 with the seed 0.
    texts = ["a dull film.", "the plot is awful but nice", "The film was very good and the plot was fine"]
    for key in ("forward", "backward"):
        model = T5ForConditionalGeneration.from_pretrained(translators[key]).eval()
        order = sorted(range(3), key=lambda i: len(texts[i]))
        batch = toy_tokenizer([texts[i] for i in order], padding=True, return_tensors="pt")
        torch.manual_seed(0)
        length = 2 * batch["input_ids"].shape[1] + 10
        made = model.generate(**batch, do_sample=True, temperature=0.9, num_beams=1, max_new_tokens=length)
        for i, text in zip(order, toy_tokenizer.batch_decode(made, skip_special_tokens=True), strict=True):
            texts[i] = text
    assert learned[ROWS[1]["text"]] == f"{texts[0].strip()} {texts[1].strip()}"
    assert learned[ROWS[0]["text"]] == texts[2].strip()
    row = BackTranslation().augment(ROWS[0], target.task.card, random.Random(0), translators, learned)
    assert row == {**ROWS[0], "text": learned[ROWS[0]["text"]]}
    assert len(list(target.cache.glob("back-translation-*.json"))) == 1
    again = BackTranslation().learn_from(target, ROWS, {**translators, "backward": translators["forward"]})
    assert again != learned
    assert len(list(target.cache.glob("back-translation-*.json"))) == 2


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({}, "name them in the recipe"),
        ({"forward": "a/b"}, "or forward with language and pivot"),
        ({"forward": "a/b", "backward": "/no/such/folder"}, "backward: /no/such/folder holds no config.json"),
        ({"forward": "package://nothing_here/model", "backward": "a/b"}, "forward: package://nothing_here/model"),
    ],
)
def test_what_is_not_named_or_not_there_is_refused(make_target, tmp_path, params, says):
    assert says in BackTranslation().check(pinned(make_target(tmp_path), params)).reason


def test_models_on_the_hub_and_models_of_many_languages_are_taken(make_target, tmp_path):
    for params in (
        {"forward": "a/b", "backward": "b/a"},
        {"forward": "a/b", "language": "eng_Latn", "pivot": "deu_Latn"},
    ):
        assert BackTranslation().check(pinned(make_target(tmp_path), params)) is None


@pytest.mark.parametrize("augmenter", [Synonyms(), EmbeddingNeighbours(), MaskedReplacement(), BackTranslation()])
def test_without_having_learned_the_text_stays(augmenter, make_target, tmp_path):
    card = make_target(tmp_path).task.card
    params = {name: domain.default for name, domain in augmenter.space.items()}
    for seed in range(20):
        assert augmenter.augment(ROWS[0], card, random.Random(seed), params) == ROWS[0]


@pytest.mark.parametrize("augmenter", [Synonyms(), EmbeddingNeighbours(), MaskedReplacement(), BackTranslation()])
@settings(deadline=None)
@given(
    text=st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS)).map(" ".join)),
    rate=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_any_text_stays_one_and_chance_comes_from_the_rng(augmenter, text, rate, seed, card):
    words = split_words(text)[0]
    learned = {word.lower(): ["new", "two words"] for word in words}
    if isinstance(augmenter, MaskedReplacement):
        learned = {text: {str(place): [["new"], [0.2]] for place in range(0, len(words), 2)}} if words else {}
    elif isinstance(augmenter, BackTranslation):
        learned = {text: "another text"} if text.strip() else {}
    params = {name: domain.default for name, domain in augmenter.space.items()} | {"rate": rate}
    once, again = (
        augmenter.augment({"text": text}, card, random.Random(seed), params, learned)["text"] for _ in range(2)
    )
    assert once == again
    assert bool(once.strip()) == bool(text.strip())
    if not isinstance(augmenter, BackTranslation):
        assert (
            not set(split_words(once)[0])
            - set(words)
            - {part for new in ("new", "two", "words") for part in (new, new.capitalize(), new.upper())}
        )
