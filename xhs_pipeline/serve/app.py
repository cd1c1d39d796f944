"""The service's routes to judge posts, and everything that is around all routes. Appeals have theirs in `review`."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_offline import FastAPIOffline

from xhs_pipeline import __name__ as package
from xhs_pipeline.appeals.database import StoreError
from xhs_pipeline.appeals.store import AppealStore
from xhs_pipeline.posts.fields import Reject
from xhs_pipeline.serve import review
from xhs_pipeline.serve.auth import CLIENT, REVIEWER, Tokens, permit
from xhs_pipeline.serve.judging import Busy, Incoming, Judging, NotReady, incoming
from xhs_pipeline.serve.limits import Guard, Limits
from xhs_pipeline.serve.messages import (
    BatchIn,
    BatchOut,
    DecisionOut,
    ErrorOut,
    HealthOut,
    NotJudgedOut,
    PostIn,
    Problem,
)
from xhs_pipeline.serve.metrics import CONTENT_TYPE_LATEST, Metrics
from xhs_pipeline.serve.model import InUse, ModelInUse

log = logging.getLogger(__name__)

BEARER = HTTPBearer(auto_error=False, description="only where XHS_CLIENT_TOKENS is set")
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorOut, "description": said}
    for status, said in {
        401: "no token, or an unknown one", 403: "a token of another role", 413: "body or batch too large",
        422: "the request, or the post, cannot be judged", 429: "overload; try again after Retry-After",
        503: "no model in use, or the decision could not be logged", 504: "took too long",
    }.items()
}  # fmt: skip

routes = APIRouter()


def create_app(data: Path, store: AppealStore, tokens: Tokens, limits: Limits) -> FastAPI:
    """The service over a data folder; `store` stays the caller's to close. The model is loaded once it runs."""
    metrics = Metrics()

    def moved(in_use: InUse) -> None:
        metrics.in_use(in_use.version, in_use.policy_version)

    model = ModelInUse(data, moved)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        judging = Judging(model, store, limits, metrics)
        app.state.judging = judging
        watching = asyncio.create_task(model.watch())
        await asyncio.to_thread(judging.warm)
        yield
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        judging.close()

    # /docs with its script and style from here and not from a network that may not be there; nor is the schema sent to a validator
    app = FastAPIOffline(
        title=package,
        description="Judges posts by the model in use, and takes appeals.",
        lifespan=lifespan,
        redoc_url=None,
        swagger_ui_parameters={"validatorUrl": None},
    )
    app.state.model, app.state.store, app.state.tokens = model, store, tokens
    app.state.limits, app.state.metrics = limits, metrics
    app.include_router(routes)
    app.include_router(review.routes)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StoreError, _store_failed)
    app.add_middleware(Guard, limits=limits, metrics=metrics)
    return app


async def _client(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
) -> None:
    permit(request, credentials, CLIENT)


Client = Depends(_client)  # not in a thread, which would cost more than the comparison


@routes.post("/judge", dependencies=[Client], responses=ERRORS)
async def judge(post: PostIn, request: Request) -> DecisionOut:
    """Judge one post."""
    [answer] = await _judged(request, [post])
    if "error" in answer:
        raise Problem(422, answer["error"], answer["detail"], post_id=answer["post_id"])
    return DecisionOut(**answer)


@routes.post("/judge/batch", dependencies=[Client], responses=ERRORS)
async def judge_batch(batch: BatchIn, request: Request) -> BatchOut:
    """Judge several posts by one model; a post that cannot be judged stops none of the others."""
    most = request.app.state.limits.request_posts
    if len(batch.posts) > most:
        raise Problem(413, "too_many_posts", f"{len(batch.posts)} posts, at most {most} in one request")
    answers = await _judged(request, batch.posts)
    return BatchOut(results=[(NotJudgedOut if "error" in a else DecisionOut)(**a) for a in answers])


async def _judged(request: Request, posts: list[PostIn]) -> list[dict[str, Any]]:
    sent = [_incoming(number, post) for number, post in enumerate(posts, start=1)]
    try:
        return await request.app.state.judging.judge(sent)
    except NotReady as reason:
        raise Problem(503, "no_model", str(reason), {"Retry-After": "5"}) from None
    except Busy as busy:
        request.app.state.metrics.refused.labels("busy").inc()
        raise Problem(429, "busy", f"{busy}; try again", {"Retry-After": str(busy.retry_after)}) from None
    except TimeoutError:
        seconds = request.app.state.limits.request_seconds
        raise Problem(504, "too_slow", f"no answer within {seconds:g} s; ask again") from None


def _incoming(number: int, post: PostIn) -> Incoming:
    try:
        return incoming(post.post_id, post.title, post.body, post.images, post.author)
    except Reject as reject:
        raise Problem(422, reject.reason, f"post {number}: {reject.detail}") from None


@routes.get("/health", responses={503: {"model": HealthOut}})
async def health(request: Request, response: Response) -> HealthOut:
    """Whether posts can be judged just now (200) or not (503), and by what."""
    state = request.app.state
    store = "ok"
    try:
        await asyncio.to_thread(state.store.database.version)
    except StoreError as error:
        log.error("health: %s", error)
        store = "unreachable"
    in_use = state.model.current
    ready = in_use is not None and store == "ok"
    response.status_code = 200 if ready else 503
    return HealthOut(
        status="ok" if ready else "not_ready",
        model_version=in_use and in_use.version,
        policy_version=in_use and in_use.policy_version,
        calibrated=in_use is not None and in_use.calibration.reason is None,
        model_problem=state.model.problem,
        store=store,
        review=state.tokens.on(REVIEWER),
    )


@routes.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _problem(request: Request, problem: Any) -> Response:
    return JSONResponse(problem.content, problem.status, problem.headers)


def _invalid(request: Request, error: Any) -> Response:
    """Where and why, without the value, which may be a whole post."""
    places = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:10]]
    return JSONResponse({"error": "invalid", "message": "; ".join(places)[:1000]}, 422)


def _store_failed(request: Request, error: Any) -> Response:
    log.error("%s", error)
    request.app.state.metrics.store_failures.inc()
    why = "the appeals store cannot be used just now, and nothing counts that it does not hold; the service's log says why"
    return JSONResponse({"error": "store_unavailable", "message": why}, 503, {"Retry-After": "5"})
