"""Replacing what identifies or reaches a person by a typed placeholder that keeps the signal. Patterns are in `patterns`.

`加V：abc12345` becomes `加V：<微信号>`: the cue stays, since sending people off the platform is the violation; the account goes.
A disguise stays visible as a type, `<微信号:谐音>` or `<手机号:变体>`, because the disguise is evidence too.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from xhs_pipeline.curation import contacts, places
from xhs_pipeline.curation import patterns as p
from xhs_pipeline.curation.checksums import id_card_is_valid, luhn_is_valid
from xhs_pipeline.curation.shadow import Shadow, cast

TYPES = (
    "手机号", "座机", "微信号", "QQ号", "邮箱", "身份证号", "银行卡号", "IP地址", "车牌号", "地址", "用户名", "链接", "订单号",
)  # fmt: skip
HOMOPHONE, VARIANT = "谐音", "变体"

# Masking one identifier can uncover the edge of the next (an account glued to a number), so masking repeats until nothing
# changes. Two rounds settle real posts; the bound keeps a text built to need thousands of rounds linear.
MAX_ROUNDS = 8

PLACEHOLDER = re.compile(f"<(?:{'|'.join(TYPES)})(?::(?:{HOMOPHONE}|{VARIANT}))?>")
_WORTH_A_LOOK = re.compile(
    r"[0-9@＠]|[a-z]{5}|[a-z][-_.]|[a-z]\W[a-z]\W[a-z]\W|号楼|\.[a-z]{2}|艾特|点[a-z]{2}|。[a-z]{2}"
)

_EMOTE_ENDS = "[/em]"  # [em]e10333[/em] is a picture

Found = tuple[int, int, str]  # start and end in the shadow, placeholder type


class Span(NamedTuple):
    """An identifier in a text: `text[start:end]` is of type `kind` (`手机号`, `微信号:谐音`)."""

    start: int
    end: int
    kind: str


def mask(text: str) -> tuple[str, list[str]]:
    """Replace identifiers in `text` by placeholders; return the new text and the types put in, in order of appearance.

    Types are the words inside the brackets (`手机号`, `微信号:谐音`). Placeholders already in the text are left alone, so
    masking twice changes nothing; the second time the list is empty. Time is linear in the length of the text.
    """
    spans = find(text)
    return _replace(text, spans), [span.kind for span in spans]


def find(text: str) -> list[Span]:
    """The identifiers in `text`, by place, none overlapping: what `mask` replaces."""
    spans: list[Span] = []
    masked = text
    for _ in range(MAX_ROUNDS):
        new = _find_once(masked)
        if not new:
            break
        spans = sorted([*spans, *_in_original(new, spans)])
        masked = _replace(text, spans)
    return spans


def _replace(text: str, spans: list[Span]) -> str:
    pieces, position = [], 0
    for start, end, kind in spans:
        pieces += [text[position:start], f"<{kind}>"]
        position = end
    return "".join(pieces) + text[position:]


def _in_original(new: list[Span], replaced: list[Span]) -> Iterator[Span]:
    """Spans of a text in which `replaced` were replaced, moved to where they stand in the text before that."""
    shift, index = 0, 0
    for start, end, kind in new:
        while index < len(replaced) and replaced[index].start + shift <= start:
            shift += len(f"<{replaced[index].kind}>") - (replaced[index].end - replaced[index].start)
            index += 1
        yield Span(start - shift, end - shift, kind)


def _find_once(text: str) -> list[Span]:
    # Placeholders become a character that no pattern crosses, so that the words in them are no cues.
    shadow = cast(PLACEHOLDER.sub(lambda match: "<" * len(match.group()), text) if "<" in text else text)
    if not _WORTH_A_LOOK.search(shadow.digits):
        return []
    taken = bytearray(len(shadow.plain))
    found: list[Found] = []
    for detect in _DETECTORS:
        for start, end, kind in detect(shadow):
            if end > start and taken.find(1, start, end) < 0:
                taken[start:end] = b"\x01" * (end - start)
                found.append((start, end, kind))
    return [Span(*shadow.source(start, end), kind) for start, end, kind in sorted(found)]


def _changed(shadow: Shadow, start: int, end: int) -> bool:
    """Whether the original of a span is not plain ASCII, which hides it."""
    first, last = shadow.source(start, end)
    return any(not char.isascii() and char not in "转分机—–·" for char in shadow.original[first:last])


def _typed(name: str, disguised: bool, type_: str = VARIANT) -> str:
    return f"{name}:{type_}" if disguised else name


def _links(shadow: Shadow) -> Iterator[Found]:
    if not p.NET_SIGN.search(shadow.plain):
        return
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
    if not p.IP_SIGN.search(shadow.plain):
        return
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


def _orders(shadow: Shadow) -> Iterator[Found]:
    if shadow.most_digits < 6:
        return
    for pattern in (p.ORDER, p.ORDER_THEN_CUE):
        for match in pattern.finditer(shadow.digits):
            if pattern is p.ORDER_THEN_CUE and p.ID_CARD_SHAPE.fullmatch(match["id"]) and id_card_is_valid(match["id"]):
                continue
            yield *match.span("id"), _typed("订单号", _changed(shadow, *match.span("id")))
    for match in p.ORDER_OF_CARRIER.finditer(shadow.plain):
        yield *match.span(), _typed("订单号", _changed(shadow, *match.span()))


def _cards(shadow: Shadow) -> Iterator[Found]:
    if shadow.most_digits < 14:
        return
    for pattern, name, valid in (
        (p.ID_CARD, "身份证号", id_card_is_valid),
        (p.BANK_CARD, "银行卡号", luhn_is_valid),
    ):
        for match in pattern.finditer(shadow.digits):
            ends = [match.end()]
            if name == "银行卡号" and match.group("tail"):
                ends.append(match.start("tail"))  # the next number of the sentence
            for end in ends:
                if valid(p.strip_separators(shadow.digits[match.start() : end])):
                    yield match.start(), end, _typed(name, _changed(shadow, match.start(), end))
                    break
    for pattern, name in ((p.ID_CARD_CUED, "身份证号"), (p.BANK_CARD_CUED, "银行卡号")):
        for match in pattern.finditer(shadow.digits):
            yield *match.span("id"), _typed(name, _changed(shadow, *match.span("id")))

    for match in p.BANK_CARD_SPREAD.finditer(shadow.digits):
        if luhn_is_valid(p.strip_separators(match.group("id"))):
            yield *match.span("id"), _typed("银行卡号", _changed(shadow, *match.span("id")))


def _accounts(shadow: Shadow) -> Iterator[Found]:
    if shadow.most_digits < 5 and not contacts.ACCOUNT_SIGN.search(shadow.digits):
        return
    for pattern, homophone in contacts.QQ:
        for match in pattern.finditer(shadow.digits):
            group = "id" if match.group("id") else "handle"
            if group == "handle" and shadow.plain.startswith(_EMOTE_ENDS, match.end("handle")):
                continue
            if group == "handle" or contacts.looks_like_number(match.group("id")):
                yield _account(shadow, match, group, "QQ号", homophone)
    for match in contacts.GROUP_TO_OPEN.finditer(shadow.digits) if shadow.most_digits >= 6 else ():
        yield _account(shadow, match, "id", "QQ号", True)
    for match in contacts.WECHAT_NUMBER.finditer(shadow.digits) if shadow.most_digits >= 5 else ():
        if contacts.looks_like_number(match.group("id")):
            cue = match.group("cue") or match.group("weak") or match.group()[0]
            yield _account(shadow, match, "id", "微信号", not contacts.PLAIN_WECHAT.fullmatch(cue))
    for match in contacts.WECHAT_MOBILE.finditer(shadow.digits) if shadow.most_digits >= 11 else ():
        yield _account(shadow, match, "id", "微信号", not contacts.PLAIN_WECHAT.fullmatch(match.group("cue")))
    for pattern, homophone in contacts.WECHAT:
        for match in pattern.finditer(shadow.plain):
            if contacts.looks_like_account(match) and not shadow.plain.startswith(_EMOTE_ENDS, match.end("id")):
                yield _account(shadow, match, "id", "微信号", homophone)
    for match in contacts.CONTACT_NUMBER.finditer(shadow.digits) if shadow.most_digits >= 7 else ():
        yield *match.span("id"), _typed("用户名", _changed(shadow, *match.span("id")))
    for pattern in (contacts.OTHER_ACCOUNT, contacts.CONTACT_HANDLE):
        for match in pattern.finditer(shadow.plain):
            if pattern is contacts.OTHER_ACCOUNT or contacts.looks_like_account(match):
                yield *match.span("id"), _typed("用户名", _changed(shadow, *match.span("id")))


def _account(shadow: Shadow, match: re.Match[str], group: str, name: str, homophone: bool) -> Found:
    start, end = match.span(group)
    first, last = shadow.source(start, end)
    disguised = not contacts.PLAIN_ACCOUNT.fullmatch(shadow.original[first:last])
    return start, end, _typed(name, homophone or disguised, HOMOPHONE if homophone else VARIANT)


def _phones(shadow: Shadow) -> Iterator[Found]:
    if shadow.most_digits < 7:
        return
    for match in p.MOBILES_GLUED.finditer(shadow.digits):
        yield *match.span(), "手机号"
    for match in p.MOBILE.finditer(shadow.digits):
        if p.is_mobile(match, shadow.digits):
            first, last = shadow.source(*match.span())
            yield *match.span(), _typed("手机号", not p.PLAIN_MOBILE.fullmatch(shadow.original[first:last]))
    for match in p.LANDLINE.finditer(shadow.digits):
        yield *match.span(), _typed("座机", _changed(shadow, *match.span()))
    for match in p.LANDLINE_SPREAD.finditer(shadow.digits):
        if p.WHOLE_LANDLINE.fullmatch(p.strip_separators(match.group())):
            yield *match.span(), _typed("座机", True)


def _places(shadow: Shadow) -> Iterator[Found]:
    for match in places.PLATE.finditer(shadow.plain):
        if sum(char.isdigit() for char in match.group("tail")) >= 3:
            yield *match.span(), "车牌号"
    for match in places.ADDRESS.finditer(shadow.plain):
        start = places.address_start(shadow.plain, match)
        if start is not None:
            yield start, match.end(), "地址"


def _mentions(shadow: Shadow) -> Iterator[Found]:
    for match in contacts.MENTION.finditer(shadow.plain):
        yield *match.span(), "用户名"


# In this order: the first to claim a character keeps it.
_DETECTORS: tuple[Callable[[Shadow], Iterator[Found]], ...] = (
    _links,
    _addresses_on_the_net,
    _orders,
    _cards,
    _accounts,
    _phones,
    _places,
    _mentions,
)
