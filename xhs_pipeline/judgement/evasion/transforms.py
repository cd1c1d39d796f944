"""Disguises that people use to get past moderation, applied to posts on purpose. Rewrites posts; judges nothing.

Each transform is seeded by the post's id, so a suite is the same every time and a post's disguise does not depend on which
other posts are in it. A transform that finds nothing to disguise returns the text as it was; such posts do not count. Typed
placeholders such as <微信号> stay whole.
"""

import functools
import io
import random
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from xhs_pipeline.curation.identifiers import HOMOPHONE, TYPES, VARIANT
from xhs_pipeline.judgement.evasion.tables import EMOJI, MARTIAN, SPLIT

# Of the Chinese characters that a transform can disguise, the share that it does: enough to break every other word, and still
# read at sight.
SHARE = 0.4
RUN = 12  # Chinese characters that get marks or separators between them, at a random place
ZERO_WIDTH = "\u200b\u200c\u2060\ufeff"
SEPARATORS = "·-*~. /|_^"
CIRCLED = "⓪①②③④⑤⑥⑦⑧⑨"
# A page is at most 976 pixels high, which cleaning does not shrink; a longer text takes several.
IMAGE_WIDTH, FONT_SIZE, LINE_HEIGHT, LINES_A_PAGE = 560, 26, 36, 26
MARGIN = 20

_PLACEHOLDER = re.compile(f"(<(?:{'|'.join(TYPES)})(?::(?:{HOMOPHONE}|{VARIANT}))?>)")


@dataclass(frozen=True)
class Disguised:
    """A post's title, body and JPEGs after a transform."""

    title: str
    body: str
    images: tuple[bytes, ...] = ()


Text = Callable[[str, random.Random], str]


def homophones(text: str, rng: random.Random) -> str:
    """谐音: characters replaced by other common ones of the same sound, tone aside."""
    return _replace(text, rng, lambda c: [other for other in _same_sound().get(_sound(c), ()) if other != c])


def pinyin(text: str, rng: random.Random) -> str:
    """Characters replaced by their pinyin (微信 becomes weixin)."""
    return _replace(text, rng, lambda c: [_sound(c)] if _sound(c) else [])


def initials(text: str, rng: random.Random) -> str:
    """Characters replaced by the first letter of their pinyin (微信 becomes wx)."""
    return _replace(text, rng, lambda c: [_sound(c)[0]] if _sound(c) else [])


def split_characters(text: str, rng: random.Random) -> str:
    """拆字: characters written as their parts (骗 becomes 马扁)."""
    return _replace(text, rng, lambda c: [SPLIT[c]] if c in SPLIT else [], share=1.0)


def traditional(text: str, rng: random.Random) -> str:
    """Traditional characters for simplified ones, all of them (OpenCC's s2t)."""
    return str(_to_traditional().convert(text))


def martian(text: str, rng: random.Random) -> str:
    """火星文: look-alikes for common characters."""
    return _replace(text, rng, lambda c: [MARTIAN[c]] if c in MARTIAN else [], share=1.0)


def emoji(text: str, rng: random.Random) -> str:
    """Emoji for the words that they show."""
    for word in sorted(EMOJI, key=len, reverse=True):
        text = text.replace(word, EMOJI[word])
    return text


def zero_width(text: str, rng: random.Random) -> str:
    """Marks that no reader sees between the characters of every run."""
    return _between(text, lambda: rng.choice(ZERO_WIDTH), whole=True, rng=rng)


def separators(text: str, rng: random.Random) -> str:
    """A dot, dash or blank between the characters of a run of words."""
    mark = rng.choice(SEPARATORS)
    return _between(text, lambda: mark, whole=False, rng=rng)


def digits(text: str, rng: random.Random) -> str:
    """Full-width letters and digits, and circled digits."""
    circled = rng.random() < 0.5
    out = []
    for c in text:
        if c.isascii() and c.isdigit() and circled:
            out.append(CIRCLED[int(c)])
        elif c.isascii() and c.isalnum():
            out.append(chr(ord(c) + 0xFEE0))
        else:
            out.append(c)
    return "".join(out)


TEXT_TRANSFORMS: dict[str, tuple[str, Text]] = {
    "homophones": ("谐音", homophones),
    "pinyin": ("拼音", pinyin),
    "initials": ("拼音首字母", initials),
    "split_characters": ("拆字", split_characters),
    "traditional": ("繁体", traditional),
    "martian": ("火星文", martian),
    "emoji": ("表情代字", emoji),
    "zero_width": ("零宽字符", zero_width),
    "separators": ("插入分隔符", separators),
    "digits": ("全角与圈码", digits),
}
IN_IMAGE = "text_in_image"
CHINESE_NAMES = {name: chinese for name, (chinese, _) in TEXT_TRANSFORMS.items()} | {IN_IMAGE: "文字移入图片"}


