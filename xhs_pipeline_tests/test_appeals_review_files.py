"""The review queue as files: what a reviewer gets, and what becomes of the answers, in a real store of either kind."""

import base64
import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from xhs_pipeline.appeals import label_studio, review_files
from xhs_pipeline.appeals.__main__ import main
from xhs_pipeline.appeals.outcomes import derive_outcomes
from xhs_pipeline.appeals.records import Decision, Snapshot
from xhs_pipeline.appeals.review_files import Taken, export_jsonl, read_jsonl, take
from xhs_pipeline.appeals.store import AppealStore
from xhs_pipeline.privacy import load_hmac_key
from xhs_pipeline_tests.test_appeals_events import KEY, POLICY

REVIEWERS = {"7": "reviewer-a", "b@example.org": "reviewer-b"}
TITLE = "<b>标题</b>"


@pytest.fixture
def store(database_url: str) -> Iterator[AppealStore]:
    with AppealStore.open(database_url, POLICY, KEY) as opened:
        yield opened


def filed(store: AppealStore, n: int, category: str = "私域引流", **more: Any) -> str:
    """The id of a case about post n, which was removed."""
    decision = Decision("m-1", POLICY.version, "remove", category, {"remove": 0.9}, {category: 0.8}, **more)
    decision_id = store.log_decision(
        Snapshot(f"p-{n}", TITLE, f"正文{n}\n第二行", (b"jpeg", b"other"), "图中字"), decision
    )
    return store.file_appeal(decision_id, f"author-{n}", "请再看一遍").case_id


def audited(store: AppealStore, n: int) -> str:
    decision = Decision("m-1", POLICY.version, "pass", "正常", {"pass": 0.9}, {"正常": 0.9})
    store.log_decision(Snapshot(f"p-{n}", "", f"抽检正文{n}", ()), decision)
    return store.sample_audit(size=1)[0]


def states(store: AppealStore, *cases: str) -> list[str | None]:
    return [store.case(case).state.state for case in cases]


def reasons(taken: Taken) -> list[str]:
    return taken.refused["reason"].to_pylist()


def labels(store: AppealStore) -> dict[str, tuple[str, str]]:
    rows = derive_outcomes(store.events(), POLICY).outcomes.to_pylist()
    return {row["post_id"]: (row["verdict"], row["category"]) for row in rows}


# --- JSONL --------------------------------------------------------------------------------------------------------------


