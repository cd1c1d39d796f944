"""Made-up addresses on the net and in town, plates and names, in every shape people give them. Numbers are in `values`."""

from disguises import DISGUISES, Rng, digits, full_width
from values import handle


# --- network -------------------------------------------------------------------------------------------------------------
def ip(rng: Rng) -> tuple[str, str]:
    if rng.random() < 0.15:
        groups = [f"{rng.randint(1, 65535):x}" for _ in range(rng.randint(3, 6))]
        return rng.choice([f"2001:db8::{':'.join(groups[:3])}", f"2001:db8:{':'.join((groups * 2)[:6])}"]), "version 6"
    text = f"{rng.choice(['192.0.2', '198.51.100', '203.0.113', '10.0.0', '192.168.1'])}.{rng.randint(1, 254)}"
    style = rng.random()
    if style < 0.2:
        return f"{text}:{rng.choice([80, 8080, 3389, 25565, 8888, 22])}", "port"
    if style < 0.35:
        name = rng.choice(["full-width", "chinese numerals", "circled"])
        return (
            (text.replace(".", "点"), "dot in words")
            if name == "chinese numerals"
            else (DISGUISES[name](rng, text), name)
        )
    return text, "plain"


def url(rng: Rng) -> tuple[str, str]:
    word = "".join(rng.choice("abcdefghijkmnpqrstuvwxyz0123456789") for _ in range(rng.randint(5, 9)))
    host = rng.choice(
        [
            "shop.example.com",
            "m.example.net",
            f"{word}.top",
            f"www.{word}.vip",
            "xhslink.com",
            "t.example.cn",
            f"{word}.xyz",
            f"h5.{word}.cc",
            f"{word}.com.cn",
        ]
    )
    path = rng.choice(
        [
            f"/a/{word}",
            f"/item?id={digits(rng, 9)}&uid={digits(rng, 6)}",
            f"/u/{digits(rng, 8)}",
            f"/?invite={word}",
            "",
            f"/s/{word}#/reg?code={digits(rng, 4)}",
        ]
    )
    style = rng.random()
    if style < 0.55:
        return f"{rng.choice(['https', 'http'])}://{host}{path}", "plain"
    if style < 0.8:
        return f"{host}{path}", "no scheme"
    if style < 0.86:
        return full_width(f"https://{host}{path}"), "full-width"
    name, _, top = rng.choice([f"{word}.com", f"{word}.top", f"{word}.xyz", f"{word}.vip", f"{word}.cc"]).partition(".")
    return rng.choice([f"{name}点{top}", f"{name}。{top}", f"{name}(点){top}", f"{name} . {top}", f"{name}丶{top}", f"{name}[.]{top}", f"{name} 点 {top}", f"{name}. {top}"]), "dot in words"  # fmt: skip


def at_name(rng: Rng) -> tuple[str, str]:
    name = rng.choice([
        "小红薯" + "".join(rng.choice("0123456789ABCDEF") for _ in range(8)), rng.choice(["桃子", "阿初", "沐沐", "米粒", "七七", "老杨"]) + rng.choice(["的日常", "爱吃饭", "在路上", "_studio", "不熬夜", "Lily"]),
        handle(rng), rng.choice(["momo", "Cherry_", "阿May", "是小周呀", "K先生", "林.夏", "三三Sunny"]),
    ])  # fmt: skip
    return rng.choice(["@", "@", "@", "＠"]) + name, "at sign"


# --- places --------------------------------------------------------------------------------------------------------------
def plate(rng: Rng) -> tuple[str, str]:
    head = rng.choice("京津沪渝冀豫云辽黑湘皖鲁苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼") + rng.choice("ABCDEFGHJK")
    letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"
    tail = rng.choice(
        [
            digits(rng, 5),
            digits(rng, 5),
            rng.choice(letters) + digits(rng, 4),
            digits(rng, 3) + rng.choice(letters) + digits(rng, 1),
            digits(rng, 2) + rng.choice(letters) * 2 + digits(rng, 1),
        ]
    )
    kind = "plain"
    if rng.random() < 0.25:
        tail, kind = rng.choice("DF") + digits(rng, 5), "new energy"
    elif rng.random() < 0.06:
        tail, kind = digits(rng, 4) + rng.choice("学警挂港"), "special"
    text = head + rng.choice(["", "", "·", " ", "-", "•"]) + tail
    style = rng.random()
    if style < 0.1:
        return text.lower(), "lower case"
    if style < 0.17:
        return head[0] + full_width(text[1:]), "full-width"
    return text, kind


def address(rng: Rng) -> tuple[str, str]:
    city = rng.choice(
        [
            "杭州市西湖区",
            "上海市浦东新区",
            "北京市朝阳区",
            "成都市武侯区",
            "广东省深圳市南山区",
            "江苏省苏州市姑苏区",
            "武汉市洪山区",
            "长沙市岳麓区",
            "山东省青岛市市南区",
            "西安市雁塔区",
            "重庆市渝北区",
            "厦门思明区",
            "南京鼓楼区",
        ]
    )
    road = rng.choice(
        ["云栖", "青禾", "望湖", "松涛", "锦绣", "文昌", "新塘", "学府", "海棠", "梧桐", "长宁", "百花", "解放", "中山"]
    ) + rng.choice(["路", "街", "大道", "东路", "南路", "西街", "北路", "巷", "中路"])
    number = f"{rng.randint(3, 899)}{rng.choice(['号', '号', '号', '弄'])}"
    estate = rng.choice(
        [
            "锦绣花园",
            "青禾小区",
            "望江苑",
            "云栖公寓",
            "翡翠城",
            "阳光家园",
            "金桂新村",
            "万象大厦",
            "星河中心",
            "湖畔雅苑",
        ]
    )
    room = rng.choice([
        f"{rng.randint(1, 30)}栋{rng.randint(1, 4)}单元{rng.randint(1, 32)}0{rng.randint(1, 6)}室", f"{rng.randint(1, 30)}号楼{rng.randint(2, 30)}0{rng.randint(1, 8)}", f"{rng.randint(1, 20)}幢{rng.randint(2, 20)}0{rng.randint(1, 6)}室",
        f"{rng.choice('ABCD')}座{rng.randint(3, 32)}层", f"{rng.randint(2, 30)}0{rng.randint(1, 6)}室", f"{rng.randint(1, 20)}-{rng.randint(1, 4)}-{rng.randint(2, 30)}0{rng.randint(1, 6)}",
    ])  # fmt: skip
    style = rng.random()
    if style < 0.3:
        return f"{city}{road}{number}{estate}{room}", "full"
    if style < 0.5:
        return f"{city}{road}{number}{room}", "full"
    if style < 0.62:
        return f"{city}{estate}{room}", "estate"
    if style < 0.74:
        return f"{road}{number}{room}", "no city"
    if style < 0.86:
        return f"{city}{road}{number}", "road"
    if style < 0.93:
        return f"{estate}{room}", "estate only"
    traditional = ["台北市信義區松仁路", "香港九龍旺角彌敦道", "新北市板橋區文化路一段", "台中市西屯區台灣大道三段"]
    return f"{rng.choice(traditional)}{rng.randint(3, 399)}號{rng.randint(2, 20)}樓", "traditional"
