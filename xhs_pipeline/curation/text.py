"""The two texts of a post: what the model reads, and a matching form used only to compare posts. No masking here."""

import functools
import re
import unicodedata

import opencc

# Emoji and symbols that may rightly be joined by U+200D or followed by U+FE0F; between anything else those only hide words.
_EMOJI = "\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u24c2\u25a0-\u27bf\u2900-\u297f\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"

_LINE_BREAK = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# Every kind of blank, and letters that are drawn as one (Hangul fillers, the empty braille cell).
_BLANK = re.compile("[\t\xa0\u115f\u1160\u1680\u2000-\u200a\u202f\u205f\u2800\u3000\u3164\uffa0]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"  # controls, except tab and line breaks, which were handled before
    "\xad\u034f\u061c\u17b4\u17b5\u180b-\u180f"  # soft hyphen, grapheme joiner, Mongolian and Khmer invisibles
    "\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u206f"  # zero width, bidi marks, overrides and isolates
    "\ufe00-\ufe0e\ufeff\ufff0-\ufffb\ufffe\uffff"  # variation selectors, BOM, annotations, noncharacters
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"  # shorthand, music, tags (hidden ASCII)
    f"|(?<![{_EMOJI}\ufe0f\U0001f3fb-\U0001f3ff])\u200d|\u200d(?![{_EMOJI}])"
    f"|(?<![{_EMOJI}])\ufe0f(?!\u20e3)"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACES = re.compile(" {2,}")
_EMPTY_LINES = re.compile("\n{3,}")

ELISION = "……"

_NOT_WORD = re.compile(r"[\W_]+")
_LONG_RUN = re.compile(r"(\W{30})\W+")


def normalise(text: str | None) -> str:
    """The text as the model reads it: the author's wording and symbols, minus what no reader can see.

    Removed: control characters, zero-width marks, bidi overrides, tag characters, byte-order marks, stray variation selectors.
    Unified: line breaks to LF, every kind of blank to one space, three or more line breaks to two. A lone surrogate, which no
    file can hold, becomes U+FFFD. Nothing is ever cut. normalise(normalise(t)) == normalise(t).
    """
    if not text:
        return ""
    text = _LINE_BREAK.sub("\n", text)
    text = _BLANK.sub(" ", text)
    # Removing one mark can bring two others together (an emoji joiner that now joins letters), so until nothing changes;
    # a text that needs a third round is built to need many, and then every such mark goes.
    for _ in range(2):
        text, removed = _INVISIBLE.subn("", text)
        if not removed:
            break
    else:
        if _INVISIBLE.search(text):
            text = _INVISIBLE.sub("", text.replace("\u200d", "").replace("\ufe0f", ""))
    text = _SURROGATE.sub("\ufffd", text)
    text = _SPACES.sub(" ", text)
    text = text.replace(" \n", "\n").replace("\n ", "\n")
    return _EMPTY_LINES.sub("\n\n", text).strip()


def elide(text: str, head: int, tail: int) -> tuple[str, int]:
    """The first `head` and last `tail` characters of a longer text, and how many were left out; `head` 0 leaves it whole."""
    if not head or len(text) <= head + tail:
        return text, 0
    return text[:head] + ELISION + (text[-tail:] if tail else ""), len(text) - head - tail


def matching_form(title: str | None, body: str | None) -> str:
    """The form two posts are compared in: NFKC, case folded, letters and digits only. Never shown to model or moderator.

    Dropping everything but letters and digits removes zero-width marks, variation selectors, emoji, separators put between
    letters (加*微*信) and runs of punctuation in one step. A text of symbols only keeps its symbols, so that two different
    rows of emoji do not become equal. Traditional characters become simplified ones last, when nothing stands between the
    characters of a word any more, since OpenCC converts by word: 乾燥 is 干燥, 乾坤 stays.
    """
    # half a pair is no text, and nothing can be encoded with it
    text = _SURROGATE.sub("\ufffd", f"{title or ''}\n{body or ''}")
    return to_simplified(_NOT_WORD.sub("", _fold(text))) or "".join(text.split())


def to_simplified(text: str) -> str:
    """Traditional Chinese characters as simplified ones (OpenCC's t2s); all else unchanged."""
    if text.isascii():
        return text
    # OpenCC takes UTF-8, which holds no lone surrogate.
    return _converter().convert(_SURROGATE.sub("\ufffd", text))


@functools.cache
def _converter() -> opencc.OpenCC:
    return opencc.OpenCC("t2s")


def _fold(text: str) -> str:
    # NFKC sorts each run of combining marks by insertion, quadratic in the run's length: long runs are shortened first. They
    # hold no letters, so only a text of nothing but symbols could tell, and that one is compared unfolded.
    text = unicodedata.normalize("NFKC", _LONG_RUN.sub(r"\1", text))
    return unicodedata.normalize("NFKC", text.casefold())
