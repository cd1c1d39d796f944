"""The review queue as files: cases out, reviewers' answers back in. JSONL here; Label Studio's format in label_studio.

Rules are not made here: every answer goes through the store's `vote`, and what that refuses is counted with its reason.
"""

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from xhs_pipeline.appeals.records import CaseView
from xhs_pipeline.appeals.rules import Refused
from xhs_pipeline.appeals.store import AppealStore
from xhs_pipeline.posts.fields import MAX_ID_CHARS
from xhs_pipeline.posts.schema import QUARANTINE

STAGE = "review"
JSONL = "review_jsonl"  # the origin of votes that such a file brought
PAGE = 20
ANSWER = ("reviewer", "verdict", "category", "note")  # what a reviewer fills in on a line


@dataclass(frozen=True)
class Answer:
    """One reviewer's answer as a file gives it. `where` names its place there; `said_id`: what else makes it this very answer."""

    case_id: str
    reviewer: str
    verdict: str
    category: str
    note: str
    where: str
    said_id: str = ""

    @property
    def origin_id(self) -> str:
        """Equal for the same answer, however often and from whichever file it is read."""
        said = [self.case_id, self.reviewer, self.verdict, self.category, self.said_id]
        return hashlib.sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Skipped:
    """A place in a file that holds no answer yet, which is no fault."""

    where: str


@dataclass(frozen=True)
class Bad:
    """A place in a file that should hold an answer and does not: a short code and a sentence without the file's text."""

    where: str
    reason: str
    detail: str


Said = Answer | Skipped | Bad


@dataclass(frozen=True)
class Taken:
    """What became of a file's answers: new votes, votes that were there, places without an answer, refusals (QUARANTINE)."""

    new: int
    known: int
    skipped: int
    refused: pa.Table


# --- out ------------------------------------------------------------------------------------------------------------------


def reviewable(store: AppealStore, left_out: Counter[str]) -> Iterator[CaseView]:
    """The open cases that an answer can be given to, the oldest first; the others are counted in `left_out` by reason."""
    after = None
    while page := store.queue(limit=PAGE, after=after):
        for view in page:
            after = view.cursor
            if view.state.waits_for_triage:
                left_out["waits for triage"] += 1
            elif view.snapshot is None:
                left_out["the post is not in the store"] += 1
            else:
                yield view


def shown(view: CaseView) -> dict[str, Any]:
    """What a reviewer sees of a case, as JSON. De-identified, as the store holds it; no other reviewer's vote, and no name.

    An audit case does not tell what was decided: whoever knows that a post passed lets it pass.
    """
    assert view.snapshot is not None
    post = view.snapshot
    told = view.decision if view.kind == "appeal" else None
    return {
        "case_id": view.case_id,
        "case_kind": view.kind,
        "post_id": post.post_id,
        "title": post.title,
        "body": post.body,
        "images": [data_uri(image) for image in post.images],
        "ocr_text": post.ocr_text,
        "qr_codes": post.qr_codes,
        "decision": told
        and {
            "verdict": told.verdict,
            "category": told.category,
            "model_version": told.model_version,
            "verdict_probs": dict(told.verdict_probs),
            "category_probs": dict(told.category_probs),
        },
        "appeal_note": next((event["note"] for event in view.events if event["kind"] == "filed"), None),
    }


def data_uri(image: bytes) -> str:
    """A JPEG inside the text itself: the file can be sent on and opened without a network, and is 4/3 of the images' size."""
    return "data:image/jpeg;base64," + base64.b64encode(image).decode()


def export_jsonl(store: AppealStore, path: Path) -> tuple[int, dict[str, int]]:
    """Write the cases that can be answered, one JSON object a line, with empty fields for the answer; see `read_jsonl`.

    Returns how many, and how many were left out by reason. The file appears whole or not at all.
    """
    left_out: Counter[str] = Counter()
    empty = dict.fromkeys(ANSWER, "")
    lines = (json.dumps(shown(view) | empty, ensure_ascii=False) + "\n" for view in reviewable(store, left_out))
    return write_whole(path, lines), dict(left_out)


