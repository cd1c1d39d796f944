"""What lies beside the splits for LLaMA-Factory and ms-swift: a description, the profile's training settings, and JSON on demand.
A user can train there and bring the adapter back.

The keys are those of LLaMA-Factory 0.9.5 and ms-swift 4.6; test_conformance.py has both parse them. What the two have no
setting for stands in the files as a comment.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from xhs_pipeline.artifacts import write_json
from xhs_pipeline.profile import Profile
from xhs_pipeline.splits.grouping import SPLITS

LLAMAFACTORY, MS_SWIFT = "llamafactory.yaml", "ms-swift.sh"
BASE_FOLDER = "base_model"  # stands for the tiny model's folder, which is built from these very splits
_BACK = """# Then set `adapter: /path/to/{output}` in the profile and materialise adapter, merged_model and what follows.
# Not settings there: augmentation, rationale_weight, validation by macro-F1. A record of more than {length} tokens
# {long} there; here it loses images first, then is set aside."""


def write_exports(profile: Profile, work: Path) -> None:
    """Write llamafactory.yaml and ms-swift.sh beside the splits in `work`; their paths are relative to that folder."""
    (work / LLAMAFACTORY).write_text(_llamafactory_yaml(profile), encoding="utf-8")
    (work / MS_SWIFT).write_text(_ms_swift_sh(profile), encoding="utf-8")
    (work / MS_SWIFT).chmod(0o755)


def _llamafactory_yaml(profile: Profile) -> str:
    head = (
        "# In this folder: llamafactory-cli train llamafactory.yaml [model_name_or_path=/path/to/checkpoint]\n"
        + _BACK.format(output="llamafactory_adapter", length=profile.max_length, long="is cut")
        + "\n"
    )
    return head + yaml.safe_dump(llamafactory(profile), sort_keys=False, allow_unicode=True)


def llamafactory(profile: Profile) -> dict[str, Any]:
    """LLaMA-Factory's settings for the profile. It freezes the vision tower and the projector by default, as we do."""
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
        "lora_target": ",".join(profile.lora_targets),
        "output_dir": "llamafactory_adapter",
        "disable_gradient_checkpointing": not profile.gradient_checkpointing,
    }
    if profile.train_embeddings:
        settings["additional_target"] = "embed_tokens,lm_head"
    if profile.quantization == "nf4":
        settings |= {"quantization_bit": 4, "quantization_type": "nf4", "double_quantization": True}
    return settings | _trainer(profile)


def _ms_swift_sh(profile: Profile) -> str:
    head = (
        "#!/usr/bin/env bash\n# In this folder: [MODEL=/path/to/checkpoint] bash ms-swift.sh\n"
        + _BACK.format(output="ms_swift_adapter/<run>/checkpoint-<step>", length=profile.max_length, long="is dropped")
        + "\nset -euo pipefail\n"
    )
    lines = [f"--{name} {_words(value)}" for name, value in ms_swift(profile).items()]
    environment = f"MIN_PIXELS={profile.min_pixels} MAX_PIXELS={profile.max_pixels}"
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
        "target_modules": profile.lora_targets,
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
    return settings | _trainer(profile)


def _trainer(profile: Profile) -> dict[str, Any]:
    """What both pass on to transformers' TrainingArguments."""
    return {
        "per_device_train_batch_size": profile.batch_size,
        "gradient_accumulation_steps": profile.accumulation,
        "learning_rate": profile.learning_rate,
        "num_train_epochs": profile.epochs,
        "max_steps": profile.max_steps or -1,
        "lr_scheduler_type": profile.schedule,
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
        pc.list_value_length(b["images"]) for b in pq.ParquetFile(file).iter_batches(columns=["images"], batch_size=256)
    )
    return any((pc.max(length).as_py() or 0) > 0 for length in lengths)


def export_json(work: Path) -> None:
    """The same splits as JSON beside a folder of images, for tools that read no embedded bytes."""
    folder = work / "json"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    has_images = {}
    for name in SPLITS:
        rows = []
        for batch in pq.ParquetFile(work / f"{name}.parquet").iter_batches(
            columns=["messages", "images"], batch_size=64
        ):
            for row in batch.to_pylist():
                for image in row["images"]:
                    (folder / "images" / image["path"]).write_bytes(image["bytes"])
                rows.append({"messages": row["messages"], "images": [f"images/{i['path']}" for i in row["images"]]})
        has_images[name] = any(row["images"] for row in rows)
        (folder / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    write_json(folder / "dataset_info.json", dataset_info(".json", has_images))
