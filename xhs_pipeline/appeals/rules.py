"""Who may appeal, who may review, and what a flood of appeals is. Pure; the words for refusing stand here too."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from xhs_pipeline.appeals.states import CaseState

WEEK = timedelta(days=7)

# reason: what the one who is refused reads, in Chinese and in English
REFUSALS = {
    "unknown_decision": ("找不到这条审核决定", "no decision with this id is in the log; appeal with the id that the decision came with"),
    "passed_post": ("该帖子未被处置，无需申诉", "the post passed: there is nothing to appeal against"),
    "erased": ("该内容已应作者要求删除，无法复核", "what was judged was erased at its author's request, so nobody can review it"),
    "duplicate": ("您已对这条决定提出过申诉", "this appellant has appealed against this decision already; one appeal counts"),
    "author_cap": ("您本周的申诉次数已用完", "this appellant has used up the appeals of seven days; try again later"),
    "group_cap": ("文字和图片相同的内容，七天内的申诉已达上限，请稍后再试", "as many appeals about the same text and pictures as may be came within seven days; try again later"),
    "unknown_case": ("找不到该案件", "no case with this id; see the queue for those there are"),
    "closed": ("案件已结束", "the case is decided, withdrawn or expired; nothing more can be done with it"),
    "not_the_appellant": ("只有申诉人可以撤回", "only the one who filed the appeal can withdraw it"),
    "own_decision": ("不能复核自己作出的决定", "the first decision is this reviewer's own; another one must review it"),
    "own_appeal": ("不能复核自己的申诉或帖子", "the appeal or the post is this reviewer's own; another one must review it"),
    "not_triaged": ("该申诉疑似刷量，需先分诊", "the appeal came in a burst; triage it first, when it is one of its own"),
    "imported": ("该结论此前已导入", "this vote was taken over from its file before"),
    "repeated": ("您已作出相同的结论", "this reviewer has said the same already"),
    "label_not_allowed": ("结论与类别不匹配", "the policy does not allow this verdict with this category"),
    "no_actor": ("缺少操作人", "the name of whoever acts is empty"),
}  # fmt: skip


class Refused(ValueError):
    """What was asked for is against the rules. `reason` is a code of REFUSALS, `zh` and `en` say it, `detail` adds numbers."""

    def __init__(self, reason: str, detail: str = ""):
        self.reason, self.detail = reason, detail
        self.zh, self.en = REFUSALS[reason]
        super().__init__(f"{reason}: {self.en}{f' ({detail})' if detail else ''}")


@dataclass(frozen=True)
class Limits:
    """The policy's limits on appeals: per appellant and per content in seven days, and how many at once look like a flood."""

    author_week: int
    group_week: int
    burst: timedelta
    author_burst: int
    group_burst: int

    @classmethod
    def of(cls, appeals: dict[str, Any]) -> "Limits":
        """From the policy's `appeals` section."""
        burst = appeals["burst"]
        return cls(
            int(appeals["max_per_author_per_week"]),
            int(appeals["max_per_group_per_week"]),
            timedelta(minutes=float(burst["minutes"])),
            int(burst["per_author"]),
            int(burst["per_group"]),
        )


def over_cap(
    limits: Limits, now: datetime, by_author: Sequence[datetime], about_group: Sequence[datetime]
) -> str | None:
    """The cap that one more appeal at `now` would break: author_cap, group_cap or None. Times are of earlier appeals.

    One that is dated later than `now` counts too: a clock that was set back frees nobody.
    """
    if sum(now - at < WEEK for at in by_author) >= limits.author_week:
        return "author_cap"
    return "group_cap" if sum(now - at < WEEK for at in about_group) >= limits.group_week else None


def burst(limits: Limits, now: datetime, by_author: Sequence[datetime], about_group: Sequence[datetime]) -> str | None:
    """author_burst or group_burst where one more appeal at `now` belongs to a flood, else None."""
    if sum(now - at < limits.burst for at in by_author) >= limits.author_burst:
        return "author_burst"
    return "group_burst" if sum(now - at < limits.burst for at in about_group) >= limits.group_burst else None


def may_vote(case: CaseState, reviewer_hash: str, author_hash: str | None = None) -> str | None:
    """Why this reviewer may not vote on the case (a code of REFUSALS), or None. `author_hash` is the post's author's."""
    if not case.open:
        return "closed"
    if reviewer_hash == case.decided_by_hash:
        return "own_decision"
    if reviewer_hash in (case.appellant_hash, author_hash):
        return "own_appeal"
    return "not_triaged" if case.waits_for_triage else None
