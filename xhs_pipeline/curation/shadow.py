"""A shadow of a text in which disguised characters look plain, with the way back to the original. Finds nothing itself."""

import functools
import re
import unicodedata
from dataclasses import dataclass

from xhs_pipeline.curation.checksums import id_card_is_valid, luhn_is_valid
from xhs_pipeline.curation.text import to_simplified

CHINESE_DIGITS = str.maketrans("〇零一壹幺二贰两俩三叁四肆五伍六陆七柒八捌九玖", "00111222233445566778899")
_LETTER_DIGITS = str.maketrans("oil", "011")
_LETTERS_AMONG_DIGITS = re.compile(r"(?<=[0-9])(?:[oil]{1,4}(?=[0-9])|o{1,4}(?![0-9a-z]))")
# A numeral beside a long plain number is a word of the sentence (13812345678一起去), unless it completes a mobile number.
_NUMERAL = "[〇零一壹幺二贰两俩三叁四肆五伍六陆七柒八捌九玖]"
_BESIDE_A_NUMBER = re.compile(
    rf"(?<!{_NUMERAL[:-1]}0-9])(?P<before>{_NUMERAL}{{0,2}})(?P<run>[0-9]{{7,}}|[0-9](?: [0-9]){{6,}})(?P<after>{_NUMERAL}{{0,2}})(?!{_NUMERAL[:-1]}0-9])"
)
# Cheap signs that the two rewritings of numbers have something to do.
_LONG_NUMBER = re.compile("[0-9](?: ?[0-9]){6}")
_LETTER_BY_DIGIT = re.compile("[0-9][oil]")
_DIGIT_RUN = re.compile(r"[0-9](?:(?:[^\w<\n]|_){0,3}[0-9]){4,}")
_NO_DIGIT = "丂"


# Not letters of a word anyone writes here, but drawn like the v and x of a cue.
_DRAWN_LIKE = {"∨": "v", "ѵ": "v", "ν": "v", "х": "x", "χ": "x", "丨": "|"}
# Stand for another character in a disguise (徵信 is drawn like 微信), and would become an innocent word.
_STAYS_TRADITIONAL = "徵"


# Characters seen whose folded form is not one character long; a few thousand at most.
_UNEVEN: set[str] = set()


class _Fold(dict[str, str]):
    """Character to its plain lower-case form: "" for marks nobody sees, more than one character for ⑩ or ㎏."""

    def __missing__(self, char: str) -> str:
        folded = unicodedata.normalize("NFKC", char).casefold()
        category = unicodedata.category(char)
        number = unicodedata.numeric(char, None) if category in ("No", "Nd") else None
        if char in _DRAWN_LIKE:
            folded = _DRAWN_LIKE[char]
        elif char in "，；！":
            folded = char  # ends a link, as the ASCII form does not
        elif char == "\U0001f51f":
            folded = "10"
        elif category in ("Mn", "Me", "Cf"):
            folded = ""
        elif number is not None and number == int(number) and 0 <= number <= 99:
            folded = str(int(number))
        elif "\u3400" <= char <= "\u9fff" and char not in _STAYS_TRADITIONAL:
            folded = to_simplified(char)
        if len(folded) != 1:
            _UNEVEN.add(char)
        if len(self) < 50_000:
            self[char] = folded
        return folded


_FOLD = _Fold()


# One number over two lines, or with the app's own pictures ([爱心R]) between its parts.
_BREAK = r"(?:\s?\n\s?|\[[\u4e00-\u9fff]{1,6}r?\])"
_BREAKS = re.compile(_BREAK)
_A_BREAK = re.compile(rf"[0-9{_NUMERAL[1:-1]}]{_BREAK}[0-9{_NUMERAL[1:-1]}]")
_BROKEN = re.compile(rf"(?<![0-9a-z.,-])[0-9]{{1,17}}(?:{_BREAK}[0-9]{{1,17}}){{1,3}}x?(?![0-9a-z.,元块-])")
_CARD_BEFORE = re.compile(r"[卡账帐户]号?[^\w\n]{0,3}$")
_QQ_BEFORE = re.compile(r"(?:qq|[扣抠企鹅🐧群球秋口q])号?[^\w\n]{0,3}$")
_MOBILE = re.compile("1[3-9][0-9]{9}")


