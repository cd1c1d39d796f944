"""Replacing what identifies or reaches a person by a typed placeholder that keeps the signal. Patterns are in `patterns`.

`加V：abc12345` becomes `加V：<微信号>`: the cue stays, since sending people off the platform is the violation; the account goes.
A disguise stays visible as a type, `<微信号:谐音>` or `<手机号:变体>`, because the disguise is evidence too.
"""

import ipaddress
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator

from xhs_pipeline.curation import patterns as p
from xhs_pipeline.curation.shadow import Shadow, cast

TYPES = (
    "手机号", "座机", "微信号", "QQ号", "邮箱", "身份证号", "银行卡号", "IP地址", "车牌号", "地址", "用户名", "链接", "订单号",
)  # fmt: skip
HOMOPHONE, VARIANT = "谐音", "变体"

# Masking one identifier can uncover the edge of the next (an account glued to a number), so masking repeats until nothing
# changes. Two rounds settle real posts; the bound keeps a text built to need thousands of rounds linear.
MAX_ROUNDS = 8

_PLACEHOLDER = re.compile(f"<(?:{'|'.join(TYPES)})(?::(?:{HOMOPHONE}|{VARIANT}))?>")
_WORTH_A_LOOK = re.compile(r"[0-9@＠]|[a-z]{5}|[a-z][-_.]|号楼|\.[a-z]{2}|艾特|点[a-z]{2}|。[a-z]{2}")

Found = tuple[int, int, str]  # start and end in the shadow, placeholder type


def mask(text: str) -> tuple[str, list[str]]:
    """Replace identifiers in `text` by placeholders; return the new text and the types put in, in order of appearance.

    Types are the words inside the brackets (`手机号`, `微信号:谐音`). Placeholders already in the text are left alone, so
    masking twice changes nothing; the second time the list is empty. Time is linear in the length of the text.
    """
    types: list[str] = []
    for _ in range(MAX_ROUNDS):
        text, new = _mask_once(text)
        if not new:
            break
        types += new
    return text, types


def _mask_once(text: str) -> tuple[str, list[str]]:
    shadow = cast(text)
    if not _WORTH_A_LOOK.search(shadow.digits):
        return text, []
    taken = bytearray(len(shadow.plain))
    for match in _PLACEHOLDER.finditer(shadow.original) if "<" in text else ():
        _take_placeholder(shadow, taken, match)
    found: list[Found] = []
    for detect in _DETECTORS:
        for start, end, kind in detect(shadow):
            if end > start and taken.find(1, start, end) < 0:
                taken[start:end] = b"\x01" * (end - start)
                found.append((start, end, kind))
    pieces, position, types = [], 0, []
    for start, end, kind in sorted(found):
        first, last = shadow.source(start, end)
        pieces += [text[position:first], f"<{kind}>"]
        types.append(kind)
        position = last
    return "".join(pieces) + text[position:], types


def _take_placeholder(shadow: Shadow, taken: bytearray, match: re.Match[str]) -> None:
    start, end = match.span()
    if shadow.starts is not None:
        start, end = bisect_left(shadow.starts, start), bisect_left(shadow.starts, end)
    taken[start:end] = b"\x01" * (end - start)


def _changed(shadow: Shadow, start: int, end: int) -> bool:
    """Whether the original of a span is not plain ASCII, which hides it."""
    first, last = shadow.source(start, end)
    return any(not char.isascii() and char not in "转—–·" for char in shadow.original[first:last])


def _typed(name: str, disguised: bool, type_: str = VARIANT) -> str:
    return f"{name}:{type_}" if disguised else name


def _links(shadow: Shadow) -> Iterator[Found]:
    for pattern in (p.EMAIL, p.EMAIL_DISGUISED):
        for match in pattern.finditer(shadow.plain):
            disguised = pattern is p.EMAIL_DISGUISED or _changed(shadow, *match.span())
            yield *match.span(), _typed("邮箱", disguised)
    for pattern in (p.URL, p.DOMAIN, p.DOMAIN_DISGUISED):
        for match in pattern.finditer(shadow.plain):
            end = match.start() + len(match.group().rstrip(".,;:!?()[]{}'\"~"))
            disguised = pattern is p.DOMAIN_DISGUISED or _changed(shadow, match.start(), end)
            yield match.start(), end, _typed("链接", disguised)


