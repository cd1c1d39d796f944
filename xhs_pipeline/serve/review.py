"""The service's routes for appeals: clients file and withdraw them, reviewers list and adjudicate. The rules are the store's."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from xhs_pipeline.appeals.rules import Refused
from xhs_pipeline.appeals.states import CaseState
from xhs_pipeline.appeals.store import AppealStore
from xhs_pipeline.serve.auth import CLIENT, REVIEWER, permit
from xhs_pipeline.serve.messages import (
    CASE_ID_CHARS,
    AppealIn,
    CaseOut,
    FiledOut,
    Problem,
    QueueOut,
    StateOut,
    TriageIn,
    VoteIn,
    WithdrawIn,
)

# what is not there, what is used up, and what does not fit the case as it is; anything else is the request's own fault
STATUS = {
    "unknown_decision": 404, "unknown_case": 404, "author_cap": 429, "group_cap": 429, "passed_post": 409, "duplicate": 409,
    "closed": 409, "not_triaged": 409, "repeated": 409, "not_the_appellant": 403, "erased": 410, "own_decision": 403, "own_appeal": 403,
}  # fmt: skip
MAX_CURSOR = 2**63 - 1  # that a database has room for
REVIEW_BEARER = HTTPBearer(auto_error=False, scheme_name="reviewer", description="a token of XHS_REVIEWER_TOKENS")
CLIENT_BEARER = HTTPBearer(auto_error=False, description="only where XHS_CLIENT_TOKENS is set")

routes = APIRouter(prefix="/appeals")


async def _client(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(CLIENT_BEARER)]
) -> None:
    permit(request, credentials, CLIENT)


async def _reviewer(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(REVIEW_BEARER)]
) -> str:
    return permit(request, credentials, REVIEWER) or ""


async def _store(request: Request) -> AppealStore:
    return request.app.state.store  # type: ignore[no-any-return]


Reviewer = Annotated[str, Depends(_reviewer)]
Store = Annotated[AppealStore, Depends(_store)]
CaseId = Annotated[str, Path(min_length=1, max_length=CASE_ID_CHARS)]


@routes.post("", status_code=201, dependencies=[Depends(_client)])
def file_appeal(appeal: AppealIn, store: Store, request: Request) -> FiledOut:
    """Appeal against a decision; one in a burst is taken, and waits for triage."""
    counted = request.app.state.metrics.appeals
    try:
        filed = store.file_appeal(appeal.decision_id, appeal.appellant, appeal.note)
    except Refused as refused:
        counted.labels(refused.reason).inc()
        raise _refusal(refused) from None
    counted.labels("filed").inc()
    return FiledOut(case_id=filed.case_id, state=filed.state, flag=filed.flag)


@routes.post("/{case_id}/withdraw", dependencies=[Depends(_client)])
def withdraw(case_id: CaseId, asked: WithdrawIn, store: Store) -> StateOut:
    """Take an open appeal back."""
    try:
        return _state(store.withdraw(case_id, asked.appellant))
    except Refused as refused:
        raise _refusal(refused) from None


@routes.get("")
def queue(
    reviewer: Reviewer,
    store: Store,
    state: str | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    after: Annotated[int | None, Query(ge=0, le=MAX_CURSOR)] = None,
) -> QueueOut:
    """The oldest open cases, or those in `state`; without their images."""
    try:
        cases = store.queue(state, limit, after, with_images=False)
    except ValueError as unknown:
        raise Problem(422, "unknown_state", str(unknown).split("; ")[-1]) from None
    more = cases[-1].cursor if len(cases) == limit else None
    return QueueOut(cases=[CaseOut.of(case) for case in cases], after=more)


@routes.get("/{case_id}")
def case(case_id: CaseId, reviewer: Reviewer, store: Store) -> CaseOut:
    """One case with everything that a reviewer needs."""
    try:
        return CaseOut.of(store.case(case_id))
    except Refused as refused:
        raise _refusal(refused) from None


@routes.post("/{case_id}/triage")
def triage(case_id: CaseId, said: TriageIn, reviewer: Reviewer, store: Store) -> StateOut:
    """Say that a case is one of its own, which one that came in a burst needs before it can be voted on."""
    try:
        return _state(store.triage(case_id, reviewer, said.note))
    except Refused as refused:
        raise _refusal(refused) from None


@routes.post("/{case_id}/vote")
def vote(case_id: CaseId, said: VoteIn, reviewer: Reviewer, store: Store) -> StateOut:
    """The answer of the reviewer whose token this is; enough of them that agree decide the case."""
    try:
        return _state(store.vote(case_id, reviewer, said.verdict, said.category, said.note))
    except Refused as refused:
        raise _refusal(refused) from None


def _state(case: CaseState) -> StateOut:
    return StateOut(case_id=case.case_id, state=case.state, label=list(case.label) if case.label else None)


def _refusal(refused: Refused) -> Problem:
    status = STATUS.get(refused.reason, 422)
    headers = {"Retry-After": "86400"} if status == 429 else None
    detail = f" ({refused.detail})" if refused.detail else ""
    return Problem(status, refused.reason, f"{refused.en}{detail}", headers, message_zh=refused.zh)
