"""A run that is killed, or that finds the disk full, goes on later as if nothing had happened."""

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xhs_pipeline.profile import load_profile
from xhs_pipeline.training.qlora import train
from xhs_pipeline.training.stages import train_adapter
from xhs_pipeline.training.trainer import newest_checkpoint
from xhs_pipeline_tests.small import PLAIN, PROFILE, record, records_file

# Trains as the stage does, and ends by SIGKILL when the line of a step is said.
KILLED = """
import json, os, signal, sys
from xhs_pipeline.training.stages import train_adapter
def log(line):
    if line.startswith(f"adapter: step {sys.argv[2]}/"):
        os.kill(os.getpid(), signal.SIGKILL)
train_adapter(**json.loads(sys.argv[1]), log=log)
"""
LOGGED = 3  # steps between the lines of this run
_DICE = random.Random(20260216)
STEPS = [LOGGED * _DICE.randrange(first, first + 11) for first in (6, 17, 28)]  # early, half way, late


@pytest.fixture(scope="module")
def alike(small_processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    examples = [record(small_processor, f"e{i}", "内幕消息" * (2 * i + 1), images=i % 3) for i in range(4)]
    return records_file(tmp_path_factory.mktemp("alike") / "train.arrow", examples)


def bits(folder: Path) -> dict[str, bytes]:
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize("step", STEPS)
def test_a_run_killed_at_any_step_and_started_again_ends_bit_equal(
    small_base: Path, small_splits: Path, small_adapter: Path, tmp_path: Path, step: int
) -> None:
    assert PROFILE.pack_length and PROFILE.lora_dropout and PROFILE.augmentation, "with all that is random, and packed"
    arguments = {
        "base": str(small_base),
        "splits": str(small_splits),
        "profile": PROFILE.model_dump(),
        "work": str(tmp_path),
    }
    child = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(arguments), str(step)], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == -signal.SIGKILL, child.stderr[-2000:]
    assert not (tmp_path / "history.json").exists()

    said: list[str] = []
    train_adapter(**arguments, log=said.append)
    resumed = next(line for line in said if "resumed from step" in line)
    at, total = map(int, resumed.rpartition(" ")[2].split("/"))
    assert 0 < at <= step < total
    undisturbed, again = (
        json.loads((folder / "history.json").read_text(encoding="utf-8"))["history"]
        for folder in (small_adapter, tmp_path)
    )
    best = max(
        (e for e in undisturbed if "eval_verdict_macro_f1" in e), key=lambda e: (e["eval_verdict_macro_f1"], -e["step"])
    )
    curves = [{e["step"]: e["loss"] for e in history if "loss" in e} for history in (undisturbed, again)]
    # each logged loss is a mean since the one before; the first one after the resume misses the steps before the checkpoint
    joined = next(logged for logged in curves[0] if logged > at)
    assert list(curves[0]) == list(curves[1])
    assert all(curves[1][logged] == loss for logged, loss in curves[0].items() if logged != joined)
    assert [e for e in again if "eval_verdict_macro_f1" in e] == [
        e for e in undisturbed if "eval_verdict_macro_f1" in e
    ]
    assert bits(tmp_path) == bits(small_adapter), f"killed at {step}, resumed from {at}, best at {best['step']}"


@pytest.mark.parametrize(("scores", "best"), [((1, 2, 3, 4), 8), ((4, 1, 2, 3), 2)], ids=["rising", "falling"])
def test_a_checkpoint_that_was_only_half_written_is_passed_over_and_the_best_adapter_is_kept(
    small_checkpoint: Path,
    small_processor: Any,
    alike: Any,
    tmp_path: Path,
    scores: tuple[int, ...],
    best: int,
) -> None:
    """A kill in the middle of writing a checkpoint leaves the newest one without its last file."""
    from safetensors.torch import load_file

    class Killed(Exception):
        pass

    def attempt(work: Path, killed_at: int | None, evaluated: int = 0) -> tuple[dict[str, Any] | None, list[str]]:
        calls = iter(range(evaluated + 1, 100))

        def validate(model: Any) -> dict[str, float]:
            number = next(calls)
            if number == killed_at:
                raise Killed
            return {"verdict_macro_f1": float(scores[number - 1])}

        said: list[str] = []
        profile = PLAIN.model_copy(update={"batch_size": 4, "epochs": 8, "evaluations": 4, "checkpoints": 4})
        try:
            return train(small_checkpoint, alike, validate, small_processor, profile, work, said.append), said
        except Killed:
            return None, said

    whole, _ = attempt(tmp_path / "whole", None)
    attempt(tmp_path / "work", 3)
    checkpoints = tmp_path / "work" / "checkpoints"
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == ["checkpoint-2", "checkpoint-4"]
    half = checkpoints / "checkpoint-6"
    half.mkdir()
    shutil.copy(checkpoints / "checkpoint-4" / "adapter_model.safetensors", half)
    again, said = attempt(tmp_path / "work", None, evaluated=2)
    assert "adapter: resumed from step 4/8" in said
    assert whole and again and again["steps"] == whole["steps"] == 8
    assert again["best_step"] == whole["best_step"] == best
    one, other = (load_file(tmp_path / n / "adapter" / "adapter_model.safetensors") for n in ("whole", "work"))
    assert max(float((one[name] - other[name]).abs().max()) for name in one) <= 1e-5


