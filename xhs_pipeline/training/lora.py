"""Which parts of the model are trained: LoRA on named linear layers, and embeddings where the profile says."""

import re
from typing import Any

from xhs_pipeline.profile import Profile

# Where the parts lie in Qwen2VLForConditionalGeneration.
LANGUAGE, VISION = "language_model", "visual"


def available_targets(model: Any, part: str) -> dict[str, list[str]]:
    """Names that lora_targets may hold for `part` (LANGUAGE or VISION), each with the paths of its linear layers.

    A name is the last word of a path, with the word before it where the last is a number (mlp.0).
    """
    import torch

    names: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and part in (words := path.split(".")):
            names.setdefault(".".join(words[-2:]) if words[-1].isdigit() else words[-1], []).append(path)
    return names


def _target_pattern(model: Any, profile: Profile) -> str:
    """The layers to adapt, as a regular expression over their paths in which any number of a block will do, so that an
    adapter does not fit a deeper base without being noticed.

    Raises ValueError naming the layers there are when a target is none of them, or a part of the model would have none.
    """
    parts = {part: available_targets(model, part) for part in (LANGUAGE, VISION)[: 1 + (profile.lora_modules == "all")]}
    unknown = [name for name in profile.lora_targets if not any(name in names for names in parts.values())]
    idle = [part for part, names in parts.items() if not set(names) & set(profile.lora_targets)]
    if unknown or idle:
        there = "; ".join(f"{part}: {', '.join(sorted(names))}" for part, names in parts.items())
        wrong = f"{', '.join(unknown)} not in the model" if unknown else f"nothing of {', '.join(idle)}"
        raise ValueError(
            f"lora_targets with lora_modules: {profile.lora_modules} names {wrong}; expected of each of {there}"
        )
    paths = [path for names in parts.values() for name in profile.lora_targets for path in names.get(name, [])]
    return "|".join(sorted({re.sub(r"\\\.\d+(?=\\\.)", r"\\.\\d+", re.escape(path)) for path in paths}))


def lora_model(base: Any, profile: Profile) -> Any:
    """Wrap `base` with LoRA (rank-stabilised, or DoRA, where the profile says) and freeze all else but trained embeddings.

    Frozen weights keep their type: peft's own preparation for 4-bit bases would turn what is not quantised, the vision tower
    and the embeddings, from bfloat16 into float32, twice the memory. What is trained is float32. Raises ValueError for a target that the model lacks.
    """
    from peft import LoraConfig, get_peft_model

    base.requires_grad_(False)
    if profile.gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    config = LoraConfig(
        r=profile.lora_rank,
        lora_alpha=profile.lora_alpha,
        lora_dropout=profile.lora_dropout,
        use_rslora=profile.lora_rslora,
        use_dora=profile.lora_dora,
        target_modules=_target_pattern(base, profile),
        modules_to_save=["embed_tokens", "lm_head"] if profile.train_embeddings else None,
        ensure_weight_tying=profile.train_embeddings and base.config.tie_word_embeddings,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def trained_parts(model: Any) -> dict[str, Any]:
    """`adapted_modules` (paths) and `trainable_parameters` of a model that `lora_model` made, read off the model itself."""
    return {
        "adapted_modules": sorted(name for name, module in model.named_modules() if hasattr(module, "lora_A")),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
