"""Training speed: our adapter stage against LLaMA-Factory and ms-swift, on the same records with the exported settings.

    for p in llamafactory==0.9.5 'ms-swift==4.6.0 qwen_vl_utils'; do e=/tmp/trainers/${p%%==*}; python -m venv $e;
      $e/bin/pip install torch==2.13.0 torchvision==0.28.0 $p; done
    python -m xhs_pipeline_tests.benchmarks.trainers --trainers /tmp/trainers [--repeats 3]
    python -m xhs_pipeline_tests.benchmarks.trainers --trainers /tmp/trainers --device cuda      # the 2B shape

Same records, order of magnitude of lengths, targets, rank, batch, loss on the answers, schedule; no quantisation, dropout or
augmentation on the CPU. Each run is a process of its own with one thread. What counts is transformers' Trainer.train, which all
three end up in: CPU seconds of the process and its workers on the CPU, wall seconds with --device cuda. A ratio is the median
over repeats of ours / theirs in the same repeat. Peak memory is the largest resident size of the process.

The 2B shape has the published widths, depths and vocabulary with random weights; speed does not depend on their values.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DRIVER = Path(__file__).parents[1] / "other_trainers.py"
ENGINES = ("ours", "llamafactory", "ms-swift")
SHAPE_2B: dict[str, Any] = {
    "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {
        "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "hidden_size": 1536, "patch_size": 14,
        "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
    },
}  # fmt: skip


def prepare(folder: Path, device: str, posts: int) -> tuple[Path, Path, dict[str, Any]]:
    """Splits whose every post is in train, the base, and the profile's values."""
    from xhs_pipeline.profile import load_profile
    from xhs_pipeline.training.stages import build_base
    from xhs_pipeline_tests.published import write_published
    from xhs_pipeline_tests.small import make_splits

    everything = {
        "validation_share": 0.0, "calibration_share": 0.0, "test_share": 0.0, "evaluations": 1, "checkpoints": 1, "epochs": 100,
        "lora_dropout": 0.0, "augmentation": 0.0, "rationale_weight": 1.0,
    }  # fmt: skip
    if device == "cuda":
        published = write_published(folder / "checkpoint", 4, **SHAPE_2B)
        profile = load_profile("qwen2-vl-2b", everything | {"base_model": str(published), "base_revision": ""})
    else:
        cpu = {"quantization": "none", "train_embeddings": False, "tiny_pretrain_epochs": 0, "batch_size": 16}
        profile = load_profile("tiny", everything | cpu)
    splits = make_splits(folder, profile, posts)
    base = folder / "base"
    base.mkdir()
    build_base(str(splits), profile.model_dump(), str(base), lambda line: None)
    return splits, base, profile.model_dump()


def run(
    engine: str, steps: int, place: tuple[Path, Path, dict[str, Any]], trainers: Path, grouped: bool
) -> dict[str, float]:
    """One training of `steps` optimiser steps: CPU and wall seconds of it, and the peak memory of its process."""
    splits, base, profile = place
    out = Path(tempfile.mkdtemp(dir=splits.parent))
    model = json.loads((base / "checkpoint.json").read_text(encoding="utf-8"))["folder"]
    model = str((base / model).resolve())
    if engine == "ours":
        arguments = {
            "base": str(base),
            "splits": str(splits),
            "profile": profile | {"max_steps": steps},
            "work": str(out),
        }
        script = (
            "import json, sys; from pathlib import Path; from xhs_pipeline.training.stages import train_adapter\n"
            "from xhs_pipeline_tests.other_trainers import clock_training; took = clock_training()\n"
            "train_adapter(**json.loads(sys.argv[1]), log=print); Path(sys.argv[2]).write_text(json.dumps(took))"
        )
        command = [sys.executable, "-c", script, json.dumps(arguments), str(out / "result.json")]
    else:
        words = {"max_steps": str(steps), "output_dir": str(out), "save_strategy": "steps", "save_steps": "1000000"}
        if grouped:
            words["train_sampling_strategy"] = "group_by_length"
        if engine == "llamafactory":
            more = [f"{name}={value}" for name, value in ({"model_name_or_path": model} | words).items()]
        else:
            words["dataloader_num_workers"] = "0"  # as the others; its default is 1
            more = [word for name, value in ({"model": model} | words).items() for word in (f"--{name}", value)]
        python = trainers / engine / "bin" / "python"
        command = [str(python), str(DRIVER), engine, "train", str(splits), str(out / "result.json"), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    if engine != "ours":
        environment["PYTHONPATH"] = ""
    with (out / "log").open("w") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{engine} failed:\n{(out / 'log').read_text(errors='replace')[-3000:]}")
    return dict(json.loads((out / "result.json").read_text(encoding="utf-8"))) | {"peak_mb": used.ru_maxrss / 1024}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--trainers", type=Path, required=True, help="folder with the environments llamafactory and ms-swift"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--posts", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--grouped", action="store_true", help="the others batch records of like length too")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    clock = "cpu" if arguments.device == "cpu" else "wall"
    with tempfile.TemporaryDirectory() as temporary:
        place = prepare(Path(temporary), arguments.device, arguments.posts)
        batch = place[2]["batch_size"] * place[2]["accumulation"]
        rates: dict[str, list[float]] = {engine: [] for engine in arguments.engines}
        peaks: dict[str, float] = {}
        for repeat in range(arguments.repeats):
            for engine in arguments.engines:
                found = run(engine, arguments.steps, place, arguments.trainers, arguments.grouped)
                rates[engine].append(arguments.steps * batch / found[f"train_{clock}_seconds"])
                peaks[engine] = max(peaks.get(engine, 0.0), found["peak_mb"])
                print(f"repeat {repeat + 1}: {engine} {rates[engine][-1]:.1f} samples per {clock} second", flush=True)
    print(f"\n| engine | samples per {clock} s | ours is | peak MB |\n|---|---|---|---|")
    for engine in arguments.engines:
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates[engine], strict=True))
        print(f"| {engine} | {statistics.median(rates[engine]):.1f} | {ratio:.2f}x | {peaks[engine]:,.0f} |")


if __name__ == "__main__":
    main()
