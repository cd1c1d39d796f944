"""The same recipe in several processes: the same updates, one result, and nobody left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from xhs_pipeline.training.launch import launch
from xhs_pipeline.training.stages import train_adapter
from xhs_pipeline_tests.small import PLAIN
from xhs_pipeline_tests.test_worker import alive

TWO = PLAIN.model_copy(update={"num_processes": 2})
STAGES = """
import os, time

def wait(log):
    log(f"pid {os.getpid()}")
    time.sleep(300)

def fail(log):
    log("half way")
    if os.environ["RANK"] == "1":
        raise FloatingPointError("loss is nan at step 3; records: p7")
    time.sleep(300)

def answer(word, log):
    return {"word": word, "rank": os.environ["RANK"], "processes": os.environ["WORLD_SIZE"]}
"""


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_stages.py").write_text(STAGES, encoding="utf-8")
    root = str(Path(__file__).resolve().parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), root]))


@pytest.mark.parametrize("pack_length", [0, 4096], ids=["padded", "packed"])
def test_two_processes_have_the_loss_curve_of_one(
    small_base: Path, small_splits: Path, tmp_path: Path, pack_length: int
) -> None:
    """Over gloo on the CPU, with updates of the same records; what differs is the order of sums, 1e-4 of a loss here."""
    from safetensors.torch import load_file

    changes = {"max_steps": 10, "evaluations": 2, "checkpoints": 2, "learning_rate": 0.003, "pack_length": pack_length,
               "batch_size": 2, "accumulation": 3, "quantization": "nf4"}  # fmt: skip
    found = []
    for processes in (1, 2):
        profile = PLAIN.model_copy(update={**changes, "num_processes": processes})
        work = tmp_path / str(processes)
        work.mkdir()
        said: list[str] = []
        counts = train_adapter(str(small_base), str(small_splits), profile.model_dump(), str(work), said.append)
        assert counts["settings"]["processes"] == processes and counts["settings"]["records_per_update"] == 6
        assert sum("step 10/10" in line for line in said) == 1, "one process speaks"
        history = json.loads((work / "history.json").read_text(encoding="utf-8"))["history"]
        found.append((counts, history, load_file(work / "adapter_model.safetensors")))
    (one, curve, weights), (two, curve_2, weights_2) = found
    assert one["train_records"] == two["train_records"] == 60
    losses, losses_2 = ([e["loss"] for e in history if "loss" in e] for history in (curve, curve_2))
    assert len(losses) == 10 and losses[-1] < losses[0]
    assert losses_2 == pytest.approx(losses, rel=1e-4)
    assert max(float((weights_2[name] - tensor).abs().max()) for name, tensor in weights.items()) < 1e-3


def test_the_result_is_that_of_the_first_process(stages: None, tmp_path: Path) -> None:
    found = launch("some_stages:answer", {"word": "违规"}, TWO, tmp_path, lambda line: None)
    assert found == {"word": "违规", "rank": "0", "processes": "2"}


def test_when_one_process_fails_the_others_end_and_its_error_is_named(stages: None, tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(RuntimeError, match=r"2 processes: .*FloatingPointError: loss is nan at step 3; records: p7"):
        launch("some_stages:fail", {}, TWO, tmp_path, said.append)
    assert "half way" in said


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="tells an ended process from a waiting one through /proc"
)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_however_a_run_is_ended_all_its_processes_end_within_seconds(
    stages: None, tmp_path: Path, how: signal.Signals
) -> None:
    """The step runs a stage, the stage the launcher, the launcher two processes in sessions of their own."""
    (tmp_path / "launching.py").write_text(
        "from pathlib import Path\n"
        "from xhs_pipeline.profile import Profile\n"
        "from xhs_pipeline.training.launch import launch\n"
        "def stage(profile, folder, log):\n"
        "    return launch('some_stages:wait', {}, Profile(**profile), Path(folder), log)\n"
    )
    code = (
        "import json, sys\n"
        "from xhs_pipeline.worker import run\n"
        "run('launching:stage', json.loads(sys.argv[1]), lambda line: print(line, flush=True))"
    )
    arguments: dict[str, Any] = {"profile": TWO.model_dump(), "folder": str(tmp_path)}
    step = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert step.stdout is not None
        pids = []
        for line in step.stdout:
            if line.startswith("pid "):
                pids.append(int(line.split()[1]))
            if len(pids) == 2:
                break
        assert len(pids) == 2 and all(map(alive, pids))
        step.send_signal(how)
        step.wait(timeout=30)
        deadline = time.monotonic() + 15
        while any(map(alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(alive, pids))
    finally:
        step.kill()
        step.communicate()
