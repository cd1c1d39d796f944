"""The same recipe in several processes: the same updates, one result, and nobody left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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


LAUNCHING = """
from pathlib import Path
from xhs_pipeline.profile import Profile
from xhs_pipeline.training.launch import launch

def stage(profile, folder, log):
    return launch("some_stages:wait", {}, Profile(**profile), Path(folder), log)
"""


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_stages.py").write_text(STAGES, encoding="utf-8")
    root = str(Path(__file__).resolve().parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), root]))


# batch_size x accumulation is 6 records an update in each; packs of 90 tokens are several a process, and not equally many
RECIPE = {"max_steps": 10, "evaluations": 2, "checkpoints": 2, "learning_rate": 0.003, "batch_size": 2, "accumulation": 3,
          "quantization": "nf4"}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "padded": {"pack_length": 0},
    "packed": {"pack_length": 4096},
    "with the vision tower, of which a text has no gradient": {
        "pack_length": 90, "lora_modules": "all", "lora_targets": ["q_proj", "qkv", "fc1", "mlp.0"],
    },
    "shared out": {"pack_length": 90, "distribution": "fsdp", "gradient_checkpointing": True},
    "shared out, in half precision": {"pack_length": 0, "distribution": "fsdp", "precision": "bf16"},
    "shared out, not quantised, embeddings trained": {
        "pack_length": 4096, "distribution": "fsdp", "quantization": "none", "train_embeddings": True,
    },
}  # fmt: skip


def trained(base: Path, splits: Path, work: Path, log: Callable[[str], None] = print, **changes: Any) -> Any:
    """Counts, losses and adapter of a run."""
    from safetensors.torch import load_file

    profile = PLAIN.model_copy(update={**RECIPE, "train_embeddings": False, **changes})
    work.mkdir(exist_ok=True)
    counts = train_adapter(str(base), str(splits), profile.model_dump(), str(work), log)
    history = json.loads((work / "history.json").read_text(encoding="utf-8"))["history"]
    return counts, [e["loss"] for e in history if "loss" in e], load_file(work / "adapter_model.safetensors")


@pytest.fixture
def sharding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that share out the weights, though on a CPU; see sharding.py."""
    monkeypatch.setattr(
        "xhs_pipeline.training.launch.launch",
        lambda function, arguments, profile, *rest: launch(
            "xhs_pipeline_tests.sharding:fine_tune" if profile.distribution == "fsdp" else function,
            arguments, profile, *rest,
        ),
    )  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))


SLOW = {
    "packed",
    "shared out, in half precision",
    "shared out, not quantised, embeddings trained",
}  # half a minute of CPU each


