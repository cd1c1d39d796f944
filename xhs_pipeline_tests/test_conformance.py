"""The splits, the exported configurations and the adapters trained with them, in the real LLaMA-Factory and ms-swift.

Slow: each is installed in an environment of its own (several GB, minutes). XHS_TRAINERS names a folder that keeps them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from xhs_pipeline.profile import Profile
from xhs_pipeline.splits.exports import LLAMAFACTORY, MS_SWIFT
from xhs_pipeline.splits.grouping import SPLITS
from xhs_pipeline.training.adapters import import_adapter
from xhs_pipeline.training.proof import merge_checks
from xhs_pipeline.training.stages import build_base, merge_adapter
from xhs_pipeline_tests.small import PROFILE, make_splits

TRAINERS = {
    "llamafactory": ("torch==2.13.0", "torchvision==0.28.0", "llamafactory==0.9.5"),
    "ms-swift": ("torch==2.13.0", "torchvision==0.28.0", "ms-swift==4.6.0", "qwen_vl_utils"),
}
DRIVER = Path(__file__).with_name("other_trainers.py")
VISION = ["qkv", "proj", "fc1", "fc2", "mlp.0", "mlp.2"]
# With every option that has a counterpart; no quantisation, so that the peers' own extras for it need not be installed.
SETTINGS = PROFILE.model_copy(
    update={
        "quantization": "none", "max_steps": 4, "epochs": 1, "lora_rslora": True, "lora_dora": True, "lora_modules": "all",
        "lora_targets": [*PROFILE.lora_targets, *VISION], "evaluations": 2, "early_stopping": 2,
    }
)  # fmt: skip


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module", params=TRAINERS)
def trainer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A trainer's name and its Python."""
    kept = os.environ.get("XHS_TRAINERS")
    environment = (Path(kept) if kept else tmp_path_factory.mktemp("trainers")) / request.param
    python = environment / "bin" / "python"
    if not (environment / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *TRAINERS[request.param]], check=True)
        (environment / "installed").touch()
    return request.param, python


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_splits(tmp_path_factory.mktemp("splits"), SETTINGS)


@pytest.fixture(scope="module")
def base(splits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base")
    build_base(str(splits), SETTINGS.model_dump(), str(out), quiet)
    return out


def ask(trainer: tuple[str, Path], what: str, splits: Path, base: Path, *more: str) -> dict[str, Any]:
    """Run other_trainers.py in the trainer's environment, offline."""
    name, python = trainer
    model = str(base / "model")
    words = [f"model_name_or_path={model}"] if name == "llamafactory" else ["--model", model]
    result = splits / f"{name}-{what}.json"
    done = subprocess.run(
        [python, DRIVER, name, what, str(splits), str(result), *words, *more],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return dict(json.loads(result.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_the_splits_load_unmodified_with_every_row_every_image_and_every_answer(
    trainer: tuple[str, Path], splits: Path, base: Path
) -> None:
    from xhs_pipeline.training.stages import load_examples
    from xhs_pipeline.vlm.processor import load_processor

    processor = load_processor(base / "model", SETTINGS.min_pixels, SETTINGS.max_pixels)
    counts = ask(trainer, "count", splits, base)
    for name in SPLITS:
        rows = pq.read_table(splits / f"{name}.parquet", columns=["images"])["images"].to_pylist()
        examples, unfit = load_examples(splits / f"{name}.parquet", processor, SETTINGS)
        assert not unfit
        expected = {"rows": len(rows), "images": sum(map(len, rows))}
        found = {key: counts[name][key] for key in expected}
        assert found == expected, name
        # the loss lies on the same answers; a trainer may add the line feed that ends a turn
        assert 0 <= counts[name]["answer_tokens"] - sum(len(e.answer) for e in examples) <= len(rows), name


@pytest.mark.slow
def test_every_exported_setting_is_one_of_the_trainers_own_and_arrives(
    trainer: tuple[str, Path], splits: Path, base: Path
) -> None:
    parsed = ask(trainer, "arguments", splits, base)
    if trainer[0] == "llamafactory":
        wanted = yaml.safe_load((splits / LLAMAFACTORY).read_text(encoding="utf-8"))
    else:
        wanted = exported_swift(splits)
    names = {
        "model_name_or_path",
        "dataset",
        "val_dataset",
        "eval_dataset",
        "output_dir",
        "model",
        "report_to",
    }  # paths, and lists of one
    for name in wanted.keys() - names:
        assert same(parsed[name], wanted[name]), f"{name}: {parsed[name]} instead of {wanted[name]}"


def exported_swift(splits: Path) -> Mapping[str, Any]:
    from xhs_pipeline.splits.exports import ms_swift

    assert "swift sft" in (splits / MS_SWIFT).read_text(encoding="utf-8")
    return ms_swift(SETTINGS)


def same(found: Any, wanted: Any) -> bool:
    """Numbers as numbers, lists as sets of words, and torch's dtypes by their names."""
    if isinstance(wanted, bool | str) and not isinstance(found, list):
        text = str(found).removeprefix("torch.").lower()
        return text == str(wanted).lower()
    if isinstance(wanted, int | float):
        return float(found) == float(wanted)
    words = wanted.split(",") if isinstance(wanted, str) else wanted
    return all(word in str(found) for word in words)


@pytest.mark.slow
def test_an_adapter_trained_there_comes_back_as_a_merged_model(
    trainer: tuple[str, Path], splits: Path, base: Path, tmp_path: Path
) -> None:
    ask(trainer, "train", splits, base)
    written = {"llamafactory": "llamafactory_adapter", "ms-swift": "ms_swift_adapter/*/checkpoint-4"}[trainer[0]]
    folder = next(splits.glob(written))
    ours, merged = tmp_path / "adapter", tmp_path / "merged"
    ours.mkdir()
    merged.mkdir()
    settings = Profile(**SETTINGS.model_dump()).model_dump()
    said = import_adapter(str(folder), str(base), settings, str(ours), quiet)
    assert said["lora_modules"] == len(PROFILE.lora_targets) * SETTINGS.tiny_layers + 4 * SETTINGS.tiny_vision_depth + 2
    counts = merge_adapter(str(base), str(ours), str(splits), settings, str(merged), quiet)
    checks = merge_checks(counts, "fp32", {"min_merge_agreement": 1.0, "min_training_base_agreement": 1.0})
    assert all(check.passed for check in checks), checks
