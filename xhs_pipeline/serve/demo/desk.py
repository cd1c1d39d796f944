"""The first tab: somebody pastes a post, sees what is decided of it, and appeals. Knows the service, not Gradio."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from xhs_pipeline.appeals import decisions
from xhs_pipeline.appeals.database import StoreError
from xhs_pipeline.appeals.records import Snapshot
from xhs_pipeline.appeals.rules import Refused
from xhs_pipeline.appeals.store import AppealStore
from xhs_pipeline.posts.fields import MAX_IMAGES, Reject
from xhs_pipeline.serve.demo import render, words
from xhs_pipeline.serve.judging import Busy, Judging, NotReady, incoming
from xhs_pipeline.serve.limits import Limits

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """What the page shows after a post was judged; `decision_id` only where there is something to appeal against."""

    html: str
    decision_id: str | None = None


async def judge(
    judging: Judging, store: AppealStore, limits: Limits, title: str, body: str, post_id: str, images: Any
) -> Judged:
    """Judge one post as the service does: same limits, cleaning, model and log. `images`: list of files in base64."""
    try:
        sent = incoming(post_id, title, body, _images(images))
    except Reject as reject:
        return Judged(render.message(words.not_judged(reject.reason), "bad"))
    # gathered, since a model can fail with anything, and what Gradio would print of it may quote a post
    [answers] = await asyncio.gather(judging.judge([sent]), return_exceptions=True)
    if isinstance(answers, BaseException):
        return Judged(_failure(answers, limits))
    [answer] = answers
    if "error" in answer:
        return Judged(render.message(words.not_judged(answer["error"]), "bad"))
    try:
        post = await asyncio.to_thread(_as_judged, store, answer["decision_id"])
    except StoreError as error:  # the decision stands, and can be appealed against
        log.error("%s", error)
        post = None
    may_appeal = answer["verdict"] != store.policy.pass_verdict
    html = render.judged(answer, post, len(sent.images), store.policy)
    return Judged(html, answer["decision_id"] if may_appeal else None)


def appeal(store: AppealStore, decision_id: str | None, appellant: str, note: str) -> tuple[str, bool]:
    """Appeal against a decision: what the appellant is told, and whether the appeal was taken."""
    try:
        filed = store.file_appeal(decision_id or "", appellant, note or "")
    except Refused as refused:
        return render.message(f"申诉没有受理：{refused.zh}。", "bad"), False
    except StoreError as error:
        log.error("%s", error)
        return render.message(words.NO_STORE, "bad"), False
    waits = f"{words.FLAGS.get(filed.flag, filed.flag)}，需先由审核员分诊。" if filed.flag else ""
    said = f"申诉已提交，待审核员复核。{waits}案件编号："
    return render.message(said, "good", filed.case_id), True


def _images(given: Any) -> list[str]:
    """The form's images, which a script may have filled with anything. Raises Reject."""
    given = given if isinstance(given, list) else []
    if len(given) > MAX_IMAGES or not all(isinstance(image, str) for image in given):
        raise Reject("bad_base64", f"expected a list of at most {MAX_IMAGES} images in base64")
    return given


def _as_judged(store: AppealStore, decision_id: str) -> Snapshot | None:
    with store.database.read() as db:
        return decisions.read(db, decision_id)[0]


def _failure(error: BaseException, limits: Limits) -> str:
    match error:
        case NotReady():
            return render.message(words.NO_MODEL, "bad", str(error))
        case Busy():
            return render.message(words.busy(error.retry_after), "bad")
        case TimeoutError():
            return render.message(words.too_slow(limits.request_seconds), "bad")
        case StoreError():
            log.error("%s", error)
            return render.message(words.NO_STORE, "bad")
        case Exception():
            log.error("the model failed", exc_info=error)
            return render.message(words.FAILED, "bad")
    raise error
