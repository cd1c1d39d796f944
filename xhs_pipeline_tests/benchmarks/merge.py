"""Memory and time of merging an adapter, against peft's own merge of the whole model.

    python -m xhs_pipeline_tests.benchmarks.merge [--layers 12] [--shards 6]

The checkpoint has Qwen2-VL's published layout, vocabulary and bfloat16 weights, a few hundred MB of random numbers in several
shards; the adapter is rank 8 on the seven linears of the language model. Each way runs in a process of its own; peak memory
is the largest resident size (VmHWM, reset after the imports) above what the imports left (VmRSS), in MB of 10**6 bytes.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LOADED = "loading the result, as the proof does"
WAYS = ("weight by weight", "peft, whole model", LOADED)


def make(folder: Path, layers: int, shards: int) -> tuple[Path, Path]:
    """A checkpoint and an adapter whose update is not zero."""
    import torch
    from peft import LoraConfig, get_peft_model

    from xhs_pipeline.vlm.base import load_model
    from xhs_pipeline_tests.published import CONFIG, write_published
    from xhs_pipeline_tests.small import PROFILE

    vision: Any = CONFIG["vision_config"]
    base = write_published(
        folder / "base", shards, hidden_size=768, intermediate_size=3072, num_hidden_layers=layers, num_attention_heads=12,
        rope_scaling={"type": "mrope", "mrope_section": [8, 12, 12]}, vision_config=vision | {"hidden_size": 768},
    )  # fmt: skip
    model = load_model(base, PROFILE.model_copy(update={"precision": "bf16"}), on="cpu")
    settings = LoraConfig(r=8, lora_alpha=16, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, settings)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    adapted.save_pretrained(folder / "adapter")
    return base, folder / "adapter"


def status(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


def measure(way: str, base: Path, adapter: Path, out: Path) -> dict[str, float]:
    """Run one way here, and say what it took."""
    import peft  # noqa: F401
    import torch

    from xhs_pipeline.training.adapters import read_adapter
    from xhs_pipeline.training.merge import merge
    from xhs_pipeline.training.proof import with_adapter
    from xhs_pipeline.vlm.base import load_model
    from xhs_pipeline_tests.small import PROFILE

    profile = PROFILE.model_copy(update={"precision": "bf16", "quantization": "none"})
    torch.nn.Linear(8, 8)(torch.zeros(1, 8))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, started = status("VmRSS"), time.process_time()
    if way == WAYS[0]:
        merge(base, read_adapter(adapter, base), 3136, 12544, out, lambda line: None)
    elif way == WAYS[1]:
        model = with_adapter(load_model(base, profile, on="cpu"), adapter)
        model.merge_and_unload(safe_merge=True).save_pretrained(out, max_shard_size="100MB")
    else:
        model = load_model(out, profile, on="cpu")
        with torch.inference_mode():
            model(input_ids=torch.arange(8)[None])
    return {"peak_mb": (status("VmHWM") - before) / 1e6, "cpu_seconds": time.process_time() - started}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        way, *paths = arguments.measure
        print(json.dumps(measure(way, *map(Path, paths))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base, adapter = make(folder, arguments.layers, arguments.shards)
        sizes = [file.stat().st_size / 1e6 for file in base.glob("*.safetensors")]
        print(f"model {sum(sizes):.0f} MB in {len(sizes)} shards, the largest {max(sizes):.0f} MB\n")
        print("| way | peak MB above imports | share of model + largest shard | CPU s |\n|---|---|---|---|")
        for way in WAYS:
            out = folder / ("peft" if way.startswith("peft") else "ours")
            out.mkdir(exist_ok=True)
            command = [
                sys.executable,
                "-m",
                "xhs_pipeline_tests.benchmarks.merge",
                "--measure",
                way,
                *map(str, (base, adapter, out)),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            share = found["peak_mb"] / (sum(sizes) + max(sizes))
            print(f"| {way} | {found['peak_mb']:.0f} | {share:.2f} | {found['cpu_seconds']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
