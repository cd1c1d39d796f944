"""What identifiers look like in the shadow of a text (lower case, digits plain). Recognition only, no replacing.

Every pattern is linear: repetitions are bounded, anchored on a cue or separated by characters that the repeated class excludes.
"""

import re

_CJK = "\u4e00-\u9fff"
_HEART = "❤♥♡💚💗💛💙💜🖤🤍🤎🧡💕💖💓💌"
# Between a cue and its account: marks, emoji, blanks and the few words people put there. `<` would be a placeholder.
_GAP = r"(?:[^\w<]|_|号码?|账号|帐号|id|是|为|同号?|搜索?|加|我|联系|私聊?|详聊|咨询|添加|请|客服|老师|➕){0,8}?"
# What follows a plain number when it is an amount, not an account.
_NOT_AMOUNT = r"(?![0-9a-z%])(?!\s?[-~到至]\s?[0-9])(?!\s?[元块圆钱万千亿人粉个天年月日次张件米克斤条份套字])"

# --- links ---------------------------------------------------------------------------------------------------------------
_TLD = (
    "(?:com|cn|net|org|vip|top|xyz|cc|me|tv|io|shop|fun|club|site|info|biz|link|live|app|ltd|wang|ink|online|store|win|hk|tw"
    "|pro|xin|icu|cyou|tech|space|mobi|asia|gov|edu|us|ru|jp|uk|so|la|im)"
)
URL = re.compile(r"(?:https?|ftp)\s?:\s?//[!-;=?-~]+|(?<![a-z0-9])www\.[!-;=?-~]+")
DOMAIN = re.compile(
    rf"(?<![a-z0-9.@-])(?:[a-z0-9-]{{1,63}}\.){{1,8}}{_TLD}(?![a-z0-9-])(?::[0-9]{{2,5}})?(?:[/?#][!-;=?-~]*)?"
)
DOMAIN_DISGUISED = re.compile(
    r"(?<![a-z0-9.-])[a-z0-9-]{2,63}\s?(?:点|丶|。|\[\.\]|\(\.\)|[(\[]?dot[)\]]?)\s?(?:com|cn|net|org|vip|top|xyz|cc|club)(?![a-z0-9])"
)
EMAIL = re.compile(r"[a-z0-9][a-z0-9._%+-]{0,63}@(?:[a-z0-9-]{1,63}\.){1,5}[a-z]{2,10}(?![a-z0-9])")
EMAIL_DISGUISED = re.compile(
    r"[a-z0-9][a-z0-9._+-]{1,63}\s?(?:#|@|艾特|圈a|[(\[]at[)\]])\s?[a-z0-9-]{2,20}\s?(?:\.|点|。|[(\[]dot[)\]])\s?(?:com|cn|net|org)(?![a-z0-9])"
)
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
IPV4 = re.compile(rf"(?<![0-9a-z.])(?:{_OCTET}\.){{3}}{_OCTET}(?![0-9a-z])(?!\.[0-9])")
VERSION_BEFORE = re.compile(r"(?:版本号?|version|ver|v|固件|系统)[\s.:]{0,2}$")
IPV6 = re.compile(r"(?<![0-9a-z:])[0-9a-f]{0,4}:[0-9a-f:]{3,40}(?![0-9a-z])")

