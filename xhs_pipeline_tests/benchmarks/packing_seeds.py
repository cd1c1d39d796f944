"""What packing does to quality: the embedded model trained whole, on the splits of a materialised sample.

    XHS_DATA_DIR=/tmp/x dagster asset materialize -m xhs_pipeline.definitions --select '*' --partition 2026-02-16
    python -m xhs_pipeline_tests.benchmarks.packing_seeds --data /tmp/x --seeds 20260216 1 2

Padded or packed, and each with records of like length in an update (which padding takes) or of any length (which packing
takes). `padded, alike` and `packed, mixed` are what the recipe does; the other two change one thing only. `padded, alike,
reversed` is `padded, alike` with the records of each batch in the opposite order: the same updates but for rounding, which
shows how much of a difference rounding alone makes. Macro-F1 (mean of verdict and category) of the best checkpoint on test.
One thread, about 80 CPU seconds a line.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xhs_pipeline.artifacts import ArtifactStore
from xhs_pipeline.worker import run

WAYS = ("padded, alike", "padded, alike, reversed", "packed, alike", "padded, mixed", "packed, mixed")


def trained(data: str, way: str, seed: int, log: Callable[[str], None]) -> dict[str, Any]:
    """The loss at the first logged steps and the last one, the best macro-F1 on validation, and that on test."""
    import pyarrow.parquet as pq
    import torch
    from peft import PeftModel

    from xhs_pipeline.policy import load_policy
    from xhs_pipeline.profile import Profile, load_profile
    from xhs_pipeline.training import qlora
    from xhs_pipeline.training.order import run_batches
    from xhs_pipeline.training.stages import _prepare, fine_tune, judge_examples, load_examples, macro_f1
    from xhs_pipeline.vlm.base import load_model, open_base

    def plan(lengths: list[int], profile: Profile) -> list[list[tuple[int, int]]]:
        alike = lengths if "alike" in way else None
        updates = run_batches(len(lengths), profile.batch_size, profile.epochs, profile.seed, alike)
        return [update[::-1] if "reversed" in way else update for update in updates[: profile.max_steps or None]]

    qlora.plan = plan
    torch.set_num_threads(1)
    profile = load_profile("tiny", {"seed": seed, "pack_length": 65536 if way.startswith("packed") else 0})
    store = ArtifactStore(Path(data))
    base, splits = store.latest("base_model"), store.latest("sharegpt_splits")
    if base is None or splits is None:
        raise ValueError(f"{data}: no base_model or no sharegpt_splits; materialise the sample there first")
    checkpoint, processor = open_base(base.path, profile)
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "validation"):
            _prepare(splits.path, split, processor, profile, Path(folder))
        found = fine_tune(str(checkpoint), str(splits.path), profile.model_dump(), folder, log)
        model = load_model(checkpoint, profile, profile.quantization, on="cpu")
        model = PeftModel.from_pretrained(model, Path(folder) / "adapter").eval()
    examples, _ = load_examples(splits.file("test.parquet"), processor, profile)
    rows = pq.read_table(splits.file("test.parquet"), columns=["post_id", "verdict", "category"]).to_pylist()
    judged = list(judge_examples(model, processor, load_policy(), examples, profile.score_batch_size))
    losses = [entry["loss"] for entry in found["history"] if "loss" in entry]
    scores = [entry["eval_macro_f1"] for entry in found["history"] if "eval_macro_f1" in entry]
    test = macro_f1({row["post_id"]: row for row in rows}, judged)["macro_f1"]
    return {"first": losses[:3], "last": losses[-1], "validation": max(scores), "test": test}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="XHS_DATA_DIR of a materialised sample")
    parser.add_argument("--seeds", type=int, nargs="+", default=[20260216, 1, 2])
    parser.add_argument("--way", choices=WAYS, action="append", help="only this one; may be given again")
    asked = parser.parse_args()
    print("| seed | way | loss, first three logged | last | macro-F1, validation | test |\n|---|---|---|---|---|---|")
    for seed in asked.seeds:
        for way in asked.way or WAYS:
            arguments = {"data": asked.data, "way": way, "seed": seed}
            f = run("xhs_pipeline_tests.benchmarks.packing_seeds:trained", arguments, lambda line: None)
            first = ", ".join(f"{loss:.5f}" for loss in f["first"])
            print(
                f"| {seed} | {way} | {first} | {f['last']:.3f} | {f['validation']:.3f} | {f['test']:.3f} |", flush=True
            )


if __name__ == "__main__":
    main()
