"""Write pairs of phrases as apps show them, in English and in another language, for the recipes of this folder.

How a language writes dates, times, amounts of money, measures and lists, and how it names countries, languages,
currencies, scripts, units and time zones, is what translators all over the world collect in the Unicode Common Locale
Data Repository (CLDR). The package babel carries it and applies its rules (`pip install babel`, BSD-3-Clause; the data
is under the Unicode Licence V3), so that both sides of a pair say the same by the same rule. Which numbers, dates and
names stand in a phrase is drawn at random, with a fixed seed.

    python recipes/translation/make_data.py [de|zh|...]

writes `data/en-<language>/{train,validation,test}.jsonl` beside this file, German and Chinese where no language is
named. No phrase of one split occurs in another, on either side.
"""

from __future__ import annotations

import datetime
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from babel import Locale, core, dates, lists, localedata, numbers, units

SIZES = {"test": 1000, "validation": 500, "train": 8000}
ENGLISH = Locale("en")
SPAN = datetime.date(1950, 1, 1).toordinal(), datetime.date(2049, 12, 31).toordinal()

Say = Callable[[Locale], str]
"""Says one thing in the language that it is asked for."""


def names() -> Iterator[Say]:
    """Yield what names every country, language, script, currency, unit, time zone and locale."""
    for kind in ("territories", "languages", "scripts", "variants", "currencies"):
        for key in sorted(getattr(ENGLISH, kind)):
            yield lambda locale, kind=kind, key=key: getattr(locale, kind)[key]
    for unit in sorted(ENGLISH._data["unit_display_names"]):
        yield lambda locale, unit=unit: units.get_unit_name(unit, "long", locale) or ""
    for zone in time_zones():
        for variant in ("generic", "standard", "daylight"):
            yield lambda locale, zone=zone, variant=variant: dates.get_timezone_name(
                zone, "long", locale=locale, zone_variant=variant
            )
    for identifier in sorted(localedata.locale_identifiers()):
        yield lambda locale, identifier=identifier: Locale.parse(identifier).get_display_name(locale) or ""


def time_zones() -> list[str]:
    """Return one place for each of CLDR's rules of time, as America/New_York for Eastern Time."""
    places: dict[str, str] = {}
    for place, rule in sorted(core.get_global("meta_zones").items()):
        places.setdefault(rule, place)
    return sorted(places.values())


class Phrases:
    """Draws phrases with numbers, dates and names in them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.units = sorted(ENGLISH._data["unit_patterns"])
        self.currencies = sorted(core.get_global("all_currencies"))
        self.zones = time_zones()
        self.kinds: tuple[Callable[[], Say], ...] = (
            self.measure,
            self.money,
            self.day,
            self.period,
            self.moment,
            self.span,
            self.enumeration,
        )

    def draw(self) -> Say:
        """Return a phrase; kinds that have more to say come more often."""
        return self.rng.choices(self.kinds, weights=(22, 16, 20, 8, 8, 4, 22))[0]()

    def measure(self) -> Say:
        """Say a number of a unit: 3.5 kilometers per hour."""
        number = self.rng.choice((self.rng.randint(1, 1000), self.rng.randint(1, 100), self.rng.randint(1, 200) / 10))
        unit = self.rng.choice(self.units)

        def say(locale: Locale) -> str:
            text = units.format_unit(number, unit, "long", locale=locale)
            # Where the long form is the short one, CLDR has it once, and babel shows the unit's key.
            return units.format_unit(number, unit, "short", locale=locale) if unit in text else text

        return say

    def money(self) -> Say:
        """Say an amount: 1,250 Swiss francs, 9.95 euros."""
        whole, currency = (
            self.rng.choice((self.rng.randint(1, 100), 50 * self.rng.randint(1, 100))),
            self.rng.choice(self.currencies),
        )
        number = whole + self.rng.choice((0, 0, 0.25, 0.5, 0.95))
        return lambda locale: numbers.format_currency(number, currency, locale=locale, format_type="name")

    def date(self) -> datetime.date:
        """Return a day of a hundred years."""
        return datetime.date.fromordinal(self.rng.randint(*SPAN))

    def day(self) -> Say:
        """Say a day: Thursday, March 4, 2021."""
        date, form = self.date(), self.rng.choice(("full", "full", "long", "MMMMEEEEd", "MMMMd", "yQQQQ", "yMMMM"))
        if form in ("full", "long"):
            return lambda locale: dates.format_date(date, form, locale)
        return lambda locale: dates.format_skeleton(form, date, locale=locale)

    def period(self) -> Say:
        """Say from when to when: March 4 – 9, 2021."""
        begin = self.date()
        end = begin + datetime.timedelta(days=self.rng.choice((2, 5, 9, 40, 100, 400)))
        form = self.rng.choice(("yMMMd", "yMMMMEEEEd", "yMMMM", "MMMEd"))
        return lambda locale: dates.format_interval(begin, end, form, locale=locale)

    def moment(self) -> Say:
        """Say a moment with its time zone: Thursday, March 4, 2021, 4:05:00 PM Central European Standard Time."""
        time = datetime.datetime.combine(self.date(), datetime.time(self.rng.randrange(24), self.rng.randrange(60)))
        zone = dates.get_timezone(self.rng.choice(self.zones))
        return lambda locale: dates.format_datetime(time, "full", zone, locale)

    def span(self) -> Say:
        """Say how long ago, or in how long: 3 weeks ago."""
        unit = self.rng.choice(("seconds", "minutes", "hours", "days", "weeks"))
        span = datetime.timedelta(**{unit: self.rng.randint(-60, 60)})
        return lambda locale: dates.format_timedelta(span, add_direction=True, locale=locale)

    def enumeration(self) -> Say:
        """Say several names: Austria, Chile, and Japan; Tamil or Thai."""
        kind = self.rng.choice(("territories", "languages", "currencies"))
        keys = self.rng.sample(sorted(getattr(ENGLISH, kind)), self.rng.randint(2, 3))
        style = self.rng.choice(("standard", "or"))
        return lambda locale: lists.format_list([getattr(locale, kind)[key] for key in keys], style, locale)


def pairs(other: Locale, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return distinct pairs in random order: all names, and phrases until there are enough.

    Args:
        other: the language beside English.
        count: how many.
        seed: of all that is drawn.
    """
    phrases = Phrases(seed)
    found: dict[str, str] = {}
    taken: set[str] = set()

    def take(say: Say) -> None:
        try:
            # Spaces that must not break, and narrow ones, become plain ones.
            left, right = (" ".join(say(locale).split()) for locale in (ENGLISH, other))
        except (KeyError, units.UnknownUnitError):
            return  # a name that one of the languages lacks
        if left and right and left not in found and right not in taken:
            found[left] = right
            taken.add(right)

    for say in names():
        take(say)
    while len(found) < count:
        take(phrases.draw())
    chosen = list(found.items())
    phrases.rng.shuffle(chosen)
    return chosen[:count]


def main(languages: list[str]) -> None:
    """Write the three files of each language."""
    for language in languages:
        rows = pairs(Locale.parse(language), sum(SIZES.values()))
        folder = Path(__file__).parent / "data" / f"en-{language}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, size in SIZES.items():
            part, rows = rows[:size], rows[size:]
            lines = [json.dumps({"source": left, "target": right}, ensure_ascii=False) for left, right in part]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        sys.stdout.write(f"{folder}: {', '.join(f'{size} {name}' for name, size in SIZES.items())}\n")


if __name__ == "__main__":
    main(sys.argv[1:] or ["de", "zh"])
