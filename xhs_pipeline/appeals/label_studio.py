"""The review queue in Label Studio's formats: tasks out, annotations back in, and the labeling interface for them.

Formats: https://labelstud.io/guide/task_format and /guide/predictions. Label Studio is not needed here, nor reached: its project
takes `labeling_config` as its interface and the tasks as an imported file, and its export as JSON comes back.

Text is one HyperText, images are an Image tag with a list. They are data URIs, since files would need storage of Label Studio's
own; inside the HyperText it would not show those. Seen in Label Studio 1.23: a task whose list of images is empty stays blank.
"""

import html
import io
import json
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from xhs_pipeline.appeals.records import CaseView, Decision
from xhs_pipeline.appeals.review_files import (
    Answer,
    Bad,
    Said,
    Skipped,
    answer,
    data_uri,
    reviewable,
    shown,
    write_whole,
)
from xhs_pipeline.appeals.store import AppealStore
from xhs_pipeline.policy import Policy

ORIGIN = "label_studio"  # of votes that were annotations
LAYOUT = Path(__file__).with_name("label_studio.xml")
VERDICT, CATEGORY, NOTE, POST = "verdict", "category", "note", "post"  # names of tags in the layout


def labeling_config(policy: Policy) -> str:
    """The labeling interface: the layout in label_studio.xml with the policy's verdicts and categories to choose from."""
    root = ET.parse(LAYOUT).getroot()
    offered = {
        VERDICT: [(v.label, v.description) for v in policy.verdicts],
        CATEGORY: [(c.name, c.description) for c in policy.categories],
    }
    for name, choices in offered.items():
        tag = root.find(f".//Choices[@name='{name}']")
        assert tag is not None, f"{LAYOUT}: no Choices named {name}"
        tag.extend(ET.Element("Choice", value=value, hint=hint) for value, hint in choices)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


# --- out ------------------------------------------------------------------------------------------------------------------


def export_tasks(store: AppealStore, path: Path) -> tuple[int, dict[str, int]]:
    """Write the cases that can be answered as a list of tasks, and the labeling interface beside it (.xml for .json).

    Returns how many, and how many cases were left out by reason. The files appear whole or not at all.
    """
    left_out: Counter[str] = Counter()

    def parts() -> Iterator[str]:
        before = "[\n"
        for view in reviewable(store, left_out):
            yield before + json.dumps(task(view, store.policy), ensure_ascii=False)
            before = ",\n"
        yield "\n]\n" if before == ",\n" else "[]\n"

    write_whole(path.with_suffix(".xml"), [labeling_config(store.policy)])
    return write_whole(path, parts()) - 1, dict(left_out)


def task(view: CaseView, policy: Policy) -> dict[str, Any]:
    """One case as a task. What was decided on appeal stands in `data` and, where Label Studio keeps models' answers, in
    `predictions`; turn its setting that prelabels tasks with them off, or agreeing is one key.
    """
    case = shown(view)
    told = view.decision if case["decision"] else None
    data = case | {"heading": _heading(case["case_kind"], told, policy), "html": _html(case)}
    data["images"] = case["images"] or [_no_image()]
    return {"data": data, "predictions": [_prediction(told, policy)] if told else []}


def _heading(kind: str, told: Decision | None, policy: Policy) -> str:
    if told is None:
        return "抽检" if kind == "audit" else "申诉"
    probability = told.category_probs.get(told.category)
    sure = "" if probability is None else f"（{probability:.0%}）"
    return f"申诉；原结论：{_label(told, policy)}，{told.category}{sure}"


def _label(told: Decision, policy: Policy) -> str:
    """A verdict of an older policy is shown by its id."""
    return policy.label(told.verdict) if told.verdict in policy.verdict_ids else told.verdict


def _html(case: Mapping[str, Any]) -> str:
    """The post's text as a page of its own. It is a stranger's: all of it is escaped."""
    rows = [f"<h3>{html.escape(case['title'])}</h3>" if case["title"] else ""]
    rows += [f"<p>{html.escape(line)}</p>" for line in case["body"].split("\n") if line.strip()]
    for name, value in (
        ("图片文字", case["ocr_text"]),
        ("图片二维码", case["qr_codes"]),
        ("申诉理由", case["appeal_note"]),
    ):
        if value:
            rows.append(f"<p><b>{name}</b> {html.escape(str(value))}</p>")
    return "<div>" + "".join(rows) + "</div>"


