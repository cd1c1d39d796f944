"""Ways to write a number so that a program overlooks it."""

import random
from collections.abc import Callable

Rng = random.Random

EMOJI = "🌸🍓✨🔥💛🐰🍀⭐🎀🌙❤👉💕🍊🐾"
SEPARATORS = " -.·_~*/|、…"
CHINESE = dict(zip("0123456789", "零一二三四五六七八九", strict=True))
FORMAL = dict(zip("0123456789", "零壹贰叁肆伍陆柒捌玖", strict=True))
SPOKEN = dict(zip("0123456789", "〇幺二三四五六七八九", strict=True))
CIRCLED = dict(zip("0123456789", "⓪①②③④⑤⑥⑦⑧⑨", strict=True))
BLACK_CIRCLED = dict(zip("0123456789", "⓿❶❷❸❹❺❻❼❽❾", strict=True))
BOLD = {d: chr(0x1D7CE + int(d)) for d in "0123456789"}
SUPERSCRIPT = dict(zip("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True))


def digits(rng: Rng, count: int, first: str = "0123456789") -> str:
    return rng.choice(first) + "".join(rng.choice("0123456789") for _ in range(count - 1))


def spell(text: str, table: dict[str, str]) -> str:
    return "".join(table.get(char, char) for char in text)


def full_width(text: str) -> str:
    return "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)


def join(rng: Rng, text: str, separator: str | None = None) -> str:
    return (separator if separator is not None else rng.choice(SEPARATORS)).join(text)


def keycaps(text: str) -> str:
    return "".join(f"{char}\ufe0f\u20e3" if char.isdigit() else char for char in text)


def some_spelled(rng: Rng, text: str) -> str:
    """Every digit with even odds in Chinese, at least two of them."""
    places = [i for i, char in enumerate(text) if char.isdigit()]
    chosen = set(rng.sample(places, max(2, len(places) // 2)))
    return "".join(CHINESE[c] if i in chosen else c for i, c in enumerate(text))


def emoji_between(rng: Rng, text: str) -> str:
    if rng.random() < 0.5:
        return join(rng, text, rng.choice(EMOJI))
    return text[:3] + rng.choice(EMOJI) + text[3:7] + rng.choice(EMOJI) + text[7:]


DISGUISES: dict[str, Callable[[Rng, str], str]] = {
    "full-width": lambda rng, text: full_width(text),
    "circled": lambda rng, text: spell(text, rng.choice([CIRCLED, CIRCLED, BLACK_CIRCLED])),
    "chinese numerals": lambda rng, text: spell(text, rng.choice([CHINESE, FORMAL, SPOKEN])),
    "some chinese numerals": some_spelled,
    "spaces": lambda rng, text: join(rng, text, " "),
    "marks between": lambda rng, text: join(rng, text),
    "emoji between": emoji_between,
    "keycaps": lambda rng, text: keycaps(text),
    "zero width": lambda rng, text: join(rng, text, rng.choice("\u200b\u200c\u2060")),
    "letter forms": lambda rng, text: spell(text, rng.choice([BOLD, SUPERSCRIPT])),
}


def disguised(rng: Rng, text: str, odds: float = 0.6) -> tuple[str, str]:
    """A number and the name of its disguise, "plain" when it has none."""
    if rng.random() >= odds:
        return text, "plain"
    name = rng.choice(list(DISGUISES))
    return DISGUISES[name](rng, text), name
