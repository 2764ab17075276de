"""Write questions about countries and chemical elements, and the paragraphs that answer them, to ``data/`` beside this file.

The facts come from packages: countries from countryinfo 1.0.1 (MIT), names of currencies and languages from Babel 2.18.0
(BSD-3-Clause, data of the Unicode CLDR), elements from mendeleev 1.3.0 (MIT). Each fact is as the package gives it.

    pip install countryinfo==1.0.1 babel==2.18.0 && pip install --no-deps mendeleev==1.3.0

A paragraph tells some facts about two countries or two elements, so that a question has to be matched with both the right
one and the right fact. A quarter of the questions has no answer: the fact is told of the other one only, or of nobody.
Countries and elements of validation and test occur in no training row, and of every fact one way to tell it and one way to
ask for it is kept for validation and test. The same packages give the same files.
"""

from __future__ import annotations

import json
import random
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from babel import Locale

PARAGRAPHS = {"train": 320, "validation": 60, "test": 120}
SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
FACTS = 2
QUESTIONS = 4
SEED = 0

TELL: dict[str, tuple[str, ...]] = {
    "capital": (
        "{P} capital is {value}.",
        "The government of {s} sits in {value}.",
        "{value} is the capital of {s}.",
        "{S} is governed from {value}.",
    ),
    "currency": (
        "People in {s} pay with the {value}.",
        "{P} currency is the {value}.",
        "The {value} is the money of {s}.",
        "In {s}, prices are given in the {value}.",
    ),
    "language": (
        "{P} official language is {value}.",
        "{value} is spoken officially in {s}.",
        "In {s}, laws are written in {value}.",
        "The state language of {s} is {value}.",
    ),
    "demonym": (
        "{P} people are called {value}.",
        "Somebody from {s} is called {value}.",
        "The word for a person from {s} is {value}.",
        "A citizen of {s} is known as {value}.",
    ),
    "area": (
        "{S} covers {value} square kilometres.",
        "{P} area is {value} square kilometres.",
        "The territory of {s} extends over {value} square kilometres.",
        "The land of {s} measures {value} square kilometres.",
    ),
    "population": (
        "{S} has {value} inhabitants.",
        "{value} people live in {s}.",
        "{P} population is {value}.",
        "The census of {s} gives {value} people.",
    ),
    "neighbours": (
        "{S} borders {value}.",
        "The neighbours of {s} are {value}.",
        "{S} shares a frontier with {value}.",
        "By land, {s} touches {value}.",
    ),
    "region": (
        "{S} lies in {value}.",
        "{S} belongs to {value}.",
        "On the map, {s} is found in {value}.",
        "{S} is a part of {value}.",
    ),
    "domain": (
        "Web addresses of {s} end in {value}.",
        "{P} internet domain is {value}.",
        "Sites from {s} have the ending {value}.",
        "On the internet, {s} uses {value}.",
    ),
    "symbol": (
        "{P} chemical symbol is {value}.",
        "Chemists write {value} for {s}.",
        "{S} has the symbol {value}.",
        "In formulas, {s} appears as {value}.",
    ),
    "number": (
        "{P} atomic number is {value}.",
        "An atom of {s} has {value} protons.",
        "{S} is element {value} of the periodic table.",
        "The nucleus of {s} carries the charge {value}.",
    ),
    "discoverer": (
        "{S} was discovered by {value}.",
        "{value} discovered {s}.",
        "The discovery of {s} is credited to {value}.",
        "It was {value} who first found {s}.",
    ),
    "year": (
        "{S} has been known since {value}.",
        "The discovery of {s} dates from {value}.",
        "{S} was found in {value}.",
        "The year {value} saw the discovery of {s}.",
    ),
    "place": (
        "{S} was first obtained in {value}.",
        "The laboratory that found {s} was in {value}.",
        "The discovery of {s} took place in {value}.",
        "{value} is where {s} was discovered.",
    ),
    "origin": (
        "{P} name comes from {value}.",
        "The name of {s} was taken from {value}.",
        "{S} got its name from {value}.",
        "Its discoverers borrowed the name of {s} from {value}.",
    ),
    "meaning": (
        'The word behind the name of {s} means "{value}".',
        '{P} name stands for "{value}".',
        'The name of {s} goes back to a word for "{value}".',
        'Translated, the name of {s} says "{value}".',
    ),
    "melting": (
        "{S} melts at {value} kelvin.",
        "{P} melting point is {value} kelvin.",
        "Heated to {value} kelvin, {s} becomes liquid.",
        "At {value} kelvin, solid {s} turns into a melt.",
    ),
    "family": (
        "{S} is one of the {value}.",
        "{S} belongs to the {value}.",
        "The family of {s} are the {value}.",
        "{S} is counted among the {value}.",
    ),
}
"""Ways to tell a fact; S and s stand for the name or a pronoun, P for their possessive. The last is not in training rows."""