def _addresses_on_the_net(shadow: Shadow) -> Iterator[Found]:
    for match in p.IPV4.finditer(shadow.plain):
        if not p.VERSION_BEFORE.search(shadow.plain, max(0, match.start() - 8), match.start()):
            yield *match.span(), _typed("IP地址", _changed(shadow, *match.span()))
    for match in p.IPV6.finditer(shadow.plain):
        text = match.group().rstrip(":") if not match.group().endswith("::") else match.group()
        groups = [group for group in text.split(":") if group]
        try:
            ipaddress.IPv6Address(text)
        except ValueError:
            continue
        if len(groups) >= 3 and any(char.isdigit() for char in text):
            yield match.start(), match.start() + len(text), "IP地址"


def _numbers(shadow: Shadow) -> Iterator[Found]:
    for match in p.ORDER.finditer(shadow.digits):
        yield *match.span("id"), _typed("订单号", _changed(shadow, *match.span("id")))
    for match in p.ORDER_OF_CARRIER.finditer(shadow.plain):
        yield *match.span(), _typed("订单号", _changed(shadow, *match.span()))
    for pattern, name, valid in (
        (p.ID_CARD, "身份证号", p.id_card_is_valid),
        (p.BANK_CARD, "银行卡号", p.luhn_is_valid),
    ):
        for match in pattern.finditer(shadow.digits):
            if valid(p.strip_separators(match.group())):
                yield *match.span(), _typed(name, _changed(shadow, *match.span()))
    for pattern, name in ((p.ID_CARD_CUED, "身份证号"), (p.BANK_CARD_CUED, "银行卡号")):
        for match in pattern.finditer(shadow.digits):
            yield *match.span("id"), _typed(name, _changed(shadow, *match.span("id")))


def _accounts(shadow: Shadow) -> Iterator[Found]:
    for pattern, homophone in p.QQ:
        for match in pattern.finditer(shadow.digits):
            yield _account(shadow, match, match.lastgroup or "id", "QQ号", homophone)
    for pattern, homophone in p.WECHAT:
        for match in pattern.finditer(shadow.plain):
            if p.looks_like_account(match):
                yield _account(shadow, match, "id", "微信号", homophone)
    for match in p.WECHAT_NUMBER.finditer(shadow.digits):
        homophone = (match.group("cue") or match.group()[0]) not in p.PLAIN_WECHAT_CUES
        disguised = _changed(shadow, *match.span("id"))
        yield *match.span("id"), _typed("微信号", homophone or disguised, HOMOPHONE if homophone else VARIANT)
    for pattern in (p.OTHER_ACCOUNT, p.CONTACT_HANDLE):
        for match in pattern.finditer(shadow.plain):
            if pattern is p.OTHER_ACCOUNT or p.looks_like_account(match):
                yield *match.span("id"), _typed("用户名", _changed(shadow, *match.span("id")))


def _account(shadow: Shadow, match: re.Match[str], group: str, name: str, homophone: bool) -> Found:
    start, end = match.span(group)
    first, last = shadow.source(start, end)
    disguised = not p.PLAIN_ACCOUNT.fullmatch(shadow.original[first:last])
    return start, end, _typed(name, homophone or disguised, HOMOPHONE if homophone else VARIANT)


def _phones(shadow: Shadow) -> Iterator[Found]:
    for match in p.MOBILE.finditer(shadow.digits):
        if p.is_mobile(match, shadow.digits):
            first, last = shadow.source(*match.span())
            yield *match.span(), _typed("手机号", not p.PLAIN_MOBILE.fullmatch(shadow.original[first:last]))
    for match in p.LANDLINE.finditer(shadow.digits):
        yield *match.span(), _typed("座机", _changed(shadow, *match.span()))


def _places(shadow: Shadow) -> Iterator[Found]:
    for match in p.PLATE.finditer(shadow.plain):
        if sum(char.isdigit() for char in match.group("tail")) >= 3:
            yield *match.span(), "车牌号"
    for match in p.ADDRESS.finditer(shadow.plain):
        start = p.address_start(shadow.plain, match)
        if start is not None:
            yield start, match.end(), "地址"


def _mentions(shadow: Shadow) -> Iterator[Found]:
    for match in p.MENTION.finditer(shadow.plain):
        yield *match.span(), "用户名"


# In this order: the first to claim a character keeps it.
_DETECTORS: tuple[Callable[[Shadow], Iterator[Found]], ...] = (
    _links,
    _addresses_on_the_net,
    _accounts,
    _numbers,
    _phones,
    _places,
    _mentions,
)