def test_a_run_that_had_lost_patience_when_it_was_killed_does_not_go_on(
    small_checkpoint: Path, small_processor: Any, alike: Any, tmp_path: Path
) -> None:
    scores = iter([0.5, 0.4, 0.9])
    profile = PLAIN.model_copy(update={"epochs": 3, "evaluations": 3, "checkpoints": 3, "early_stopping": 1})

    def validate(model: Any) -> dict[str, float]:
        return {"verdict_macro_f1": next(scores)}

    for _ in range(2):
        found = train(small_checkpoint, alike, validate, small_processor, profile, tmp_path, lambda line: None)
        assert (found["steps"], found["best_step"]) == (2, 1)
    assert next(scores) == 0.9


# a full disk

FULL = """
import json, resource, sys
from pathlib import Path
from xhs_pipeline.profile import Profile
from xhs_pipeline.training.qlora import train
from xhs_pipeline.training.records import Records
from xhs_pipeline.vlm.processor import load_processor
base, records, work, profile = sys.argv[1:]
profile = Profile(**json.loads(profile))
processor = load_processor(Path(base), profile.min_pixels, profile.max_pixels)
calls = []
def validate(model):
    calls.append(1)
    if len(calls) == 2:  # from here on no file may grow past 20 kB, less than a checkpoint needs
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return {"verdict_macro_f1": 1.0}
train(Path(base), Records(Path(records)), validate, processor, profile, Path(work), lambda line: None)
"""


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_a_clear_failure_and_the_one_before_is_whole(
    small_checkpoint: Path, small_processor: Any, alike: Any, tmp_path: Path
) -> None:
    records = tmp_path / "train.arrow"
    records_file(records, alike)
    profile = PLAIN.model_copy(update={"epochs": 4, "evaluations": 4, "checkpoints": 4, "learning_rate": 0.001})
    command = [str(small_checkpoint), str(records), str(tmp_path / "work"), json.dumps(profile.model_dump())]
    child = subprocess.run([sys.executable, "-c", FULL, *command], capture_output=True, text=True, timeout=300)
    assert child.returncode == 1
    message = child.stderr.strip().splitlines()[-1]
    checkpoints = tmp_path / "work" / "checkpoints"
    assert "checkpoint at step 2 could not be written" in message and "MB are free" in message
    assert f"{checkpoints / 'checkpoint-1'} is whole" in message and "Free space and run again" in message
    assert [path.name for path in checkpoints.iterdir()] == ["checkpoint-1"], "what was written in part is gone"
    assert newest_checkpoint(checkpoints) == str(checkpoints / "checkpoint-1")

    scores = {"verdict_macro_f1": 1.0}
    said: list[str] = []
    train(small_checkpoint, alike, lambda m: scores, small_processor, profile, tmp_path / "work", said.append)
    assert "adapter: resumed from step 1/4" in said
    train(
        small_checkpoint, alike, lambda m: scores, small_processor, profile, tmp_path / "undisturbed", lambda line: None
    )
    assert bits(tmp_path / "work" / "adapter") == bits(tmp_path / "undisturbed" / "adapter")


def test_the_profile_used_here_walks_the_path_of_the_embedded_default() -> None:
    default = load_profile("tiny")
    same = ("base_model", "quantization", "train_embeddings", "precision", "lora_targets", "rationale_weight", "prompt")
    assert all(getattr(PROFILE, name) == getattr(default, name) for name in same)
