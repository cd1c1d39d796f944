"""A stage in a process of its own: its result and words come back, and it never outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xhs_pipeline.worker import StageFailed, StageRefused, run

ROOT = Path(__file__).resolve().parents[1]
STAGES = """
import os, signal, sys, time
from pathlib import Path

def add(a, b, log):
    log("adding")
    return {"sum": a + b, "text": "违规"}

def converse(heard, log):
    for word in ("one", "two", "three"):
        print(word) if word == "two" else log(word)
        while not (Path(heard) / word).exists():
            time.sleep(0.01)
    print("on stderr", file=sys.stderr)
    return {}

def refuse(log):
    log("half way")
    raise ValueError("row 7 has no verdict")

def fail(log):
    log("half way")
    raise RuntimeError("the matrix is singular")

def die(number, log):
    log("loading weights")
    os.kill(os.getpid(), number)

def leave(code, log):
    log("giving up")
    sys.stdout.flush()
    os._exit(code)

def wait(log):
    log(f"pid {os.getpid()}")
    time.sleep(120)

def not_json(log):
    return {"labels": {"a"}}
"""


@pytest.fixture(autouse=True)
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_stages.py").write_text(STAGES, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    try:
        return not stat.parent.parent.is_dir() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def test_the_result_comes_back_with_the_memory_that_the_stage_needed() -> None:
    said: list[str] = []
    result = run("some_stages:add", {"a": 2, "b": 3}, said.append)
    assert (result["sum"], result["text"], said) == (5, "违规", ["adding"])
    assert 1 < result["peak_memory_mb"] < 1000


def test_what_a_stage_logs_and_prints_arrives_in_order_while_it_still_runs(tmp_path: Path) -> None:
    heard: list[str] = []

    def log(line: str) -> None:
        heard.append(line)
        (tmp_path / line).touch()  # the stage waits for this before it goes on

    run("some_stages:converse", {"heard": str(tmp_path)}, log)
    assert heard == ["one", "two", "three", "on stderr"]


def test_a_crash_names_the_stage_and_its_last_words() -> None:
    said: list[str] = []
    with pytest.raises(StageFailed, match=r"^some_stages:fail failed: RuntimeError: the matrix is singular$"):
        run("some_stages:fail", {}, said.append)
    assert said[0] == "half way" and any(line.startswith("Traceback") for line in said)  # the whole story is in the log


def test_bad_data_and_settings_come_back_in_the_stages_own_words() -> None:
    said: list[str] = []
    with pytest.raises(StageRefused, match=r"^row 7 has no verdict$"):
        run("some_stages:refuse", {}, said.append)
    assert said[0] == "half way" and any(line.startswith("Traceback") for line in said)


def test_a_stage_killed_for_memory_is_named_with_what_to_do() -> None:
    with pytest.raises(
        StageFailed, match=r"some_stages:die was ended by SIGKILL; .*out of memory.*smaller.*loading weights"
    ):
        run("some_stages:die", {"number": int(signal.SIGKILL)}, lambda line: None)


def test_a_stage_that_breaks_a_library_is_named_with_the_signal() -> None:
    with pytest.raises(StageFailed, match=r"some_stages:die was ended by SIGSEGV. Last words: loading weights"):
        run("some_stages:die", {"number": int(signal.SIGSEGV)}, lambda line: None)


@pytest.mark.parametrize("code", [0, 7])
def test_a_stage_that_leaves_without_a_result_is_a_failed_stage(code: int) -> None:
    with pytest.raises(StageFailed, match=r"some_stages:leave failed: giving up"):
        run("some_stages:leave", {"code": code}, lambda line: None)


def test_a_stage_that_is_not_there_is_named() -> None:
    with pytest.raises(StageFailed, match=r"some_stages:nothing failed: AttributeError.*nothing"):
        run("some_stages:nothing", {}, lambda line: None)


def test_only_json_crosses_in_either_direction(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        run("some_stages:add", {"a": tmp_path, "b": 1}, lambda line: None)
    with pytest.raises(StageFailed, match="some_stages:not_json failed: TypeError.*not JSON serializable"):
        run("some_stages:not_json", {}, lambda line: None)


def test_an_error_in_the_parent_ends_the_child() -> None:
    pids: list[int] = []

    def log(line: str) -> None:
        pids.append(int(line.split()[1]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("some_stages:wait", {}, log)
    assert not alive(pids[0])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_the_parent_ends_the_child_ends_within_seconds(how: signal.Signals) -> None:
    # a runner in the background may ignore or block signals, and a child inherits that: here they are to arrive
    code = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "signal.pthread_sigmask(signal.SIG_SETMASK, [])\n"
        "from xhs_pipeline.worker import run\n"
        "run('some_stages:wait', {}, lambda line: print(line, flush=True))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline().split()[1])
        assert alive(child)
        parent.send_signal(how)  # to the parent alone, as a supervisor or the memory killer does
        assert parent.wait(timeout=20) != 0
        assert gone_within(child, 5)
    finally:
        parent.kill()
        parent.communicate()
