"""Loading one checkpoint, the same way for the tiny model built here, a local folder and a hub snapshot."""

import json
from pathlib import Path
from typing import Any, Literal

from xhs_pipeline.profile import Profile

# Vision tower and head stay at full precision. `["visual"]` alone would replace the library's default list, quantise
# lm_head and still quantise the vision tower; these two names do what they say.
NOT_QUANTISED = ["model.visual", "lm_head"]


def check_checkpoint(folder: Path) -> dict[str, Any]:
    """Read and check `config.json`, the list of weight files and their headers in a checkpoint folder.

    Raises ValueError naming the file, what it holds, what was expected and how to mend it: a wrong model type, a shard
    that the index names and the folder lacks, a shard that was cut short, or no safetensors at all.
    """
    from safetensors import SafetensorError, safe_open

    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ValueError(
            f"{config_file}: missing; expected a Qwen2-VL checkpoint folder (config.json, tokenizer, safetensors)"
        )
    config = _read_object(config_file)
    if config.get("model_type") != "qwen2_vl":
        raise ValueError(
            f"{config_file}: model_type is {config.get('model_type')!r}, expected 'qwen2_vl'; point base_model at a Qwen2-VL checkpoint"
        )
    index = folder / "model.safetensors.index.json"
    shards = ["model.safetensors"]
    if index.is_file():
        weight_map = _read_object(index).get("weight_map") or {}
        if not weight_map:
            raise ValueError(f"{index}: no weight_map; download or copy the checkpoint again")
        shards = sorted(set(weight_map.values()))
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder}: weight files missing: {', '.join(missing)}; download or copy the checkpoint again")
    for name in shards:
        try:
            with safe_open(folder / name, framework="np"):  # reads the header and compares it with the file's size
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{folder / name}: not a whole safetensors file ({error}); download or copy the checkpoint again"
            ) from error
    return {"model_type": config["model_type"], "shards": shards}


def _read_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not JSON ({error}); download or copy the checkpoint again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: a {type(found).__name__}, expected an object; download or copy the checkpoint again")
    return found


def resolve_checkpoint(profile: Profile) -> Path | None:
    """The folder of the checkpoint that the profile names, or None when the profile asks for the model built here."""
    if profile.base_model == "tiny":
        return None
    folder = Path(profile.base_model).expanduser()
    if folder.is_absolute() or profile.base_model.startswith("."):
        return folder.resolve()
    return fetch_checkpoint(profile.base_model, profile.base_revision)


def fetch_checkpoint(repo_id: str, revision: str) -> Path:
    """Download (or find in the hub cache) a pinned revision and return its local folder. Needs the network once.

    Raises ValueError when no revision is pinned: a model that moves under a name cannot be defended.
    """
    if not revision:
        raise ValueError(
            f"base_model {repo_id!r} needs base_revision (a commit of the repository); an unpinned model may change"
        )
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(repo_id, revision=revision, allow_patterns=["*.json", "*.jinja", "*.txt", "*.safetensors"])
    )


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(
    folder: Path, profile: Profile, quantization: Literal["nf4", "none"] = "none", on: str | None = None
) -> Any:
    """Load `folder` as Qwen2VLForConditionalGeneration, on the GPU when there is one.

    `quantization="nf4"` holds the language model's linears as 4-bit NF4 with double quantisation, as QLoRA trains them.
    """
    import torch
    from transformers import BitsAndBytesConfig, Qwen2VLForConditionalGeneration

    check_checkpoint(folder)
    dtype = torch.bfloat16 if profile.precision == "bf16" else torch.float32
    options: dict[str, Any] = {}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=NOT_QUANTISED,
        )
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, device_map={"": on or device()}, attn_implementation="sdpa", **options
    )
    if quantization == "nf4":
        import bitsandbytes as bnb

        for module in model.modules():
            if isinstance(module, bnb.nn.Linear4bit):
                # On CPUs with AVX512-BF16 a forward without gradients repacks the 4-bit weights in place: training
                # afterwards fails, and merging is silently wrong.
                module.support_avx512bf16_for_cpu = False
    return model