@pytest.mark.parametrize("way", [pytest.param(way, marks=[pytest.mark.slow] * (way in SLOW)) for way in WAYS])
def test_two_processes_have_the_loss_curve_of_one(
    small_base: Path, small_splits: Path, tmp_path: Path, way: str, sharding: None
) -> None:
    """Over gloo on the CPU, with updates of the same records; what differs is the order of sums, 1e-4 of a loss here."""
    single = {**WAYS[way], "distribution": "ddp"}
    said: list[str] = []
    one, losses, weights = trained(small_base, small_splits, tmp_path / "1", **single)
    two, losses_2, weights_2 = trained(
        small_base, small_splits, tmp_path / "2", said.append, num_processes=2, **WAYS[way]
    )
    assert (one["settings"]["processes"], two["settings"]["processes"]) == (1, 2)
    assert two["settings"]["records_per_update"] == 6 and one["train_records"] == two["train_records"] == 60
    assert one["adapted_modules"] == two["adapted_modules"]
    assert sum("step 10/10" in line for line in said) == 1, "one process speaks"
    assert len(losses) == 10 and losses[-1] < losses[0]
    half = WAYS[way].get("precision") == "bf16"
    assert losses_2 == pytest.approx(losses, rel=1e-3 if half else 1e-4)
    assert weights_2.keys() == weights.keys()
    if not half:
        assert max(float((weights_2[name] - tensor).abs().max()) for name, tensor in weights.items()) < 1e-3
    if "shared" in way:
        held = [json.loads((tmp_path / "2" / f"held-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
        for part, whole in ((k, k.replace("own", "all")) for k in held[0] if k.endswith("own")):
            assert sum(process[part] for process in held) == held[0][whole], f"{part}: each process holds a share"
        assert ("packed_own" in held[0]) is (WAYS[way].get("quantization") != "none"), "4-bit weights too"


@pytest.mark.slow
def test_a_sharded_run_that_was_stopped_goes_on_and_ends_bit_equal(
    small_base: Path, small_splits: Path, tmp_path: Path, sharding: None
) -> None:
    class Stopped(Exception):
        pass

    def stop(line: str) -> None:
        if "step 8/10" in line:
            raise Stopped

    changes = {"num_processes": 2, "distribution": "fsdp", "lora_dropout": 0.1, "checkpoints": 4}
    whole, losses, weights = trained(small_base, small_splits, tmp_path / "whole", **changes)
    with pytest.raises(Stopped):
        trained(small_base, small_splits, tmp_path / "again", stop, **changes)
    said: list[str] = []
    again, losses_2, weights_2 = trained(small_base, small_splits, tmp_path / "again", said.append, **changes)
    assert "adapter: resumed from step 6/10" in said
    assert (losses_2, again["best_step"]) == (losses, whole["best_step"])
    assert all(weights_2[name].equal(tensor) for name, tensor in weights.items())


def test_without_a_gpu_weights_are_not_shared_out_in_silence(
    small_base: Path, small_splits: Path, tmp_path: Path
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(
        ValueError, match="distribution is 'fsdp', and accelerate shares out no weights on a cpu; expected"
    ):
        trained(small_base, small_splits, tmp_path / "work", num_processes=2, distribution="fsdp")


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
    (tmp_path / "launching.py").write_text(LAUNCHING, encoding="utf-8")
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


GRAPH = """
import dagster as dg
from xhs_pipeline.liveness import living_in_process_executor
from xhs_pipeline.worker import run

@dg.asset(pool="gpu")
def adapter(context: dg.AssetExecutionContext) -> None:
    run("launching:stage", {arguments}, context.log.info)

defs = dg.Definitions(
    assets=[adapter], jobs=[dg.define_asset_job("train", [adapter])], executor=living_in_process_executor
)
"""


@pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="tells an ended process from a waiting one through /proc"
)
def test_a_run_cancelled_in_dagster_leaves_no_process_and_gives_its_place_in_the_pool_back(
    stages: None, tmp_path: Path
) -> None:
    """As the UI cancels it: the run's launcher is asked to, which interrupts the process of the step."""
    import dagster as dg

    home = tmp_path / "home"
    home.mkdir()
    settings = (Path(__file__).resolve().parents[1] / ".dagster_home" / "dagster.yaml").read_text(encoding="utf-8")
    at_once = (
        "run_coordinator: {module: dagster.core.run_coordinator, class: DefaultRunCoordinator}\n"  # no daemon here
    )
    (home / "dagster.yaml").write_text(settings + at_once, encoding="utf-8")
    (tmp_path / "launching.py").write_text(LAUNCHING, encoding="utf-8")
    arguments = {"profile": TWO.model_dump(), "folder": str(tmp_path)}
    (tmp_path / "graph.py").write_text(GRAPH.format(arguments=arguments), encoding="utf-8")
    # the databases are made before the launcher looks for them: two processes that make them at once refuse each other
    with dg.DagsterInstance.from_config(str(home)) as instance, (tmp_path / "launcher.log").open("a+") as said:
        launched = subprocess.Popen(
            [str(Path(sys.executable).parent / "dagster"), "job", "launch", "-m", "graph", "-j", "train"],
            cwd=tmp_path,
            env={**os.environ, "DAGSTER_HOME": str(home)},
            stdout=said,
            stderr=subprocess.STDOUT,
        )

        def story() -> str:
            """What the run's log and its launcher have said so far."""
            entries = [entry for run in instance.get_runs() for entry in instance.all_logs(run.run_id)]
            said.seek(0)
            return "\n".join([*(f"{entry.timestamp:.1f} {entry.message}" for entry in entries), said.read()])

        try:
            deadline = time.monotonic() + 240
            pids: set[int] = set()
            while len(pids) < 2:
                time.sleep(0.5)
                pids = {int(pid) for pid in re.findall(r"\bpid (\d+)", story())}
                ended = launched.poll() or any(run.is_finished for run in instance.get_runs())
                assert not ended and time.monotonic() < deadline, f"no two processes in the run:\n{story()}"
            assert all(map(alive, pids))
            (run,) = instance.get_runs()
            assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 1
            assert instance.run_launcher.terminate(run.run_id)
            deadline = time.monotonic() + 60
            while any(map(alive, pids)) or not instance.get_runs()[0].is_finished:
                assert time.monotonic() < deadline, f"{[pid for pid in pids if alive(pid)]} live on:\n{story()}"
                time.sleep(0.5)
            assert instance.get_runs()[0].status == dg.DagsterRunStatus.CANCELED
            assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0
        finally:
            launched.terminate()
            launched.wait()
