"""Write multiple choice questions about ICD-10-CM: which category does a diagnosis belong to?

The facts are the April 2026 release of ICD-10-CM by the United States' CDC and CMS, in the public domain, as the
package ``simple-icd-10-cm`` (MIT licence) holds it. A question names a diagnosis, which is a subcategory or one of its
inclusion terms, as "Volvulus". The right option is the category that it stands under, as "Paralytic ileus and
intestinal obstruction without hernia". The wrong ones are a category of the same block, one of the same chapter and one
of another chapter, each with questions of its own, so that no option gives itself away.

Chapters 1 to 14 and 16 to 18 are read, those of diseases: in the others most diagnoses repeat the category's name.
Blocks of neighbouring categories go to one split as a whole, and options come from the question's split: no category
of the test rows, right or wrong, occurs in training.

``pip install simple-icd-10-cm==1.5.0``; the same release gives the same rows.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import simple_icd_10_cm as icd

FOLDER = Path(__file__).parent / "data"
CHAPTERS = frozenset(str(number) for number in (*range(1, 15), *range(16, 19)))
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
PER_CATEGORY = {"train": 6, "validation": 3, "test": 3}
LONGEST = 60
UNNAMED = re.compile(
    r"\bNOS\b|\bunspecified\b|\bother\b|\belsewhere\b|\bclassif|\bcodes?\b|\bconditions? in\b|\bany condition\b"
    # Variants of one diagnosis by side, and references to other codes.
    r"|\bright\b|\bleft\b|\bbilateral\b|\bunilateral\b|\bsite\b|[A-Z]\d\d",
    re.IGNORECASE,
)
"""Terms that name no diagnosis."""


@dataclass(frozen=True)
class Category:
    """A category of three characters.

    Attributes:
        name: its description.
        block: code of the block that it is in.
        chapter: description of the chapter.
        terms: diagnoses that stand under it and under no other category.
    """

    name: str
    block: str
    chapter: str
    terms: tuple[str, ...]


def categories() -> list[Category]:
    """Return the categories that have diagnoses to ask for."""
    found: list[tuple[str, list[str], list[str]]] = []
    for code in icd.get_all_codes():
        if icd.is_chapter_or_block(code) or not icd.is_category(code):
            continue
        ancestors = icd.get_ancestors(code)
        if ancestors[-1] in CHAPTERS:
            found.append((code, ancestors, named_terms(code)))
    owners = Counter(term.lower() for _, _, terms in found for term in terms)
    listed = []
    for code, ancestors, terms in found:
        own = tuple(term for term in terms if owners[term.lower()] == 1)
        chapter = re.sub(r" \([A-Z0-9-]+\)$", "", icd.get_description(ancestors[-1]))
        if own:
            listed.append(Category(icd.get_description(code), ancestors[0], chapter, own))
    return listed


def named_terms(code: str) -> list[str]:
    """Return the subcategories and inclusion terms of a category that name a diagnosis, each once."""
    name = icd.get_description(code)
    terms = list(icd.get_inclusion_term(code))
    for child in icd.get_descendants(code):
        terms += [icd.get_description(child), *icd.get_inclusion_term(child)]
    usable = (
        term.strip()
        for term in terms
        if len(term) <= LONGEST and not UNNAMED.search(term) and term.lower() != name.lower()
    )
    return list({term.lower(): term for term in usable}.values())


def split_blocks(listed: Sequence[Category], rng: random.Random) -> dict[str, list[Category]]:
    """Return the categories of each split; blocks stay whole, and each split has its share of every chapter."""
    chapters: dict[str, set[str]] = defaultdict(set)
    for category in listed:
        chapters[category.chapter].add(category.block)
    place: dict[str, str] = {}
    for blocks in chapters.values():
        order = sorted(blocks)
        rng.shuffle(order)
        held_out = {name: max(1, round(share * len(order))) for name, share in SHARES.items() if name != "train"}
        names = [name for name, count in held_out.items() for _ in range(count)]
        place |= {block: names[i] if i < len(names) else "train" for i, block in enumerate(order)}
    return {name: [category for category in listed if place[category.block] == name] for name in SHARES}


def question(term: str, right: Category, pool: Sequence[Category], rng: random.Random) -> Mapping[str, object] | None:
    """Return the row that asks for a diagnosis; None where the split has no wrong options for it."""
    near = [other for other in pool if other.block == right.block and other != right]
    same = [other for other in pool if other.chapter == right.chapter and other.block != right.block]
    far = [other for other in pool if other.chapter != right.chapter]
    if not near or not far:
        return None
    wrong = [rng.choice(near), rng.choice(same or far)]
    wrong.append(rng.choice([other for other in far if other not in wrong]))
    options = [right.name, *(other.name for other in wrong)]
    rng.shuffle(options)
    return {
        "question": f'Which category is "{term}" in?',
        "options": options,
        "answer": "ABCD"[options.index(right.name)],
        "subject": right.chapter,
    }


def main() -> None:
    """Write ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``."""
    rng = random.Random(0)
    FOLDER.mkdir(exist_ok=True)
    for name, pool in split_blocks(categories(), rng).items():
        terms = [
            (term, category)
            for category in pool
            for term in rng.sample(category.terms, min(PER_CATEGORY[name], len(category.terms)))
        ]
        rows = [row for term, category in terms if (row := question(term, category, pool, rng))]
        rng.shuffle(rows)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (FOLDER / f"{name}.jsonl").write_text(text, encoding="utf-8")
        sys.stdout.write(f"{FOLDER / name}.jsonl: {len(rows)} questions about {len(pool)} categories\n")


if __name__ == "__main__":
    main()
