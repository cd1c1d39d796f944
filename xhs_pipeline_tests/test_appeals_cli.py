"""Reviewing without a web page: the queue as lines and as a file, votes, audits and imports from the command line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xhs_pipeline.appeals.__main__ import main
from xhs_pipeline.appeals.queue_file import export_queue, import_answers
from xhs_pipeline.appeals.store import AppealStore, store_url
from xhs_pipeline.privacy import load_hmac_key
from xhs_pipeline_tests.test_appeals_events import POLICY, event, lines
from xhs_pipeline_tests.test_appeals_store import filed, passed


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppealStore]:
    for name in ("XHS_APPEALS_URL", "XHS_HMAC_KEY", "XHS_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XHS_DATA_DIR", str(tmp_path / "data"))
    with AppealStore.open(store_url(tmp_path / "data"), POLICY, load_hmac_key(tmp_path / "data")) as opened:
        yield opened


def fill_in(path: Path, **answers: dict[str, str]) -> None:
    """Answer the cases of an exported queue, by post id."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    filled = [row | answers.get(row["post_id"].replace("-", "_"), {}) for row in rows]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in filled), encoding="utf-8")


def test_a_queue_goes_out_as_a_file_with_posts_and_pictures_and_comes_back_as_votes(
    store: AppealStore, tmp_path: Path
) -> None:
    fraud = filed(store, 1, category="诈骗")
    filed(store, 2, body="加我电话<手机号>")
    filed(store, 3)
    path = tmp_path / "queue.jsonl"
    assert export_queue(store, path) == 3
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(row["post_id"], row["first_category"], row["note"]) for row in rows] == [
        ("p-1", "诈骗", "请再看一遍"), ("p-2", "私域引流", "请再看一遍"), ("p-3", "私域引流", "请再看一遍")
    ]  # fmt: skip
    assert rows[1]["body"] == "加我电话<手机号>" and "author-1" not in path.read_text(encoding="utf-8")
    assert [(tmp_path / name).read_bytes() for name in rows[0]["images"]] == [b"jpeg", b"other"]
    passing = {"verdict": "通过", "category": "正常"}
    fill_in(path, p_1=passing, p_2={**passing, "reviewer": "韩梅梅"})
    answers = import_answers(store, path, "李雷")
    assert (answers.voted, answers.unanswered, answers.refused) == (2, 1, [])
    assert answers.states == {"voted": 1, "overturned": 1}
    again = import_answers(store, path, "李雷")
    assert [(number, reason) for number, reason, _ in again.refused] == [(1, "repeated"), (2, "closed")]
    assert import_answers(store, path, "韩梅梅").states == {"overturned": 1}
    assert store.case(fraud.case_id).state.state == "overturned"


def test_a_line_that_is_no_answer_is_refused_with_its_number_and_stops_nothing(
    store: AppealStore, tmp_path: Path
) -> None:
    filed(store)
    path = tmp_path / "queue.jsonl"
    export_queue(store, path)
    fill_in(path, p_1={"verdict": "pass", "category": "正常", "reviewer": "李雷"})
    good = path.read_bytes()
    path.write_bytes(
        b'{"case_id": \n[1]\n{"case_id": "x", "verdict": 3}\n\xff\n\n{"case_id": "x", "reviewer": "x", "verdict": "pass"}\n'
        + good
    )
    answers = import_answers(store, path)
    assert [(number, reason) for number, reason, _ in answers.refused] == [
        (1, "bad_json"), (2, "bad_json"), (3, "bad_json"), (4, "bad_json"), (6, "label_not_allowed")
    ]  # fmt: skip
    assert answers.voted == 1


def test_an_answer_without_a_name_is_refused(store: AppealStore, tmp_path: Path) -> None:
    filed(store)
    export_queue(store, tmp_path / "queue.jsonl")
    fill_in(tmp_path / "queue.jsonl", p_1={"verdict": "pass", "category": "正常"})
    assert [reason for _, reason, _ in import_answers(store, tmp_path / "queue.jsonl").refused] == ["no_actor"]


def test_the_command_line_lists_votes_audits_and_imports(
    store: AppealStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: Any) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    case_id = filed(store, 1, category="诈骗").case_id
    passed(store, 2)
    status, out, _ = run("queue")
    assert status == 0 and out.startswith(f"1 {case_id} appeal filed remove 诈骗 ") and "正文" not in out
    assert run("vote", case_id, "通过", "正常", "--reviewer", "李雷")[:2] == (0, f"{case_id} voted\n")
    status, _, err = run("vote", case_id, "通过", "正常", "--reviewer", "李雷")
    assert status == 1 and "您已作出相同的结论" in err and "repeated" in err
    assert run("triage", case_id, "--reviewer", "韩梅梅")[0] == 0
    assert run("audit", "--size", "5")[:2] == (0, "1 audit cases opened\n")
    assert run("export", tmp_path / "q.jsonl", "--state", "sampled")[1].startswith("1 cases in ")
    assert run("answers", tmp_path / "q.jsonl")[1] == "0 votes (none), 1 unanswered, 0 refused\n"
    (tmp_path / "appeals.jsonl").write_bytes(lines(event(1), event(2, "upheld")) + b"nonsense\n")
    status, out, err = run("import", tmp_path / "appeals.jsonl")
    assert (status, out) == (1, "2 new events, 0 known, 1 refused\n") and "bad_json: line 3" in err
    assert run("expire", "--days", "1")[1] == "0 cases expired\n"
    status, _, err = run("import", tmp_path / "nothing.jsonl")
    assert status == 2 and "does not exist" in err


def test_a_store_that_cannot_be_reached_is_one_line_and_status_2(
    store: AppealStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XHS_APPEALS_URL", "postgresql://wang:hunter2@127.0.0.1:1/db")
    assert main(["queue"]) == 2
    said = capsys.readouterr().err
    assert "check that the server runs" in said and "hunter2" not in said and said.count("\n") == 1
