"""Posts and comments as a moderator meets them, worded without knowing the detector; `field_ordinary.py` holds the rest.

A line is a text. `{m}` is a made-up value of a type (letters: KEYS), `{m:text}` is that very text, `⏎` a line break.
"""

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import field_fourth
import field_ordinary
import field_second
import field_third
import field_values as make

KEYS: dict[str, tuple[str, Callable[[random.Random], tuple[str, str]]]] = {
    "m": ("手机号", make.mobile), "l": ("座机", make.landline), "w": ("微信号", make.wechat), "q": ("QQ号", make.qq), "e": ("邮箱", make.email),
    "i": ("身份证号", make.id_card), "b": ("银行卡号", make.bank_card), "p": ("IP地址", make.ip), "c": ("车牌号", make.plate), "a": ("地址", make.address),
    "n": ("用户名", make.at_name), "u": ("链接", make.link), "o": ("订单号", make.order),
}  # fmt: skip
RENDERED = 4
_MARK = re.compile(r"\{(\w)(?::([^}]*))?\}")

MOBILE = """
有意向的打我电话{m}，白天都在
房东电话{m}，说是小红书看到的就行
跑腿代买，随叫随到 {m}
孩子走丢了，看到请联系妈妈{m}，全家跪谢！！
捡到一只柯基，脖子上有铃铛，失主打{m}
我手机号：{m}
☎️{m}（李姐）
tel:{m}
电联{m}，短信也看
面试请拨{m}找王经理，月薪6500-8000，包吃住
快递放门口就行，手机{m}
收件人：小周⏎手机：{m}⏎尾款299已付
家教，初三数学，一小时150，有需要打{m}
转租！押一付三2800/月，看房call {m}
晓得不嘛，装修就找他，{m}，巴适得很
俺娘的电话{m}，恁有事就打
我嘅电话系{m}，得闲饮茶
号码 {m} 不接就是在带娃，多打两次
刚下的单，填错手机号了，应该是{m}，麻烦改一下
卖家留的电话是{m}，打过去空号，大家避雷
订位热线{m}，人均88
司机师傅{m} 凌晨4点出发，50一位
求扩散🙏联系人张女士{m}
电话{m}或者{m}都可以
有货，{m}，量大从优
退款客服让我加这个号{m}转账，是骗子吧？
我妈的号{m}被人拿去注册了贷款，怎么办
手机号码:{m} 姓名:林小鱼
打{m}投诉这家店，根本没人管
call我{m}，长期收二手相机，9成新5000起
联系方式{m}，没事别打
咨询：{m}【周一到周五9:00-18:00】
"""
LANDLINE = """
门店电话{l}，早十晚九
医院挂号打{l}，别信黄牛
物业座机{l}一直占线，气死
我投诉到{l}了，说15个工作日回复
固话：{l}
幼儿园招生办{l}，学费一学期4800
打了{l}问，说要预约
☎{l}
维权的姐妹，这个是教育局电话{l}
预约拔牙{l}，一颗380
公司前台{l}，找行政小刘
全国统一热线{l}，避雷！
银行客服{l}说三到五天到账
订房：{l}（含双早）
tel：{l}
传真{l}
宠物医院24小时{l}，救了我家猫
餐厅订位电话 {l} ，周末要等位2小时
奶奶家的座机是{l}，小时候背得滚瓜烂熟
派出所的号码{l}，让我等消息
售后电话{l}打不通，买了三天就坏
有事打店里电话{l}，找阿珍
联系{l}，不要打我手机
酒店前台{l}可以寄存行李
办公电话：{l}，邮编518000
收到自称医保局的电话{l}，说我卡被冻结，骗子！
"""
WECHAT = """
加薇{w}，备注小红书
加微 {w}
V❤{w}
微❤号{w}
绿泡泡：{w}
绿泡泡搜{w}，暗号草莓
卫星{w}，秒回
威 {w}
v信：{w}，原图发你
v：{w}
vx {w} 有图
VX:{w}
+v {w}
➕V：{w}
➕薇 {w}
徽信{w}
薇信号:{w}
我的微信是{w}，一起拼单
微信号{w}，同城可自提，120出
丨微信丨{w}
wx：{w} 不是微商！
weixin:{w}
加我v {w} 拉你进宝妈群
想要链接的宝加V信{w}
兼职日结，180一天，➕卫星 {w}
评论区回不过来，直接wechat {w}
WeChat ID: {w}
绿色软件{w}
绿色app：{w}
扫不了码的加{w}这个微信
小绿书{w}，小绿泡
魏欣 {w}，课程原价1999现价99
微：{w}⏎价格698，可刀
私信太多看不过来，蔚信{w}
围信{w}，姐妹互助
喂信 {w}
唯心{w}
嶶信：{w}
威信号 {w}，招代理，零门槛
v我{w}
加一下V {w}谢谢
联系v {w}，有偿改简历50一份
☎️微信同号{w}
🛰{w}
💚{w}
V{w:：linxiaoyu_0317}，暗号1
薇❤️{w} 进群领资料
中介勿扰，诚心租的加我微信{w}
想学的姐妹加老师薇{w}，今天前20名免费
老师的徵信{w}，报我名字减50
wei信：{w}
weix：{w}
v-x：{w}
薇x {w}
围❤{w}
扣卫星号{w}，原价298，今日158
溦信{w}
我薇: {w}，猪猪头像那个
找我拿货➡️V {w}
➕❤：{w}
"""
QQ = """
QQ{q}
扣扣{q}，学习资料免费发
加扣{q}
加Q：{q}
企鹅{q}
企鹅号：{q}
🐧{q}
🐧：{q} 备注来意
qq群{q}，进群口令：上岸
Q群 {q}，一起考研
扣群{q}，群主人很好
扣扣群：{q}，3缺1
球球{q}，来个队友
秋秋{q}，王者钻石局
蔻蔻：{q}
口口{q}
扣：{q}，长期收号，皮肤多价高
q{q}
Q号{q}，代肝代练，一天30
求组CP，加我qq {q}
抠抠{q}
QQ号是{q}，头像初音
叩叩 {q}
丘丘号{q}
同人无料领取，加群{q}，QQ搜
扩列扩列！Q：{q}
约稿看置顶，扣{q}，头像50起
游戏账号出，联系QQ{q}，价格1200
加企鹅群{q}，每晚8点开黑
我的小企鹅是{q}
qiuqiu{q}
QQ⏎{q}
"""
EMAIL = """
简历投{e}，标题写姓名+岗位
商务合作：{e}
📮{e}
邮箱{e}，想要PDF的留言
资料发到{e}谢谢姐妹
我的邮箱是{e}，求发一份，好人一生平安
求！{e}
蹲一个{e}
合作请邮件{e}，私信不看
email:{e}
E-mail {e}
mail：{e}（24h内回）
论文投稿到{e}，三个月没回音
求资源，{e}，谢谢楼主🙏
登录账号{e} 密码忘了
注册邮箱{e}，被盗了
BD联系：{e}
可以发我吗 {e} 蹲蹲
有教程吗？麻烦发{e}
导师邮箱{e}，发了三封套磁信都没回
📧 {e} ，报价5000起
客服邮箱：{e}，退款找他们
接推广，{e}
简历发送至：{e}，截止3月15日
给我发到{e}吧，不着急
品牌方请联系{e}，粉丝2.3w
"""
ID_CARD = """
身份证号{i}
身份证：{i}，名字王小明
抢票求代，姓名李雷 {i}
订机票要身份证，我的是{i}
我的身份证{i}被冒用了
帮忙查一下{i}有没有中签
姓名：陈佳佳⏎证件号：{i}⏎票档：680
证件号码{i}
身份证号码是{i}，别外传
前夫的身份证 {i}，老赖一个
曝光骗子！！身份证号{i}，骗了我3万
ID：{i}
代抢演唱会，把{i}这样的身份证发我
实名信息{i}
孩子身份证{i}，入学报名用
报名表：张三，男，{i}
护照和身份证{i}都丢了
老师让交身份证号，{i}写错一位
这个人叫刘某，{i}，大家避开
入住登记：{i}
sfz {i}
SFZ：{i}
身份证 {i} 手机 {m}
绑定的是{i}，怎么解绑
学籍号不就是G+{i}吗
办居住证时填的{i}
"""
BANK = """
打款到{b}，工行
卡号{b}
银行卡号：{b}，户名林小雨
建行{b}
转账给这个卡{b}，转完截图
骗子的收款账户{b}，已报警
农业银行 {b} 开户行杭州分行
账号：{b}
尾款2600打我卡上 {b}
我的卡{b}被冻结了
收款卡号{b}（招商银行）
工资卡{b}，到账5800
捐款账户{b}
他让我把押金500转到{b}
储蓄卡{b}
信用卡 {b} 有效期08/29
卡号填{b}就行
中国银行{b}，张小燕
对公账户{b}，开票13个点
把钱打到我妈的卡里{b}
邮政储蓄{b}
银行账号是{b}
支付宝不行就打卡{b}
招行卡{b}，转我300就行
bank card: {b}
还款账户{b}，每月15号扣1280
"""
IP = """
服务器ip是{p}
IP：{p}
查到他ip {p}，在杭州
我的世界开服，{p}，来玩
后台显示{p}登录了我的账号
ip地址{p}异常登录
ping {p} 一直超时
路由器后台是{p}
网关填{p}，子网掩码别动
黑客ip {p}，已报警
dns改成{p}就不卡了
服务器地址：{p}
远程连{p}，账号root
登录IP为{p}，不是我本人
加速器节点{p}延迟28ms
联机的话输{p}
浏览器输入{p}进后台
攻击来源{p}，一晚上刷了3000次
NAS内网{p}打不开
打印机固定ip：{p}
私服 {p} 满级送神装
摄像头连的是{p}
他的ip是{p}！人肉一下
日志里全是{p}
主机{p}挂了
代理{p}，不限速
"""
PLATE = """
车牌{c}，占我车位一个月了
{c}这辆车别坐，司机骚扰
刚在高架被{c}别车
车牌号：{c}
白色特斯拉{c}，麻烦挪下车
谁的车{c}堵门口了
打到一辆{c}，师傅人超好
肇事逃逸！{c}，灰色面包车
曝光{c}，随意加塞
滴滴{c} 司机一路抽烟
我的车{c}被刮了
{c}车主请看到联系我
请{c}的车主挪车
出二手车{c}，4.8万公里
跟踪我的车是{c}
同城寻车 {c} 黑色本田
网约车车牌{c}，绕路多收了20
今天提车，上牌{c}！
选号选到了{c}，好看吗
牌照{c}，过户费另算
尾号限行？我{c}今天能开吗
那个渣男开的{c}
车{c}，停在负二楼
看到{c}请打110
大货车{c}闯红灯
接机车辆：{c}，别克商务
"""
ADDRESS = """
地址：{a}
收货地址{a}，周三前寄到
我家住{a}，来玩呀
工作室在{a}，需预约
寄到{a}，到付
店铺位置：{a}，导航直接搜
📍{a}
房子在{a}，精装，3200一个月
她家地址是{a}，大家去找她
上门自提，{a}
门店：{a}，电梯上来左转
约在{a}见
公司搬到{a}了
快递写{a}就能收到
坐标{a}，猫咪找领养
到{a}取件
新店地址 {a}，9.9元一杯
渣男住{a}，姐妹们避雷
面交地点：{a}
娘屋头住在{a}，来耍嘛
📍地址｜{a}
外卖送到{a}，放门口
租房，{a}，朝南，近地铁
我在{a}等你
退货地址：{a}，张女士收
培训班在{a}，一节课200
"""
NAMES = """
{n} 快来看
谢谢{n}的分享
转给{n} ，笑死
跟着{n} 做的，一次成功
图源{n}
cr：{n}
感谢{n}，太好吃了
{n} {n} 一起去吗
文案来自{n}。
@薯条小助手 不在，{n} 在吗
{n} ！！这不就是你吗
学{n} 的妆
摄影{n} 出镜{n}
我的小号{n}
关注{n} ，每天更新穿搭
骗子就是{n} ，别信
妆造：{n}
模特{n}⏎摄影{n}
和{n} 一起探店，人均65
{n}，你看看人家
点名{n} ，三天不回消息
抄袭{n} 的图，恶心
喊{n} 来认领
作者{n} 已授权
蹲{n} 的链接
灵感来自{n}
"""
NAMES = NAMES.replace("@薯条小助手", "{n:@薯条小助手}")
LINKS = """
{u}
链接：{u}
戳{u} 领券
资料在{u} ，自己存
报名点{u}
复制打开{u} 看看这条笔记
原帖{u}
求砍一刀 {u}
店铺{u}，满199减30
网盘：{u} 提取码8k2d
问卷{u} 填完有红包2元
我的主页 {u}
视频在这{u}
b站{u}
免费看 {u}（复制到浏览器）
她的微博{u}，自己看
⬇️⏎{u}
官网{u}下单更便宜
{u} 点进去第三个就是
同款 {u} 39.9
下载地址{u}
资源：{u}，手慢无
【分享】{u}
加入群聊{u}
这个网站{u}是诈骗的，别点！
投票{u} 选3号
"""
ORDERS = """
订单号{o}，一直不发货
订单编号：{o}
快递单号{o}，三天没动
单号{o}
顺丰{o}
运单号：{o}，帮我查查到哪了
物流{o}显示签收，可我没收到
客服让我报订单号{o}
取消订单{o}，退款还没到
我的订单 {o} 地址填错了
外卖订单{o}少了个鸡腿
交易单号{o}，金额328
商户单号：{o}
退款编号{o}
中通快递{o}
圆通{o}丢件了
京东订单{o}，等了7天
淘宝订单号：{o}
订单{o}麻烦催一下
飞猪订单编号{o}，酒店不认
订单ID {o}
退货单号{o}，已寄出
支付流水号{o}
查询码{o}
单号：{o}⏎手机尾号不记得了
韵达 {o} 到杭州转运中心
"""
MIXED = """
姐妹们，本人在校大三，闲置全出！裙子45，鞋子36码80，包包120，一起打包200。⏎要的加薇{w}，或者打电话{m}，自提在{a}
避雷帖‼️这家机构收了我6800学费跑路了，老板电话{m}，公司座机{l}，微信{w}，收款卡号{b}，身份证{i}，有同样遭遇的姐妹来扣扣群{q}
收件人小林，{m}，{a}，订单号{o}，麻烦改一下地址谢谢
商务：{e} / 薇❤{w}
@ 我没用，直接加v {w} 或者🐧{q}
肇事车{c}，车主电话{m}，3月5日下午2点在人民路口
3.8活动价168，原价298，加卫星{w}，图文资料看{u} 提取码1234
报名：姓名陈一，身份证号{i}，手机{m}，邮箱{e}
今天试了{n} 推荐的店，{a}，人均120，电话{l}，味道8分
代购价：小样35/正装220，vx：{w}，支付打卡{b}
QQ{q}，微信{w}，两个都行
群号：扣扣{q}，进不去的V❤{w}
面试地点{a}，带身份证，联系人刘经理{m}
退款找骗子，他说打{b}，我查他ip {p}，报警了
{u} 这个链接里有我微信{w}
"""
FRAMES = (MOBILE, LANDLINE, WECHAT, QQ, EMAIL, ID_CARD, BANK, IP, PLATE, ADDRESS, NAMES, LINKS, ORDERS, MIXED)


