"""What WeChat, QQ and other accounts look like in the shadow of a text, with the cue that gives them away. Finds nothing itself.

Cues are built from syllables rather than listed: any character read or drawn like 微 may stand before any read like 信.
"""

import re

HEART = "❤♥♡❣💚💗💛💙💜🖤🤍🤎🧡💕💖💓💌💝💞💟🩷🩵🩶"
PLUS = "➕✚✛"
# Symbols people put between the parts of a number; no punctuation, which belongs to sentences.
EMOJI = "\u2190-\u21ff\u2300-\u23ff\u25a0-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff"
NUMERAL = "〇零一壹幺二贰两俩三叁四肆五伍六陆七柒八捌九玖"
_MARK = r"(?:[^\w<\n]|_)"
# Between a cue and its account: marks, emoji, blanks and the few words people put there. `<` would be a placeholder.
_GAP = r"(?:[^\w<]|_|号码?|账号|帐号|id(?!_)|是|为|同号?|搜索?|加|我|联系|私聊?|详聊|细聊|咨询|了解|具体|添加|请|客服|老师|在这里?|备注|来意|搜[一1]搜|如下|[吧呗呀啊哦哈嘛啦]|➕|\[[^\[\]<>\s]{1,8}\]){0,8}?"
# A few such small words in any order (微信换成, 加个v呗, 微信搜一下), which end a phrase or turn to what follows. None of them takes an
# object that a code could be (微信发, 微信用, 微信的), and a plain number after them has to be long.
_SMALL = "了咯喽哟呢么滴伐噻嘞咧哩欸诶好吧呗呀啊哦哈嘛啦就也都还这那叫改换变成更新一下找戳看来去快速直接您你俺侬哒捏呐步号码是为同搜加我请"
_WIDE = rf"(?:[^\w<]|_|[{_SMALL}]|1下|的话|可以|有需要|想要|要的|发[你给]|在这){{1,6}}?"
# Or any five characters, where a cue is unmistakable and what follows can hardly be anything else; not those that speak of a file, a
# version, a payment, a product, an amount or another line (微信下载, 微信红包, wx系列, 微信或电话).
_OPEN = r"(?:(?![版载装封图片码包付众序程用发有在了里卖买价元转收共电话手打拨热列像数戏款肤编频])[\u4e00-\u9fff]){1,5}[^\w<]{0,2}"
# What follows a plain number when it is an amount, not an account.
NOT_AMOUNT = r"(?![0-9a-z%])(?!\s?[-~到至]\s?[0-9])(?!\s?[元块圆钱万千亿人粉个天年月日次张件米克斤条份套字])"

# --- identifiers of an account -------------------------------------------------------------------------------------------
PLAIN_ACCOUNT = re.compile(r"[A-Za-z0-9_-]+")
_A = "[a-z0-9_-]"
_N = f"[{NUMERAL}]"
# 5 to 20 letters, digits, - and _; or with Chinese numerals for some digits; or with a mark between each two; or in pieces.
_ID = (
    rf"(?P<id>(?!(?:wx|vx|qq|id|me|to|is|or) )[a-z]{_A}{{1,4}} (?:(?=[a-z_-]{{1,9}}[0-9])[a-z_-]{_A}{{2,12}}|[0-9]{{3,6}}{NOT_AMOUNT})"
    rf"|[a-z]{_A}{{0,19}}(?:{_N}{{1,6}}{_A}{{1,12}}){{1,6}}{_N}{{0,4}}|[a-z]{_A}{{1,19}}{_N}{{2,8}}"
    rf"|[a-z0-9]{_A}{{0,11}}(?:[{EMOJI}·]{{1,2}}{_A}{{1,12}}){{1,3}}(?!\s?[{EMOJI}]{{1,2}}{_A})|[a-z0-9]{_A}{{4,19}}"
    rf"|[a-z0-9](?P<mark>{_MARK}){_A}(?:(?P=mark){_A}){{4,19}})(?!{_A})"
)
_MIXED = r"(?=[a-z0-9_-]{0,18}[0-9])(?=[0-9_-]{0,18}[a-z])[a-z0-9][a-z0-9_-]{5,19}"
_MIXED_ID = rf"(?P<id>{_MIXED})(?![a-z0-9_-])"
_SPREAD = rf"[0-9](?P<sep>{_MARK}{{1,3}})[0-9](?:(?P=sep)[0-9]){{%s}}"
_PIECES = rf"[0-9]{{2,5}}(?:[{EMOJI}]{{1,2}}[0-9]{{1,5}}){{1,4}}"
_MOBILE_GROUPS = rf"1[3-9][0-9](?P<dash>{_MARK}{{1,3}})[0-9]{{4}}(?P=dash)[0-9]{{4}}"
_MOBILE_NUMBER = "1[3-9][0-9]{9}(?![0-9])"