def disguise(name: str, post_id: str, post: Disguised, seed: int) -> Disguised | None:
    """The post under one transform (a name of CHINESE_NAMES); None when there is nothing in it to disguise.

    `text_in_image` leaves no title and no body, and puts pages of them before the post's own images.
    Raises KeyError for an unknown name, and FontMissing from `text_in_image` on a machine without a Chinese font.
    """
    if name == IN_IMAGE:
        if not _has_words(post.title + post.body):
            return None
        return Disguised("", "", (*render_text(f"{post.title}\n{post.body}".strip()), *post.images))
    transform = TEXT_TRANSFORMS[name][1]
    rng = random.Random(f"{seed}:{name}:{post_id}")
    title, body = (_around_placeholders(transform, text, rng) for text in (post.title, post.body))
    return None if (title, body) == (post.title, post.body) else replace(post, title=title, body=body)


def _around_placeholders(transform: Text, text: str, rng: random.Random) -> str:
    pieces = _PLACEHOLDER.split(text)  # every other one is a placeholder
    return "".join(piece if place % 2 else transform(piece, rng) for place, piece in enumerate(pieces))


class FontMissing(RuntimeError):
    """No font with Chinese characters on this machine; the message says what to install."""


def render_text(text: str) -> list[bytes]:
    """Black text on white as JPEGs, IMAGE_WIDTH wide, as screenshots of a note, page after page. Raises FontMissing."""
    columns = (IMAGE_WIDTH - 2 * MARGIN) // FONT_SIZE
    lines = [line[at : at + columns] for line in text.split("\n") for at in range(0, max(len(line), 1), columns)]
    return [_page(lines[at : at + LINES_A_PAGE]) for at in range(0, len(lines), LINES_A_PAGE)]


def _page(lines: list[str]) -> bytes:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(str(chinese_font()), FONT_SIZE)
    image = Image.new("RGB", (IMAGE_WIDTH, 2 * MARGIN + len(lines) * LINE_HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + number * LINE_HEIGHT), line, font=font, fill="black")
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=90)
    return out.getvalue()


@functools.cache
def chinese_font() -> Path:
    """A font file of this machine that draws Chinese; the same one every time on one machine. Raises FontMissing."""
    from matplotlib import font_manager
    from PIL import ImageFont

    known = (
        "notosanscjk",
        "sourcehansans",
        "wqy",
        "pingfang",
        "msyh",
        "simhei",
        "droidsansfallback",
        "notosanssc",
        "notoserifcjk",
    )
    files = sorted(font_manager.findSystemFonts())
    ranked = [
        (rank, file)
        for rank, name in enumerate(known)
        for file in files
        if name in Path(file).name.lower().replace("-", "").replace("_", "")
    ]
    for _, file in sorted(ranked):
        try:
            ImageFont.truetype(file, FONT_SIZE)
        except OSError:
            continue
        return Path(file)
    raise FontMissing("no font with Chinese characters found; install one, for example the package fonts-noto-cjk")


def _replace(text: str, rng: random.Random, choices: Callable[[str], list[str]], share: float = SHARE) -> str:
    """Each character that has choices is replaced with probability `share` by one of them."""
    out = []
    for c in text:
        others = choices(c)
        out.append(rng.choice(others) if others and rng.random() < share else c)
    return "".join(out)


def _between(text: str, mark: Callable[[], str], whole: bool, rng: random.Random) -> str:
    """Marks between neighbouring Chinese characters: everywhere, or in one run of RUN characters in every 3 RUN."""
    out: list[str] = []
    start = rng.randrange(2 * RUN) if len(text) > 2 * RUN else 0
    for place, c in enumerate(text):
        marked = whole or (place - start) % (3 * RUN) < RUN
        if out and marked and _is_han(c) and _is_han(text[place - 1]):
            out.append(mark())
        out.append(c)
    return "".join(out)


def _is_han(c: str) -> bool:
    return "\u3400" <= c <= "\u9fff"


def _has_words(text: str) -> bool:
    return any(unicodedata.category(c)[0] in "LN" for c in text)


@functools.lru_cache(maxsize=8192)
def _sound(c: str) -> str:
    """Pinyin of one Chinese character without tone, "" for any other."""
    from pypinyin import lazy_pinyin

    return str(lazy_pinyin(c)[0]) if _is_han(c) else ""


@functools.cache
def _same_sound() -> dict[str, list[str]]:
    """The 3,755 most common characters (GB 2312, level 1: rows 16 to 55) by their sound."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in range(0xB0, 0xD8):
        for cell in range(0xA1, 0xFF):
            try:
                c = bytes((row, cell)).decode("gb2312")
            except UnicodeDecodeError:
                continue  # the last cells of the last row are empty
            found[_sound(c)].append(c)
    return dict(found)


@functools.cache
def _to_traditional():  # type: ignore[no-untyped-def]
    import opencc

    return opencc.OpenCC("s2t")
