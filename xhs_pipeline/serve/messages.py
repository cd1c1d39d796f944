"""What requests and answers look like; FastAPI makes the documentation at /docs out of these."""

import base64
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from xhs_pipeline.appeals.records import CaseView
from xhs_pipeline.appeals.store import MAX_NOTE_SENT
from xhs_pipeline.posts.fields import MAX_ID_CHARS, MAX_IMAGES

DECISION_ID = r"^[0-9a-f]{32}$"
CASE_ID_CHARS = 256


class Problem(Exception):
    """An answer other than success: HTTP status, code, a sentence that holds none of what was sent, and more for the client."""

    def __init__(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None, **more: str
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        self.content = {"error": code, "message": message, **more}


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PostIn(_In):
    """A post to judge: text, images or both."""

    post_id: str | None = Field(None, max_length=MAX_ID_CHARS, description="your id; one is made up without it")
    title: str = ""
    body: str = ""
    images: list[str] = Field(default=[], max_length=MAX_IMAGES, description="image files, each in base64")
    author: str | None = Field(None, max_length=MAX_ID_CHARS, description="who wrote it; kept as a keyed hash alone")


class BatchIn(_In):
    posts: list[PostIn] = Field(min_length=1)


class DecisionOut(BaseModel):
    """What was decided of a post. An appeal names `decision_id`."""

    decision_id: str
    post_id: str
    verdict: str = Field(description="the cheapest by the policy's costs; escalate below the confidence asked for")
    category: str
    confidence: float = Field(description="probability of the verdict decided about, 0 to 1")
    expected_cost: float = Field(description="what the decision costs on average, in the policy's units")
    verdict_probs: dict[str, float]
    category_probs: dict[str, float]
    model_version: str
    policy_version: str
    calibrated: bool
    identifiers: list[str] = Field(description="types of what was de-identified before the model saw the post")
    images_left_out: dict[str, int] = Field(description="{reason: images} that the post was judged without")


class NotJudgedOut(BaseModel):
    """A post without a decision, and why."""

    post_id: str
    error: str
    detail: str


class BatchOut(BaseModel):
    results: list[DecisionOut | NotJudgedOut] = Field(description="one for every post, in the order given")


class ErrorOut(BaseModel):
    error: str
    message: str


class AppealIn(_In):
    decision_id: str = Field(pattern=DECISION_ID)
    appellant: str = Field(min_length=1, max_length=MAX_ID_CHARS, description="who appeals; kept as a keyed hash alone")
    note: str = Field("", max_length=MAX_NOTE_SENT, description="de-identified and cut before it is kept")


class FiledOut(BaseModel):
    case_id: str
    state: str
    flag: str | None = Field(description="why the appeal waits for a reviewer's triage, null when it does not")


class WithdrawIn(_In):
    appellant: str = Field(min_length=1, max_length=MAX_ID_CHARS)


class TriageIn(_In):
    note: str = Field("", max_length=MAX_NOTE_SENT)


class VoteIn(_In):
    verdict: str = Field(max_length=64, description="the policy's id or label")
    category: str = Field(max_length=64)
    note: str = Field("", max_length=MAX_NOTE_SENT)


class EventOut(BaseModel):
    event_id: int
    kind: str
    at: datetime
    actor_role: str
    verdict: str | None
    category: str | None
    note: str | None


class CaseOut(BaseModel):
    """A case as a reviewer needs it. Of cases that a file brought, what was judged and decided is null; of one whose author had it
    erased, what was judged alone."""

    case_id: str
    kind: str
    state: str | None
    waits_for_triage: bool
    opened_at: datetime | None
    votes: int
    disputed: bool
    decision_id: str | None
    post_id: str | None
    title: str | None
    body: str | None
    ocr_text: str | None
    images: list[str] = Field(description="JPEG in base64; in lists of cases left out")
    image_count: int
    model_version: str | None
    policy_version: str | None
    verdict: str | None
    category: str | None
    verdict_probs: dict[str, float]
    category_probs: dict[str, float]
    events: list[EventOut]

    @classmethod
    def of(cls, view: CaseView) -> "CaseOut":
        state, post, decision = view.state, view.snapshot, view.decision
        images = post.images if post else ()
        verdict, category = (decision.verdict, decision.category) if decision else state.first
        return cls(
            case_id=view.case_id, kind=view.kind, state=state.state, waits_for_triage=state.waits_for_triage,
            opened_at=state.opened_at, votes=len(state.votes), disputed=state.disputed,
            decision_id=state.decision_id, post_id=state.post_id,
            title=post.title if post else None, body=post.body if post else None, ocr_text=post.ocr_text if post else None,
            images=[base64.b64encode(image).decode() for image in images], image_count=view.image_count,
            model_version=decision.model_version if decision else state.model_version,
            policy_version=decision.policy_version if decision else None, verdict=verdict, category=category,
            verdict_probs=dict(decision.verdict_probs) if decision else {},
            category_probs=dict(decision.category_probs) if decision else {},
            events=[_event(event) for event in view.events],
        )  # fmt: skip


def _event(event: Any) -> EventOut:
    return EventOut(**{name: event[name] for name in EventOut.model_fields})


class QueueOut(BaseModel):
    cases: list[CaseOut]
    after: int | None = Field(description="ask for the next page with this; null when nothing is left")


class StateOut(BaseModel):
    case_id: str
    state: str | None
    label: list[str] | None = Field(description="verdict and category that the case came to, once it is decided")


class HealthOut(BaseModel):
    status: str = Field(description="ok, or not_ready where posts cannot be judged just now")
    model_version: str | None
    policy_version: str | None
    calibrated: bool
    model_problem: str | None = Field(description="why the newest pointer is not served")
    store: str = Field(description="ok, or unreachable")
    review: bool = Field(description="whether the review routes are on")