def _is_one_number(match: re.Match[str]) -> bool:
    """Whether the pieces are one number: in the groups of a mobile number, with the checksum of a card, or an account's two ends.

    Two lines with a whole number each stay two, and so do rows of prices.
    """
    pieces = _BREAKS.split(match.group())
    number = "".join(pieces)
    lines = "\n" in match.group()
    if lines and len(pieces) > 2:
        return False
    if _MOBILE.fullmatch(number):
        return tuple(map(len, pieces)) in {(3, 8), (4, 7), (7, 4), (3, 4, 4)}
    before = match.string[max(0, match.start() - 8) : match.start()]
    if any(map(_MOBILE.fullmatch, pieces)) and not _CARD_BEFORE.search(before):
        return False
    if len(number) == 18 and id_card_is_valid(number):
        return True
    if number[0] in "3456" and number.isdigit() and luhn_is_valid(number):
        return True
    account = number.isdigit() and 8 <= len(number) <= 11 and len(pieces[0]) in (3, 4)
    return account and bool(_QQ_BEFORE.search(before))


@dataclass(frozen=True)
class Shadow:
    """`plain`: folded text. `digits`: the same, same length, with Chinese numerals and o, l, i among digits as digits.

    `starts[i]` is the index in the original of the character that plain[i] came from; None when they are the same.
    """

    original: str
    plain: str
    digits: str
    starts: list[int] | None

    @functools.cached_property
    def most_digits(self) -> int:
        """Digits in the longest run of them, with at most three marks between each two; 0 for fewer than five."""
        return max((sum(map(str.isdigit, run)) for run in _DIGIT_RUN.findall(self.digits)), default=0)

    def source(self, start: int, end: int) -> tuple[int, int]:
        """The span of the original that plain[start:end] came from, with the invisible marks inside and right after it."""
        if self.starts is None:
            return start, end
        stop = self.starts[end - 1] + 1
        while stop < len(self.original) and not _FOLD[self.original[stop]]:
            stop += 1
        return self.starts[start], stop


def cast(text: str) -> Shadow:
    """The shadow of `text`; time and memory are linear in its length."""
    parts = list(map(_FOLD.__getitem__, text))
    plain = "".join(parts)
    starts = None
    if not _UNEVEN.isdisjoint(text):
        starts = [index for index, part in enumerate(parts) for _ in part]
    if _A_BREAK.search(plain):
        plain, starts = _joined(plain, starts)
    digits = plain
    if _LONG_NUMBER.search(digits):
        digits = _BESIDE_A_NUMBER.sub(_keep_words, digits)
    digits = digits.translate(CHINESE_DIGITS)
    if _LETTER_BY_DIGIT.search(digits):
        digits = _LETTERS_AMONG_DIGITS.sub(lambda match: match.group().translate(_LETTER_DIGITS), digits)
    return Shadow(text, plain, digits, starts)


def _joined(plain: str, starts: list[int] | None) -> tuple[str, list[int] | None]:
    """`plain` without the breaks inside numbers, and its `starts`."""
    cuts = {
        index
        for number in _BROKEN.finditer(plain.translate(CHINESE_DIGITS))
        if _is_one_number(number)
        for gap in _BREAKS.finditer(plain, *number.span())
        for index in range(*gap.span())
    }
    if not cuts:
        return plain, starts
    kept = [index for index in range(len(plain)) if index not in cuts]
    return "".join(plain[index] for index in kept), kept if starts is None else [starts[index] for index in kept]


def _keep_words(match: re.Match[str]) -> str:
    number = match.group().translate(CHINESE_DIGITS)
    if len(number) == 11 and number[0] == "1":
        return number
    return _NO_DIGIT * len(match.group("before")) + match.group("run") + _NO_DIGIT * len(match.group("after"))
