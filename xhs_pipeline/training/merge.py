"""Merging an adapter into the full-precision base, on the CPU, with the proof that the result is the same model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xhs_pipeline.policy import Policy
from xhs_pipeline.profile import Profile
from xhs_pipeline.vlm.batches import Example


def check_adapter(adapter: Path, model: Any) -> dict[str, Any]:
    """Every tensor of the adapter file must have its place in `model` (a PeftModel), and every LoRA update must not be zero.

    The update's norm is |scaling * B @ A|, taken from the loaded modules. Raises ValueError listing all mismatches at once.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        stored = set(file.keys())
    expected = set(get_peft_model_state_dict(model))
    norms = {
        name: float((module.scaling["default"] * module.lora_B["default"].weight.float() @ module.lora_A["default"].weight.float()).norm())
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and "default" in getattr(module, "lora_A", {})
    }  # fmt: skip
    zero = sorted(name for name, norm in norms.items() if norm == 0)
    if stored != expected or not norms or zero:
        raise ValueError(
            f"{adapter}: does not fit its base. In the file only: {sorted(stored - expected)[:5]}; in the model only: "
            f"{sorted(expected - stored)[:5]}; modules whose update is zero: {zero[:5]}; adapted modules: {len(norms)}. "
            "Merge with the base the adapter was trained on"
        )
    return {"lora_modules": len(norms), "lora_tensors": len(stored), "smallest_update_norm": min(norms.values())}


def with_adapter(model: Any, adapter: Path) -> Any:
    """`model` with the adapter on it. Raises ValueError when the adapter's tensors have other shapes than the model's."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(adapter))
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        first = str(error).splitlines()[1].strip()
        raise ValueError(
            f"{adapter}: does not fit its base: {first} Merge with the base the adapter was trained on"
        ) from error


def merge(
    base: Path,
    adapter: Path,
    probe: Sequence[Example],
    processor: Any,
    policy: Policy,
    profile: Profile,
    out: Path,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write base + adapter as plain safetensors shards into `out`, and compare answers on the probe posts.

    Returns counts and, over `probe`: the largest difference of a verdict probability between the merged model (reloaded
    from `out`) and the adapter on the same full-precision base, and the share of equal verdicts with that and with the
    quantised training base. A merge into the quantised base loses quality, so that is only compared, never written.
    """
    import torch

    from xhs_pipeline.vlm.base import load_model
    from xhs_pipeline.vlm.processor import save_processor
    from xhs_pipeline.vlm.scoring import judge_examples

    def verdicts(model: Any) -> tuple[list[str], torch.Tensor]:
        judged = list(judge_examples(model, processor, policy, probe, profile.score_batch_size))
        return [j.verdict for j in judged], torch.tensor([list(j.verdict_probs.values()) for j in judged])

    trained_on = with_adapter(load_model(base, profile, profile.quantization, on="cpu"), adapter)
    quantised_verdicts, _ = verdicts(trained_on)
    del trained_on
    model = with_adapter(load_model(base, profile, on="cpu"), adapter)
    proof = check_adapter(adapter, model)
    adapter_verdicts, adapter_probs = verdicts(model)
    log(f"merged_model: merging {proof['lora_modules']} modules")
    merged = model.merge_and_unload(safe_merge=True)
    merged.save_pretrained(out, max_shard_size=profile.shard_size)
    save_processor(processor, out)
    del merged, model
    merged_verdicts, merged_probs = verdicts(load_model(out, profile, on="cpu"))

    def agreement(others: list[str]) -> float:
        return sum(a == b for a, b in zip(merged_verdicts, others, strict=True)) / max(len(others), 1)

    return proof | {
        "probe_posts": len(probe),
        "largest_probability_difference": float((merged_probs - adapter_probs).abs().max()) if len(probe) else 0.0,
        "agreement_with_adapter": agreement(adapter_verdicts),
        "agreement_with_quantised_base": agreement(quantised_verdicts),
        "shards": len(list(out.glob("*.safetensors"))),
    }
