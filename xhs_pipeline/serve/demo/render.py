"""Everything the demo page shows of posts, decisions and cases, as HTML made by an escaping template.

Texts of posts and notes are hostile: they pass through `Piece`s and the template alone, never through Gradio's Markdown.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.resources import files
from typing import Any

from xhs_pipeline.appeals import states
from xhs_pipeline.appeals.records import CaseView, Snapshot
from xhs_pipeline.curation.identifiers import PLACEHOLDER
from xhs_pipeline.judgement.page.words import visible
from xhs_pipeline.judgement.plots import as_data_uri
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.fields import TIME_ZONE
from xhs_pipeline.serve.demo import words

MOST_BARS = 5


@dataclass(frozen=True)
class Piece:
    """A stretch of text; a placeholder that de-identification put in stands out."""

    text: str
    placeholder: bool = False


@dataclass(frozen=True)
class Bar:
    """One probability: share of 1 as `percent` text and width."""

    name: str
    share: float
    decided: bool = False

    @property
    def percent(self) -> str:
        return f"{100 * self.share:.1f}%"


def pieces(text: str) -> list[Piece]:
    """`text` cut at its placeholders, with unseen characters written out."""
    cut = re.split(f"({PLACEHOLDER.pattern})", visible(text))
    return [Piece(part, bool(n % 2)) for n, part in enumerate(cut) if part]


def verdict_bars(probs: Mapping[str, float], decided: str | None, policy: Policy) -> list[Bar]:
    """One for each verdict, in the policy's order."""
    return [Bar(policy.label(v), probs[v], v == decided) for v in policy.verdict_ids if v in probs]


def category_bars(probs: Mapping[str, float], decided: str | None) -> list[Bar]:
    """The likeliest ones and the rest in one; the one decided on is always there."""
    ordered = sorted(probs, key=lambda name: (name != decided, -probs[name]))
    shown = sorted(ordered[:MOST_BARS], key=lambda name: -probs[name])
    bars = [Bar(name, probs[name], name == decided) for name in shown]
    rest = ordered[MOST_BARS:]
    return bars + ([Bar(f"其余 {len(rest)} 类", sum(probs[name] for name in rest))] if rest else [])


def tone(verdict: str | None, policy: Policy) -> str:
    """The colour of a verdict: the first passes a post, the last leaves it to a person."""
    if verdict == policy.pass_verdict:
        return "good"
    return "open" if verdict == policy.verdict_ids[-1] else "bad"


def judged(answer: Mapping[str, Any], post: Snapshot | None, sent_images: int, policy: Policy) -> str:
    """What was decided of a post that somebody pasted, and on what; without `post`, that it cannot be read just now."""
    texts = [post.title, post.body, post.ocr_text or ""] if post else []
    put_in = Counter(found.group()[1:-1] for text in texts for found in PLACEHOLDER.finditer(text))
    lost = answer["images_left_out"]
    return _template().judged(  # type: ignore[no-any-return]
        answer=answer,
        verdict=policy.label(answer["verdict"]),
        tone=tone(answer["verdict"], policy),
        bars=_bars(answer, policy),
        post=_post(post) if post else None,
        unreadable=words.UNREADABLE_POST,
        identifiers=[(kind, put_in[kind]) for kind in answer["identifiers"]],
        left_out=[(words.left_out(reason), count) for reason, count in lost.items()],
        unseen=sent_images - sum(lost.values()) - len(post.images) if post else 0,
    )


def case_post(view: CaseView) -> str:
    """The post of a case as it was judged, and what the appellant says."""
    note = next((event["note"] for event in view.events if event["kind"] == states.FILED and event["note"]), None)
    post = _post(view.snapshot) if view.snapshot else None
    erased = view.snapshot is None and view.decision is not None  # a file brings neither
    return _template().case_post(  # type: ignore[no-any-return]
        post=post, erased=erased, note=pieces(note) if note else [], kind=words.KINDS[view.kind]
    )


def case_answer(view: CaseView, policy: Policy) -> str:
    """What the model said of a case, and what has happened since. Votes are shown only where reviewers disagree: the second one
    is to judge without the first one's answer."""
    first, decision = view.state.first, view.decision
    votes = [f"{policy.label(v.label[0])} / {v.label[1]}" for v in view.state.votes if v.label]
    return _template().case_answer(  # type: ignore[no-any-return]
        verdict=_label(first[0], policy),
        category=first[1] or "未知",
        tone=tone(first[0], policy),
        bars=_bars(vars(decision), policy) if decision else None,
        decision=decision,
        decision_id=view.state.decision_id,
        state=words.state(view.state.state),
        flag=words.FLAGS.get(view.state.flag or "", view.state.flag) if view.state.waits_for_triage else None,
        votes=votes if view.state.state == states.ESCALATED else [],
        history=[(_time(event["at"]), words.EVENTS.get(event["kind"], event["kind"])) for event in view.events],
    )


def case_line(view: CaseView, policy: Policy, now: datetime, mine: bool) -> str:
    """A case in the queue: kind, state, age, what was decided, whether it is flagged. Holds no text of the post."""
    case = view.state
    said = f"{_label(case.first[0], policy)}/{case.first[1] or '未知'}"
    parts = [
        words.KINDS[view.kind],
        said,
        words.age(case.opened_at, now),
        words.state(case.state) + ("（您已投票）" if mine else ""),
    ]
    return " · ".join(parts + (["⚑ 疑似刷量，需先分诊"] if case.waits_for_triage else []))


def message(text: str, tone: str = "open", detail: str = "") -> str:
    """A line to the reader; tone is good, open or bad."""
    return _template().message(text=text, tone=tone, detail=detail)  # type: ignore[no-any-return]


def part(name: str) -> str:
    """A file of the page: its style, a script, a form."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def _bars(probs: Mapping[str, Any], policy: Policy) -> list[tuple[str, Sequence[Bar]]]:
    return [
        ("审核结论", verdict_bars(probs["verdict_probs"], probs["verdict"], policy)),
        ("违规类别", category_bars(probs["category_probs"], probs["category"])),
    ]


def _post(post: Snapshot) -> dict[str, Any]:
    return {
        "title": pieces(post.title),
        "body": pieces(post.body),
        "ocr_text": pieces(post.ocr_text or ""),
        "qr_codes": post.qr_codes or 0,
        "images": [as_data_uri(image) for image in post.images],
    }


def _label(verdict: str | None, policy: Policy) -> str:
    return policy.label(verdict) if verdict in policy.verdict_ids else "未知"  # type: ignore[arg-type]


def _time(at: datetime) -> str:
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return f"{at.astimezone(TIME_ZONE):%m-%d %H:%M}"


@lru_cache(maxsize=1)
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return made.from_string(part("shown.html.j2")).module