@cache
def _no_image() -> str:
    """An empty strip that stands for the images of a post without any."""
    from PIL import Image

    strip = io.BytesIO()
    Image.new("L", (400, 8), 255).save(strip, "JPEG")
    return data_uri(strip.getvalue())


def _prediction(told: Decision, policy: Policy) -> dict[str, Any]:
    chosen = {VERDICT: _label(told, policy), CATEGORY: told.category}
    result = [
        {"id": name, "from_name": name, "to_name": POST, "type": "choices", "value": {"choices": [value]}}
        for name, value in chosen.items()
    ]
    score = min(max(told.category_probs.get(told.category, 0.0), 0.0), 1.0)
    return {"model_version": told.model_version, "score": score, "result": result}


# --- in -------------------------------------------------------------------------------------------------------------------


def read_annotations(path: Path, reviewers: Mapping[str, str]) -> Iterator[Said]:
    """The answers in Label Studio's JSON export.

    `reviewers`: by Label Studio's user id or e-mail address, the name by which the store knows that person elsewhere. Someone who
    is not in it is refused: under a second name one reviewer would be two. Cancelled (skipped) annotations are no answers;
    drafts and predictions are not read. A later version of an annotation, with another `updated_at`, is another answer.

    Raises ValueError when the file is not such an export, and OSError when it cannot be read.
    """
    try:
        tasks = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON; export the project from Label Studio as JSON") from error
    if not isinstance(tasks, list):
        raise ValueError(f"{path}: a JSON {type(tasks).__name__}, expected a list of tasks; export the project as JSON")
    for number, raw in enumerate(tasks, start=1):
        yield from _of_task(raw, f"task {number}", reviewers)


def _of_task(raw: Any, where: str, reviewers: Mapping[str, str]) -> Iterator[Said]:
    data = raw.get("data") if isinstance(raw, Mapping) else None
    if not isinstance(data, Mapping) or "case_id" not in data:
        yield Bad(where, "bad_task", "no data.case_id; export the project as JSON, with the tasks made here")
        return
    annotations = raw.get("annotations")
    if not isinstance(annotations, list):
        yield Bad(where, "bad_task", "no list of annotations; export the project as JSON")
        return
    found = [_of_annotation(each, f"{where}, annotation {n}", data, reviewers) for n, each in enumerate(annotations, 1)]
    # of one reviewer's answers the last given counts, wherever it stands
    yield from (each for _, each in sorted(found, key=lambda pair: pair[0]))
    if not annotations:
        yield Skipped(where)


def _of_annotation(
    raw: Any, where: str, data: Mapping[str, Any], reviewers: Mapping[str, str]
) -> tuple[str, Answer | Skipped | Bad]:
    """(when it was last changed, what it says)."""
    if not isinstance(raw, Mapping):
        return "", Bad(where, "bad_annotation", f"a JSON {type(raw).__name__}, expected an object")
    at = str(raw.get("updated_at") or raw.get("created_at") or "")
    if raw.get("was_cancelled"):
        return at, Skipped(where)
    reviewer = _reviewer(raw.get("completed_by"), reviewers)
    if reviewer is None:
        return at, Bad(where, "unknown_reviewer", "completed_by is not among the reviewers that were named")
    said: dict[str, Any] = {"case_id": data["case_id"], "reviewer": reviewer}
    result = raw.get("result")
    for region in result if isinstance(result, list) else []:
        value = region.get("value") if isinstance(region, Mapping) else None
        if isinstance(value, Mapping) and region.get("from_name") in (VERDICT, CATEGORY):
            said[str(region["from_name"])] = _only(value.get("choices"))
        elif isinstance(value, Mapping) and region.get("from_name") == NOTE:
            text = value.get("text")
            said[NOTE] = "\n".join(map(str, text)) if isinstance(text, list) else text
    if lacking := [name for name in (VERDICT, CATEGORY) if not said.get(name)]:
        return at, Bad(where, "no_answer", f"no single choice for {' and '.join(lacking)}")
    which = str(raw.get("unique_id") or raw.get("id") or "")
    return at, answer(where, said, said_id=f"{which} {at}".strip())


def _reviewer(completed_by: Any, reviewers: Mapping[str, str]) -> str | None:
    """completed_by is a user's id, or an object with id and email, by how the export was asked for."""
    user = completed_by if isinstance(completed_by, Mapping) else {"id": completed_by}
    names = (str(user[key]) for key in ("id", "email") if user.get(key) is not None)
    return next((reviewers[name] for name in names if name in reviewers), None)


def _only(choices: Any) -> str | None:
    return choices[0] if isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], str) else None
