"""Values for field_notes.py, disguised as people do it when a plain number was taken down before. All made up."""

import string

import values
from disguises import Rng, digits, full_width

TABLES = {
    "circled": "⓪①②③④⑤⑥⑦⑧⑨", "black circled": "⓿❶❷❸❹❺❻❼❽❾", "chinese numerals": "零一二三四五六七八九", "radio": "零幺二三四五六七八九",
    "formal": "零壹贰叁肆伍陆柒捌玖", "full-width": "０１２３４５６７８９", "bold": "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗", "superscript": "⁰¹²³⁴⁵⁶⁷⁸⁹",
    "circle zero": "〇一二三四五六七八九", "sans": "𝟢𝟣𝟤𝟥𝟦𝟧𝟨𝟩𝟪𝟫",
}  # fmt: skip
BETWEEN = (" ", "-", ".", "·", "~", "_", "、", "。", "❤️", "🌸", "✨", "🍓", "|", "*", "…", "/", "，")


def hidden(rng: Rng, text: str, odds: float = 0.6) -> tuple[str, str]:
    """A number and the name of its disguise."""
    if rng.random() >= odds:
        return text, "plain"
    style = rng.random()
    if style < 0.45:
        name = rng.choice(list(TABLES))
        return "".join(TABLES[name][int(char)] if char.isdigit() else char for char in text), name
    if style < 0.65:
        table = TABLES[rng.choice(["chinese numerals", "radio", "circled", "formal", "circle zero"])]
        some = set(rng.sample(range(len(text)), rng.randint(2, 5)))
        return "".join(table[int(c)] if i in some and c.isdigit() else c for i, c in enumerate(text)), "some spelled"
    if style < 0.75:
        return rng.choice(BETWEEN[:16]).join(text), "between"
    if style < 0.9:
        mark = rng.choice([*BETWEEN, "——", "  ", "[爱心R]"])
        return text[:3] + mark + text[3:7] + mark + text[7:], "grouped"
    cut = rng.choice([3, 4, 7])
    return text[:cut] + "\n" + text[cut:], "line break"


def mobile(rng: Rng) -> tuple[str, str]:
    return hidden(rng, values.mobile_number(rng), 0.7)


def landline(rng: Rng) -> tuple[str, str]:
    area = rng.choice(["010", "021", "0755", "0591", "0731", "029", "0532", "024", "0574", "0871"])
    number = digits(rng, 8, "23456788")
    if rng.random() < 0.2:
        tail = digits(rng, 7)
        return rng.choice(
            [f"400-{tail[:3]}-{tail[3:]}", f"400{tail}", f"4 0 0 {tail}", f"400 {tail[:4]} {tail[4:]}"]
        ), "400"
    plain = rng.choice([f"{area}-{number}", f"{area}{number}", f"({area}){number}", f"{area} {number}", f"{area}－{number}",
                        f"{area}-{number}转{digits(rng, 3, '678')}", f"{area}~{number}", f"+86-{area[1:]}-{number}"])  # fmt: skip
    if rng.random() < 0.25:
        name = rng.choice(["full-width", "circled", "chinese numerals", "radio"])
        return "".join(TABLES[name][int(c)] if c.isdigit() else c for c in f"{area}-{number}"), name
    return plain, "plain"


def wechat(rng: Rng) -> tuple[str, str]:
    if rng.random() < 0.25:
        return hidden(rng, values.mobile_number(rng))
    name = rng.choice(
        ["mengmeng", "Coco", "zhuzhu", "sunny", "amy", "tutu", "huahua", "Lucky", "dxy", "xhs", "hzs", "mumu", "nini"]
    )
    tail = rng.choice(
        [
            digits(rng, 4),
            digits(rng, 6),
            "_" + digits(rng, 3),
            "-" + digits(rng, 4),
            "8866",
            "1314",
            "0o0" + digits(rng, 2),
        ]
    )
    name += tail if len(name + tail) >= 6 else tail + digits(rng, 3)
    style = rng.random()
    if style < 0.55:
        return name, "plain"
    if style < 0.62:
        return rng.choice(["wangxiaomei", "yuyu_studio", "ahua-makeup", "lovecat_mimi", "xiaobaituya"]), "letters"
    if style < 0.7:
        return full_width(name), "full-width"
    if style < 0.78:
        mark = rng.choice(["🌸", "❤️", " ", "·"])
        cut = rng.randint(3, 5)
        return name[:cut] + mark + name[cut:], "between"
    if style < 0.86:
        table = TABLES[rng.choice(["chinese numerals", "circled", "black circled", "radio"])]
        return "".join(table[int(c)] if c.isdigit() else c for c in name), "spelled"
    if style < 0.92:
        return name.upper(), "plain"
    return " ".join(name), "spaces"