ASK: dict[str, tuple[str, ...]] = {
    "capital": (
        "What is the capital of {name}?",
        "Which city is the capital of {name}?",
        "Where does the government of {name} sit?",
        "From which city is {name} ruled?",
    ),
    "currency": (
        "What is the currency of {name}?",
        "Which money is used in {name}?",
        "What do people pay with in {name}?",
        "In what are prices given in {name}?",
    ),
    "language": (
        "What is the official language of {name}?",
        "Which language is official in {name}?",
        "In which language are laws written in {name}?",
        "What does the state speak in {name}?",
    ),
    "demonym": (
        "What are people from {name} called?",
        "What is somebody from {name} called?",
        "What is the word for a person from {name}?",
        "How does one call a citizen of {name}?",
    ),
    "area": (
        "How many square kilometres does {name} cover?",
        "What is the area of {name} in square kilometres?",
        "How large is {name} in square kilometres?",
        "How much land has {name} in square kilometres?",
    ),
    "population": (
        "How many people live in {name}?",
        "What is the population of {name}?",
        "How many inhabitants does {name} have?",
        "How many people were counted in {name}?",
    ),
    "neighbours": (
        "Which countries border {name}?",
        "What are the neighbours of {name}?",
        "With whom does {name} share a frontier?",
        "Which countries does one reach from {name} by land?",
    ),
    "region": (
        "In which part of the world is {name}?",
        "Where does {name} lie?",
        "Which region does {name} belong to?",
        "Where on the map is {name}?",
    ),
    "domain": (
        "What is the internet domain of {name}?",
        "How do web addresses of {name} end?",
        "Which ending do web sites from {name} have?",
        "What comes last in an internet address of {name}?",
    ),
    "symbol": (
        "What is the chemical symbol of {name}?",
        "What do chemists write for {name}?",
        "Which symbol does {name} have?",
        "How does {name} appear in formulas?",
    ),
    "number": (
        "What is the atomic number of {name}?",
        "How many protons does {name} have?",
        "Which number does {name} have in the periodic table?",
        "What charge does the nucleus of {name} carry?",
    ),
    "discoverer": (
        "Who discovered {name}?",
        "By whom was {name} discovered?",
        "Who is credited with the discovery of {name}?",
        "Who found {name} first?",
    ),
    "year": (
        "When was {name} discovered?",
        "In which year was {name} found?",
        "Since when is {name} known?",
        "What year does the discovery of {name} date from?",
    ),
    "place": (
        "Where was {name} discovered?",
        "In which country was {name} first obtained?",
        "Where did the discovery of {name} take place?",
        "In which country was the laboratory that found {name}?",
    ),
    "origin": (
        "Which language does the name of {name} come from?",
        "From which language was the name of {name} taken?",
        "What language gave {name} its name?",
        "Whose words were borrowed to name {name}?",
    ),
    "meaning": (
        "What does the name of {name} mean?",
        "What does the word behind the name of {name} mean?",
        "What does the name of {name} stand for?",
        "What does one get by translating the name of {name}?",
    ),
    "melting": (
        "At how many kelvin does {name} melt?",
        "What is the melting point of {name}?",
        "At what temperature does {name} become liquid?",
        "How hot must {name} be to be a liquid?",
    ),
    "family": (
        "Which family does {name} belong to?",
        "What kind of element is {name}?",
        "Among which elements is {name} counted?",
        "Which group of elements has {name} as a member?",
    ),
}
"""Ways to ask for a fact; the last is not in training rows."""


@dataclass(frozen=True)
class Thing:
    """A country or an element: its name, how it is referred to, what is known of it, and a sentence on its use."""

    name: str
    subject: str
    facts: dict[str, str]
    use: str = ""


def folder(package: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"needs the package {package}; see the top of {Path(__file__).name}")
    return Path(next(iter(spec.submodule_search_locations)))


def countries() -> list[Thing]:
    """Return the countries of countryinfo, currencies and languages by their English names."""
    english = Locale("en")
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder("countryinfo").glob("data/*.json"))]
    names = {entry["ISO"]["alpha3"]: entry["name"] for entry in found if entry.get("ISO", {}).get("alpha3")}
    things = []
    for entry in found:
        facts = {
            "capital": entry.get("capital"),
            "currency": " or the ".join(
                english.currencies[c] for c in entry.get("currencies", []) if c in english.currencies
            ),
            "language": listed([english.languages[c] for c in entry.get("languages", []) if c in english.languages]),
            "demonym": entry.get("demonym"),
            "area": f"{round(entry['area']):,}" if entry.get("area") else None,
            "population": f"{entry['population']:,}" if entry.get("population") else None,
            "neighbours": listed([names[code] for code in entry.get("borders", []) if code in names][:4]),
            "region": entry.get("subregion"),
            "domain": (entry.get("tld") or [None])[0],
        }
        known = {fact: value for fact, value in facts.items() if isinstance(value, str) and value}
        if len(known) >= 6:
            things.append(Thing(entry["name"], "the country", known))
    return things


