"""Memory and time of the loss at Qwen2-VL-2B's vocabulary (151,936 words, hidden size 1,536), forward and backward.

    python -m xhs_pipeline_tests.benchmarks.answer_loss

A row of 2,048 tokens of which 512 are answers (posts with rationales, packed), float32, one thread, random weights:

    every position      logits of the whole row, as the library's own loss makes them
    answers at once     logits of the answers' positions
    answers in chunks   this project's loss: 64 MiB of logits at a time, computed again in the backward pass

Each way in a process of its own. MB: the peak during the loss, over what hidden states, head and libraries took before.
"""

import argparse
from collections.abc import Callable
from typing import Any

from xhs_pipeline.worker import run

WORDS, SIZE, TOKENS, ANSWERS = 151_936, 1_536, 2_048, 512
WAYS = ("every position", "answers at once", "answers in chunks")


def loss_memory(way: str, log: Callable[[str], None]) -> dict[str, Any]:
    """Peak MB over the start, CPU seconds, the loss and the norm of the gradient of the hidden states."""
    import time
    from pathlib import Path

    import torch

    from xhs_pipeline.training.loss import LOGITS_BYTES, answer_nll
    from xhs_pipeline.worker import _peak_memory_mb

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(SIZE, WORDS, bias=False).requires_grad_(False)
    head.weight.normal_(std=0.02, generator=generator)
    hidden = torch.randn(TOKENS, SIZE, generator=generator).requires_grad_()
    labels = torch.randint(WORDS, (TOKENS,), generator=generator)
    weights = torch.zeros(TOKENS).index_fill(0, torch.arange(TOKENS - ANSWERS, TOKENS), 1.0)
    (hidden[:2] @ head.weight[:4].T).sum().backward()  # the gradient's own memory is there before
    hidden.grad.zero_()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew here
    before, started = _peak_memory_mb(), time.process_time()
    chosen = torch.ones_like(weights, dtype=torch.bool) if way == "every position" else weights > 0
    chunk = LOGITS_BYTES // (4 * WORDS) if way == "answers in chunks" else TOKENS
    loss = answer_nll(hidden[chosen], labels[chosen], weights[chosen], head, chunk) / ANSWERS
    loss.backward()
    seconds = time.process_time() - started
    return {"mb": _peak_memory_mb() - before, "cpu": seconds, "loss": loss.item(), "norm": hidden.grad.norm().item()}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| way | peak MB | CPU s | loss | norm of the gradient |\n|---|---|---|---|---|")
    for way in WAYS:
        found = run("xhs_pipeline_tests.benchmarks.answer_loss:loss_memory", {"way": way})
        print(f"| {way} | {found['mb']:,} | {found['cpu']:.1f} | {found['loss']:.6f} | {found['norm']:.6f} |")


if __name__ == "__main__":
    main()
