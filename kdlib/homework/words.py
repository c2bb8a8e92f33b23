"""Fixed texts of the report in both languages, numbers as text, text for LaTeX.

Typst needs no escapes: it reads all text as data, from JSON.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable

from kdlib import inputs
from kdlib.homework.entries import LANGUAGES, Text

# The sections in their order, by the names that both engines use. The body, which the course limits
# in length, ends before the contributions.
SECTIONS = {
    "introduction": Text("Introduction", "Введение"),
    "related": Text("Related work", "Обзор литературы"),
    "sources": Text("Sources of code", "Источники кода"),
    "method": Text("Method", "Метод"),
    "setup": Text("Experimental set-up", "Постановка экспериментов"),
    "results": Text("Results", "Результаты"),
    "failures": Text("What did not work", "Что не получилось"),
    "conclusions": Text("Conclusions", "Выводы"),
    "contributions": Text("Contributions", "Вклад участников"),
    "reproducibility": Text("Reproducibility", "Воспроизводимость"),
    "references": Text("References", "Литература"),
}
AFTER = ("contributions", "reproducibility", "references")

WORDS = {
    "abstract": Text("Abstract", "Аннотация"),
    "team": Text("Team", "Команда"),
    "homework": Text("homework", "домашняя работа"),
    "repository": Text("Repository", "Репозиторий"),
    "commit": Text("commit", "коммит"),
    "no commit": Text("no commit", "нет коммита"),
    "records": Text("run records", "записи запусков"),
    "figure": Text("Figure", "Рис."),
    "table": Text("Table", "Таблица"),
    "label": Text("Method", "Метод"),
    "seeds": Text("Seeds", "Запусков"),
    "difference": Text("Difference to “{baseline}”", "Разность с «{baseline}»"),
    "axis": Text(
        "{metric}: difference to “{baseline}”{unit}", "{metric}: разность с «{baseline}»{unit}"
    ),
    "points": Text(", points", ", п. п."),
    "one seed": Text("one run", "один запуск"),
    "person": Text("Member", "Участник"),
    "items": Text("Items", "Пункты"),
    "commits": Text("Commits", "Коммиты"),
    "sections": Text("Sections", "Разделы"),
    "what": Text("What", "Что"),
    "from": Text("From", "Откуда"),
    "licence": Text("Licence", "Лицензия"),
    "changed": Text("What was changed", "Что изменено"),
    "computed": Text(
        "Every number, table of results and figure of results is computed from {count} run records "
        "(digest {digest}), {repeatable} of which can be repeated from their file alone.",
        "Все числа, таблицы и рисунки с результатами вычислены по записям запусков (число записей: "
        "{count}, отпечаток {digest}); из них {repeatable} можно повторить по одному файлу.",
    ),
    "time": Text(
        "The runs took {minutes} minutes of one core in all: {machines}.",
        "Запуски заняли {minutes} мин. одного ядра: {machines}.",
    ),
    "command": Text(
        "One command makes them again:",
        "Одна команда выполняет их заново:",
    ),
}

METRICS = {
    "accuracy": Text("accuracy", "точность"),
    "test accuracy": Text("test accuracy", "точность на тесте"),
    "validation accuracy": Text("validation accuracy", "точность на валидации"),
    "loss": Text("loss", "функция потерь"),
    "seconds": Text("seconds", "секунды"),
}


def words(language: str) -> dict[str, str]:
    """Every fixed text that a report shows, in one language, with the names of sections."""
    return {name: text.of(language) for name, text in (WORDS | SECTIONS).items()}


def metric(name: str, language: str) -> str:
    """A metric in words; one that the kit does not know keeps its name."""
    known = METRICS.get(name)
    return name.replace("_", " ") if known is None else known.of(language)


# Numbers


def decimals(halves: Iterable[float], values: Iterable[float]) -> int:
    """Decimals of a metric, by one rule: the widest half-width shows two significant digits.

    Without any spread whole numbers have none, others two. At most six.
    """
    widest = max((half for half in halves if half > 0), default=0.0)
    if widest == 0:
        return 0 if all(float(value).is_integer() for value in values) else 2
    return max(0, min(6, 1 - math.floor(math.log10(float(f"{widest:.1e}")))))


def number(value: float, digits: int, language: str, *, sign: bool = False) -> str:
    """A number as its language writes it: 1,234.5 or 1 234,5, with a true minus sign."""
    inputs.choice("language", language, LANGUAGES)
    value = float(f"{value:.12g}")  # so that the last bit of another processor does not round up
    value = round(value, digits) + 0.0  # no −0.00
    text = f"{value:{'+' if sign and value else ''},.{digits}f}".replace("-", "−")
    return text.replace(",", "\u202f").replace(".", ",") if language == "ru" else text


def interval(
    mean: float, low: float, high: float, digits: int, language: str, *, sign: bool = False
) -> str:
    """A mean with its 95 % interval: 92.7 [92.1, 93.3], in Russian 92,7 [92,1; 93,3]."""
    parts = [number(part, digits, language, sign=sign) for part in (mean, low, high)]
    mark = "; " if language == "ru" else ", "
    return f"{parts[0]} [{parts[1]}{mark.replace(' ', chr(160))}{parts[2]}]"


# LaTeX

_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "ζ": "zeta",
    "η": "eta", "θ": "theta", "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu",
    "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "varphi",
    "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta",
    "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_SIGNS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\ensuremath{<}", ">": r"\ensuremath{>}", "|": r"\ensuremath{|}",
    '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
    "[": "{[}", "]": "{]}", "*": "{*}", "-": "-{}",
    "−": r"\ensuremath{-}", "–": r"\textendash{}", "—": r"\textemdash{}",
    "×": r"\ensuremath{\times}", "·": r"\ensuremath{\cdot}", "±": r"\ensuremath{\pm}",
    "≈": r"\ensuremath{\approx}", "≤": r"\ensuremath{\le}", "≥": r"\ensuremath{\ge}",
    "→": r"\ensuremath{\to}", "∞": r"\ensuremath{\infty}", "…": r"\dots{}", "°": r"\textdegree{}",
    "«": r"\guillemotleft{}", "»": r"\guillemotright{}", "“": r"\textquotedblleft{}",
    "”": r"\textquotedblright{}", "’": "'", "№": r"\textnumero{}",
    "\u00a0": "~", "\u202f": r"\,",
    **{letter: rf"\ensuremath{{\{name}}}" for letter, name in _GREEK.items()},
}  # fmt: skip
_ACCENTS = frozenset("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327")


def latex(text: str) -> str:
    """Text that LaTeX prints as it is and that runs nothing.

    Letters of Latin and Cyrillic stay; a sign that a plain TeX lacks becomes "?".
    """
    return "".join(_SIGNS.get(sign) or (sign if _known(sign) else "?") for sign in text)


def _known(sign: str) -> bool:
    """Whether T1 and T2A both print a sign without an escape."""
    if sign.isascii():
        return sign.isprintable()
    if "А" <= sign <= "я" or sign in "ЁёßæÆøØłŁı":
        return True
    parts = unicodedata.normalize("NFD", sign)
    return len(parts) == 2 and parts[0].isascii() and parts[0].isalpha() and parts[1] in _ACCENTS
