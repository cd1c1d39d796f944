"""Identifiers become typed placeholders; amounts, sizes, dates and codes do not."""

import json
import random
import re
import time
from pathlib import Path

import pytest

from xhs_pipeline.curation.identifiers import TYPES, mask
from xhs_pipeline.curation.text import normalise

REAL_POSTS = Path(__file__).resolve().parents[2] / "shared" / "real_posts" / "dev.jsonl"

# text and what it must become; every number and account here is made up
FOUND = """
加V：abc12345 => 加V：<微信号>
vx zsk-zzm88 => vx <微信号>
WX：J-52927 => WX：<微信号>
加我微信16072679565。每天 => 加我微信<微信号>。每天
微信ne53740768 => 微信<微信号>
QQ或微bee489833 玩家 => QQ或微<微信号> 玩家
加微信号xrdsrjdj咨询 => 加微信号<微信号>咨询
换新微信了哦：nini3643 => 换新微信了哦：<微信号>
微信加一下这个amy5627 => 微信加一下这个<微信号>
老铁加个v呗dxy1314 => 老铁加个v呗<微信号>
qq直接敲1152239475 => qq直接敲<QQ号>
加薇abc_123 聊 => 加薇<微信号:谐音> 聊
V❤abc12345 => V❤<微信号:谐音>
微❤号 abc123 => 微❤号 <微信号:谐音>
威信lin8888 => 威信<微信号:谐音>
徽信号:xiaomei520 => 徽信号:<微信号:谐音>
❤️KP06819 => ❤️<微信号:谐音>
绿泡泡：QVQxiaoqiong => 绿泡泡：<微信号:谐音>
➕v: 16015735758 => ➕v: <微信号:谐音>
薇：一三八零零一三八零零零 => 薇：<微信号:谐音>
微信wtxc⑧⑧⑨⑨ => 微信<微信号:变体>
QQ9723256817 => QQ<QQ号>
项目群:7742563355 => 项目群:<QQ号>
扣扣9014093[ => 扣扣<QQ号:谐音>[
企鹅号：123456789 => 企鹅号：<QQ号:谐音>
统一扫我V moli_demo760 进 => 统一扫我V <微信号> 进
赚钱加5318208107一小时 => 赚钱加<微信号>一小时
加扣扣 moli_demo582 领 => 加扣扣 <QQ号:谐音> 领
扫我VQQ9999917579 => 扫我VQQ<QQ号>
联系moli_demo582，秒回 => 联系<用户名>，秒回
QQ 壹贰叁肆伍陆柒捌 => QQ <QQ号:变体>
打13812345678 => 打<手机号>
电话13812345678一起去 => 电话<手机号>一起去
1381234567八 => <手机号:变体>
138-1234-5678 => <手机号>
+86 13812345678 => <手机号>
1三8一二三四5六7八 => <手机号:变体>
１３８１２３４５６７８ => <手机号:变体>
①③⑧①②③④⑤⑥⑦⑧ => <手机号:变体>
1️⃣3️⃣8️⃣1️⃣2️⃣3️⃣4️⃣5️⃣6️⃣7️⃣8️⃣ => <手机号:变体>
1 3 8 1 2 3 4 5 6 7 8 => <手机号:变体>
189🌸1774🌸2482 => <手机号:变体>
138OO138OOO => <手机号:变体>
电话010-88886666 => 电话<座机>
(021)66668888转801 => <座机>
400-820-8820 => <座机>
邮箱abc.d@qq.com => 邮箱<邮箱>
abc艾特qq点com => <邮箱:变体>
身份证11010519491231002X => 身份证<身份证号>
卡号6222 0212 3456 7890 => 卡号<银行卡号>
4111111111111111 => <银行卡号>
IP是192.168.1.1 => IP是<IP地址>
2001:db8::ff00:42:8329 => <IP地址>
京A12345 => <车牌号>
粤B·D12345 => <车牌号>
沪AD12345 => <车牌号>
地址：北京市朝阳区建国路88号3号楼1203室 => 地址：<地址>
家住上海市浦东新区张江路368弄5号601室 => 家住<地址>
位置在江宁区天泰路5号 => 位置在<地址>
@小红薯123 你好 => <用户名> 你好
抖音号：abc12345 => 抖音号：<用户名>
看https://7uwn.ccjn.xyz/uhqe?aq=1苹果 => 看<链接>苹果
http://u.cn/T2fB，暴富 => <链接>，暴富
abc点com => <链接:变体>
订单号：2026021612345678 => 订单号：<订单号>
快递SF1234567890123 => 快递<订单号>
的佳V[爱心] lin732782 => 的佳V[爱心] <微信号:谐音>
嶶信abc12345 => 嶶信<微信号:谐音>
危欣：abc12345 => 危欣：<微信号:谐音>
加我🌏lin625 => 加我🌏<微信号>
+∨ lin3509 => +∨ <微信号>
薇 l i n 5 2 0 => 薇 <微信号:谐音>
微信：mei五二零 => 微信：<微信号:变体>
丘丘群：123456789 => 丘丘群：<QQ号:谐音>
企鹅号99九99 4五6 78 => 企鹅号<QQ号:谐音>
889796826033036579点数字打开进👗 => <QQ号:谐音>点数字打开进👗
看jpaxn://46.79.32.41:2658/#/a => 看<链接>
懂得进268883. com => 懂得进<链接:变体>
看https://a.top/u/1，3天内 => 看<链接>，3天内
ip 10点0点0点7 => ip <IP地址:变体>
服务器10.0.0.7:8080 => 服务器<IP地址>
電話：(＋86)13812345678 => 電話：<手机号:变体>
座机0 2 1 6 6 6 6 8 8 8 8 => 座机<座机:变体>
卡6 2 0 0 0 0 0 0 0 0 0 0 0 0 0 5 => 卡<银行卡号>
收货：台北市信義區松仁路28號6樓 => 收货：<地址>
查了一下 2411197765911592 还在路上 => 查了一下 <订单号> 还在路上
""".strip().splitlines()