# --- accounts ------------------------------------------------------------------------------------------------------------
PLAIN_ACCOUNT = re.compile(r"[A-Za-z0-9_-]+")
PLAIN_WECHAT_CUES = frozenset(
    "微信 微信号 加微信 加微信号 +微信 v信 微 微号 加微 +微 加 + v 加v +v 我v 扫v 找v weixin wechat wx vx 加vx 加wx +vx +wx".split()  # noqa: SIM905
)
_MOBILE_NUMBER = "1[3-9][0-9]{9}(?![0-9])"
_PLAIN_CUE = r"\+?加?微信|\+?加?(?<![a-z0-9])(?:weixin|wechat|wx|vx)|[加+我扫找]v|[加+]微|(?<![a-z0-9])v信|微号|(?<![a-z0-9])v(?=\s?[:+])"
_HOMOPHONE_CUE = (
    r"[加+➕佳伽家]?(?:薇信?|威信|徽信|维信|嶶信?|溦信?|葳信?|崴信|胃信|微芯|威芯|薇芯|微心|卫星|🛰|绿泡泡?|绿色软件|小绿书?|绿信|围信|徵信)号?"
    rf"|(?:微|(?<![a-z0-9])v|薇)[{_HEART}➕]{{1,3}}号?|➕(?:vx?|微)|[{_HEART}]号"
)
# An account: 5 to 20 letters, digits, - and _. With a weak cue (微, ❤) it must hold a digit as well.
_ID = r"(?P<id>[a-z0-9][a-z0-9_-]{4,19})(?![a-z0-9_-])"
_MIXED_ID = r"(?P<id>(?=[a-z0-9_-]{0,18}[0-9])(?=[0-9_-]{0,18}[a-z])[a-z0-9][a-z0-9_-]{5,19})(?![a-z0-9_-])"
WECHAT = (
    (re.compile(rf"(?P<cue>{_HOMOPHONE_CUE})(?P<gap>{_GAP}){_ID}"), True),
    (re.compile(rf"(?P<cue>{_PLAIN_CUE})(?P<gap>{_GAP}){_ID}"), False),
    (re.compile(rf"(?P<cue>微)(?P<gap>[^\w<]{{0,4}}){_MIXED_ID}"), False),
    (re.compile(rf"(?P<cue>[{_HEART}➕])(?P<gap>[^\w<]{{0,4}}){_MIXED_ID}"), True),
)
# Digits only, disguised as anything: 薇：一三八..., v 1 3 8 ...
WECHAT_NUMBER = re.compile(
    rf"(?:(?P<cue>{_HOMOPHONE_CUE}|{_PLAIN_CUE})(?P<gap>{_GAP})|[{_HEART}][^\w<]{{0,2}}(?=[0-9]{{8}})"
    rf"|(?<![0-9a-z])[加+➕][^\w<]?(?=[0-9]{{8}})(?!{_MOBILE_NUMBER}))"
    rf"(?P<id>[0-9]{{6,12}}|[0-9](?:[^\w<\n]{{1,2}}[0-9]){{5,11}}){_NOT_AMOUNT}"
)
_QQ_ID = rf"(?P<id>[0-9]{{5,12}}|[0-9](?:[^\w<\n]{{1,2}}[0-9]){{4,11}}){_NOT_AMOUNT}"
_QQ_HOMOPHONE = "(?:扣扣|企鹅|球球|抠抠|叩叩|寇寇|蔻蔻|秋秋|口口|🐧|q{3,4})(?:群|号)?"
_QQ_PLAIN = r"(?:(?<![a-z0-9])v?qq|[加+]q|(?<![a-z0-9])q(?=\s?[:号群]))(?:群|号)?"
QQ = (
    (re.compile(rf"{_QQ_HOMOPHONE}{_GAP}(?:{_QQ_ID}|{_MIXED_ID.replace('<id>', '<handle>')})"), True),
    (re.compile(rf"{_QQ_PLAIN}{_GAP}(?:{_QQ_ID}|{_MIXED_ID.replace('<id>', '<handle>')})"), False),
    (re.compile(rf"(?:裙|君羊|(?<![a-z])qun)[号加]?{_GAP}{_QQ_ID}"), True),
    (re.compile(rf"群(?:号码?)?\s?:?\s?(?P<id>[0-9]{{6,11}}){_NOT_AMOUNT}"), False),
)
OTHER_ACCOUNT = re.compile(
    r"(?:(?:小红书|抖音|快手|微博|b站|陌陌|旺旺|支付宝|whatsapp|telegram|飞机|纸飞机|电报|(?<![a-z])tg|(?<![a-z])ins)"
    r"(?:账号|帐号|号码|号|id)?\s?(?:是|为|[:@])\s?|旺)"
    r"(?P<id>(?=[a-z0-9_.-]{0,18}[0-9])[a-z0-9][a-z0-9_.-]{4,19})(?![a-z0-9_-])"
)
# A handle right after a call to get in touch; which platform it belongs to is not said.
CONTACT_HANDLE = re.compile(rf"(?:联系(?:方式|我)?|电话|找我|戳我|私我|滴滴我?|备注)[^\w<]{{0,3}}{_MIXED_ID}")
_COMMON_WORDS = re.compile(
    r"wechat|weixin|official|android|windows|moments|business|channels?|macos|version|voucher|please|hello|group|world"
    r"|(?:iphone|ipad|huawei|mate|oppo|vivo|xiaomi|redmi|note|galaxy|switch|size|style|type|spf)[0-9a-z]*"
)
MENTION = re.compile(r"(?<![a-z0-9])@(?![0-9_.:-]*(?![\w.-]))(?=[\w])[\w·.-]{1,24}")