Texts = dict[str, str]
SETS: dict[str, tuple[int, tuple[str, ...], Texts]] = {
    "field notes": (771, FRAMES, field_ordinary.TEXTS),
    "second look": (4056, (field_second.FRAMES,), field_second.TEXTS),
    "third look": (9127, (field_third.FRAMES,), field_third.TEXTS),
    "fourth look": (3307, (field_fourth.FRAMES,), field_fourth.TEXTS),
}


def records(name: str) -> Iterator[dict[str, Any]]:
    """Every frame of one of SETS RENDERED times with other values, then every ordinary text of it once."""
    seed, frames, texts = SETS[name]
    rng = random.Random(seed)
    for frame in [line for part in frames for line in part.split("\n") if line]:
        for _ in range(RENDERED):
            yield _rendered(rng, frame.replace("⏎", "\n"))
    for kind, lines in texts.items():
        for line in lines.strip().split("\n"):
            yield {"text": line.replace("⏎", "\n"), "spans": [], "kind": kind}


def _rendered(rng: random.Random, frame: str) -> dict[str, Any]:
    text, spans, at = "", [], 0
    for mark in _MARK.finditer(frame):
        type_, maker = KEYS[mark[1]]
        value, evasion = (mark[2], "plain") if mark[2] else maker(rng)
        text += frame[at : mark.start()]
        if text[-1:] in set("vVxqQD") and value[0].isascii() and value[0].isalpha():
            text += " "  # nobody could read the two apart
        spans.append([len(text), len(text) + len(value), type_, evasion])
        text, at = text + value, mark.end()
    return {"text": text + frame[at:], "spans": spans, "kind": "identifier"}
