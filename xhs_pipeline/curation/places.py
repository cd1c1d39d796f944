"""What plates and street addresses look like in the shadow of a text, and where an address begins. Recognition only."""

import re

_CJK = "\u4e00-\u9fff"
PLATE = re.compile(
    "(?<![全最崭翻焕上])[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼] ?[a-hj-np-z](?:[ ·.•-]?)"
    "(?P<tail>[a-hj-np-z0-9]{4}[a-hj-np-z0-9挂学警港澳]|[a-k][a-hj-np-z0-9][0-9]{4}|[0-9]{5}[a-k])(?![0-9a-z])(?![元块万千])"
)
_NUMBER = "0-9零〇一二三四五六七八九十百"
_ESTATE = "大厦|广场|小区|花园|公寓|家园|新村|中心|大楼|新城|国际|庄园|雅苑|雅居|华庭|[苑城府村园湾庭轩阁邸]"
_ROOM = r"[0-9a-z一二三四五六七八九十]{1,5}\s?(?:号楼|单元|栋|幢|座|层|楼|室|号|房|户)"
# Rooms after a house or an estate: 3栋2单元501室, 12号楼2906, 9-3-1106, D座6层, -1203.
_UNITS = rf"(?:\s?{_ROOM}){{1,5}}(?:\s?[0-9]{{3,4}}(?![0-9元块]))?|\s?[0-9a-z]{{1,3}}(?:-[0-9]{{1,5}}){{1,3}}(?![0-9])|\s?[-#][0-9]{{1,5}}"
# The end of an address; where it begins is looked for backwards from here by address_start.
ADDRESS = re.compile(
    rf"(?:(?P<road>路|大街|街|大道|道|巷|胡同|弄|里|新村)(?:[东西南北中]段?|[{_NUMBER}]段)?\s?[{_NUMBER}]{{1,5}}(?:[-之][0-9]{{1,4}})?(?:号(?!线|楼)|弄)"
    rf"(?:[0-9]{{1,4}}[号弄](?!线|楼))?(?P<building>院|[{_CJK}]{{2,8}}?(?:(?:{_ESTATE})(?={_UNITS})|(?=[0-9a-z]{{1,3}}(?:栋|幢|号楼|座)[0-9])))?(?P<rest>{_UNITS})?"
    rf"|(?P<estate>{_ESTATE})(?P<block>[0-9a-z]{{1,4}}(?:栋|幢|号楼|座)|[0-9]{{1,3}}-[0-9]{{1,2}}(?=-)|[0-9]{{3,4}}室)"
    rf"(?P<more>{_UNITS}|(?<=楼|栋|幢|座)[0-9]{{3,4}}(?![0-9元块]))?"
    # A block and a room, or block, entrance and room in figures, of an estate named like anything.
    rf"|(?<=[{_CJK}]{{2}})(?P<flat>[a-h]座[0-9]{{3,4}}室|[0-9]{{1,3}}(?:栋|幢|号楼)(?:[0-9]{{1,2}}单元)?[0-9]{{3,4}}室?|[0-9]{{1,3}}-[0-9]{{1,2}}-[0-9]{{3,4}})(?![0-9元块-]))"
)
_CITIES = (
    "北京 天津 上海 重庆 河北 山西 内蒙古 辽宁 吉林 黑龙江 江苏 浙江 安徽 福建 江西 山东 河南 湖北 湖南 广东 广西 海南 四川 贵州 云南 西藏 陕西 甘肃 青海 宁夏"
    " 新疆 香港 澳门 台湾 台北 新北 台中 高雄 台南 桃园 石家庄 唐山 秦皇岛 邯郸 保定 张家口 廊坊 太原 大同 呼和浩特 包头 鄂尔多斯 沈阳 大连 鞍山 长春 哈尔滨 大庆"
    " 南京 无锡 徐州 常州 苏州 南通 连云港 淮安 盐城 扬州 镇江 泰州 宿迁 杭州 宁波 温州 嘉兴 湖州 绍兴 金华 衢州 舟山 台州 丽水 义乌 合肥 芜湖 蚌埠 马鞍山 安庆 阜阳"
    " 福州 厦门 莆田 泉州 漳州 龙岩 南昌 九江 赣州 上饶 济南 青岛 淄博 烟台 潍坊 济宁 威海 临沂 德州 菏泽 郑州 开封 洛阳 新乡 许昌 南阳 商丘 信阳 武汉 宜昌 襄阳 荆州"
    " 黄冈 长沙 株洲 湘潭 衡阳 岳阳 常德 广州 韶关 深圳 珠海 汕头 佛山 江门 湛江 茂名 惠州 东莞 中山市 清远 揭阳 南宁 柳州 桂林 北海 海口 三亚 成都 绵阳 德阳 南充 宜宾"
    " 乐山 贵阳 遵义 昆明 大理 丽江 拉萨 西安 咸阳 宝鸡 兰州 西宁 银川 乌鲁木齐"
)
_CITY = re.compile("|".join(_CITIES.split()))
_WORDS_BEFORE = "地址[写填]?|地点|位置|收货|收件|导航|坐标|自提|集合点?|门店|公司|现住|家住|寄到|寄往|搬到|住在|位于|就在|店在|店开在|直接来|面试"
# The last of these before a road's name is where the sentence ends and the address begins.
_LEADS_IN = re.compile(rf"(?:{_WORDS_BEFORE}|[在于住到址去是往店的了寄来从:])(?=.{{2}})")
_LED_BY_COLON = re.compile(rf"(?:{_WORDS_BEFORE})点?:\s?$")
_REGION = re.compile(r"[省市区县州旗镇乡盟]")
_NOT_A_ROAD = set("逛上走半一条思套迷带公铁线电马退出的赶同跑扫网过问这那哪领")
_DATE = re.compile("[0-3]?[0-9]-[01]?[0-9]-(?:19|20)[0-9]{2}")
_NOT_AN_ESTATE = set("码号期日货架次")
_REACH = 32


def address_start(text: str, match: re.Match[str]) -> int | None:
    """Where the address that ends as `match` begins: at a province or city, else after a lead-in such as 在 or 地址：, else with the run.

    None when it is no address: a road needs a name of two or more characters, and a low number with neither region nor room
    could be anything (逛街12号).
    """
    low = max(0, match.start() - _REACH)
    run = re.search(rf"[{_CJK}]*$", text[low : match.start()])
    before = run.group() if run else ""
    start = 0
    city = _CITY.search(before)
    if city and city.end() < len(before):  # at the end it is part of the road's name (望湖北路)
        start = city.start()
    else:
        for lead in _LEADS_IN.finditer(before):
            start = lead.end()
    name = before[start:]
    rooms = match.group("rest") or match.group("more")
    located = bool(_REGION.search(name) or rooms or city)
    if len(name) < 2 or (match.group("road") and name[-1] in _NOT_A_ROAD and not located):
        return None
    if match.group("road") in ("里", "道") and not city:  # 这里3号, 知道12号
        return None
    number = re.search(r"[0-9]+", match.group())
    low_number = number is None or int(number.group()) <= 31
    led = start or _LED_BY_COLON.search(text[low : match.start() - len(before)])
    if match.group("road") and low_number and not located and not led:
        return None
    if match.group("flat") and (
        not (start or city or _REGION.search(name))
        or name[-1] in _NOT_AN_ESTATE
        or _DATE.fullmatch(match.group("flat"))
    ):
        return None
    if match.group("estate") and not (located or start or match.group("block")):
        return None
    return match.start() - len(name)