def looks_like_account(match: re.Match[str]) -> bool:
    """Whether the `id` that follows a WeChat cue is an account rather than a word, an amount or a range."""
    account, gap = match.group("id"), match.groupdict().get("gap", "")
    if _COMMON_WORDS.fullmatch(account):
        return False
    has_letter, has_digit = any("a" <= char <= "z" for char in account), any("0" <= char <= "9" for char in account)
    if has_letter and has_digit:
        return not re.fullmatch(r"[0-9]{1,4}(?:cm|mm|kg|ml|rmb|px|gb|元)", account)
    if has_letter:  # letters only: a word unless something points at it
        return len(account) >= 6 and ("_" in account or "-" in account or any(sign in gap for sign in ":号是为➕👉→"))
    return False  # digits only belong to WECHAT_NUMBER, which knows amounts


# --- numbers -------------------------------------------------------------------------------------------------------------
_S = r"[^\w<\n]{0,3}"
_CARRIER = "顺丰|圆通|中通|申通|韵达|极兔|邮政|京东快递|德邦"
ORDER = re.compile(
    rf"(?:订单(?:号码?|编号)?|(?:快递|物流|运|货运)?单号|流水号|快递|{_CARRIER})(?:[^\w<]|是|为|号){{0,4}}"
    rf"(?P<id>(?!{_MOBILE_NUMBER})(?:[a-z]{{1,4}}[0-9]{{8,20}}|[0-9]{{10,24}}|(?<=号)[0-9]{{6,9}}|(?<=号[: ])[0-9]{{6,9}}))(?![0-9a-z])"
)
ORDER_OF_CARRIER = re.compile(r"(?<![0-9a-z])(?:(?:sf|yt|jt|zto|sto|jd[a-z]{0,2})[0-9]{12,15})(?![0-9a-z])")
ID_CARD = re.compile(rf"(?<![0-9a-z])[1-9](?:{_S}[0-9]){{16}}{_S}[0-9x](?![0-9a-z])")
ID_CARD_CUED = re.compile(
    r"身份证(?:号码?|件号)?(?:[^\w<]|是|为){0,4}(?P<id>[0-9]{14}(?:[0-9]{3}[0-9x]|[0-9]))(?![0-9a-z])"
)
PLAIN_ID_CARD = re.compile(r"[0-9]{17}[0-9Xx]|[0-9]{15}")
BANK_CARD = re.compile(r"(?<![0-9a-z])[3-6][0-9]{3}(?:[ -]?[0-9]{4}){3}(?:[ -]?[0-9]{1,3})?(?![0-9a-z])")
BANK_CARD_CUED = re.compile(
    rf"(?:卡号|银行卡|账户|账号|帐号|[工农中建交招]行|邮储|信用社)(?:[^\w<]|是|为|号){{0,4}}(?P<id>(?!{_MOBILE_NUMBER})[0-9](?:[ -]?[0-9]){{14,18}})(?![0-9a-z])"
)
MOBILE = re.compile(
    rf"(?<![0-9])(?:(?:\+?86|0086)[\s-]?)?(?P<n>1{_S}[3-9](?:{_S}[0-9]){{9}})(?![0-9])(?!(?!v|wx|wei|qq)[a-z])"
)
PLAIN_MOBILE = re.compile(r"(?:(?:\+?86|0086)[ -]?)?1[3-9][0-9](?:[0-9]{8}| [0-9]{4} [0-9]{4}|-[0-9]{4}-[0-9]{4})")
LANDLINE = re.compile(
    r"(?<![0-9.])\(?0(?:10|2[0-9]|[3-9][0-9]{2})\)?[ —-]{0,2}[2-8][0-9]{6,7}(?:(?:-|转)[0-9]{1,5})?(?![0-9a-z])"
    r"|(?<![0-9-])(?:400-[0-9]{3,4}-?[0-9]{3,4}|800-[0-9]{3}-[0-9]{4})(?![0-9a-z-])|(?<![0-9])400[0-9]{7}(?![0-9a-z])"
    r"|(?<=电话|座机|热线)(?<!手机)[2-8][0-9]{6,7}(?![0-9a-z元块])|(?<=电话:|座机:|热线:)[2-8][0-9]{6,7}(?![0-9a-z元块])"
)
_CODE_BEFORE = re.compile(r"(?:sku|sn|no|货号|型号|编号|编码|条形?码|款号)[\s.:#]{0,3}$")
_PHONE_BEFORE = re.compile(r"(?:电话|手机|联系|致电|热线|拨打|号码|tel|☎|📞|📱|📲)[^0-9]{0,6}$")
_USUAL_GROUPS = {(3, 4, 4), (3, 8), (7, 4), (3, 3, 5), (3, 4, 2, 2), (3, 2, 2, 2, 2), (5, 6), (3, 3, 3, 2)}
_MONEY = set("💰💵💴💸¥$€£")


