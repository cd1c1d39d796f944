"""What the demo page says, in Chinese: reasons, states, ages, and how to mend what went wrong."""

from datetime import datetime

from xhs_pipeline.appeals import states
from xhs_pipeline.serve.auth import VARIABLES

# why a post has no decision
NOT_JUDGED = {
    "nothing_to_judge": "没有文字，也没有可用的图片。请填写标题或正文，或换一张图片。",
    "text_too_long": "文字太长，不像一篇帖子。请删减后再试。",
    "too_long": "文字太长，超过了模型能读的长度。请删减后再试。",
    "answer_too_long": "文字太长，超过了模型能读的长度。请删减后再试。",
    "too_slow": "处理这篇帖子用时过长，已放弃。请减少文字或图片后再试。",
    "kills_worker": "处理这篇帖子时进程异常退出，已放弃。请去掉可疑的图片后再试。",
    "no_finite_probability": "模型没有给出可用的回答。请稍后再试；若一直如此，请回滚模型（python -m xhs_pipeline.release）。",
    "invalid_unicode": "文字里有半个代理对字符，无法处理。请重新粘贴文字。",
    "bad_post_id": "帖子编号含有控制字符或太长。请改正，或留空。",
    "bad_base64": "图片没有完整送达。请移除图片后重新添加。",
}

# why a post was judged without an image
LEFT_OUT = {
    "file_empty": "文件是空的",
    "file_too_large": "文件超过 20 MB",
    "post_too_large": "一篇帖子的图片总量太大",
    "too_many_images": "超过一篇帖子的图片张数",
    "unsupported_format": "不是 JPEG、PNG、WebP、GIF 或 AVIF 图片",
    "too_many_pixels": "像素太多（最多 5000 万）",
    "too_many_scans": "渐进式扫描次数太多",
    "too_small": "边长不足 28 像素",
    "extreme_aspect_ratio": "长宽比过大",
    "broken": "图片已损坏",
    "unreadable": "图片无法读取",
    "out_of_memory": "解码所需内存太多",
    "too_slow": "解码用时过长",
    "kills_worker": "解码时进程异常退出",
}

STATES = {
    states.FILED: "已提交，待复核",
    states.SAMPLED: "抽检，待复核",
    states.TRIAGED: "已分诊，待复核",
    states.VOTED: "需要第二位审核员",
    states.ESCALATED: "意见不一致，需协商",
    states.UPHELD: "已裁定：维持原判",
    states.OVERTURNED: "已裁定：撤销原判，改为通过",
    states.MODIFIED: "已裁定：改判",
    states.WITHDRAWN: "已撤回",
    states.EXPIRED: "已过期",
}
KINDS = {states.APPEAL: "申诉", states.AUDIT: "抽检"}
FLAGS = {"author_burst": "同一人短时间内申诉过多", "group_burst": "相同内容短时间内申诉过多"}
EVENTS = {
    states.FILED: "提交申诉", states.SAMPLED: "抽中抽检", states.TRIAGED: "分诊：确认是独立的申诉", states.VOTED: "审核员给出结论",
    states.UPHELD: "维持原判", states.OVERTURNED: "撤销原判", states.MODIFIED: "改判", states.WITHDRAWN: "申诉人撤回",
    states.EXPIRED: "过期",
}  # fmt: skip

NO_MODEL = (
    "现在没有在用的模型。刚启动时请等几秒再试；否则请先发布一个模型（物化 released_model），或用 XHS_DATA_DIR 指定已有模型的数据目录。"
    "评估报告的门槛没有通过的模型不会发布（自带的样本就是如此）；只想试用，README 的 The loop, once around 一节有办法。"
)
NO_STORE = "申诉库暂时不能用，刚才的操作没有生效。请稍后再试；原因见服务日志。"
CLIENTS_ONLY = "您以审核员身份登录，只能复核。判定和申诉请用 XHS_CLIENT_TOKENS 里的姓名和令牌登录。"
UNREADABLE = "刚才的操作已经生效，但案件列表现在读不出来。请稍后按“刷新”；原因见服务日志。"
UNREADABLE_POST = "决定已经记录，但送去判定的帖子现在读不出来；原因见服务日志。"
FAILED = "模型出错了，没有得出决定。请稍后再试；原因见服务日志。"
REVIEW_OFF = (
    "复核没有开启：还没有审核员令牌。每人生成一个令牌：python -c 'import secrets; print(secrets.token_urlsafe(32))'，"
    f"再设置 {VARIABLES['reviewer']}=姓名=令牌,姓名=令牌，然后重新启动。"
)
WRONG_TOKEN = "令牌不对，或不是审核员的令牌。请检查后重新输入。"


def busy(seconds: int) -> str:
    return f"排队的帖子已到上限。请约 {seconds} 秒后再试。"


def too_slow(seconds: float) -> str:
    return f"{seconds:g} 秒内没有得到结果。请再试一次；若一直如此，请减少图片，或用更大的 --request-seconds 启动。"


def not_judged(reason: str) -> str:
    """Why a post has no decision and what to do; a reason that is not known here keeps its code."""
    return NOT_JUDGED.get(reason, f"这篇帖子无法判定（{reason}）。请修改后再试。")


def left_out(reason: str) -> str:
    return LEFT_OUT.get(reason, reason)


def state(name: str | None) -> str:
    return STATES.get(name or "", name or "状态不明")


def age(since: datetime | None, now: datetime) -> str:
    """How long ago, in the largest unit that fits; a clock that was set back gives 刚刚."""
    if since is None:
        return "时间不明"
    seconds = (now - since).total_seconds()
    for unit, length in (("天", 86400), ("小时", 3600), ("分钟", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}前"
    return "刚刚"
