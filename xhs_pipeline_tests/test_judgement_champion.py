"""The pointer to the model in use: moved by a passing gate only, whole or not at all, and never without a trace."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from xhs_pipeline.judgement import champion
from xhs_pipeline.judgement.champion import Candidate, Move, read_champion, read_history, rollback
from xhs_pipeline.judgement.gate import Gate, GateVerdict

PASSED = GateVerdict("pass", (Gate("invalid_share", "pass", 0.0, 0.005, 100, "好"),))
FAILED = GateVerdict("fail", (Gate("invalid_share", "fail", 0.2, 0.005, 100, "坏"),))
MISSING = GateVerdict("insufficient", (Gate("invalid_share", "insufficient", None, 0.005, 0, "缺"),))
NOW = datetime(2026, 2, 23, 3, 0, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for version in ("v1", "v2", "v3"):
        (tmp_path / "merged_model" / version).mkdir(parents=True)
    return tmp_path / "released_model"


def candidate(version: str) -> Candidate:
    return Candidate(version, f"merged_model/{version}", f"report-{version}", "2026-02-16.1")


def release(folder: Path, candidate: Candidate, verdict: GateVerdict, now: datetime | None = None) -> Move:
    """Release a candidate that was judged against the model in use at this moment."""
    current = read_champion(folder)
    return champion.release(folder, candidate, verdict, current.version if current else None, now)


def test_a_passing_gate_moves_the_pointer_and_the_release_before_is_remembered(folder: Path):
    assert read_champion(folder) is None
    first = release(folder, candidate("v1"), PASSED, NOW)
    second = release(folder, candidate("v2"), PASSED, NOW)
    assert (first.action, second.action) == ("released", "released")
    now = read_champion(folder)
    assert now is not None
    assert (now.version, now.previous, now.report_version) == ("v2", "v1", "report-v2")
    assert now.released_at == "2026-02-23T03:00:00+00:00"
    assert champion.model_folder(folder, now).is_dir()
    assert [row["action"] for row in read_history(folder)] == ["released", "released"]


def test_the_earlier_candidate_is_the_newest_other_model_that_was_held_and_is_still_there(folder: Path):
    assert champion.earlier_candidate(folder, "v1") is None
    for version in ("v1", "v2", "v3"):
        release(folder, candidate(version), FAILED)
    assert champion.earlier_candidate(folder, "v3") == candidate("v2")
    assert champion.earlier_candidate(folder, "v2") == candidate("v3"), "judged again, it is compared with the others"
    (folder.parent / "merged_model" / "v2").rmdir()
    assert champion.earlier_candidate(folder, "v3") == candidate("v1")


@pytest.mark.parametrize("verdict", [FAILED, MISSING])
def test_a_held_release_leaves_the_pointer_and_a_trace_with_its_gates(folder: Path, verdict: GateVerdict):
    release(folder, candidate("v1"), PASSED)
    before = (folder / "champion.json").read_bytes()
    move = release(folder, candidate("v2"), verdict)
    assert move.action == "held"
    assert move.champion is not None and move.champion.version == "v1"
    assert (folder / "champion.json").read_bytes() == before
    row = read_history(folder)[-1]
    assert (row["action"], row["candidate"]["version"]) == ("held", "v2")
    assert row["gate"]["gates"][0]["name"] == "invalid_share"


def test_repeating_a_release_or_a_hold_adds_nothing(folder: Path):
    release(folder, candidate("v1"), PASSED)
    assert release(folder, candidate("v1"), PASSED).action == "unchanged"
    for _ in range(3):
        release(folder, candidate("v2"), FAILED)
    assert [row["action"] for row in read_history(folder)] == ["released", "held"]


def test_rolling_back_restores_the_release_before_and_says_who_and_why(folder: Path):
    release(folder, candidate("v1"), PASSED)
    release(folder, candidate("v2"), PASSED)
    move = rollback(folder, "李雷", "误判升高", NOW)
    assert move.action == "rolled_back"
    now = read_champion(folder)
    assert now is not None and (now.version, now.previous) == ("v1", None)
    row = read_history(folder)[-1]
    assert (row["name"], row["reason"], row["from_version"]) == ("李雷", "误判升高", "v2")


def test_a_version_that_was_rolled_back_does_not_return_by_itself(folder: Path):
    release(folder, candidate("v1"), PASSED)
    release(folder, candidate("v2"), PASSED)
    rollback(folder, "李雷", "误判升高")
    move = release(folder, candidate("v2"), PASSED)
    assert move.action == "held"
    assert "李雷" in move.reason
    now = read_champion(folder)
    assert now is not None and now.version == "v1"
    assert release(folder, candidate("v3"), PASSED).action == "released"
    now = read_champion(folder)
    assert now is not None and now.previous == "v1"


def test_there_is_no_rolling_back_without_a_name_a_reason_and_a_release_before(folder: Path):
    with pytest.raises(ValueError, match="no model is in use"):
        rollback(folder, "李雷", "原因")
    release(folder, candidate("v1"), PASSED)
    with pytest.raises(ValueError, match="v1 is the first release"):
        rollback(folder, "李雷", "原因")
    with pytest.raises(ValueError, match="name of the person and a reason"):
        rollback(folder, "李雷", "  ")


def test_a_model_that_is_not_there_or_lies_outside_the_data_folder_is_refused(folder: Path):
    with pytest.raises(ValueError, match="no such model folder"):
        release(folder, Candidate("v9", "merged_model/v9", "r", "p"), PASSED)
    for path in ("/etc", "../elsewhere", ""):
        with pytest.raises(ValueError, match="must be relative"):
            release(folder, Candidate("v9", path, "r", "p"), PASSED)
    assert read_champion(folder) is None
    assert read_history(folder) == []


def test_an_unreadable_pointer_is_an_error_and_not_an_absent_model(folder: Path):
    release(folder, candidate("v1"), PASSED)
    (folder / "champion.json").write_text('{"version": "v')
    with pytest.raises(ValueError, match=r"champion\.json: not a champion pointer"):
        release(folder, candidate("v2"), PASSED)


def test_a_history_line_cut_off_by_a_kill_is_passed_over_and_then_replaced(folder: Path):
    release(folder, candidate("v1"), PASSED)
    with open(folder / "history.jsonl", "a") as file:
        file.write('{"action": "relea')
    assert len(read_history(folder)) == 1
    release(folder, candidate("v2"), PASSED)
    assert [row["action"] for row in read_history(folder)] == ["released", "released"]


# The process may not write files past a size: what a full disk does to a write, in the place where it hurts.
FULL_DISK = """
import resource, sys
from pathlib import Path
from xhs_pipeline_tests.test_judgement_champion import PASSED, candidate, release
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    release(Path(sys.argv[1]), candidate("v2"), PASSED)
except OSError as error:
    print("refused:", error.strerror)
