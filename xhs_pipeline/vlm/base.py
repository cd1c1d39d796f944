"""Loading one checkpoint, the same way for the tiny model built here, a local folder and a hub snapshot."""

import re
from pathlib import Path
from typing import Any, Literal

from xhs_pipeline.artifacts import file_digest, read_json
from xhs_pipeline.profile import Profile
from xhs_pipeline.vlm.hub import fetch_checkpoint
from xhs_pipeline.vlm.layout import FILES, CheckpointError, check_checkpoint
from xhs_pipeline.vlm.processor import load_processor

# Vision tower and head stay at full precision. `["visual"]` alone would replace the library's default list, quantise
# lm_head and still quantise the vision tower; these two names do what they say.
NOT_QUANTISED = ["model.visual", "lm_head"]


def resolve_checkpoint(profile: Profile) -> Path | None:
    """The folder of the checkpoint that the profile names, or None when the profile asks for the model built here.

    Raises ValueError when the name is neither a folder nor a hub id, or could be both.
    """
    if profile.base_model == "tiny":
        return None
    folder = local_folder(profile)
    if folder is not None:
        return folder
    return fetch_checkpoint(profile.base_model, profile.base_revision, profile.base_hub)


def local_folder(profile: Profile) -> Path | None:
    """The folder that `base_model` names, or None when it is a hub id or 'tiny'. A path with a leading / . or ~ is a folder."""
    name = profile.base_model
    folder = Path(name).expanduser()
    if name == "tiny":
        return None
    if folder.is_absolute() or name.startswith("."):
        return folder.resolve()
    if folder.is_dir():
        if profile.base_revision:
            raise ValueError(
                f"base_model {name!r} is a folder here ({folder.resolve()}), and base_revision pins it as a hub id; write "
                f"./{name} for the folder, or run elsewhere for the hub"
            )
        return folder.resolve()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(
            f"base_model {name!r} is neither a folder under {Path.cwd()} nor a hub id (owner/name); give the folder's full path"
        )
    return None


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint folder, by name. Raises CheckpointError when there is no such folder."""
    if not folder.is_dir():
        raise CheckpointError(
            [f"{folder}: no such folder; expected a Qwen2-VL checkpoint, see base_model in the profile"]
        )
    return {path.name: file_digest(path) for pattern in FILES for path in sorted(folder.glob(pattern))}


def checkpoint_folder(base: Path) -> Path:
    """The checkpoint that a base_model artefact stands for: its own `model` folder, or the one it points to, unchecked."""
    return (base / read_json(base / "checkpoint.json")["folder"]).resolve()


def open_base(base: Path, profile: Profile) -> tuple[Path, Any]:
    """The checkpoint folder that a base_model artefact stands for, proven to be what was recorded, and its processor.

    What a hub's cache has lost since is fetched again. Raises ValueError listing every file whose content differs from the
    artefact's record, and when the profile's pixels are no longer those that the base was recorded with.
    """
    recorded = read_json(base / "checkpoint.json")
    other = [
        f"{name} {getattr(profile, name)} instead of {recorded[name]}"
        for name in ("min_pixels", "max_pixels")
        if getattr(profile, name) != recorded[name]
    ]
    if other:
        raise ValueError(
            f"{base / 'checkpoint.json'}: the profile says {', '.join(other)}; materialise base_model again, or set them back"
        )
    folder = checkpoint_folder(base)
    if recorded["hub"] and any(not (folder / name).is_file() for name in recorded["files"]):
        folder = fetch_checkpoint(recorded["name"], recorded["revision"], recorded["hub"])
    found = file_hashes(folder)
    changed = sorted(name for name in recorded["files"] if found.get(name) != recorded["files"][name])
    if changed:
        what = [f"{name} ({'changed' if name in found else 'missing'})" for name in changed]
        raise ValueError(
            f"{folder}: no longer what {base.name} recorded: {', '.join(what)}; put the files back, or materialise base_model again"
        )
    return folder, load_processor(folder, recorded["min_pixels"], recorded["max_pixels"])


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
            bnb_4bit_quant_storage=dtype if profile.distribution == "fsdp" else torch.uint8,
            llm_int8_skip_modules=NOT_QUANTISED,
        )
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, device_map={"": on or device()}, attn_implementation="sdpa", **options
    )
    patches_as_matrices(model)
    if quantization == "nf4":
        import bitsandbytes as bnb

        for module in model.modules():
            if isinstance(module, bnb.nn.Linear4bit):
                # On CPUs with AVX512-BF16 a forward without gradients repacks the 4-bit weights in place: training
                # afterwards fails, and merging is silently wrong.
                module.support_avx512bf16_for_cpu = False
    return model


def patches_as_matrices(model: Any) -> None:
    """Embed image patches by one matrix product instead of a 3-D convolution whose kernel covers its whole input.

    The same sums of products, so results differ by rounding only; the general convolution is much slower (benchmarks/scoring.md).
    """
    import torch

    embed = model.model.visual.patch_embed

    class PatchProduct(type(embed)):  # type: ignore[misc]
        def forward(self, hidden_states: Any) -> Any:
            weight = self.proj.weight
            return torch.nn.functional.linear(hidden_states.flatten(1).to(weight.dtype), weight.flatten(1))

    embed.__class__ = PatchProduct