def filled(path: Path, *answers: tuple[str, str, str]) -> Path:
    """The exported lines with (reviewer, verdict, category) written in, in the order of the lines."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row, said in zip(rows, answers, strict=False):
        row.update(zip(("reviewer", "verdict", "category"), said, strict=True))
    out = path.with_name("filled.jsonl")
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return out


def test_a_queue_written_as_jsonl_filled_in_and_read_back_becomes_labels_once(
    store: AppealStore, tmp_path: Path
) -> None:
    cases = [filed(store, 1), filed(store, 2), audited(store, 3), filed(store, 4)]
    assert export_jsonl(store, tmp_path / "queue.jsonl") == (4, {})
    file = filled(tmp_path / "queue.jsonl", ("a", "通过", "正常"), ("a", "remove", "私域引流"), ("a", "remove", "诈骗"))
    first = take(store, read_jsonl(file), review_files.JSONL)
    assert (first.new, first.known, first.skipped, first.refused.num_rows) == (3, 0, 1, 0)
    assert states(store, *cases) == ["overturned", "upheld", "modified", "filed"]
    assert labels(store) == {"p-1": ("pass", "正常"), "p-2": ("remove", "私域引流"), "p-3": ("remove", "诈骗")}
    events = store.events()
    again = take(store, read_jsonl(file), review_files.JSONL)
    assert (again.new, again.known, again.refused.num_rows) == (0, 3, 0)
    assert store.events() == events
    assert export_jsonl(store, tmp_path / "rest.jsonl") == (1, {})


def test_an_exported_case_holds_the_post_its_images_and_no_name_and_an_audit_does_not_tell_the_decision(
    store: AppealStore, tmp_path: Path
) -> None:
    filed(store, 1, decided_by="judge")
    audited(store, 2)
    export_jsonl(store, tmp_path / "queue.jsonl")
    appeal, audit = [json.loads(line) for line in (tmp_path / "queue.jsonl").read_text("utf-8").splitlines()]
    assert (appeal["title"], appeal["body"], appeal["ocr_text"]) == (TITLE, "正文1\n第二行", "图中字")
    assert [base64.b64decode(image.partition("base64,")[2]) for image in appeal["images"]] == [b"jpeg", b"other"]
    assert appeal["decision"]["category_probs"] == {"私域引流": 0.8} and appeal["appeal_note"] == "请再看一遍"
    assert (audit["case_kind"], audit["decision"], audit["images"]) == ("audit", None, [])
    hashes = {store.hash_of(name) for name in ("author-1", "judge")}
    assert not any(each in (tmp_path / "queue.jsonl").read_text("utf-8") for each in hashes)


def test_cases_that_no_answer_can_be_given_to_are_left_out_and_counted(store: AppealStore, tmp_path: Path) -> None:
    for n in range(4):
        decision = Decision("m-1", POLICY.version, "remove", "诈骗")
        store.file_appeal(store.log_decision(Snapshot(f"q-{n}", "", f"第{n}篇"), decision), "one and the same")
    line = {
        "event_id": 1,
        "event": "filed",
        "appeal_id": "x",
        "at": "2026-02-20T10:00:00Z",
        "post_id": "p",
        "actor": "w",
    }
    (tmp_path / "appeals.jsonl").write_text(json.dumps(line) + "\n")
    store.import_jsonl(tmp_path / "appeals.jsonl")
    counted = {"waits for triage": 1, "the post is not in the store": 1}
    assert export_jsonl(store, tmp_path / "queue.jsonl") == (3, counted)
    assert label_studio.export_tasks(store, tmp_path / "tasks.json") == (3, counted)


BAD_LINES = [
    (b"{", "bad_json"),
    (b"\xff\xfe{}", "bad_json"),
    (b"[" * 100_000, "bad_json"),
    (b"7", "bad_json"),
    (b'{"case_id": 7, "reviewer": "a", "verdict": "pass", "category": "\xe6\xad\xa3\xe5\xb8\xb8"}', "bad_field"),
    (b'{"reviewer": "a", "verdict": "pass", "category": "x"}', "bad_field"),
    (b'{"case_id": "c", "verdict": "pass", "category": "x"}', "bad_field"),
    (b'{"case_id": "\\ud800", "reviewer": "a", "verdict": "remove", "category": "x"}', "bad_field"),
    (b'{"case_id": "a\\u0000b", "reviewer": "a", "verdict": "remove", "category": "x"}', "bad_field"),
    (b'{"case_id": "c", "reviewer": "a", "verdict": ["pass"], "category": "x"}', "bad_field"),
    (b'{"case_id": "c", "reviewer": "a", "verdict": "pass"}', "bad_field"),
    (b'{"case_id": "c", "reviewer": "a", "verdict": "pass", "category": "spam"}', "label_not_allowed"),
    ('{"case_id": "c", "reviewer": "a", "verdict": "pass", "category": "诈骗"}'.encode(), "label_not_allowed"),
    ('{"case_id": "c", "reviewer": "a", "verdict": "pass", "category": "正常"}'.encode(), "unknown_case"),
]


def test_bad_lines_are_counted_with_their_reasons_and_stop_nothing(store: AppealStore, tmp_path: Path) -> None:
    case = filed(store, 1)
    good = {"case_id": case, "reviewer": "a", "verdict": "pass", "category": "正常", "note": "a\x00b\ud800"}
    lines = [line for line, _ in BAD_LINES] + [json.dumps(good).encode()]
    (tmp_path / "answers.jsonl").write_bytes(b"\n".join(lines))
    taken = take(store, read_jsonl(tmp_path / "answers.jsonl"), review_files.JSONL)
    assert (taken.new, reasons(taken)) == (1, [reason for _, reason in BAD_LINES])
    assert states(store, case) == ["overturned"]
    assert all(detail.startswith("line ") and "诈骗" not in detail for detail in taken.refused["detail"].to_pylist())


def test_what_the_rules_forbid_is_refused_from_a_file_too(store: AppealStore, tmp_path: Path) -> None:
    own, grave = filed(store, 1, decided_by="judge"), filed(store, 2, category="诈骗")
    export_jsonl(store, tmp_path / "queue.jsonl")
    file = filled(tmp_path / "queue.jsonl", ("judge", "pass", "正常"), ("a", "pass", "正常"))
    taken = take(store, read_jsonl(file), review_files.JSONL)
    assert (taken.new, reasons(taken)) == (1, ["own_decision"])
    assert states(store, own, grave) == ["filed", "voted"]
    other = filled(tmp_path / "queue.jsonl", ("author-1", "pass", "正常"), ("b", "pass", "正常"))
    taken = take(store, read_jsonl(other), review_files.JSONL)
    assert (taken.new, reasons(taken)) == (1, ["own_appeal"])
    assert states(store, own, grave) == ["filed", "overturned"]


# --- Label Studio ---------------------------------------------------------------------------------------------------------


def choice(name: str, *values: str) -> dict[str, Any]:
    return {"from_name": name, "to_name": "post", "type": "choices", "id": "r1", "value": {"choices": list(values)}}


def annotation(
    verdict: str, category: str, by: Any = 7, number: int = 1, note: str = "", **more: Any
) -> dict[str, Any]:
    """As Label Studio exports one; see the answers that the real program gave in test_a_real_export below."""
    result = [choice("verdict", verdict), choice("category", category)]
    if note:
        region = {"from_name": "note", "to_name": "post", "type": "textarea", "value": {"text": [note]}}
        result.append(region)
    at = "2026-03-02T12:00:00.000000Z"
    fixed = {"id": number, "was_cancelled": False, "ground_truth": False, "lead_time": 3.2, "task": 1}
    return fixed | {"completed_by": by, "result": result, "created_at": at, "updated_at": at} | more


def exported(tmp_path: Path, *pairs: tuple[str, list[Any]]) -> Path:
    tasks = [{"id": n, "data": {"case_id": case}, "annotations": found} for n, (case, found) in enumerate(pairs, 1)]
    (tmp_path / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
    return tmp_path / "export.json"


def taken_from(store: AppealStore, file: Path) -> Taken:
    return take(store, label_studio.read_annotations(file, REVIEWERS), label_studio.ORIGIN)


def test_tasks_annotated_and_read_back_become_labels_once(store: AppealStore, tmp_path: Path) -> None:
    cases = [filed(store, 1), filed(store, 2), audited(store, 3), filed(store, 4), filed(store, 5)]
    assert label_studio.export_tasks(store, tmp_path / "tasks.json") == (5, {})
    tasks = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    assert [task["data"]["case_id"] for task in tasks] == cases
    answers = [
        [annotation("通过", "正常", note="没有联系方式 13812345678")],
        [annotation("违规删除", "私域引流", by={"id": 9, "email": "b@example.org"})],
        [annotation("违规删除", "诈骗")],
        [annotation("通过", "正常", was_cancelled=True)],
        [],
    ]
    for task, found in zip(tasks, answers, strict=True):
        task["annotations"] = found
    (tmp_path / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
    first = taken_from(store, tmp_path / "export.json")
    assert (first.new, first.known, first.skipped, first.refused.num_rows) == (3, 0, 2, 0)
    assert states(store, *cases) == ["overturned", "upheld", "modified", "filed", "filed"]
    assert labels(store) == {"p-1": ("pass", "正常"), "p-2": ("remove", "私域引流"), "p-3": ("remove", "诈骗")}
    (voted,) = [event for event in store.case(cases[0]).events if event["kind"] == "voted"]
    assert (voted["note"], voted["actor_hash"]) == ("没有联系方式 <手机号>", store.hash_of("reviewer-a"))
    events = store.events()
    again = taken_from(store, tmp_path / "export.json")
    assert (again.new, again.known, again.skipped) == (0, 3, 2) and store.events() == events


def test_a_reviewer_who_is_not_named_is_refused_since_one_person_must_not_be_two(
    store: AppealStore, tmp_path: Path
) -> None:
    case = filed(store, 1, category="诈骗")
    store.vote(case, "reviewer-a", "pass", "正常")
    found = [annotation("通过", "正常", by=by, number=n) for n, by in enumerate([7, 8, None, {"email": "x"}], 1)]
    taken = taken_from(store, exported(tmp_path, (case, found)))
    assert (taken.new, taken.known, reasons(taken)) == (0, 1, ["unknown_reviewer"] * 3)
    assert states(store, case) == ["voted"]


def test_a_changed_annotation_counts_anew_and_the_order_is_that_of_the_changes(
    store: AppealStore, tmp_path: Path
) -> None:
    case = filed(store, 1, category="诈骗")
    early, late = (f"2026-03-0{day}T12:00:00Z" for day in (2, 3))
    mind = [annotation("通过", "正常", updated_at=late, number=2), annotation("违规删除", "赌博", updated_at=early)]
    other = [annotation("通过", "正常", by={"email": "b@example.org"}, number=3)]
    taken = taken_from(store, exported(tmp_path, (case, mind)))
    assert (taken.new, states(store, case)) == (1, ["modified"])  # one reviewer suffices for another grave category
    assert reasons(taken) == ["closed"]
    case = filed(store, 2, category="诈骗")
    assert taken_from(store, exported(tmp_path, (case, mind[:1]))).new == 1
    assert taken_from(store, exported(tmp_path, (case, [mind[0], *other]))).new == 1
    assert states(store, case) == ["overturned"]


BAD_ANNOTATIONS = [
    ("nothing", "bad_annotation"),
    (annotation("通过", "诈骗"), "label_not_allowed"),
    (annotation("通过", "正常") | {"result": []}, "no_answer"),
    (annotation("通过", "正常") | {"result": None}, "no_answer"),
    (annotation("通过", "正常") | {"result": ["x", {"from_name": "verdict", "value": None}]}, "no_answer"),
    (
        annotation("通过", "正常") | {"result": [choice("verdict", "通过", "违规删除"), choice("category", "正常")]},
        "no_answer",
    ),
    (annotation("通过", "正常") | {"result": [choice("verdict", "通过")]}, "no_answer"),
    (annotation("通过", "不存在"), "label_not_allowed"),
]


def test_bad_annotations_and_tasks_are_counted_with_their_reasons_and_stop_nothing(
    store: AppealStore, tmp_path: Path
) -> None:
    case = filed(store, 1)
    found = [raw for raw, _ in BAD_ANNOTATIONS] + [annotation("通过", "正常")]
    file = exported(tmp_path, (case, found), ("no such case", [annotation("通过", "正常")]))
    tasks = json.loads(file.read_text()) + ["x", {"data": {}}, {"data": {"case_id": case}}, {"data": None}]
    file.write_text(json.dumps(tasks))
    taken = taken_from(store, file)
    assert taken.new == 1 and states(store, case) == ["overturned"]
    assert sorted(reasons(taken)) == sorted([r for _, r in BAD_ANNOTATIONS] + ["unknown_case"] + ["bad_task"] * 4)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 100_000, b"7"])
def test_a_file_that_is_no_export_says_so(store: AppealStore, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "export.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"export.json: .*export the project"):
        taken_from(store, tmp_path / "export.json")


def test_a_task_shows_the_post_escaped_with_its_images_and_the_decision_of_an_appeal_alone(
    store: AppealStore, tmp_path: Path
) -> None:
    filed(store, 1)
    audited(store, 2)
    label_studio.export_tasks(store, tmp_path / "tasks.json")
    appeal, audit = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    page = ET.fromstring(appeal["data"]["html"])  # well-formed: nothing of the post is markup
    assert page.findtext("h3") == TITLE
    shown = [base64.b64decode(image.partition("base64,")[2]) for image in appeal["data"]["images"]]
    assert shown == [b"jpeg", b"other"]
    assert appeal["data"]["heading"] == "申诉；原结论：违规删除，私域引流（80%）"
    (prediction,) = appeal["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("m-1", 0.8)
    assert [region["value"]["choices"] for region in prediction["result"]] == [["违规删除"], ["私域引流"]]
    assert (audit["data"]["heading"], audit["data"]["decision"], audit["predictions"]) == ("抽检", None, [])
    (strip,) = audit["data"]["images"]  # Label Studio shows nothing of a task whose list of images is empty
    assert Image.open(io.BytesIO(base64.b64decode(strip.partition("base64,")[2]))).size == (400, 8)


def test_the_labeling_interface_offers_what_the_policy_knows(store: AppealStore, tmp_path: Path) -> None:
    assert label_studio.export_tasks(store, tmp_path / "tasks.json") == (0, {})
    assert json.loads((tmp_path / "tasks.json").read_text()) == []
    root = ET.parse(tmp_path / "tasks.xml").getroot()
    offered = {
        tag.get("name"): [choice.get("value") for choice in tag.findall("Choice")] for tag in root.iter("Choices")
    }
    assert offered == {"verdict": [v.label for v in POLICY.verdicts], "category": list(POLICY.category_names)}


def test_label_studios_own_validators_accept_interface_tasks_and_predictions(
    store: AppealStore, tmp_path: Path
) -> None:
    interface = pytest.importorskip(
        "label_studio_sdk.label_interface", reason="label-studio-sdk is not installed; pip install label-studio-sdk"
    )
    filed(store, 1)
    audited(store, 2)
    label_studio.export_tasks(store, tmp_path / "tasks.json")
    known = interface.LabelInterface((tmp_path / "tasks.xml").read_text(encoding="utf-8"))
    known.validate()
    for task in json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8")):
        assert known.validate_task({"data": task["data"]})
        assert [known.validate_prediction(each, return_errors=True) for each in task["predictions"]] in ([], [[]])


# --- the command line -----------------------------------------------------------------------------------------------------


def test_the_command_line_writes_the_queue_and_reads_answers_and_counts_what_it_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XHS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XHS_APPEALS_URL", f"sqlite:///{tmp_path / 'appeals.sqlite3'}")
    monkeypatch.setenv("XHS_HMAC_KEY", KEY.decode())
    with AppealStore.open(f"sqlite:///{tmp_path / 'appeals.sqlite3'}", POLICY, load_hmac_key(tmp_path)) as store:
        filed(store, 1)
    tasks, names = tmp_path / "tasks.json", tmp_path / "names.json"
    assert main(["export", str(tasks), "--format", "label-studio"]) == 0
    assert "1 cases" in capsys.readouterr().out
    (task,) = json.loads(tasks.read_text(encoding="utf-8"))
    tasks.write_text(
        json.dumps([task | {"annotations": [annotation("通过", "正常"), annotation("通过", "正常", by=8)]}])
    )
    names.write_text(json.dumps(REVIEWERS))
    again = ["answers", str(tasks), "--format", "label-studio", "--reviewers", str(names)]
    assert main(again) == 1
    said = capsys.readouterr()
    assert "1 new, 0 known, 0 without an answer, 1 refused" in said.out and "[unknown_reviewer]" in said.err
    assert main(again) == 1 and "0 new, 1 known" in capsys.readouterr().out
    assert main(["answers", str(tmp_path / "none.jsonl")]) == 2
    names.write_text("[]")
    assert main(again) == 2 and "JSON object" in capsys.readouterr().err
