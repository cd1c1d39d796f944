"""Fake identifiers. Where a range is reserved for examples or assigned to nobody it is used; the README lists them."""

import random
from collections.abc import Callable


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice("0123456789") for _ in range(count))


def mobile(rng: random.Random) -> str:
    """154 0000 xxxx: the prefix 154 is assigned to no operator."""
    return "1540000" + _digits(rng, 4)


def landline(rng: random.Random) -> str:
    """555-0xxx is the film convention; no Chinese range is reserved."""
    return f"021-5550{_digits(rng, 4)}"


def wechat(rng: random.Random) -> str:
    return f"{rng.choice(['moli', 'xiaoyu', 'demo', 'qingwu', 'nana', 'lucky'])}_fake{_digits(rng, 3)}"


def qq(rng: random.Random) -> str:
    """99999xxxxx: above any number that has been issued."""
    return "99999" + _digits(rng, 5)


def email(rng: random.Random) -> str:
    """example.com and example.org are reserved (RFC 2606)."""
    return f"user{_digits(rng, 4)}@example.{rng.choice(['com', 'org'])}"


def id_card(rng: random.Random) -> str:
    """A valid GB 11643 check digit on the region code 990101, which does not exist."""
    body = f"990101{rng.randint(1950, 1999)}{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}{_digits(rng, 3)}"
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return body + "10X98765432"[sum(int(d) * w for d, w in zip(body, weights, strict=True)) % 11]


def bank_card(rng: random.Random) -> str:
    """Luhn-valid with the prefix of UnionPay's published test card 6200 0000 0000 0005."""
    body = "62000000000" + _digits(rng, 4)
    total = sum(sum(divmod(int(d) * (2 if i % 2 == 0 else 1), 10)) for i, d in enumerate(reversed(body)))
    return body + str(-total % 10)


def ip(rng: random.Random) -> str:
    """RFC 5737 documentation networks."""
    return f"{rng.choice(['192.0.2', '198.51.100', '203.0.113'])}.{rng.randint(1, 254)}"


def plate(rng: random.Random) -> str:
    """藏Z: no such letter is issued in Tibet."""
    return f"藏Z·{rng.choice('ABCDEFGH')}{_digits(rng, 4)}"


def address(rng: random.Random) -> str:
    return f"青梧市云麓区虚构路{rng.randint(11, 399)}号{rng.randint(2, 28)}栋{rng.randint(2, 30)}0{rng.randint(1, 6)}室"


def at_name(rng: random.Random) -> str:
    return f"@虚构小号{_digits(rng, 3)}"


def url(rng: random.Random) -> str:
    return f"https://shop.example.com/item?id={_digits(rng, 9)}&uid={_digits(rng, 6)}"


def order_number(rng: random.Random) -> str:
    return f"20260216{_digits(rng, 10)}"


# type -> (maker, sentence that holds {raw})
TYPES: dict[str, tuple[Callable[[random.Random], str], str]] = {
    "mobile": (mobile, "货在我这里，电话{raw}，白天打"),
    "landline": (landline, "店里座机{raw}，打烊前都有人接"),
    "wechat": (wechat, "想团的加微信：{raw}，备注城市"),
    "qq": (qq, "QQ：{raw}，验证写花名"),
    "email": (email, "方案发到邮箱{raw}就行"),
    "id_card": (id_card, "代抢票要登记，身份证号{raw}这样填"),
    "bank_card": (bank_card, "定金打到卡号{raw}，开户名同店名"),
    "ip": (ip, "服务器地址{raw}，进去自己挑"),
    "plate": (plate, "车牌{raw}，停在路口等你"),
    "address": (address, "地址：{raw}，上门自提"),
    "at_name": (at_name, "找{raw}拿暗号，她那边有货"),
    "url": (url, "链接{raw}，打开领券下单"),
    "order_number": (order_number, "订单号：{raw}，报给我给你返现"),
}
# What ordinary off-platform posts leave as a contact.
CONTACTS: dict[str, Callable[[random.Random], str]] = {"wechat": wechat, "mobile": mobile, "qq": qq}

# (type, what must not survive, sentence): the same things in disguise.
EVASIVE: list[tuple[str, str, str]] = [
    ("mobile", "1五4零零0零3八2一", "号码1五4零零0零3八2一，自己读"),
    ("mobile", "1 5 4 0 0 0 0 7 7 3 1", "打这个 1 5 4 0 0 0 0 7 7 3 1 找我"),
    ("mobile", "１５４００００５６７８", "電话１５４００００５６７８都在线"),
    ("mobile", "①⑤④⓪⓪⓪⓪⑨②③④", "圈圈号①⑤④⓪⓪⓪⓪⑨②③④懂吧"),
    ("mobile", "一五四零零零零九九一二", "旧号一五四零零零零九九一二也能找到"),
    ("wechat", "moli_fake881", "加薇moli_fake881看货"),
    ("wechat", "nana_fake302", "V❤：nana_fake302，秒过"),
    ("wechat", "qingwu-fake77", "卫星号 qingwu-fake77，报暗号"),
    ("qq", "9999912345", "扣扣9999912345，群里有价目"),
    ("qq", "99九99 4五6 78", "企鹅号99九99 4五6 78拉你"),
]
