"""A killed run never keeps its place in the GPU pool: real processes, a real instance on disk, a real SIGKILL."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from xhs_pipeline.liveness import UNFINISHED, alive, end_dead_runs

ROOT = Path(__file__).resolve().parents[1]
MODULE = """
import time
from pathlib import Path
import dagster as dg
from xhs_pipeline.liveness import living_in_process_executor

@dg.asset(pool="gpu")
def slow():
    Path("{marker}").touch()
    while Path("{wait}").exists():
        time.sleep(0.1)

defs = dg.Definitions(assets=[slow], executor=living_in_process_executor)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(ROOT / ".dagster_home" / "dagster.yaml", folder)
    (tmp_path / "slow_graph.py").write_text(MODULE.format(marker=tmp_path / "began", wait=tmp_path / "wait"))
    return folder


def _start(home: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "DAGSTER_HOME": str(home), "PYTHONPATH": f"{home.parent}:{ROOT}"}
    command = [
        str(Path(sys.executable).parent / "dagster"),
        "asset",
        "materialize",
        "-m",
        "slow_graph",
        "--select",
        "slow",
    ]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=home.parent
    )


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not appear"
        time.sleep(0.1)


def test_a_killed_run_is_marked_failed_and_the_next_one_gets_its_place_in_the_pool(home: Path) -> None:
    began, wait = home.parent / "began", home.parent / "wait"
    wait.touch()
    first = _start(home)
    _wait_for(began)
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert end_dead_runs(instance) == [], "a living run was taken for dead"
        first.send_signal(signal.SIGKILL)
        first.wait()
        began.unlink()
        wait.unlink()
        second = _start(home)
        assert second.wait(timeout=60) == 0
        statuses = sorted(run.status.value for run in instance.get_runs())
        assert statuses == ["FAILURE", "SUCCESS"]
        assert not instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    assert not list((home / "alive").iterdir())


def test_a_run_that_something_else_started_is_left_alone(home: Path) -> None:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        run = instance.create_run_for_job(_job(), status=dg.DagsterRunStatus.STARTED)
        assert end_dead_runs(instance) == []
        with alive(instance, run.run_id):
            pass
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.STARTED  # type: ignore[union-attr]


def _job() -> dg.JobDefinition:
    @dg.op
    def nothing() -> None:
        pass

    @dg.job
    def empty() -> None:
        nothing()

    return empty


def test_a_run_that_is_marked_failed_already_gives_its_place_back_too(home: Path) -> None:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        storage = instance.event_log_storage
        storage.set_concurrency_slots("gpu", 1)
        run = instance.create_run_for_job(_job(), status=dg.DagsterRunStatus.STARTED)
        assert storage.claim_concurrency_slot("gpu", run.run_id, "train").is_claimed
        instance.report_run_failed(run, "its process was killed")
        end_dead_runs(instance)
        later = instance.create_run_for_job(_job(), status=dg.DagsterRunStatus.STARTED)
        assert storage.claim_concurrency_slot("gpu", later.run_id, "train").is_claimed