# --- WeChat --------------------------------------------------------------------------------------------------------------
_ADD = "[加佳家嘉伽枷十+➕✚✛]"
_WEI = "微嶶覹薇威徽维溦葳崴胃喂魏围危韦唯畏巍卫蔚煨隈徵"
_XIN = "信芯心星欣昕新馨鑫"
_V = r"(?<![a-z0-9@码])v"
_M = r"[\s.·*_~/|-]{0,2}"
_OF_WECHAT = r"\s?(?:这个|的)?(?:微信|v信|vx|薇)"
PLAIN_WECHAT = re.compile(
    rf"[+加]?(?:微{_M}信|微x|(?<![a-z0-9])(?:weixin|wechat|wei{_M}信|weix(?!i)|[wv](?:x|{_M}x(?![a-z]))(?!id_)|v{_M}信)|微号?|v号?)(?:号|同号)?|[+加我扫找]+(?:v|微)?"
)
_PLAIN_CUE = (
    rf"\+?加?个?微{_M}信|微x|\+?加?(?<![a-z0-9@])(?<![款批货编型]号)(?:weixin|wechat|wei{_M}信|weix(?!i)|[wv](?:x|{_M}x(?![a-z]))(?!id_))|[加+我扫找]v|[加扫找](?:一?个|一?下)v(?![a-z0-9])|[加+]微|(?:微电?|{_V}电?|电微)(?=同[号步])|{_V}{_M}信|微号|(?<![a-z0-9@])vv(?=\s?[:号➡→👉])|微(?=\s?[:👉➡→])|(?<!不)加我"
    rf"|{_V}号?(?=[\s:+，,👉➡→是搜(【\[-])"
)
_HOMOPHONE_CUE = (
    rf"{_ADD}?(?:[{_WEI[1:]}](?:{_M}[{_XIN}]|x(?![a-z]))|微{_M}[{_XIN[1:]}])号?|{_ADD}(?:[{_WEI[1:]}]|(?<=[^+加])[微v])号?"
    rf"|(?:[{_WEI}]|(?<![a-z0-9])vx?)[{HEART}{PLUS}]{{1,3}}号?|[{PLUS}](?:vx?|微)|{_ADD}[{HEART}]|[{HEART}]号"
    rf"|🛰号?|绿泡泡?|绿标|绿色(?:软件|app)|小绿书?|绿信|[葳崴溦薇嶶]号?|[薇威喂维葳]加"
)
_WEAK = rf"[{HEART}{PLUS}]|(?<![权示扬耐夏挪诺发])威|(?<![投饲])喂|(?<!安)徽|[魏维](?!他)|微我?|{_V}我?"
WECHAT = (
    (re.compile(rf"(?P<cue>{_HOMOPHONE_CUE})(?P<gap>{_GAP}|{_WIDE}){_ID}"), True),
    (re.compile(rf"(?P<cue>{_PLAIN_CUE})(?P<gap>{_GAP}|{_WIDE}){_ID}"), False),
    (re.compile(rf"(?P<cue>微)(?P<gap>(?:[^\w<]|[号是搜加]|我|具体|了解|细聊){{0,6}}){_MIXED_ID}"), False),
    (re.compile(rf"(?P<cue>{_V})(?P<gap>(?:[^\w<]|[号是搜我]){{1,4}}|(?=[0-9])){_MIXED_ID}"), False),
    (
        re.compile(
            rf"(?P<cue>[{HEART}{PLUS}]|(?<![权示扬耐夏挪诺发])威|(?<![投饲])喂|(?<!安)徽|[魏维])(?P<gap>(?:[^\w<]|[号是搜]){{0,4}}){_ID}"
        ),
        True,
    ),
    (re.compile(rf"(?P<cue>加[v微薇威])(?P<gap>[\u4e00-\u9fff]{{1,4}}:\s?){_MIXED_ID}"), False),
    (re.compile(rf"(?P<cue>[加搜找])(?P<gap>[^\w<]?){_ID}(?={_OF_WECHAT})"), False),
    (re.compile(rf"(?P<cue>{_V}我)(?P<gap>[^\w<]{{0,2}}){_ID}"), False),
    (
        re.compile(
            rf"(?P<cue>微信|微我|{_V}信|(?<![a-z0-9@])[wv]x)(?P<gap>{_OPEN})(?P<id>[a-z]{{3,12}}[_-]?[0-9]{{3,8}})(?![a-z0-9_-])"
        ),
        False,
    ),
    (re.compile(r"(?P<cue>)(?P<gap>)(?<![a-z0-9@])(?P<id>wxid_[a-z0-9]{10,16})(?![a-z0-9])"), False),
)
WEAK_CUE = WECHAT[4][0]
# Digits only, disguised as anything: 薇：一三八..., v 1 3 8 ...
WECHAT_NUMBER = re.compile(
    rf"(?:(?P<cue>{_HOMOPHONE_CUE}|{_PLAIN_CUE})(?P<gap>{_GAP})|(?P<weak>{_WEAK})(?:[^\w<]|[号是搜]){{0,4}}?(?=[0-9]{{8}}|1{_MARK}{{0,2}}[3-9](?:{_MARK}{{0,2}}[0-9]){{9}})"
    rf"|[加搜找][^\w<]?(?={_MOBILE_NUMBER}{_OF_WECHAT})|(?<![0-9a-z])[加+➕][^\w<]?(?=[0-9]{{8}})(?!{_MOBILE_NUMBER}))"
    rf"(?P<id>[0-9]{{6,12}}|{_SPREAD % '4,10'}|{_PIECES}|{_MOBILE_GROUPS}){NOT_AMOUNT}"
)
# With small words between, only what can be dialled: a step count or an amount has other lengths.
WECHAT_MOBILE = re.compile(
    rf"(?P<cue>{_HOMOPHONE_CUE}|{_PLAIN_CUE})(?:{_WIDE}|{_OPEN})(?P<id>{_MOBILE_NUMBER}|{_MOBILE_GROUPS}){NOT_AMOUNT}"
)