def qq(rng: Rng) -> tuple[str, str]:
    return hidden(rng, rng.choice(["99999" + digits(rng, 5), digits(rng, rng.choice([8, 9, 10]), "12346789")]), 0.5)


def email(rng: Rng) -> tuple[str, str]:
    local = rng.choice(
        ["99999" + digits(rng, 5), "sunny_" + digits(rng, 4), "li.mo" + digits(rng, 2), "xiaoyu-work", "hr2024"]
    )
    host = rng.choice(["qq", "163", "126", "gmail", "foxmail", "outlook", "sina", "icloud", "yeah"])
    top = {"yeah": "net"}.get(host, "com")
    style = rng.random()
    if style < 0.5:
        return f"{local}@{host}.{top}", "plain"
    if style < 0.6:
        return (
            f"{local}@{rng.choice(['example.edu.cn', 'vip.example.com', 'stu.example.edu.cn', 'my-shop.example.cn'])}",
            "plain",
        )
    return rng.choice([
        f"{local}小老鼠{host}.{top}", f"{local}@{host}点{top}", f"{local} 艾特 {host} 点 {top}", f"{local}＠{host}．{top}", f"{local}@{host}。{top}",
        f"{local}(at){host}.{top}", f"{local} at {host}.{top}", f"{local}@{host} . {top}", f"{local}#{host}.{top}", f"{local}@{host.upper()}.{top.upper()}",
        f"{local}艾特{host}.{top}", f"{local}[at]{host}[.]{top}", f"{local}@@{host}.{top}", full_width(f"{local}@{host}.{top}"), f"{local}@{host},{top}",
    ]), "at or dot"  # fmt: skip


def _plain(rng: Rng, maker: object) -> str:
    while True:
        value, evasion = maker(rng)  # type: ignore[operator]
        if evasion == "plain":
            return str(value)


def id_card(rng: Rng) -> tuple[str, str]:
    number = _plain(rng, values.id_card)
    style = rng.random()
    if style < 0.15:
        return f"{number[:6]} {number[6:14]} {number[14:]}", "grouped"
    if style < 0.2:
        return number[:10] + "\n" + number[10:], "line break"
    return (number, "plain") if "X" in number.upper() and style < 0.6 else hidden(rng, number, 0.5)


def bank_card(rng: Rng) -> tuple[str, str]:
    number = _plain(rng, values.bank_card)
    style = rng.random()
    if style < 0.35:
        return rng.choice([" ", " ", "-", "  ", "."]).join(
            number[i : i + 4] for i in range(0, len(number), 4)
        ), "grouped"
    if style < 0.4:
        return number[:8] + "\n" + number[8:], "line break"
    return hidden(rng, number, 0.4)


def ip(rng: Rng) -> tuple[str, str]:
    if rng.random() < 0.1:
        return rng.choice(
            [
                f"2001:db8::{digits(rng, 2, '123')}",
                f"2001:0db8:85a3::8a2e:37{digits(rng, 1)}:7334",
                "2001:db8:0:1:1:1:1:1",
            ]
        ), "v6"
    number = rng.choice(["192.0.2.", "198.51.100.", "203.0.113.", "192.168.31.", "10.0.0."]) + str(rng.randint(1, 254))
    style = rng.random()
    if style < 0.65:
        return number, "plain"
    return rng.choice([(full_width(number), "full-width"), (number.replace(".", "。"), "marks"), (number.replace(".", "点"), "dot in words"),
                       (number.replace(".", " . "), "spaces"), (number.replace(".", "[.]"), "marks"), (number.replace(".", "·"), "marks")])  # fmt: skip


def plate(rng: Rng) -> tuple[str, str]:
    head = rng.choice("京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼") + rng.choice("ABCDEFG")
    tail = digits(rng, 5)
    for place in rng.sample(range(5), rng.randint(0, 2)):  # no more letters than a plate may have
        tail = tail[:place] + rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") + tail[place + 1 :]
    if rng.random() < 0.25:
        tail = rng.choice("DF") + digits(rng, 5)
    style = rng.random()
    if style < 0.5:
        return head + tail, "plain"
    return rng.choice([(f"{head}·{tail}", "plain"), (f"{head} {tail}", "spaces"), (f"{head}-{tail}", "marks"), (f"{head}•{tail}", "plain"), ((head + tail).lower(), "lower"),
                       (head + full_width(tail), "full-width"), (f"{head}.{tail}", "marks"), (head[0] + " " + head[1] + " " + tail, "spaces")])  # fmt: skip


