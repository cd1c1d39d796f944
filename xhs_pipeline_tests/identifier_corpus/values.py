"""Made-up identifiers in every shape and disguise people give them. Sentences are elsewhere; nothing here knows the detector.

Ranges that nobody holds are used where there are any: mobile prefixes that no operator was given (154, 161, 164, 168 ...) or
the two numbers everyone uses as an example, county code 99 in identity numbers, QQ numbers above all issued, RFC 5737 and
3849 addresses. The rest is random.
"""

from disguises import CHINESE, CIRCLED, DISGUISES, Rng, digits, disguised, emoji_between, full_width, join, spell

PINYIN = "lin xiao yu mei chen nana qing ting jia hui tong xin yan ke ai su su bao dan yi wen zi han le duo feng ling zhang".split()  # noqa: SIM905


# --- numbers -------------------------------------------------------------------------------------------------------------
def mobile_number(rng: Rng) -> str:
    if rng.random() < 0.06:
        return rng.choice(["13800138000", "13812345678"])
    return rng.choice(["154", "160", "161", "163", "164", "168", "169", "194"]) + digits(rng, 8)


def mobile(rng: Rng) -> tuple[str, str]:
    number = mobile_number(rng)
    style = rng.random()
    if style < 0.12:
        separator = rng.choice([" ", "-", " ", "."])
        return separator.join([number[:3], number[3:7], number[7:]]), "grouped"
    if style < 0.18:
        return rng.choice(["+86", "+86 ", "86-", "0086", "(+86)"]) + number, "country code"
    if style < 0.23:
        return number.replace("0", rng.choice("oO")) if number.count("0") > 1 else number, "letter o"
    return disguised(rng, number)


def landline(rng: Rng) -> tuple[str, str]:
    area = rng.choice(
        [
            "010",
            "020",
            "021",
            "022",
            "023",
            "025",
            "027",
            "028",
            "029",
            "0755",
            "0571",
            "0512",
            "0592",
            "0898",
            "0371",
            "0431",
        ]
    )
    number = digits(rng, 8 if len(area) == 3 or area in ("0755", "0571", "0512", "0371", "0431") else 7, "2345678")
    if rng.random() < 0.15:
        middle, last = digits(rng, 3), digits(rng, 4)
        return rng.choice(
            [
                f"400-{middle}-{last}",
                f"400 {middle} {last}",
                f"400{middle}{last}",
                f"400-{middle}{last}",
                f"800-{middle}-{last}",
            ]
        ), "400"
    text = rng.choice([f"{area}-{number}", f"{area}-{number}", f"({area}){number}", f"（{area}）{number}", f"{area}{number}", f"{area} {number}", f"{area}—{number}", f"{area}-{number[:4]}-{number[4:]}", f"{area} {number[:4]} {number[4:]}"])  # fmt: skip
    if rng.random() < 0.1:
        return (
            f"{area}-{number}{rng.choice(['转', '-', '转分机'])}{digits(rng, rng.choice([3, 4]), '123456789')}",
            "extension",
        )
    if rng.random() < 0.3:
        name = rng.choice(["full-width", "circled", "chinese numerals", "spaces", "zero width"])
        return DISGUISES[name](rng, f"{area}-{number}" if name != "spaces" else area + number), name
    return text, "plain"


def id_card(rng: Rng) -> tuple[str, str]:
    body = rng.choice(["110199", "310199", "440399", "510199", "330199", "420199", "610199", "210299"])
    body += f"{rng.randint(1955, 2012)}{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}{digits(rng, 3)}"
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    number = body + "10X98765432"[sum(int(d) * w for d, w in zip(body, weights, strict=True)) % 11]
    if rng.random() < 0.1:
        number = number.replace("X", "x")
    if rng.random() < 0.15:
        separator = rng.choice(" -")
        return separator.join([number[:6], number[6:14], number[14:]]), "grouped"
    return disguised(rng, number)


def bank_card(rng: Rng) -> tuple[str, str]:
    length = rng.choice([16, 19, 19])
    body = rng.choice(
        ["620000", "629999", "623999", "400000", "555500", "356600"]
        if length == 16
        else ["620000", "629999", "623999", "621999"]
    )
    body += digits(rng, length - 7)
    total = sum(sum(divmod(int(d) * (2 if i % 2 == 0 else 1), 10)) for i, d in enumerate(reversed(body)))
    number = body + str(-total % 10)
    if rng.random() < 0.35:
        separator = rng.choice([" ", " ", "-"])
        return separator.join(number[i : i + 4] for i in range(0, length, 4)), "grouped"
    return disguised(rng, number, 0.5)


