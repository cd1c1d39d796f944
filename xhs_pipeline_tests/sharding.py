"""Sharded training (FSDP) in processes on a CPU, over gloo, for tests.

torch shards on a CPU as it does on a GPU; accelerate asks for a GPU first. Here it is told that these processes are of the kind
that it shards for. All else is what runs on GPUs: accelerate's plugin, torch's fully_shard, gathering, reducing, state dicts.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any


def fine_tune(log: Callable[[str], None], training: str, **arguments: Any) -> dict[str, Any]:
    """training.stages.fine_tune, which also notes in `training` how many bytes of weights this process holds at validation."""
    import torch.distributed
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    from xhs_pipeline.training import loss, stages

    loss.LOGITS_BYTES = 4 * 5000  # the head in several chunks, as with a real vocabulary
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    judge = stages.judge_examples

    def noting(model: Any, *args: Any, **kwargs: Any) -> Any:
        note = Path(training).parent / f"held-{os.environ['RANK']}.json"
        note.write_text(json.dumps(held(model)), encoding="utf-8")
        return judge(model, *args, **kwargs)

    stages.judge_examples = noting
    return stages.fine_tune(log=log, training=training, **arguments)


def held(model: Any) -> dict[str, int]:
    """Bytes of the weights of a sharded model: of this process, and of the whole model."""
    from torch.distributed.tensor import DTensor

    found: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        own = weight.to_local() if isinstance(weight, DTensor) else weight
        kind = "trained" if weight.requires_grad else "packed" if weight.shape[-1] == 1 and "proj" in name else "frozen"
        found[f"{kind}_own"] += own.numel() * own.element_size()
        found[f"{kind}_all"] += weight.numel() * own.element_size()
    return dict(found)
