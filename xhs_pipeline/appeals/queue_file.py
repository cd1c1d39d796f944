"""The review queue as a file that a reviewer fills in: one case a line, its pictures beside it, and the way back.

Post texts stand in the file, de-identified as they were judged; people do not. Answers go through the same rules as any vote.
"""

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xhs_pipeline.appeals.records import CaseView
from xhs_pipeline.appeals.rules import Refused
from xhs_pipeline.appeals.store import AppealStore

ANSWER = {"reviewer": "", "verdict": "", "category": "", "review_note": ""}  # what a reviewer fills in
PAGE = 100


@dataclass
class Answers:
    """What became of the lines of a filled-in queue: voted + unanswered + refused (line, reason, detail) = lines."""

    voted: int = 0
    unanswered: int = 0
    states: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[int, str, str]] = field(default_factory=list)


def export_queue(store: AppealStore, path: Path, state: str | None = None) -> int:
    """Write the cases in `state` (None: all open ones) to `path`, which appears whole; returns how many.

    Pictures go into the folder `<name>_images` beside it, under the hash of their bytes.
    """
    folder = path.with_name(f"{path.stem}_images")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    count, after = 0, 0
    try:
        with part.open("w", encoding="utf-8") as lines:
            while page := store.queue(state, PAGE, after):
                for view in page:
                    lines.write(json.dumps(_row(view, folder), ensure_ascii=False) + "\n")
                count, after = count + len(page), page[-1].cursor
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return count


def _row(view: CaseView, folder: Path) -> dict[str, Any]:
    case, post, decision = view.state, view.snapshot, view.decision
    return {
        "case_id": view.case_id,
        "case_kind": view.kind,
        "state": case.state,
        "needs_triage": case.waits_for_triage,
        "post_id": case.post_id,
        "title": post.title if post else None,
        "body": post.body if post else None,
        "ocr_text": post.ocr_text if post else None,
        "images": [_image(image, folder) for image in post.images] if post else [],
        "first_verdict": case.first[0],
        "first_category": case.first[1],
        "category_probs": dict(decision.category_probs) if decision else None,
        "model_version": case.model_version,
        "note": view.events[0]["note"],
    } | ANSWER


def _image(data: bytes, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    name = f"{hashlib.sha256(data).hexdigest()[:32]}.jpg"
    (folder / name).write_bytes(data)
    return f"{folder.name}/{name}"


def import_answers(store: AppealStore, path: Path, reviewer: str = "") -> Answers:
    """Vote as the filled-in lines of an exported queue say; `reviewer` is who answered where a line does not name one.

    A line without a verdict is unanswered; one that says what its reviewer has said before is refused as `repeated`, so a file
    can be read again. Refused lines stop nothing. Raises OSError when the file cannot be read.
    """
    answers = Answers()
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            said = {name: row.get(name) or "" for name in ("case_id", *ANSWER)}
            if not all(isinstance(value, str) for value in said.values()):
                raise TypeError
        except (ValueError, RecursionError, AttributeError, TypeError):
            answers.refused.append(
                (number, "bad_json", "expected a line of an exported queue, with text in what is filled in")
            )
            continue
        if not said["verdict"].strip():
            answers.unanswered += 1
            continue
        try:
            who = said["reviewer"].strip() or reviewer
            state = store.vote(
                said["case_id"], who, said["verdict"].strip(), said["category"].strip(), said["review_note"]
            )
        except Refused as refused:
            answers.refused.append((number, refused.reason, refused.en))
            continue
        answers.voted += 1
        answers.states[str(state.state)] += 1
    return answers
