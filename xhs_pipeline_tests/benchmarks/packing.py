"""Samples per second of the training step, padded and packed, on the train split of a materialised sample.

    XHS_DATA_DIR=/tmp/x dagster asset materialize -m xhs_pipeline.definitions --select '*' --partition 2026-02-16
    python -m xhs_pipeline_tests.benchmarks.packing --data /tmp/x --repeats 3

Every way learns from the very same records, 16 an update, with the same model (the embedded one), loss and optimizer:

    one at a time   a forward pass for each record: what the profiles of real checkpoints would do without pack_length, and
                    what the published Qwen2-VL examples of LLaMA-Factory (examples/train_lora/qwen2vl_lora_sft.yaml) and
                    axolotl (examples/qwen2-vl/lora-7b.yaml, sample_packing: false) do: a batch of 1, gradients accumulated
    random, padded  16 records in random order, padded to the longest: what trainers do that know no lengths
    alike, padded   16 records of like length, as this recipe pads
    packed          16 records in random order in one row without padding, as this recipe does with pack_length

One thread. The ways take turns, update by update, in one process, so that what else the machine does falls on all of them; a
ratio is the median over repeats. CPU seconds of the steps with the making of their batches; tokenising, loading and the
decoding of images (which a run does once, in its first epoch) are not in them. Peak MB: each way in a process of its own.
"""

import argparse
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xhs_pipeline.artifacts import ArtifactStore
from xhs_pipeline.worker import run

WAYS = ("one at a time", "random, padded", "alike, padded", "packed")


def step_seconds(
    data: str, ways: list[str], updates: int, quantization: str, log: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """For each way the CPU seconds of `updates` updates of 16 records after three of others to warm up, the records' tokens in
    them, and padding as a share of the tokens computed.
    """
    import time

    import torch

    from xhs_pipeline.profile import load_profile
    from xhs_pipeline.training.lora import lora_model
    from xhs_pipeline.training.loss import answer_loss
    from xhs_pipeline.training.order import run_batches
    from xhs_pipeline.training.packing import attend_within_records, micro_batches, pack
    from xhs_pipeline.training.stages import load_examples
    from xhs_pipeline.vlm.base import checkpoint_folder, load_model
    from xhs_pipeline.vlm.batches import pad, quiet_libraries, seen
    from xhs_pipeline.vlm.processor import load_processor

    quiet_libraries()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    profile = load_profile("tiny", {"quantization": quantization})
    store = ArtifactStore(Path(data))
    base, splits = store.latest("base_model"), store.latest("sharegpt_splits")
    if base is None or splits is None:
        raise ValueError(f"{data}: no base_model or no sharegpt_splits; materialise the sample there first")
    folder = checkpoint_folder(base.path)
    processor = load_processor(folder, profile.min_pixels, profile.max_pixels)
    examples, _ = load_examples(splits.file("train.parquet"), processor, profile)
    lengths = [len(e) for e in examples]
    if len(examples) < 16 * (updates + 3):
        raise ValueError(
            f"{splits.path}: {len(examples)} records, {16 * (updates + 3)} needed; ask for fewer --updates"
        )
    shuffled = random.Random(0).sample(range(len(examples)), 16 * (updates + 3))
    warm, timed = shuffled[:48], shuffled[48:]
    order = run_batches(len(timed), 16, 1, profile.seed, [lengths[record] for record in timed])
    alike = [[timed[place] for _, place in rows] for rows in order]
    mixed = [timed[i : i + 16] for i in range(0, len(timed), 16)]
    for record in shuffled:
        seen([examples[record]], torch.tensor([]), processor)  # decodes its images

    loaded = load_model(folder, profile, profile.quantization, on="cpu")
    answer_loss(loaded)
    attend_within_records(loaded)
    model = lora_model(loaded, profile).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def update(way: str, records: list[int]) -> tuple[float, int, int]:
        """CPU seconds, tokens computed and the records' tokens."""
        started, computed = time.process_time(), 0
        packed, size = 65536 if way == "packed" else 0, 1 if way == "one at a time" else 16
        for rows in micro_batches(records, [lengths[r] for r in records], size, packed):
            own = [examples[r] for r in rows]
            if packed:
                batch = pack(own, processor, loaded.model.get_rope_index, profile.rationale_weight)
            else:
                batch = pad(own, processor, profile.rationale_weight)
            computed += batch["input_ids"].numel()
            model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - started, computed, sum(lengths[r] for r in records)

    for way in ways:
        for begin in range(0, 48, 16):
            update(way, warm[begin : begin + 16])
    steps: dict[str, list[tuple[float, int, int]]] = {way: [] for way in ways}
    for number in range(updates):
        for way in ways:
            steps[way].append(update(way, (alike if way == "alike, padded" else mixed)[number]))
    found = {}
    for way, each in steps.items():
        cpu, computed, real = (sum(column) for column in zip(*each, strict=True))
        found[way] = {"cpu": cpu, "tokens": real, "padding": 1 - real / computed}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="XHS_DATA_DIR of a materialised sample")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=43, help="43 and three to warm up are the sample's epoch")
    asked = parser.parse_args()

    def steps(ways: list[str]) -> dict[str, Any]:
        arguments = {"data": asked.data, "ways": ways, "updates": asked.updates, "quantization": "nf4"}
        return run("xhs_pipeline_tests.benchmarks.packing:step_seconds", arguments)

    repeats = [steps(list(WAYS)) for _ in range(asked.repeats)]
    print(
        "| way | padding | samples per CPU second | tokens per CPU second | packed is | peak MB |\n|---|---|---|---|---|---|"
    )
    for way in WAYS:
        ratio = statistics.median(found[way]["cpu"] / found["packed"]["cpu"] for found in repeats)
        cpu, one = statistics.median(found[way]["cpu"] for found in repeats), repeats[0][way]
        print(
            f"| {way} | {one['padding']:.1%} | {16 * asked.updates / cpu:.1f} | {one['tokens'] / cpu:,.0f} "
            f"| {ratio:.2f}x | {steps([way])['peak_memory_mb']} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
