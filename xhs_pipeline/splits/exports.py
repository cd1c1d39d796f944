"""What lies beside the splits for LLaMA-Factory and ms-swift: a description, the profile's training settings, and JSON on demand.
A user can train there and bring the adapter back.

The keys are those of LLaMA-Factory 0.9.5 and ms-swift 4.6; test_conformance.py has both parse them. What the two have no
setting for stands in the files as a comment.
"""

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import yaml

from xhs_pipeline.artifacts import write_json
from xhs_pipeline.posts.schema import open_parquet
from xhs_pipeline.profile import Profile
from xhs_pipeline.splits.grouping import SPLITS

SCHEDULES = {"constant": "constant_with_warmup"}  # transformers' names; its "constant" leaves the warm-up out
LLAMAFACTORY, MS_SWIFT = "llamafactory.yaml", "ms-swift.sh"
BASE_FOLDER = "base_model"  # stands for the tiny model's folder, which is built from these very splits
# How each calls the linear layers of the vision part: both look for a name at more places than we do.
_VISION = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
_BACK = """# Then set `adapter: /path/to/{output}` in the profile and materialise adapter, merged_model and what follows.
# Without a counterpart there:
#   augmentation, rationale_weight, class_weights, and the lower weight of suspected labels (label_issue_weight)
#   validation by the verdict's macro-F1: there by the loss, for the best checkpoint and for early stopping alike
#   checkpoints: there one at each validation, or at each epoch
#   pack_length: {pack}
#   a record of more than {length} tokens {long} there; here it loses images first, then is set aside
{more}"""


def write_exports(profile: Profile, work: Path) -> None:
    """Write llamafactory.yaml and ms-swift.sh beside the splits in `work`; their paths are relative to that folder."""
    (work / LLAMAFACTORY).write_text(_llamafactory_yaml(profile), encoding="utf-8")
    (work / MS_SWIFT).write_text(_ms_swift_sh(profile), encoding="utf-8")
    (work / MS_SWIFT).chmod(0o755)


def _llamafactory_yaml(profile: Profile) -> str:
    several = f"FORCE_TORCHRUN=1 NPROC_PER_NODE={profile.num_processes} " if profile.num_processes > 1 else ""
    notes = _notes(
        profile, "llamafactory_adapter", "is cut", "a pack there counts as one record of an update",
        "#   distribution fsdp: there a setting of accelerate's launcher, not of this file\n",
    )  # fmt: skip
    head = f"# In this folder: {several}llamafactory-cli train llamafactory.yaml [model_name_or_path=/path/to/checkpoint]\n"
    return head + notes + yaml.safe_dump(llamafactory(profile), sort_keys=False, allow_unicode=True)


def _notes(profile: Profile, output: str, long: str, pack: str, fsdp: str = "") -> str:
    more = fsdp if profile.distribution == "fsdp" and profile.num_processes > 1 else ""
    records, processes = profile.batch_size * profile.accumulation, profile.num_processes
    if records % processes:
        there = records // processes * processes
        more += f"#   {records} records an update on {processes} processes: there {there}\n"
    return _BACK.format(output=output, length=profile.max_length, long=long, pack=pack, more=more)


def llamafactory(profile: Profile) -> dict[str, Any]:
    """LLaMA-Factory's settings for the profile."""
    settings: dict[str, Any] = {
        "model_name_or_path": _base(profile),
        "model_revision": profile.base_revision or "main",
        "stage": "sft",
        "do_train": True,
        "template": "qwen2_vl",
        "dataset_dir": ".",
        "dataset": "xhs_train",
        "cutoff_len": profile.max_length,
        "image_min_pixels": profile.min_pixels,
        "image_max_pixels": profile.max_pixels,
        "finetuning_type": "lora",
        "lora_rank": profile.lora_rank,
        "lora_alpha": profile.lora_alpha,
        "lora_dropout": profile.lora_dropout,
        "lora_target": ",".join(_targets(profile)),
        "freeze_vision_tower": profile.lora_modules == "language",
        "freeze_multi_modal_projector": profile.lora_modules == "language",
        "output_dir": "llamafactory_adapter",
        "disable_gradient_checkpointing": not profile.gradient_checkpointing,
    }
    if profile.train_embeddings:
        settings["additional_target"] = "embed_tokens,lm_head"
    if profile.quantization == "nf4":
        settings |= {"quantization_bit": 4, "quantization_type": "nf4", "double_quantization": True}
    if profile.validation_share:
        settings |= {"eval_dataset": "xhs_validation", "load_best_model_at_end": True}
        if profile.early_stopping:
            settings["early_stopping_steps"] = profile.early_stopping  # validations, whatever the name says
    return settings | _trainer(profile)


def _ms_swift_sh(profile: Profile) -> str:
    head = (
        "#!/usr/bin/env bash\n# In this folder: [MODEL=/path/to/checkpoint] bash ms-swift.sh\n"
        + _notes(profile, "ms_swift_adapter/<run>/checkpoint-<step>", "is dropped", "packing there needs flash-attn")
        + "set -euo pipefail\n"
    )
    lines = [f"--{name} {_words(value)}" for name, value in ms_swift(profile).items()]
    environment = f"MIN_PIXELS={profile.min_pixels} MAX_PIXELS={profile.max_pixels}"
    if profile.num_processes > 1:
        environment += f" NPROC_PER_NODE={profile.num_processes}"
    model = f'--model "${{MODEL:-{_base(profile)}}}"'
    return head + f"{environment} swift sft \\\n  " + " \\\n  ".join([model, *lines, '"$@"']) + "\n"