def strip_separators(text: str) -> str:
    """Digits and x only."""
    return re.sub(r"[^0-9x]", "", text)


def is_mobile(match: re.Match[str], digits: str) -> bool:
    """Whether eleven digits found by MOBILE are a phone number rather than a row of prices or a product code.

    Unbroken digits are, and so are single digits with something between each two. Other groups must be the usual ones with one
    and the same separator, or an irregular split that only someone hiding a number writes: a symbol, or a cue before it.
    """
    before = digits[max(0, match.start() - 12) : match.start()]
    groups = re.findall(r"[0-9]+", match.group("n"))
    if len(groups) == 1:
        return not _CODE_BEFORE.search(before)
    if len(groups) == 11:
        return True
    gaps = re.findall(r"[^0-9]+", match.group("n"))
    if any(set(gap) & _MONEY for gap in gaps) or digits[match.end() : match.end() + 1] in _MONEY:
        return False
    if _PHONE_BEFORE.search(before):
        return True
    if len(set(gaps)) > 1 or any(sign in gap for gap in gaps for sign in ",/~、:+*"):
        return False
    symbol = any(not char.isspace() and char not in "-.·_—" for char in gaps[0])
    after = digits[match.end() : match.end() + len(gaps[0])]
    return (tuple(map(len, groups)) in _USUAL_GROUPS or symbol) and not (symbol and after == gaps[0])


def luhn_is_valid(number: str) -> bool:
    """Luhn's checksum (ISO/IEC 7812-1, annex B)."""
    doubled = [int(digit) * (2 if index % 2 else 1) for index, digit in enumerate(reversed(number))]
    return len(set(number)) > 1 and sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def id_card_is_valid(number: str) -> bool:
    """Date and checksum of an 18-character resident identity number (GB 11643-1999, ISO 7064 MOD 11-2)."""
    year, month, day = int(number[6:10]), int(number[10:12]), int(number[12:14])
    if not (1900 <= year <= 2099 and 1 <= month <= 12 and 1 <= day <= 31):
        return False
    total = sum(int(digit) * (1 << (17 - index)) for index, digit in enumerate(number[:17]))
    return number[17] == "10x98765432"[total % 11]