# --- QQ ------------------------------------------------------------------------------------------------------------------
_BARRED = r"[0-9]{3}(?P<bar>[|/_~*·.。-]| {2,3})[0-9]{4}(?P=bar)[0-9]{1,4}"
_QQ_ID = rf"(?:(?P<id>[0-9]{{2,6}}(?: [0-9]{{2,6}}){{1,3}}(?! ?[0-9])|[0-9]{{5,12}}|{_SPREAD % '3,10'}|{_PIECES}|{_BARRED}){NOT_AMOUNT}|(?P<handle>{_MIXED})(?![a-z0-9_-]))"
_QQ_LONG = rf"(?P<id>[0-9]{{7,12}}|{_SPREAD % '5,10'}|{_PIECES}|{_BARRED}){NOT_AMOUNT}"
_QIU = "扣抠叩寇蔻口秋球丘邱求"
_CROWD = "群裙峮"
QQ = (
    (re.compile(rf"(?:[{_QIU}]{{2}}|企鹅|🐧|q{{3,4}}|(?<![a-z])(?:qiu ?qiu|kou ?kou))(?:[{_CROWD}]|君羊)?(?:号码?)?{_GAP}{_QQ_ID}"), True),
    (re.compile(rf"(?:(?<![a-z0-9])(?<![款批货编型]号)v?q{_M}q|[加+]q(?!q)|(?<![a-z0-9])q(?=\s?[:号群]))(?:交流|粉丝|小|大)?群?(?:号码?)?{_GAP}{_QQ_ID}"), False),
    (re.compile(rf"(?:[扣抠叩寇蔻秋][{_CROWD}]?|裙|峮|君羊|(?<![a-z])qun)[号加]?{_GAP}{_QQ_LONG}"), True),
    (re.compile(rf"(?<![a-z0-9@码])q{_GAP}{_QQ_LONG}"), False),
    (re.compile(rf"(?:(?<![a-z0-9@码])q{{1,2}}|[扣抠蔻]{{2}}|企鹅|🐧)群?{_WIDE}{_QQ_LONG}"), False),
    (re.compile(rf"(?:(?<![a-z0-9@码])q{{1,2}}|[扣抠蔻]{{2}}|企鹅|🐧|加群){_OPEN}(?P<id>(?!20[0-9]{{2}}[01][0-9])[1-9][0-9]{{7,9}}){NOT_AMOUNT}"), False),
    (re.compile(rf"群(?:号码?)?{_GAP}(?P<id>[0-9]{{6,11}}|{_SPREAD % '4,9'}|{_PIECES}){NOT_AMOUNT}"), False),
)  # fmt: skip

