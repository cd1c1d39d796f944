"""What identifiers look like in the shadow of a text (lower case, digits plain): the net and numbers. Recognition only.

Accounts are in `contacts`, plates and addresses in `places`. Every pattern is linear: repetitions are bounded, anchored on a cue
or separated by characters that the repeated class excludes.
"""

import re

from xhs_pipeline.curation.contacts import EMOJI

# --- cheap signs that the patterns below have something to find ------------------------------------------------------------
NET_SIGN = re.compile(r"[a-z0-9]\W{0,3}(?:[.点丶。]|dot)\W{0,3}[a-z]|:\s?//|[a-z0-9]\s?@|www\.")
IP_SIGN = re.compile(r"[0-9][\[ ]?[.点。·][\] ]?[0-9]{1,3}[\[ ]?[.点。·]|:[0-9a-f]{0,4}:")

# --- links ---------------------------------------------------------------------------------------------------------------
_TLD = (
    "(?:com|cn|net|org|vip|top|xyz|cc|me|tv|io|shop|fun|club|site|info|biz|link|live|app|ltd|wang|ink|online|store|win|hk|tw"
    "|pro|xin|icu|cyou|tech|space|mobi|asia|gov|edu|us|ru|jp|uk|so|la|im|co)"
)
# Any scheme, since a made-up one is a common disguise.
URL = re.compile(r"(?<![a-z])(?:https?|ftp|[a-z]{3,6})\s?:\s?//[!-;=?-~]+|(?<![a-z0-9])www\.[!-;=?-~]+")
DOMAIN = re.compile(
    rf"(?<![a-z0-9.@-])(?:[a-z0-9-]{{1,63}}\.){{1,8}}{_TLD}(?![a-z0-9-])(?::[0-9]{{2,5}})?(?:[/?#][!-;=?-~]*)?"
)
_WIDE_TLD = "(?:com|cn|net|org|xyz|cc)"
DOMAIN_DISGUISED = re.compile(
    r"(?<![a-z0-9.-])(?:[a-z0-9-]{2,63}\s?(?:点|丶|。|[(\[](?:\.|点|dot)[)\]]|dot)\s?(?:com|cn|net|org|vip|top|xyz|cc|club)"
    rf"|(?=[a-z-]{{0,62}}[0-9])[a-z0-9-]{{2,63}}\s?\.\s(?:vip|top|club|{_WIDE_TLD[3:]}|[a-z0-9-]{{2,63}}(?:\s\.\s(?:vip|top|club)|\s?\.\s{_WIDE_TLD}))(?![a-z0-9])"
)
_HOST = r"(?:(?:vip\.)?qq|163|126|139|189|gmail|outlook|hotmail|foxmail|sina|sohu|yeah|icloud|yahoo|aliyun)"
EMAIL = re.compile(r"[a-z0-9][a-z0-9._%+-]{0,63}\s?@{1,2}\s?(?:[a-z0-9-]{1,63}\.){1,5}[a-z]{2,10}(?![a-z0-9])")
EMAIL_DISGUISED = re.compile(
    r"[a-z0-9][a-z0-9._+-]{1,63}(?:\s?(?:#|@|艾特|小老鼠|圈a|[(\[]at[)\]])\s?[a-z0-9-]{2,20}"
    rf"|(?:\s?[{EMOJI}]\s?|\sat\s){_HOST})\s?(?:\.|点|。|[(\[]?dot[)\]]?|[(\[][.点][)\]])\s?(?:c[o0]m|cn|net|org|康姆|抗母|扣姆)(?![a-z0-9])"
    rf"|[a-z0-9][a-z0-9._+-]{{1,63}}@{_HOST}[,，](?:com|cn|net)(?![a-z0-9])"
)
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
IPV4 = re.compile(
    rf"(?<![0-9a-z.])(?:{_OCTET}\.){{3}}{_OCTET}(?::[0-9]{{2,5}})?(?![0-9a-z])(?!\.[0-9])(?!\s?版本)"
    rf"|(?<![0-9a-z.])(?<![0-9][点。·])(?=[0-9]{{2}})(?:{_OCTET}(?:[点。·]|\[\.\]| \. )){{3}}{_OCTET}(?![0-9a-z点])(?![。·][0-9])"
)
VERSION_BEFORE = re.compile(r"(?:版本号?|version|ver|v|固件|系统|chrome/?|安卓|os|内核|驱动)[\s.:]{0,2}$")
IPV6 = re.compile(r"(?<![0-9a-z])(?<![0-9a-f:]:)(?:[0-9a-f]{1,4}:|::)[0-9a-f:]{3,40}(?![0-9a-z])")