def elements() -> list[Thing]:
    """Return the chemical elements of mendeleev."""
    base = sqlite3.connect(folder("mendeleev") / "elements.db")
    base.row_factory = sqlite3.Row
    # The allotrope that melts at the highest temperature stands for the element.
    rows = base.execute(
        "select e.*, s.name as family, (select max(melting_point) from phasetransitions p where "
        "p.atomic_number = e.atomic_number) as melting from elements e left join series s on s.id = e.series_id "
        "order by e.atomic_number"
    )
    things = []
    for row in rows:
        dated = row["discovery_year"] is not None
        origin = re.match(r"([A-Z][\w-]+): [^.;()]+ \(([^()]+)\)", row["name_origin"] or "")
        facts = {
            "symbol": row["symbol"],
            "number": str(row["atomic_number"]),
            "discoverer": listed(re.split(r",\s*", row["discoverers"].rstrip(". "))) if dated else None,
            "year": str(row["discovery_year"]) if dated else None,
            "place": listed([place(name) for name in (row["discovery_location"] or "").split("/")]),
            "origin": origin[1] if origin else None,
            "meaning": origin[2] if origin else None,
            "melting": f"{row['melting']:g}" if row["melting"] else None,
            "family": row["family"].lower() if row["family"] else None,
        }
        known = {fact: value for fact, value in facts.items() if value}
        use = re.match(r"[^.]{20,120}\.(?= |$)", row["uses"] or "")
        if len(known) >= 5:
            things.append(Thing(row["name"].lower(), "the element", known, use[0] if use else ""))
    return things


def place(name: str) -> str:
    """Return the name of a country as it stands within a sentence."""
    return f"the {name}" if name.startswith("United") else name


def listed(values: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(values[:-1]), *values[-1:])))


def told(thing: Thing, fact: str, rng: random.Random, *, ways: int, named: bool) -> tuple[str, int]:
    """Return a sentence that tells a fact, and where in it the value begins; ``named`` uses the name, not a pronoun."""
    subject = thing.name if named else rng.choice(("it", thing.subject))
    possessive = "its" if subject == "it" else f"{subject}'s"
    form = rng.choice(TELL[fact][:ways])
    before, after = form.split("{value}")
    filled = [
        part.replace("{S}", capital(subject)).replace("{s}", subject).replace("{P}", capital(possessive))
        for part in (before, after)
    ]
    return filled[0] + thing.facts[fact] + filled[1], len(filled[0])


def capital(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[:1].upper() + text[1:]


def paragraph(
    pair: Sequence[Thing], rng: random.Random, *, ways: int
) -> tuple[str, dict[tuple[str, str], int], set[str]]:
    """Return a paragraph about two things, where each of its facts stands by name and fact, and all facts told."""
    text, places = "", {}
    for thing in pair:
        facts = rng.sample(sorted(thing.facts), FACTS)
        for number, fact in enumerate(facts):
            sentence, at = told(thing, fact, rng, ways=ways, named=number == 0 or rng.random() < 0.3)
            places[thing.name, fact] = len(text) + at
            text += sentence + " "
        if thing.use and rng.random() < 0.25:
            text += thing.use + " "
    return text.rstrip(), places, {fact for _, fact in places}


def rows(things: Sequence[Thing], count: int, rng: random.Random, *, ways: int) -> list[dict[str, object]]:
    """Return the questions of so many paragraphs, three with an answer to each one without."""
    found: list[dict[str, object]] = []
    kinds = [[thing for thing in things if thing.subject == kind] for kind in ("the country", "the element")]
    for number in range(count):
        pair = rng.sample(kinds[number % 2], 2)
        text, places, facts = paragraph(pair, rng, ways=ways)
        asked = rng.sample(sorted(places), QUESTIONS - 1)
        # Facts told of the other one only tempt most.
        absent = [(thing.name, fact) for thing in pair for fact in sorted(facts) if (thing.name, fact) not in places]
        absent = absent or [(pair[0].name, fact) for fact in sorted(set(pair[0].facts) - facts)]
        values = {thing.name: thing.facts for thing in pair}
        for name, fact in [*asked, rng.choice(absent)]:
            start = places.get((name, fact))
            answers = {"text": [], "answer_start": []}
            if start is not None:
                value = values[name][fact]
                assert text[start : start + len(value)] == value
                answers = {"text": [value], "answer_start": [start]}
            question = rng.choice(ASK[fact][:ways]).format(name=name)
            found.append({"question": question, "context": text, "answers": answers})
    return found


def main() -> None:
    """Write the three splits."""
    rng = random.Random(SEED)
    splits: dict[str, list[Thing]] = {split: [] for split in SHARES}
    for things in (countries(), elements()):
        rng.shuffle(things)
        at = 0
        for split, share in SHARES.items():
            more = round(share * len(things))
            splits[split] += things[at : at + more]
            at += more
    target = Path(__file__).parent / "data"
    target.mkdir(exist_ok=True)
    for split, things in splits.items():
        found = rows(things, PARAGRAPHS[split], rng, ways=3 if split == "train" else 4)
        lines = [json.dumps(row, ensure_ascii=False) for row in found]
        (target / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