# A number to tap that opens a group: 123456789点数字进群, where 裙 and 👗 stand for 群.
GROUP_TO_OPEN = re.compile(
    rf"(?<![0-9a-z])(?P<id>[0-9]{{6,20}}){NOT_AMOUNT}(?=[^\w<]{{0,2}}(?:点击?数字|点开|点击|数字)[^0-9\n<]{{0,5}}进[{_CROWD}👗])"
)

# --- elsewhere -----------------------------------------------------------------------------------------------------------
OTHER_ACCOUNT = re.compile(
    r"(?:(?:小红书|抖音|快手|微博|b站|陌陌|旺旺|支付宝|whatsapp|telegram|飞机|纸飞机|电报|(?<![a-z])tg|(?<![a-z])ins)"
    r"(?:账号|帐号|号码|号|\s?id)?(?:\s?(?:是|为|[:@])\s?|\s)|旺)"
    r"(?P<id>(?=[a-z0-9_.-]{0,18}[0-9])[a-z0-9][a-z0-9_.-]{4,19})(?![a-z0-9_-])"
)
# A handle right after a call to get in touch; which platform it belongs to is not said.
CONTACT_HANDLE = re.compile(
    rf"(?:联系(?:方式|我)?|电话|找我|戳我|私我|si我|上车方式|滴滴我?|备注)[^\w<]{{0,3}}{_MIXED_ID}"
)
# A number right after whom to ask; a phone number is left to the pattern for phones.
CONTACT_NUMBER = re.compile(
    rf"(?:联系|咨询)(?:(?!电话|手机|热线|号码|座机)[\u4e00-\u9fff]){{0,3}}[:\s]{{0,2}}(?!0|400|{_MOBILE_NUMBER})(?P<id>[0-9]{{7,11}}){NOT_AMOUNT}"
)
MENTION = re.compile(
    r"(?<![a-z0-9])@(?![0-9_.:-]*(?![\w.-]))(?!所有人|全体|全员|不(?:出来|到|了|上)|一下|[了到过完的]|没(?:反应|人|用)|就[行好]|出来|不动|下[你我他])"
    r"(?!(?:官方|平台|商家|卖家)(?:[出快来给管赶看]|(?![\w·.-])))"
    # 我, 你对象, 三个好友, 家长: whom one calls, not what they are called.
    r"(?!(?:[我你您他她它谁咱](?:们|家)?|对方|本人)(?:一下|[了就来在呢呀哦吧啊吗嘛啦也都]|(?![\w·.-])))"
    r"(?![我你他她](?:的|家)?(?:对象|闺蜜|朋友|姐妹|兄弟|老公|老婆|男友|女友|妈|爸|哥)|[0-9一二两三四五六七八九十几]+[个位名])"
    r"(?!(?:me|好友|老师|班主任|领导|客服|群主|家长|同事|同学|朋友|闺蜜|对象|老公|老婆|室友|队友|管理员)们?了?(?![\w·.-]))"
    r"(?=[\w])(?:(?!的(?:分享|推荐|笔记|教程|视频|图片|链接|方法|配方|作品))[\w·.-]){1,24}"
)

