"""The state of a case, derived from its events. Pure: reads no database, decides no label's fate (see rules and outcomes).

    filed | sampled -> triaged -> voted -> upheld | overturned | modified
                              \\-> escalated (reviewers disagree) -> voted, when they come to agree
    and from any of them withdrawn | expired

Order is the order of event ids, never of clocks. What an event cannot do is ignored with a reason, whatever order a file or two
services brought the events in; nothing is ever repaired by guessing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from xhs_pipeline.policy import Policy

FILED, SAMPLED, TRIAGED, VOTED = "filed", "sampled", "triaged", "voted"
UPHELD, OVERTURNED, MODIFIED, WITHDRAWN, EXPIRED = "upheld", "overturned", "modified", "withdrawn", "expired"
ESCALATED = "escalated"  # a state only: no event says so, the votes do
OPENING = (FILED, SAMPLED)
ADJUDICATED = (UPHELD, OVERTURNED, MODIFIED)
CLOSED = (WITHDRAWN, EXPIRED)
KINDS = (*OPENING, TRIAGED, VOTED, *ADJUDICATED, *CLOSED)
OPEN_STATES = (FILED, SAMPLED, TRIAGED, VOTED, ESCALATED)
STATES = (*OPEN_STATES, *ADJUDICATED, *CLOSED)
APPEAL, AUDIT = "appeal", "audit"
AUTHOR, REVIEWER, SYSTEM = "author", "reviewer", "system"
TWO_REVIEWERS_FROM = 3  # severity whose withdrawal takes two

Label = tuple[str, str]
Event = Mapping[str, Any]


@dataclass(frozen=True)
class Vote:
    """What one reviewer last said of a case. `label` is None where it is none that the policy allows; `problem` says why."""

    event_id: int
    reviewer_hash: str
    label: Label | None
    problem: str | None = None


@dataclass(frozen=True)
class CaseState:
    """One case as its events left it.

    first: the (verdict, category) that was appealed against or audited, either None where nobody wrote it down. label: what the
    case came to, in an adjudicated state only. event_ids: the events that opened, moved and decided it. ignored: (event id,
    reason) of those that could not do what they say.
    """

    case_id: str
    kind: str = APPEAL
    state: str | None = None
    post_id: str | None = None
    decision_id: str | None = None
    model_version: str | None = None
    group_id: str | None = None
    first: tuple[str | None, str | None] = (None, None)
    appellant_hash: str | None = None
    decided_by_hash: str | None = None
    flag: str | None = None
    triaged: bool = False
    opened_by: int | None = None
    opened_at: datetime | None = None
    last_at: datetime | None = None
    votes: tuple[Vote, ...] = ()
    claimed: int | None = None
    decided_by_event: int | None = None
    decided_at: datetime | None = None
    label: Label | None = None
    event_ids: tuple[int, ...] = ()
    ignored: tuple[tuple[int, str], ...] = field(default=())

    @property
    def open(self) -> bool:
        return self.state in OPEN_STATES

    @property
    def waits_for_triage(self) -> bool:
        """Flagged as part of a flood: no vote counts before a reviewer has looked and said that it is one of its own."""
        return self.flag is not None and not self.triaged

    @property
    def disputed(self) -> bool:
        return len({vote.label for vote in self.votes}) > 1


def reviewers_needed(first: tuple[str | None, str | None], label: Label, policy: Policy) -> int:
    """How many reviewers must agree on `label`: two where it takes a violation of severity 3 back, or may do so, else one.

    Taking back is any label of a lower severity, since calling fraud mere advertising frees it just as well. Where nobody wrote
    down what was decided first, it may have been one.
    """
    known = policy.category(first[1]) if first[1] else None
    graver = known.severity if known else TWO_REVIEWERS_FROM
    return reviewers_between(graver, policy.severity(label[1]))


def reviewers_between(severity: int, later: int) -> int:
    """How many reviewers it takes to put a label of severity `later` in the place of one of `severity`."""
    return 2 if severity >= TWO_REVIEWERS_FROM > later else 1


def adjudication(first: tuple[str | None, str | None], label: Label, policy: Policy) -> str:
    """What a decision for `label` is called: upheld, overturned (the post passes after all), or modified."""
    if label == first:
        return UPHELD
    return OVERTURNED if label == (policy.pass_verdict, policy.normal_category) else MODIFIED


def case_state(events: Iterable[Event], policy: Policy) -> CaseState:
    """Fold the events of one case, in any order given, into its state."""
    ordered = sorted(events, key=lambda event: event["event_id"])
    case = _Case(str(ordered[0]["case_id"]) if ordered else "", policy)
    for event in ordered:
        case.take(event)
    return case.state()


def group_cases(events: Iterable[Event]) -> dict[str, list[Event]]:
    """Events by case, cases in the order of their first event."""
    cases: dict[str, list[Event]] = {}
    for event in sorted(events, key=lambda event: event["event_id"]):
        cases.setdefault(event["case_id"], []).append(event)
    return cases


class _Case:
    """The fold: one event after another."""

    def __init__(self, case_id: str, policy: Policy):
        self.case_id, self.policy = case_id, policy
        self.opener: Event | None = None
        self.first: tuple[str | None, str | None] = (None, None)
        self.triaged = False
        self.votes: dict[str, Vote] = {}
        self.closed: Event | None = None
        self.decided: Event | None = None
        self.label: Label | None = None
        self.claimed: int | None = None
        self.applied: list[int] = []
        self.ignored: list[tuple[int, str]] = []
        self.last_at: datetime | None = None

    def take(self, event: Event) -> None:
        reason = self._closing(event) if event["kind"] in CLOSED else self._moving(event)
        if reason:
            self.ignored.append((event["event_id"], reason))
        else:
            self.applied.append(event["event_id"])
            self.last_at = event["at"]

    def _closing(self, event: Event) -> str | None:
        """Withdrawing counts whenever it comes, even after the decision: what was taken back is not trained on."""
        if reason := self._may_not_close(event):
            return reason
        if self.closed:
            return "repeated"
        self.closed = event
        return None

    def _may_not_close(self, event: Event) -> str | None:
        if self.opener is None:  # asked again when the case is opened
            return None
        if event["post_id"] != self.opener["post_id"]:
            return "other_post"
        appellant = self.opener["actor_hash"] if self.opener["kind"] == FILED else None
        return (
            "not_the_appellant" if event["kind"] == WITHDRAWN and appellant not in (None, event["actor_hash"]) else None
        )

    def _moving(self, event: Event) -> str | None:
        kind = event["kind"]
        if kind in OPENING:
            return self._opening(event)
        if self.opener is None:
            self.claimed = event["event_id"] if kind in ADJUDICATED else self.claimed
            return "not_filed"
        if event["post_id"] != self.opener["post_id"]:
            self.claimed = event["event_id"] if kind in ADJUDICATED else self.claimed
            return "other_post"
        if self.closed:
            return "after_closing"
        if kind == TRIAGED:
            if self.triaged:
                return "repeated"
            if not event["actor_hash"]:
                return "reviewer_unknown"
            self.triaged = True
            return None
        return self._settled(event) if event["actor_role"] == SYSTEM else self._voted(event)

    def _opening(self, event: Event) -> str | None:
        if self.opener is not None:
            return "repeated"
        self.opener = event
        self.first = (event["verdict"], event["category"])
        if self.closed and (reason := self._may_not_close(self.closed)):
            self.applied.remove(self.closed["event_id"])
            self.ignored.append((self.closed["event_id"], reason))
            self.closed = None
        return None

    def _voted(self, event: Event) -> str | None:
        """A reviewer's vote; an adjudication that a file brings is the vote of whoever signed it, and claims to be enough."""
        claims = event["kind"] in ADJUDICATED
        if claims:
            self.claimed = event["event_id"]
        reviewer = event["actor_hash"]
        if reason := self.not_entitled(reviewer):
            return reason
        label, problem = self._label_said(event)
        earlier = self.votes.get(reviewer)
        if self.decided and self.label == label:
            return "repeated"
        if earlier and earlier.label == label and not claims:
            return "repeated"
        self.votes[reviewer] = Vote(event["event_id"], reviewer, label, problem)
        if self._enough() is None:
            self.decided = self.label = None
        elif claims:
            self.decided, self.label = event, label
        elif self.label != label:
            self.decided = self.label = None
        return None

    def not_entitled(self, reviewer: str | None) -> str | None:
        assert self.opener is not None
        if not reviewer:
            return "reviewer_unknown"
        if reviewer == self.opener["decided_by_hash"]:
            return "own_decision"
        if reviewer == self.opener["actor_hash"]:
            return "own_appeal"
        return "not_triaged" if self.opener["flag"] and not self.triaged else None

    def _settled(self, event: Event) -> str | None:
        """The system writes down what the votes came to; without the votes for it, it says nothing."""
        enough = self._enough()
        if self.decided:
            return "repeated"
        if (
            event["kind"] not in ADJUDICATED
            or enough is None
            or adjudication(self.first, enough, self.policy) != event["kind"]
        ):
            return "votes_missing"
        self.decided, self.label, self.claimed = event, enough, event["event_id"]
        return None

    def _enough(self) -> Label | None:
        """The label that all reviewers agree on, if they are as many as it takes."""
        labels = {vote.label for vote in self.votes.values()}
        if len(labels) != 1:
            return None
        (label,) = labels
        enough = label is not None and len(self.votes) >= reviewers_needed(self.first, label, self.policy)
        return label if enough else None

    def _label_said(self, event: Event) -> tuple[Label | None, str | None]:
        passing = (self.policy.pass_verdict, self.policy.normal_category)
        verdict, category = event["verdict"], event["category"]
        if event["kind"] == UPHELD:
            verdict, category = self.first
        elif event["kind"] == OVERTURNED:
            if self.first == passing:  # of a post that passed, it would say that it passes
                return None, "nothing_to_overturn"
            verdict, category = passing
        if verdict is None or category is None:
            return None, "label_missing"
        if not self.policy.allows(verdict, category):
            return None, "label_not_allowed"
        return (verdict, category), None

    def state(self) -> CaseState:
        opener = self.opener or {}
        return CaseState(
            case_id=self.case_id,
            kind=opener.get("case_kind") or APPEAL,
            state=self._name(),
            post_id=opener.get("post_id"),
            decision_id=opener.get("decision_id"),
            model_version=opener.get("model_version"),
            group_id=opener.get("group_id"),
            first=self.first,
            appellant_hash=opener.get("actor_hash") if opener.get("kind") == FILED else None,
            decided_by_hash=opener.get("decided_by_hash"),
            flag=opener.get("flag"),
            triaged=self.triaged,
            opened_by=opener.get("event_id"),
            opened_at=opener.get("at"),
            last_at=self.last_at,
            votes=tuple(sorted(self.votes.values(), key=lambda vote: vote.event_id)),
            claimed=self.claimed,
            decided_by_event=self.decided["event_id"] if self.decided and not self.closed else None,
            decided_at=self.decided["at"] if self.decided and not self.closed else None,
            label=None if self.closed else self.label,
            event_ids=tuple(self.applied),
            ignored=tuple(self.ignored),
        )

    def _name(self) -> str | None:
        if self.opener is None:
            return None
        if self.closed:
            return str(self.closed["kind"])
        if self.decided:
            return str(self.decided["kind"])
        if len({vote.label for vote in self.votes.values()}) > 1:
            return ESCALATED
        if self.votes:
            return VOTED
        return TRIAGED if self.triaged else str(self.opener["kind"])