def order_number(rng: Rng) -> tuple[str, str]:
    year = f"20{rng.randint(23, 26)}{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}"
    number = rng.choice([
        year + digits(rng, rng.choice([8, 10, 12])), digits(rng, 19, "12345"), f"P{digits(rng, 18)}", digits(rng, 16, "1234"),
        f"SF{digits(rng, 13)}", f"YT{digits(rng, 13)}", f"JT{digits(rng, 13)}", f"JD{digits(rng, 13)}", f"7{digits(rng, 14)}",
        f"4{digits(rng, 14)}", digits(rng, 12, "3456789"), f"{year[2:]}-{digits(rng, 15)}", f"E{year}{digits(rng, 8)}",
    ])  # fmt: skip
    if rng.random() < 0.15:
        name = rng.choice(["full-width", "circled", "zero width", "spaces"])
        return DISGUISES[name](rng, number), name
    return number, "plain"


# --- accounts ------------------------------------------------------------------------------------------------------------
def handle(rng: Rng) -> str:
    stem = "".join(rng.sample(PINYIN, rng.randint(1, 3)))
    tail = rng.choice(
        [
            digits(rng, rng.randint(2, 5)),
            str(rng.randint(1985, 2008)),
            "520",
            "666",
            "888",
            f"_{digits(rng, 2)}",
            f"-{digits(rng, 4)}",
        ]
    )
    style = rng.random()
    if style < 0.62:
        name = stem[:14] + tail
    elif style < 0.75:
        name = "".join(rng.choice("abcdefghjkmnpqrstuvwxyz0123456789") for _ in range(rng.randint(7, 12)))
        name = rng.choice("abcdefghjkmnpqrstuvwxyz") + name + rng.choice("123456789")
    elif style < 0.85:
        name = f"{stem[:8]}_{rng.choice(PINYIN)}"
    elif style < 0.93:
        name = "wxid_" + "".join(rng.choice("abcdefghjkmnpqrstuvwxyz0123456789") for _ in range(14))
    else:
        name = stem[:16]
    while len(name) < 6:
        name += rng.choice("123456789")
    return rng.choice([name, name, name, name.upper(), name.capitalize()])


def wechat_id(rng: Rng) -> tuple[str, str]:
    if rng.random() < 0.22:
        return disguised(rng, mobile_number(rng))
    name = handle(rng)
    style = rng.random()
    if style < 0.05:
        return full_width(name), "full-width"
    if style < 0.1 and any(char.isdigit() for char in name):
        return spell(name, CIRCLED), "circled"
    if style < 0.15:
        return join(rng, name, " "), "spaces"
    if style < 0.19:
        return join(rng, name, rng.choice(["\u200b", "\u200d"])), "zero width"
    if style < 0.23 and sum(char.isdigit() for char in name) >= 2:
        return spell(name, CHINESE), "chinese numerals"
    if style < 0.27:
        return emoji_between(rng, name), "emoji between"
    return name, "plain"


def qq_number(rng: Rng) -> tuple[str, str]:
    number = rng.choice(["99999" + digits(rng, 5), digits(rng, rng.choice([8, 9, 10]), "12346789")])
    return disguised(rng, number, 0.45)


def email(rng: Rng) -> tuple[str, str]:
    local = rng.choice(
        ["99999" + digits(rng, 5), f"{rng.choice(PINYIN)}.{rng.choice(PINYIN)}{digits(rng, 2)}", handle(rng).lower()]
    )
    domain = rng.choice(
        [
            "qq.com",
            "qq.com",
            "163.com",
            "126.com",
            "gmail.com",
            "outlook.com",
            "foxmail.com",
            "sina.com",
            "example.org",
            "mail.example.edu.cn",
        ]
    )
    host, _, top = domain.partition(".")
    style = rng.random()
    if style < 0.55:
        return f"{local}@{domain}", "plain"
    if style < 0.62:
        return full_width(f"{local}@{domain}"), "full-width"
    if style < 0.68:
        return f"{local} @ {domain}", "spaces"
    if style < 0.74:
        return f"{local}＠{domain}", "full-width"
    if top != "com":
        return f"{local}@{domain}", "plain"
    return rng.choice([
        f"{local}艾特{host}.com", f"{local}艾特{host}点com", f"{local}#{host}.com", f"{local}(at){host}.com", f"{local}[at]{host}[dot]com",
        f"{local}@{host}点com", f"{local}@{host}。com", f"{local} at {host} dot com", f"{local}@{host}.c0m", f"{local}🌀{host}.com",
        f"{local}@{host}点康姆" if host == "qq" else f"{local}@{host}点com",
    ]), "at or dot in words"  # fmt: skip
