"""Whether a merged folder is the adapter's model: verdicts and probabilities on probe posts, read back from the files."""

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xhs_pipeline.artifacts import CheckOutcome
from xhs_pipeline.policy import Policy
from xhs_pipeline.profile import Profile
from xhs_pipeline.vlm.batches import Example

# Two verdicts of 200 may differ under a limit of 0.99, one under 0.995, none under 0.999: fewer posts than 1 / (1 - limit)
# would turn "at least 0.995" into "not one".
PROBE_POSTS = 200
# Probabilities that the same mathematics gives in another order of rounding: in float32 the tests find less than 1e-4; bfloat16
# keeps 8 bits, so that sums differ by some of its steps of 2**-8 (0.004).
TOLERANCE = {"fp32": 1e-3, "bf16": 0.05}


def with_adapter(model: Any, adapter: Path) -> Any:
    """`model` with a stored adapter on it, as peft loads it."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(adapter))


def compare(
    base: Path,
    adapter: Path,
    merged: Path,
    probe: Sequence[Example],
    processor: Any,
    policy: Policy,
    profile: Profile,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Judge the probe posts three times, one model in memory at a time: merged, adapter on the full-precision base, and
    adapter on the base as it was trained on (4-bit where the profile says so).

    Returns the largest difference of a verdict's probability between the first two, and the shares of equal verdicts.
    """
    import torch

    from xhs_pipeline.vlm.base import load_model
    from xhs_pipeline.vlm.scoring import judge_examples

    def judged(name: str, load: Callable[[], Any]) -> tuple[list[str], Any]:
        log(f"merged_model: judging {len(probe)} probe posts with {name}")
        model = load()
        found = list(judge_examples(model, processor, policy, probe, profile.score_batch_size))
        del model
        gc.collect()  # the next one needs the room
        return [j.verdict for j in found], torch.tensor([list(j.verdict_probs.values()) for j in found])

    verdicts, probs = judged("the merged model", lambda: load_model(merged, profile))
    same_verdicts, same_probs = judged("the adapter", lambda: with_adapter(load_model(base, profile), adapter))
    trained_verdicts, _ = judged(
        "the training base", lambda: with_adapter(load_model(base, profile, profile.quantization), adapter)
    )

    def agreement(others: list[str]) -> float:
        return sum(a == b for a, b in zip(verdicts, others, strict=True)) / len(verdicts)

    return {
        "probe_posts": len(probe),
        "largest_probability_difference": float((probs - same_probs).abs().max()),
        "agreement_with_adapter": agreement(same_verdicts),
        "agreement_with_quantised_base": agreement(trained_verdicts),
    }


def merge_checks(counts: Mapping[str, Any], precision: str, limits: Mapping[str, float]) -> list[CheckOutcome]:
    """The proof as blocking checks, from what `merge` counted and `compare` measured."""
    posts, tolerance = counts["probe_posts"], TOLERANCE[precision]
    agreement, difference = counts["agreement_with_adapter"], counts["largest_probability_difference"]
    trained, changed = counts["agreement_with_quantised_base"], counts["weights_changed"]
    least, trained_least = limits["min_merge_agreement"], limits["min_training_base_agreement"]
    return [
        CheckOutcome(
            "adapter_applied",
            changed == counts["weights_to_change"],
            f"{counts['lora_tensors']} tensors in {counts['lora_modules']} modules matched, smallest update norm "
            f"{counts['smallest_update_norm']:.3g}; {changed} of {counts['weights_to_change']} weights of the base changed",
        ),
        CheckOutcome(
            "merged_equals_adapter",
            agreement >= least and difference <= tolerance,
            f"{agreement:.1%} of the verdicts on {posts} posts agree (at least {least:.1%}); "
            f"largest difference of a probability {difference:.2g} (at most {tolerance:g} in {precision})",
            {"agreement": agreement, "largest_difference": difference},
        ),
        CheckOutcome(
            "agrees_with_training_base",
            trained >= trained_least,
            f"{trained:.1%} of the verdicts on {posts} posts are those of the base as trained on (at least {trained_least:.1%})",
            {"agreement": trained},
        ),
    ]