"""


@pytest.mark.parametrize("where", ["in the pointer", "in the history"])
def test_a_full_disk_leaves_the_old_pointer_and_history_as_they_were(folder: Path, where: str):
    release(folder, candidate("v1"), PASSED)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    limit = 50 if where == "in the pointer" else len(before["history.jsonl"]) + 100
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder), str(limit)], capture_output=True, text=True, timeout=120
    )
    assert run.stdout.startswith("refused:"), run.stderr
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert release(folder, candidate("v2"), PASSED).action == "released"


def test_of_many_releases_at_once_judged_against_the_same_model_one_goes_through(folder: Path):
    names = [f"m{i}" for i in range(12)]
    for name in names:
        (folder.parent / "merged_model" / name).mkdir()
    with ThreadPoolExecutor(4) as pool:
        moves = list(pool.map(lambda name: champion.release(folder, candidate(name), PASSED, None), names))
    assert sorted(move.action for move in moves) == ["held"] * 11 + ["released"]
    rows = read_history(folder)
    released = [row["champion"]["version"] for row in rows if row["action"] == "released"]
    assert released == [json.loads((folder / "champion.json").read_text())["version"]]
    assert all("materialise evaluation_report again" in row["reason"] for row in rows if row["action"] == "held")


def test_a_report_made_before_a_rollback_releases_nothing(folder: Path):
    release(folder, candidate("v1"), PASSED)
    release(folder, candidate("v2"), PASSED)
    rollback(folder, "李雷", "误判升高")
    move = champion.release(folder, candidate("v3"), PASSED, "v2")
    assert move.action == "held"
    assert "judged against v2, but v1 is in use now" in move.reason
    now = read_champion(folder)
    assert now is not None and now.version == "v1"


def test_a_model_is_compared_with_the_one_in_use_or_with_the_one_it_replaced(folder: Path):
    assert champion.rival_of(folder, "v1") is None
    release(folder, candidate("v1"), PASSED)
    assert champion.rival_of(folder, "v1") is None
    rival = champion.rival_of(folder, "v2")
    assert rival is not None and rival.version == "v1"
    release(folder, candidate("v2"), PASSED)
    assert champion.rival_of(folder, "v2") == rival, "the same question after the release as before"
    assert champion.interventions(folder, "v2") == []
    rollback(folder, "李雷", "误判升高")
    assert champion.rival_of(folder, "v2") == rival
    assert len(champion.interventions(folder, "v2")) == 1 and champion.interventions(folder, "v1") == []


def test_a_person_may_sign_for_missing_evidence_but_not_for_a_failure(folder: Path):
    with pytest.raises(ValueError, match="fail.*only an insufficient one can be signed off"):
        champion.sign_off(folder, candidate("v1"), FAILED, "李雷", "着急")
    with pytest.raises(ValueError, match="name of the person and a reason"):
        champion.sign_off(folder, candidate("v1"), MISSING, "李雷", " ")
    assert release(folder, candidate("v1"), MISSING).action == "held"
    champion.sign_off(folder, candidate("v1"), MISSING, "李雷", "人工看过 200 条", NOW)
    assert len(champion.interventions(folder, "v1")) == 1
    assert release(folder, candidate("v1"), FAILED).action == "held", "the same report cannot fail now, but who knows"
    move = release(folder, candidate("v1"), MISSING)
    assert move.action == "released" and "signed off by 李雷: 人工看过 200 条" in move.reason
    row = next(row for row in read_history(folder) if row["action"] == "signed_off")
    assert (row["name"], row["report_version"], row["at"]) == ("李雷", "report-v1", "2026-02-23T03:00:00+00:00")


def test_a_sign_off_holds_for_one_report_of_one_model(folder: Path):
    champion.sign_off(folder, candidate("v1"), MISSING, "李雷", "人工看过")
    assert release(folder, candidate("v2"), MISSING).action == "held"
    later = Candidate("v1", "merged_model/v1", "another-report", "2026-02-16.1")
    assert release(folder, later, MISSING).action == "held"