# A cheap sign that there may be an account: five letters or digits, or single ones with marks or numerals between.
ACCOUNT_SIGN = re.compile(
    rf"[a-z0-9_-]{{5}}|[a-z0-9_-]{{1,12}}(?:[{EMOJI}]|[^\w<])[a-z0-9_-]{{1,12}}(?:[{EMOJI}]|[^\w<])?[a-z0-9_-]|[a-z_-]{_N}"
)

_COMMON_WORDS = re.compile(
    r"wechat|weixin|official|android|windows|moments|business|channels?|macos|voucher|please|hello|group|world"
    r"|(?:version|iphone|ipad|macbook|wifi|gpt|huawei|mate|oppo|vivo|xiaomi|redmi|note|galaxy|switch|size|style|type|spf)[0-9a-z]*"
)
_PINYIN = re.compile(
    r"(?:(?:zh|ch|sh|[bpmfdtnlgkhjqxrzcsyw])(?:iang|iong|uang|ang|eng|ing|ong|ian|iao|uai|uan|an|en|in|un|ai|ei|ao|ou|ia|ie|iu|uo"
    r"|ui|ua|ue|ve|a|e|i|o|u|v)|a[ion]?|ang|er?|en|ou)+[-_]?"
)
_AMOUNT = re.compile(r"[0-9]{1,5}(?:cm|mm|kg|ml|rmb|px|gb|g|w|k|r|h)")
_GROUPED = re.compile("[0-9]{2,6}(?: [0-9]{2,6})+")
_MONEY = set("💰💵💴💸🪙")


def looks_like_account(match: re.Match[str]) -> bool:
    """Whether the `id` that follows a WeChat cue is an account rather than a word, an amount or a range."""
    account, gap = match.group("id"), match.groupdict().get("gap", "")
    if _COMMON_WORDS.fullmatch(account) or set(account) & _MONEY:
        return False
    letters = sum("a" <= char <= "z" for char in account)
    digits = sum("0" <= char <= "9" or char in NUMERAL for char in account)
    if letters + digits < 5:
        return False
    if letters and digits:
        return not _AMOUNT.fullmatch(account)
    if not letters:  # digits only belong to WECHAT_NUMBER, which knows amounts
        return False
    # Letters only: a word, unless it is spelled like a name or something points at it.
    if match.re is WEAK_CUE:
        return "_" in account or not account.isascii()
    if not account.isascii() or match.groupdict().get("mark"):
        return True
    pointed = "_" in account or "-" in account or any(sign in gap for sign in ":号是为➕👉→➡搜[")
    return len(account) >= 6 and (pointed or _PINYIN.fullmatch(account) is not None)


def looks_like_number(number: str) -> bool:
    """Whether digits after a cue, possibly in pieces with symbols between, can be an account rather than a row of prices."""
    digits = sum(char.isdigit() for char in number)
    return not set(number) & _MONEY and (8 if _GROUPED.fullmatch(number) else 5) <= digits <= 12