# --- places --------------------------------------------------------------------------------------------------------------
PLATE = re.compile(
    "(?<![全最崭翻焕上])[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼][a-hj-np-z](?:[ ·.•-]?)"
    "(?P<tail>[a-hj-np-z0-9]{4}[a-hj-np-z0-9挂学警港澳]|[a-k][a-hj-np-z0-9][0-9]{4}|[0-9]{5}[a-k])(?![0-9a-z])(?![元块万千])"
)
_CHINESE_NUMBER = "0-9一二三四五六七八九十百"
_UNIT = r"(?:[0-9a-z一二三四五六七八九十]{1,5}\s?(?:号楼|单元|栋|幢|座|层|楼|室|号|房|户)|[-#][0-9]{1,5})"
_BUILDING = rf"(?:院|(?:[{_CJK}]{{2,8}}?(?:大厦|广场|小区|花园|公寓|家园|中心|苑|城)))"
# The end of an address; where it begins is looked for backwards from here by address_start.
ADDRESS = re.compile(
    rf"(?:(?P<road>路|大街|街|大道|街道|巷|胡同|弄)(?:[东西南北中]段?|[{_CHINESE_NUMBER}]段)?\s?[{_CHINESE_NUMBER}]{{1,5}}"
    rf"(?:[-之][0-9]{{1,4}})?(?:号|弄)|(?P<estate>小区|花园|公寓|家园|新村|苑|村|府|城)(?P<block>[0-9a-z]{{1,4}}(?:栋|幢|号楼|座)))"
    rf"(?P<rest>{_BUILDING}?(?:\s?{_UNIT}){{0,5}})"
)
_PROVINCE = re.compile(
    "北京|天津|上海|重庆|河北|山西|内蒙古|辽宁|吉林|黑龙江|江苏|浙江|安徽|福建|江西|山东|河南|湖北|湖南|广东|广西|海南|四川|贵州|云南|西藏"
    "|陕西|甘肃|青海|宁夏|新疆|香港|澳门|台湾"
)
_LEADS_IN = re.compile(
    r"(?:地址|地点|位置|收货|寄到|寄往|住在|位于|就在|[在于住到址去是往店的了::])(?=[^在于住到址去是往的了::]*$)"
)
_REGION = re.compile(r"[省市区县州旗镇乡盟]")
_NOT_A_ROAD = set("逛上走半一条思套迷带公铁线电马退出的赶同跑扫网过问这那哪领")
_REACH = 32


def address_start(text: str, match: re.Match[str]) -> int | None:
    """Where the address that ends as `match` begins: at a province, else after a lead-in such as 在 or 地址：, else with the run.

    None when it is no address: a road needs a name of two or more characters, and a low number with neither region nor room
    could be anything (逛街12号).
    """
    low = max(0, match.start() - _REACH)
    run = re.search(rf"[{_CJK}0-9a-z]*$", text[low : match.start()])
    before = run.group() if run else ""
    start = 0
    if province := _PROVINCE.search(before):
        start = province.start()
    elif lead := _LEADS_IN.search(before):
        start = lead.end()
    name = before[start:]
    located = bool(_REGION.search(name) or match.group("rest").strip() or province)
    if len(name) < 2 or (name[-1] in _NOT_A_ROAD and not located):
        return None
    if match.group("estate") and not match.group("rest").strip():
        return None
    number = re.search(r"[0-9]+", match.group())
    low_number = number is None or int(number.group()) <= 31
    if match.group("road") and low_number and not located and start == 0:
        return None
    return match.start() - len(name)
