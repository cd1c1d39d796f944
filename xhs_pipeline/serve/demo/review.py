"""The second tab: reviewers go through the queue. Every call checks the token first; the rules are the store's. No Gradio."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from xhs_pipeline.appeals import states
from xhs_pipeline.appeals.database import StoreError
from xhs_pipeline.appeals.records import CaseView
from xhs_pipeline.appeals.rules import Refused
from xhs_pipeline.appeals.states import CaseState
from xhs_pipeline.appeals.store import AppealStore
from xhs_pipeline.policy import Policy
from xhs_pipeline.serve.auth import REVIEWER, Tokens
from xhs_pipeline.serve.demo import render, words

log = logging.getLogger(__name__)

QUEUE = 50


@dataclass(frozen=True)
class Desk:
    """What a reviewer has before them. `queue`: (line, case id) of the oldest open cases; `case`: the one that is open.

    `fresh`: the form starts anew; it keeps what was entered where an action was refused.
    """

    notice: str
    allowed: bool = False
    queue: tuple[tuple[str, str], ...] = ()
    case: CaseView | None = None
    fresh: bool = True

    @property
    def case_id(self) -> str | None:
        return self.case.case_id if self.case else None


class Review:
    """What a reviewer can do, each with their token, which names them."""

    def __init__(self, store: AppealStore, tokens: Tokens):
        self._store, self._tokens = store, tokens

    def open(self, token: str, case_id: str | None = None, notice: str = "") -> Desk:
        """The queue as it is now with this case open, or the first one that waits for this reviewer."""
        return self._as_reviewer(token, lambda who: self._desk(who, case_id, notice))

    def triage(self, token: str, case_id: str | None, note: str) -> Desk:
        """Say that the open case is one of its own."""

        def act(who: str) -> Desk:
            state = self._store.triage(case_id or "", who, note or "")
            return self._after_act(who, case_id, _done(state, "已分诊", self._store.policy))

        return self._as_reviewer(token, act, case_id)

    def vote(self, token: str, case_id: str | None, verdict: str | None, category: str | None, note: str) -> Desk:
        """Vote on the open case, after which the next one is open. A post that passes has no category to choose."""

        def act(who: str) -> Desk:
            policy = self._store.policy
            said = policy.normal_category if verdict == policy.pass_verdict else category
            if not case_id or not verdict or not said:
                missing = "审核结论（按数字键）" if not verdict else "违规类别（按 c，再用方向键）"
                return self._refused(who, case_id, f"还没有选择{missing}。" if case_id else "没有打开的案件。")
            before = self._waiting(who, self._cases(who))
            state = self._store.vote(case_id, who, verdict, said, note or "")
            return self._after_act(who, _after(before, case_id), _done(state, "已投票", policy))

        return self._as_reviewer(token, act, case_id)

    def _as_reviewer(self, token: str, act: Callable[[str], Desk], case_id: str | None = None) -> Desk:
        if not self._tokens.on(REVIEWER):
            return Desk(render.message(words.REVIEW_OFF))
        found = self._tokens.who(token or "")
        if found is None or found[0] != REVIEWER:
            return Desk(render.message(words.WRONG_TOKEN, "bad") if token else "")
        try:
            try:
                return act(found[1])
            except Refused as refused:
                if refused.reason in ("closed", "unknown_case"):  # by somebody else, just now
                    return self._desk(found[1], None, render.message(f"{refused.zh}，已打开下一个。", "bad"))
                return self._refused(found[1], case_id, f"{refused.zh}。")
        except StoreError as error:
            log.error("%s", error)
            return Desk(render.message(words.NO_STORE, "bad"), allowed=True)

    def _after_act(self, who: str, case_id: str | None, done: str) -> Desk:
        """The queue after an action, which stands even where the queue cannot be read again."""
        try:
            return self._desk(who, case_id, done)
        except StoreError as error:
            log.error("%s", error)
            return Desk(done + render.message(words.UNREADABLE, "bad"), allowed=True)

    def _refused(self, who: str, case_id: str | None, why: str) -> Desk:
        return replace(self._desk(who, case_id, render.message(why, "bad")), fresh=False)

    def _desk(self, who: str, case_id: str | None, notice: str) -> Desk:
        policy, now, cases = self._store.policy, datetime.now(UTC), self._cases(who)
        lines = tuple((render.case_line(view, policy, now, self._voted(who, view)), view.case_id) for view in cases)
        wanted = case_id or next(iter([*self._waiting(who, cases), *(view.case_id for view in cases)]), None)
        view = self._store.case(wanted) if wanted else None
        return Desk(notice or render.message(_summary(who, len(cases))), True, lines, view)

    def _cases(self, who: str) -> list[CaseView]:
        """The oldest open cases that this reviewer can still move: those without their vote, and those in dispute."""
        found: list[CaseView] = []
        after = None
        while len(found) < QUEUE and (page := self._store.queue(limit=QUEUE, after=after, with_images=False)):
            found += [view for view in page if not self._voted(who, view) or view.state.disputed]
            after = page[-1].cursor
        return found[:QUEUE]

    def _waiting(self, who: str, cases: list[CaseView]) -> list[str]:
        return [view.case_id for view in cases if not self._voted(who, view)]

    def _voted(self, who: str, view: CaseView) -> bool:
        mine = self._store.hash_of(who)
        return any(vote.reviewer_hash == mine for vote in view.state.votes)


def _after(waiting: list[str], case_id: str) -> str | None:
    """The case after this one in the queue, from its beginning again after the last."""
    at = waiting.index(case_id) if case_id in waiting else -1
    others = [*waiting[at + 1 :], *waiting[: max(at, 0)]]
    return others[0] if others else None


def _done(case: CaseState, what: str, policy: Policy) -> str:
    came_to = (
        f"为{policy.label(case.label[0])} / {case.label[1]}" if case.state == states.MODIFIED and case.label else ""
    )
    return render.message(f"{what}。案件{words.state(case.state)}{came_to}。", "good")


def _summary(who: str, cases: int) -> str:
    more = f"（只列出最早的 {QUEUE} 个）" if cases == QUEUE else ""
    return f"{who}：有 {cases} 个案件等您复核{more}。" if cases else f"{who}：没有等您复核的案件。"