def address(rng: Rng) -> tuple[str, str]:
    city = rng.choice(
        [
            "杭州市西湖区",
            "上海市静安区",
            "成都市武侯区",
            "广东省深圳市南山区",
            "长沙岳麓区",
            "北京市朝阳区",
            "武汉洪山区",
            "",
            "",
            "苏州工业园区",
        ]
    )
    road = rng.choice(
        [
            "栖云路",
            "望溪大道",
            "青梧巷",
            "南屏东路",
            "听松街",
            "翠微中路",
            "金桂北街",
            "白鹭二路",
            "柳荫胡同",
            "云栖新村",
        ]
    )
    estate = rng.choice(["星河湾", "碧水花园", "锦绣家园", "阳光里", "龙湖时代", "橘子公寓", "万和城", "丽景苑"])
    n = rng.randint(2, 188)
    room = rng.choice([f"{rng.randint(1, 20)}栋{rng.randint(1, 30)}0{rng.randint(1, 6)}", f"{rng.randint(1, 20)}号楼{rng.randint(1, 4)}单元{rng.randint(2, 30)}0{rng.randint(1, 4)}室",
                       f"{rng.randint(1, 12)}幢{rng.randint(1, 3)}单元{rng.randint(2, 30)}02", f"{rng.choice('ABC')}座{rng.randint(2, 30)}0{rng.randint(1, 9)}室"])  # fmt: skip
    return rng.choice([
        (f"{city}{road}{n}号", "road"), (f"{city}{road}{n}号{room}", "road and room"), (f"{city}{road}{n}号{estate}{room}", "road, estate, room"),
        (f"{city or '南京市鼓楼区'}{estate}{room}", "estate"), (f"{city}{road}{n}弄{rng.randint(1, 40)}号{rng.randint(1, 6)}01室", "lane"),
        (f"{city}{road}{n}号{rng.randint(2, 5)}楼", "floor"), (f"{city}{road}{full_width(str(n))}号", "full-width"),
        (f"{city}{road}{n}-{rng.randint(1, 9)}号", "road"), (f"{city}{estate}{rng.randint(1, 20)}-{rng.randint(1, 3)}-{rng.randint(2, 30)}01", "dashes"),
        (f"{city}{road}{rng.choice(['十八', '二十六', '一百零八', '六'])}号", "chinese numerals"),
    ])  # fmt: skip


def at_name(rng: Rng) -> tuple[str, str]:
    return "@" + rng.choice([
        "小鹿不吃糖", "momo", "Lily的日常", "爱喝奶茶的阿花", "今天也要早睡", "KIKI_99", "一只橘猫", "摄影师老K", "王小明同学", "豆豆妈咪", "不吃香菜星人",
        "Amy在努力", "xX_yuki_Xx", "草莓味的夏天", "67号便利店", "甜甜圈.", "阿May", "momo" + digits(rng, 4), "小红薯6" + digits(rng, 7), "杭州探店王",
    ]), "plain"  # fmt: skip


def link(rng: Rng) -> tuple[str, str]:
    code = "".join(rng.choice(string.ascii_letters + string.digits) for _ in range(rng.randint(6, 12)))
    number = digits(rng, 10, "123456")
    return rng.choice([
        f"http://xhslink.com/a/{code}", f"https://www.xiaohongshu.com/user/profile/5f{number}ab{number}", f"xhslink.com/{code}", f"https://v.douyin.com/{code}/",
        f"https://m.tb.cn/h.{code}", f"https://pan.baidu.com/s/1{code}", f"https://weibo.com/u/{number}", f"weibo.com/{number}", f"https://b23.tv/{code}",
        f"https://space.bilibili.com/{number}", f"https://www.wjx.cn/vm/{code}.aspx", f"t.cn/{code}", f"https://docs.qq.com/form/page/{code}?id={number}",
        f"https://shop{number}.taobao.com", f"www.example{number[:3]}.com", f"https://t.me/{code}", f"hxxp://{code}.example.top/i?uid={number}",
        f"https：//xhslink.com/m/{code}", f"https://u.jd.com/{code}", f"https://example.com/item.htm?id={number}&uid={number[:6]}#top",
    ]), "plain"  # fmt: skip


def order(rng: Rng) -> tuple[str, str]:
    number = rng.choice([
        digits(rng, 19, "1234"), "P7" + digits(rng, 17), "SF" + digits(rng, 13), "YT" + digits(rng, 13), "JD" + digits(rng, 13), "7" + digits(rng, 13), digits(rng, 15, "47"),
        "42000" + digits(rng, 23), "202603" + digits(rng, 14), "JDVA" + digits(rng, 11), digits(rng, 12, "3456789"), "XHS" + digits(rng, 14),
    ])  # fmt: skip
    style = rng.random()
    if style < 0.1:
        return full_width(number), "full-width"
    if style < 0.2:
        return " ".join(number[i : i + 4] for i in range(0, len(number), 4)), "grouped"
    return number, "plain"