# --- numbers -------------------------------------------------------------------------------------------------------------
_MARK = r"(?:[^\w<\n]|_)"
_S = rf"{_MARK}{{0,3}}"
_MOBILE_NUMBER = "1[3-9][0-9]{9}(?![0-9])"
_CARRIER = "顺丰|圆通|中通|申通|韵达|极兔|邮政|京东快递|德邦|ems"
_PARCEL = rf"{_CARRIER}|快递|物流|包裹|查件|发货|查了(?:[一1]下)?|签收|单子"
ORDER = re.compile(
    rf"(?:订单(?:号码?|编号|id)?|(?:退款|退货|售后|交易|支付|商户|运单)(?:编号|号)|查询码|(?:快递|物流|运|货运|退款|退货|交易)?单号?|流水号|{_PARCEL})(?:[^\w<]|是|为|号){{0,4}}"
    rf"(?P<id>(?!{_MOBILE_NUMBER})(?:[0-9]{{6,8}}-[0-9]{{9,18}}|[a-z]{{1,4}}[0-9]{{8,20}}|[0-9]{{10,32}}|(?<=号)[0-9]{{6,9}}|(?<=号[: ])[0-9]{{6,9}}"
    r"|[a-z0-9](?: [a-z0-9-]){10,26}|[a-z0-9]{4}(?: [a-z0-9]{4}){2,6}(?: [0-9]{1,3})?))(?![0-9a-z])(?!\s?[元块])"
)
# A long number that only what is said about it shows to be a parcel or an order.
ORDER_THEN_CUE = re.compile(
    rf"(?<![0-9a-z.-])(?P<id>[a-z]{{0,2}}[0-9]{{12,20}})(?=[^0-9\n<]{{0,6}}(?:还在路上|在路上|没到|{_PARCEL}))"
)
ORDER_OF_CARRIER = re.compile(r"(?<![0-9a-z])(?:(?:sf|yt|jt|zto|sto|jd[a-z]{0,2})[0-9]{12,15})(?![0-9a-z])")
ID_CARD = re.compile(rf"(?<![0-9a-z])[1-9](?:{_S}[0-9]){{16}}{_S}[0-9x](?![0-9a-z])")
ID_CARD_SHAPE = re.compile("[1-9][0-9]{17}")
ID_CARD_CUED = re.compile(
    r"身份证(?:号码?|件号)?(?:[^\w<]|是|为){0,4}(?P<id>[0-9]{14}(?:[0-9]{3}[0-9x]|[0-9]))(?![0-9a-z])"
)
BANK_CARD = re.compile(
    r"(?<![0-9a-z])[3-6](?:[0-9]{14,18}|[0-9]{3}(?P<dash>[ .·-]| {2})[0-9]{4}(?P=dash)[0-9]{4}(?P=dash)[0-9]{4}(?P<tail>(?P=dash)[0-9]{1,3})?)(?![0-9a-z])"
    rf"|(?<![0-9a-z])[3-6](?P<mark>{_MARK}{{1,3}})[0-9](?:(?P=mark)[0-9]){{13,17}}(?![0-9a-z])"
    rf"|(?<![0-9a-z])[3-6][0-9]{{2,5}}(?:[{EMOJI}]{{1,2}}[0-9]{{2,14}}){{1,4}}(?![0-9a-z])"
)
BANK_CARD_CUED = re.compile(
    rf"(?:卡号|银行卡|账户|账号|帐号|[工农中建交招]行|邮储|信用社)(?:[^\w<]|是|为|号){{0,4}}(?P<id>(?!{_MOBILE_NUMBER})[0-9](?:[ -]?[0-9]){{14,18}})(?![0-9a-z])"
)
# With any marks between the digits, where only the checksum tells a card from a row of prices.
BANK_CARD_SPREAD = re.compile(
    rf"[卡账帐户]号?(?:[^\w<]|[是为上里填]){{0,4}}(?P<id>[3-6](?:{_MARK}{{0,3}}[0-9]){{14,18}})(?![0-9a-z])"
)
MOBILE = re.compile(rf"(?<![0-9])(?:\(?(?:\+?86|0086)\)?[\s-]?)?(?P<n>1{_S}[3-9](?:{_S}[0-9]){{9}})(?![0-9])")
# Several numbers written as one, which no longer looks like any of them.
MOBILES_GLUED = re.compile(r"(?<![0-9])(?:1[3-9][0-9]{9}){2,8}(?![0-9])")
PLAIN_MOBILE = re.compile(r"(?:(?:\+?86|0086)[ -]?)?1[3-9][0-9](?:[0-9]{8}| [0-9]{4} [0-9]{4}|-[0-9]{4}-[0-9]{4})")
_AREA = "0(?:10|2[0-9]|[3-9][0-9]{2})"
LANDLINE = re.compile(
    rf"(?:(?<![0-9.])\(?{_AREA}\)?|(?<![0-9])\+?86[ -]{_AREA[1:]})(?:[ ~—-]{{0,2}}[2-8][0-9]{{6,7}}|[ ~—-]{{1,2}}[2-8][0-9]{{3}}[ -][0-9]{{3,4}}(?! [0-9]{{3,4}}(?![0-9])))(?!\s?[元块])(?:(?:-|转(?:分机)?)[0-9]{{1,5}})?(?![0-9a-z])"
    r"|(?<![0-9-])(?:400-[0-9]{3,4}-?[0-9]{3,4}|800-[0-9]{3}-[0-9]{4})(?![0-9a-z-])|(?<![0-9])400[0-9]{7}(?![0-9a-z])"
    r"|(?<![0-9])(?<![0-9] )4(?:00| 0 0) (?:[0-9]{3} ?[0-9]{4}|[0-9]{4} [0-9]{3})(?!\s?[0-9a-z元块])"
    r"|(?<=电话|座机|热线)(?<!手机)[2-8][0-9]{6,7}(?![0-9a-z元块])|(?<=电话:|座机:|热线:)[2-8][0-9]{6,7}(?![0-9a-z元块])"
)
LANDLINE_SPREAD = re.compile(rf"(?<![0-9])0(?P<mark>{_MARK}{{1,2}})[1-9](?:(?P=mark)[0-9]){{8,10}}(?!(?P=mark)?[0-9])")
WHOLE_LANDLINE = re.compile(rf"{_AREA}[2-8][0-9]{{6,7}}")
_CODE_BEFORE = re.compile(
    r"(?:sku|sn|no|货号|型号|编号|编码|条形?码|款号|零件号|件号|批号|证号|期号)[\s.:#]{0,3}$|[=^×]\s?$"
)
_PHONE_BEFORE = re.compile(r"(?:电话|手机|联系|致电|热线|拨打|咨询|号码|tel|☎|📞|📱|📲)[^0-9]{0,6}$|[打拨]$")
_USUAL_GROUPS = {(3, 4, 4), (3, 8), (7, 4), (3, 3, 5), (3, 4, 2, 2), (3, 2, 2, 2, 2), (5, 6), (3, 3, 3, 2)}
_ONLY_EMOJI = re.compile(f"(?!→)[{EMOJI}]{{1,3}}")
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
    unbroken = match.group("n").isdigit() and not re.search(r"[a-z][-_ ]?$", before)
    if re.match(r"(?!v|wx|wei|qq)[a-z]", digits[match.end() :]) and not unbroken:
        return False  # letters right after: part of a code, unless eleven digits stand together
    groups = re.findall(r"[0-9]+", match.group("n"))
    if _CODE_BEFORE.search(before):
        return False
    if len(groups) in (1, 11):
        return True
    gaps = re.findall(r"[^0-9]+", match.group("n"))
    if any(set(gap) & _MONEY for gap in gaps) or digits[match.end() : match.end() + 1] in _MONEY:
        return False
    if _PHONE_BEFORE.search(before):
        return True
    if all(_ONLY_EMOJI.fullmatch(gap) for gap in gaps) and tuple(map(len, groups)) in _USUAL_GROUPS:
        return True
    if set(gaps) == {"~"} and tuple(map(len, groups)) == (3, 4, 4):
        return True
    if len(set(gaps)) > 1 or any(sign in gap for gap in gaps for sign in ",，/~、:+*=→"):
        return False
    symbol = any(not char.isspace() and char not in "-.·_—" for char in gaps[0])
    after = digits[match.end() : match.end() + len(gaps[0])]
    return (tuple(map(len, groups)) in _USUAL_GROUPS or symbol) and not (symbol and after == gaps[0])
