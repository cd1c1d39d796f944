"""Reviewing without a web page: the queue as lines, votes, audits and imports from the command line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xhs_pipeline.appeals.__main__ import main
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
    assert run("export", tmp_path / "q.jsonl")[1] == f"{tmp_path / 'q.jsonl'}: 2 cases\n"
    assert run("answers", tmp_path / "q.jsonl")[1].endswith(": 0 new, 0 known, 2 without an answer, 0 refused\n")
    (tmp_path / "appeals.jsonl").write_bytes(lines(event(1), event(2, "upheld")) + b"nonsense\n")
    status, out, err = run("import", tmp_path / "appeals.jsonl")
    assert (status, out) == (1, "2 new events, 0 known, 1 refused\n") and "bad_json: line 3" in err
    assert run("expire", "--days", "1")[1] == "0 cases expired\n"
    for days in ("1e12", "-1", "nan"):
        with pytest.raises(SystemExit, match="2"):
            run("expire", "--days", days)
        assert f"{days} is not from 0 to 36500 days" in capsys.readouterr().err
    status, _, err = run("import", tmp_path / "nothing.jsonl")
    assert status == 2 and "does not exist" in err


def test_a_store_that_cannot_be_reached_is_one_line_and_status_2(
    store: AppealStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XHS_APPEALS_URL", "postgresql://wang:hunter2@127.0.0.1:1/db")
    assert main(["queue"]) == 2
    said = capsys.readouterr().err
    assert "check that the server runs" in said and "hunter2" not in said and said.count("\n") == 1