LEFT_ALONE = """
微信发了IMG_20230401
微信下载apk8049版
微信用的是gpt4omini
wx系列耳机mdr1000
qq有12345678人在线
微信步数234567
今天买了199元，打8.5折，原价1999
尺码165/88A 170/92A 175/96A
2026-02-16 10:30:45
2026.02.16到2026.03.01
比分3:2 21:14
货号 A2024-3316
iPhone15ProMax 256GB
微信加好友加一个20每天500-1000不等
微信红包10000元
微信500人群
逛街12号去
我知道12号开会
130-150 1600 180
130 140 150 160元
15💰 30💰 199💰 2999💰
全新S22Ultra
版本10.0.1.2
❤2024春季新款
QQ的味道。其实
微信支付5000
5kg@20元
SKU20240216138
日结600-800-1314-5200(日结)
C++ std::vector
地铁10号线
圆周率3.14159265358979
4111111111111112
身高165体重95 三围86 62 88
满300减50 200减30
❤️❤️❤️❤️
qq [em]e10333[/em][em]e10333[/em]
粉丝17124→784037
2^13=814581137
零件号130-6038-4262
@所有人 看这里
卡余额07063715 388元
编码V591047220
这里3号楼下等
徵信报告要等15天
""".strip().splitlines()


@pytest.mark.parametrize("line", FOUND)
def test_an_identifier_becomes_a_placeholder_and_its_cue_stays(line: str) -> None:
    text, expected = line.split(" => ")
    masked, types = mask(text)
    assert masked == expected
    assert types == re.findall(r"<([^<>]+)>", expected)


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_amounts_sizes_dates_and_codes_are_left_alone(text: str) -> None:
    assert mask(text) == (text, [])


def test_every_type_is_covered_by_an_example() -> None:
    assert {re.split("[:>]", kind)[0] for line in FOUND for kind in re.findall("<(.+?)>", line)} == set(TYPES)


def test_masking_twice_changes_nothing() -> None:
    generator = random.Random(7)
    pieces = (
        [line.split(" => ")[0] for line in FOUND]
        + LEFT_ALONE
        + list("1三8 -@.:❤v薇\u200b号路")
        + ["<手机号>", "13812345678"]
    )
    for _ in range(3_000):
        once, _ = mask("".join(generator.choices(pieces, k=generator.randint(1, 8))))
        assert mask(once) == (once, [])


def test_zero_width_marks_inside_a_number_go_with_it() -> None:
    assert mask("打1\u200b3\u200b812345678\u200b吧") == ("打<手机号:变体>吧", ["手机号:变体"])


@pytest.mark.parametrize(
    "piece",
    [
        "1", "1 ", "13", "a", "a.", "a-", "a@", "a@b.", "v", "v:", "薇", "加微信", "qq ", "群", "路1号", "省市区路", "北京", "小区1栋",
        "0571-8", "1.1.1.", "::", "f:", "www.", "<", "<手机号>1", "订单号:", "卡号", "6222 ", "1\u200b", "❤️", "京A1", "a点", "a#",
        "㎏", "o1", "加薇❤", "13812345678",
    ],
)  # fmt: skip
def test_hostile_text_takes_linear_time(piece: str) -> None:
    text = (piece * 100_000)[:100_000]
    started = time.process_time()
    masked, _ = mask(text)
    assert time.process_time() - started < 10, "about 0.5 s when linear"
    assert mask(masked)[0] == masked


@pytest.mark.skipif(not REAL_POSTS.is_file(), reason=f"{REAL_POSTS} is not on this machine")
def test_nothing_that_looks_like_a_contact_is_left_in_real_posts() -> None:
    with REAL_POSTS.open(encoding="utf-8") as file:
        masked = [mask(normalise(json.loads(line)["text"]))[0] for line in file]
    left = re.compile(
        r"https?://|www\.[a-z]|(?<!\d)1[3-9]\d{9}(?!\d)|[\w.]+@\w+\.\w+|@\w"
        r"|(?i:(?:微信|vx|wx|v信|加v|薇|qq|扣扣)[:：\s]{0,2}(?=[a-z_-]*\d)[a-z0-9_-]{6,20})(?![a-z0-9元])"
    )
    assert [match.group() for text in masked for match in left.finditer(text)] == []


@pytest.mark.parametrize(
    "glued",
    ["13812345678OK", "手机13812345678call me", "1381234567813912345678", "抖音号 dy_12345", "我的小红书 id 123456789"],
)
def test_an_identifier_glued_to_what_follows_is_found_all_the_same(glued: str) -> None:
    text, types = mask(glued)
    assert types and not any(part in text for part in ("1381234", "1391234", "dy_12345", "123456789"))


def test_a_product_code_with_letters_around_its_digits_stays() -> None:
    assert mask("型号 AB13812345678X 现货")[0] == "型号 AB13812345678X 现货"