def ms_swift(profile: Profile) -> dict[str, Any]:
    """ms-swift's settings for the profile, all but the model and the pixels, which it takes from the environment."""
    settings: dict[str, Any] = {
        "model_type": "qwen2_vl",
        "template": "qwen2_vl",
        "use_hf": profile.base_hub == "huggingface",
        "dataset": "train.parquet",
        "load_from_cache_file": False,
        "max_length": profile.max_length,
        "truncation_strategy": "delete",
        "tuner_type": "lora",
        "lora_rank": profile.lora_rank,
        "lora_alpha": profile.lora_alpha,
        "lora_dropout": profile.lora_dropout,
        "target_modules": _targets(profile),
        "freeze_vit": profile.lora_modules == "language",
        "freeze_aligner": profile.lora_modules == "language",
        "output_dir": "ms_swift_adapter",
        "torch_dtype": "bfloat16" if profile.precision == "bf16" else "float32",
        "gradient_checkpointing": profile.gradient_checkpointing,
    }
    if profile.base_revision:
        settings["model_revision"] = profile.base_revision
    if profile.train_embeddings:
        settings["modules_to_save"] = ["embed_tokens", "lm_head"]
    if profile.quantization == "nf4":
        settings |= {"quant_method": "bnb", "quant_bits": 4, "bnb_4bit_quant_type": "nf4"}
        settings["bnb_4bit_use_double_quant"] = True
    if profile.validation_share:
        settings["val_dataset"] = "validation.parquet"
        if profile.early_stopping:
            settings["early_stop_interval"] = profile.early_stopping
    if profile.distribution == "fsdp" and profile.num_processes > 1:
        settings["fsdp"] = "fsdp2"
        if profile.quantization == "nf4":
            settings["bnb_4bit_quant_storage"] = settings["torch_dtype"]
    return settings | _trainer(profile)


def _trainer(profile: Profile) -> dict[str, Any]:
    """What both pass on to transformers' TrainingArguments. Steps below 1 are shares of the run."""
    share = profile.batch_size * profile.accumulation // profile.num_processes  # of an update's records
    batch = math.gcd(profile.batch_size, share)
    settings: dict[str, Any] = {
        "use_rslora": profile.lora_rslora,
        "use_dora": profile.lora_dora,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": share // batch,
        "optim": {"adamw": "adamw_torch"}.get(profile.optimizer, profile.optimizer),
        "learning_rate": profile.learning_rate,
        "num_train_epochs": profile.epochs,
        "max_steps": profile.max_steps or -1,
        "lr_scheduler_type": SCHEDULES.get(profile.schedule, profile.schedule),
        "warmup_ratio": profile.warmup,
        "weight_decay": profile.weight_decay,
        "adam_beta2": profile.adam_beta2,
        "max_grad_norm": profile.max_grad_norm,
        "bf16": profile.precision == "bf16",
        "save_strategy": "epoch",
        "logging_steps": 10,
        "report_to": "none",
        "seed": profile.seed,
    }
    if profile.validation_share:
        settings |= {"metric_for_best_model": "loss", "eval_strategy": "epoch"}
        if profile.evaluations > 1:
            often = round(1 / profile.evaluations, 6)
            settings |= {"eval_strategy": "steps", "eval_steps": often, "save_strategy": "steps", "save_steps": often}
    if profile.num_processes > 1:
        settings["ddp_find_unused_parameters"] = profile.lora_modules == "all"
    return settings


def _targets(profile: Profile) -> list[str]:
    if profile.lora_modules == "language":
        return profile.lora_targets
    return [_VISION.get(name, name) for name in profile.lora_targets]


def _base(profile: Profile) -> str:
    name = profile.base_model
    if name.startswith(("/", ".", "~")):
        return str(Path(name).expanduser().resolve())
    return BASE_FOLDER if name == "tiny" else name


def _words(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(shlex.quote, value))
    return shlex.quote(str(value).lower() if isinstance(value, bool) else str(value))


def dataset_info(suffix: str, has_images: Mapping[str, bool]) -> dict[str, Any]:
    """LLaMA-Factory's description of the splits; `tags` is mandatory for role/content messages."""
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
    return {
        f"xhs_{name}": {
            "file_name": f"{name}{suffix}",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", **({"images": "images"} if has_images[name] else {})},
            "tags": tags,
        }
        for name in SPLITS
    }


def holds_images(file: Path) -> bool:
    lengths = (
        pc.list_value_length(b["images"]) for b in open_parquet(file).iter_batches(columns=["images"], batch_size=256)
    )
    return any((pc.max(length).as_py() or 0) > 0 for length in lengths)


def export_json(work: Path) -> None:
    """The same splits as JSON beside a folder of images, for tools that read no embedded bytes."""
    folder = work / "json"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    has_images = {}
    for name in SPLITS:
        rows = []
        for batch in open_parquet(work / f"{name}.parquet").iter_batches(columns=["messages", "images"], batch_size=64):
            for row in batch.to_pylist():
                for image in row["images"]:
                    (folder / "images" / image["path"]).write_bytes(image["bytes"])
                rows.append({"messages": row["messages"], "images": [f"images/{i['path']}" for i in row["images"]]})
        has_images[name] = any(row["images"] for row in rows)
        (folder / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    write_json(folder / "dataset_info.json", dataset_info(".json", has_images))