def write_whole(path: Path, parts: Iterable[str]) -> int:
    """Write the parts one after another and put the file in place; returns how many there were."""
    unfinished, count = path.with_name(f"{path.name}.part"), 0
    with unfinished.open("w", encoding="utf-8", newline="\n") as file:
        for part in parts:
            file.write(part)
            count += 1
    os.replace(unfinished, path)
    return count


# --- in -------------------------------------------------------------------------------------------------------------------


def read_jsonl(path: Path) -> Iterator[Said]:
    """The answers in a file such as `export_jsonl` writes, with case_id, reviewer, verdict and category filled in, note or not.

    reviewer: the name by which the store knows that person elsewhere. verdict: the policy's id or label. Other fields are not
    read, but for `at`, any text: the same reviewer's same answer counts anew, after another one in between, when it differs.
    Raises OSError when the file cannot be read.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _of_line(line, f"line {number}")


def _of_line(line: bytes, where: str) -> Said:
    try:
        raw = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return Bad(where, "bad_json", "not JSON in UTF-8")
    if not isinstance(raw, Mapping):
        return Bad(where, "bad_json", f"a JSON {type(raw).__name__}, expected an object")
    if not any(raw.get(name) for name in ("verdict", "category")):
        return Skipped(where)
    return answer(where, raw, said_id=str(raw.get("at") or ""))


def answer(where: str, raw: Mapping[str, Any], said_id: str = "") -> Answer | Bad:
    """An answer from fields of whatever type a file had in them."""
    fields = {name: raw.get(name) for name in ("case_id", *ANSWER)}
    fields["note"] = fields["note"] or ""
    for name, value in fields.items():
        if not isinstance(value, str):
            return Bad(where, "bad_field", f"{name} is a {type(value).__name__}, expected text")
        fields[name] = value = value.strip()
        if name != "note" and not (value and len(value) <= MAX_ID_CHARS and value.isprintable()):
            return Bad(
                where, "bad_field", f"{name} is empty, over {MAX_ID_CHARS} characters or holds control characters"
            )
    said_id = hashlib.sha256(said_id.encode("utf-8", "replace")).hexdigest() if said_id else ""
    return Answer(**{name: str(value) for name, value in fields.items()}, where=where, said_id=said_id)


def take(store: AppealStore, said: Iterable[Said], origin: str) -> Taken:
    """Give the answers to the store as votes, one transaction each: reading a file again, or after a break, doubles nothing.

    Raises StoreError when the store cannot be used; what was taken until then stays.
    """
    counts: Counter[str] = Counter()
    refused: list[dict[str, Any]] = []
    for each in said:
        if isinstance(each, Skipped):
            counts["skipped"] += 1
        elif isinstance(each, Bad):
            refused.append(_refusal(each.where, each.reason, each.detail))
        else:
            _vote(store, each, origin, counts, refused)
    table = pa.Table.from_pylist(refused, schema=QUARANTINE)
    return Taken(counts["new"], counts["known"], counts["skipped"], table)


def _vote(store: AppealStore, each: Answer, origin: str, counts: Counter[str], refused: list[dict[str, Any]]) -> None:
    came_from = (origin, each.origin_id)
    try:
        store.vote(each.case_id, each.reviewer, each.verdict, each.category, each.note, origin=came_from)
        counts["new"] += 1
    except Refused as refusal:
        if refusal.reason in ("imported", "repeated"):  # from here, or given elsewhere in the same words
            counts["known"] += 1
        else:
            refused.append(
                _refusal(each.where, refusal.reason, refusal.en + (f" ({refusal.detail})" if refusal.detail else ""))
            )


def _refusal(where: str, reason: str, detail: str) -> dict[str, Any]:
    return {"post_id": None, "stage": STAGE, "reason": reason, "detail": f"{where}: {detail}"}
