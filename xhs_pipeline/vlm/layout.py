"""Whether a folder is a whole Qwen2-VL checkpoint in the published layout. Everything that is wrong is named at once.

Files, weights and their headers here; where a checkpoint comes from is base.py's, how posts become tokens is not known.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FILES = ("*.json", "*.jinja", "*.txt", "*.safetensors")  # what a checkpoint is made of; a README changes no model
AGAIN = "download or copy the checkpoint again"
# config.json's key for a token id: the token, and the id that transformers takes when the key is absent (Qwen2VLConfig)
TOKEN_IDS = {
    "vision_start_token_id": ("<|vision_start|>", 151652),
    "vision_end_token_id": ("<|vision_end|>", 151653),
    "image_token_id": ("<|image_pad|>", 151655),
    "video_token_id": ("<|video_pad|>", 151656),
}
TURN_TOKENS = ("<|im_start|>", "<|im_end|>")


class CheckpointError(ValueError):
    """What keeps a folder from being used: one line that names every problem and its remedy."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__(" | ".join(problems))


def module_name(published: str) -> str:
    """The name that today's model gives a weight or module which a checkpoint or an adapter may call by its older name.

    Qwen2-VL was published as `model.layers...` and `visual...`; since transformers 4.52 the modules are
    `model.language_model.layers...` and `model.visual...` (the published files kept the older names).
    """
    if published.startswith("visual."):
        return f"model.{published}"
    return re.sub(r"^model\.(?!language_model\.|visual\.)", "model.language_model.", published)


def shard_names(folder: Path) -> list[str]:
    """The weight files that the folder's index names, or the single one."""
    if not (folder / INDEX).is_file():
        return [SINGLE]
    weight_map = _read_object(folder / INDEX).get("weight_map") or {}
    if not weight_map:
        raise CheckpointError([f"{folder / INDEX}: no weight_map; {AGAIN}"])
    return sorted(set(weight_map.values()))


def read_header(shard: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's header (name -> dtype, shape, data_offsets; metadata left out) and where its data begins."""
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Module names (see `module_name`) and shapes of all weights of a checked folder, from the headers alone."""
    return {
        module_name(name): tuple(entry["shape"])
        for shard in shard_names(folder)
        for name, entry in read_header(folder / shard)[0].items()
    }


def check_checkpoint(folder: Path) -> list[str]:
    """Check `config.json`, the weight files and every weight's name and shape; returns the names of the weight files.

    Raises CheckpointError naming each file, what it holds, what was expected and how to mend it.
    """
    problems, shards = _config_problems(folder), []
    try:
        shards = shard_names(folder)
    except CheckpointError as error:
        problems += error.problems
    problems += _shard_problems(folder, shards)
    if not problems:
        problems = _weight_problems(folder)
    if problems:
        raise CheckpointError(problems)
    return shards


def _config_problems(folder: Path) -> list[str]:
    file = folder / "config.json"
    if not folder.is_dir() or not file.is_file():
        return [f"{file}: missing; expected a Qwen2-VL checkpoint folder (config.json, tokenizer, safetensors)"]
    try:
        found = _read_object(file).get("model_type")
    except CheckpointError as error:
        return error.problems
    if found != "qwen2_vl":
        return [f"{file}: model_type is {found!r}, expected 'qwen2_vl'; point base_model at a Qwen2-VL checkpoint"]
    return []


def _shard_problems(folder: Path, shards: list[str]) -> list[str]:
    from safetensors import SafetensorError, safe_open

    missing = [name for name in shards if not (folder / name).is_file()]
    problems = [f"{folder}: weight files missing: {', '.join(missing)}; {AGAIN}"] if missing else []
    held: dict[str, str] = {}
    for name in sorted(set(shards) - set(missing)):
        try:
            with safe_open(folder / name, framework="np") as file:  # compares the header with the file's size
                held |= dict.fromkeys(file.keys(), name)
        except SafetensorError as error:
            problems.append(f"{folder / name}: not a whole safetensors file ({error}); {AGAIN}")
    if problems or not (folder / INDEX).is_file():
        return problems
    named: dict[str, str] = _read_object(folder / INDEX)["weight_map"] if shards else {}
    misplaced = sorted(key for key in named | held if named.get(key) != held.get(key))
    if misplaced:
        return [f"{folder / INDEX}: {_some(misplaced)} lie elsewhere than the index says; {AGAIN}"]
    return []


def _weight_problems(folder: Path) -> list[str]:
    """Weights against the model that config.json describes, built without memory on torch's meta device."""
    import torch
    from transformers import AutoConfig, Qwen2VLForConditionalGeneration

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        expected = {k: tuple(v.shape) for k, v in Qwen2VLForConditionalGeneration(config).state_dict().items()}
    found = weight_shapes(folder)
    optional = {"lm_head.weight"} if config.tie_word_embeddings else set()
    missing, unknown = sorted(expected.keys() - found.keys() - optional), sorted(found.keys() - expected.keys())
    problems = []
    if missing:  # transformers would fill them with random numbers and only warn
        problems.append(f"{folder}: weights missing that config.json calls for: {_some(missing)}; {AGAIN}")
    if unknown:
        problems.append(f"{folder}: weights that a Qwen2-VL of this config.json has not: {_some(unknown)}; {AGAIN}")
    other = [f"{k} {found[k]} instead of {expected[k]}" for k in sorted(found) if found[k] != expected.get(k, found[k])]
    if other:
        problems.append(f"{folder}: weights of another shape than config.json says: {_some(other)}; {AGAIN}")
    return problems


def processor_problems(folder: Path, tokenizer: Any, image_processor: Any, template: str | None) -> list[str]:
    """What in tokenizer, chat template and image preprocessing does not belong to the model of `folder`'s config.json."""
    file = folder / "config.json"
    config = _read_object(file) if file.is_file() and not _config_problems(folder) else {}
    vision, text = config.get("vision_config") or {}, config.get("text_config") or config
    lacking = [t for t in (*TURN_TOKENS, *(t for t, _ in TOKEN_IDS.values())) if not _one_id(tokenizer, t)]
    problems = []
    if lacking:
        problems.append(
            f"{folder}: the tokenizer lacks {', '.join(lacking)}; it does not belong to a Qwen2-VL checkpoint, copy the "
            "checkpoint's own tokenizer files"
        )
    for key, (token, published) in TOKEN_IDS.items():
        wanted, has = config.get(key, published), tokenizer.convert_tokens_to_ids(token)
        if config and token not in lacking and has != wanted:
            problems.append(
                f"{file}: {key} is {wanted}, but the tokenizer's {token} is {has}; copy config.json and the tokenizer "
                "files from one checkpoint"
            )
    rows, size = text.get("vocab_size"), max(tokenizer.get_vocab().values()) + 1
    if rows and size > rows:
        problems.append(f"{file}: vocab_size is {rows}, but the tokenizer has ids up to {size - 1}; copy both from one")
    for ours, theirs, published in (
        ("patch_size", "patch_size", 14),
        ("merge_size", "spatial_merge_size", 2),
        ("temporal_patch_size", "temporal_patch_size", 2),
    ):
        has, wanted = getattr(image_processor, ours), vision.get(theirs, published)
        if config and has != wanted:
            problems.append(
                f"{folder / 'preprocessor_config.json'}: {ours} is {has}, but config.json's vision_config.{theirs} is "
                f"{wanted}; copy both from one checkpoint"
            )
    return problems + ([] if lacking else _template_problems(folder, tokenizer, template))


def _one_id(tokenizer: Any, token: str) -> bool:
    return tokenizer.convert_tokens_to_ids(token) not in (None, tokenizer.unk_token_id)


def _template_problems(folder: Path, tokenizer: Any, template: str | None) -> list[str]:
    """A conversation with one picture must come out with its text and one picture between its two marks."""
    if template is None:
        return [f"{folder}: no chat template (chat_template.jinja or chat_template.json); copy the checkpoint's own"]
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "正文"}]}]
    said = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=True)
    if "<|vision_start|><|image_pad|><|vision_end|>正文" in said:
        return []
    return [
        f"{folder}: the chat template leaves out pictures or text; copy the checkpoint's own chat_template.jinja or .json"
    ]


def processor_file_problems(folder: Path) -> list[str]:
    """What keeps tokenizer and image preprocessing from being read at all: files missing, or not JSON."""
    problems = _config_problems(folder)
    missing = [name for name in ("preprocessor_config.json", "tokenizer_config.json") if not (folder / name).is_file()]
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        missing.append("tokenizer.json")
    if missing:
        problems.append(
            f"{folder}: {', '.join(missing)} missing; expected the published layout of a Qwen2-VL checkpoint"
        )
    for file in sorted(folder.glob("*.json")):
        try:
            _read_object(file)
        except CheckpointError as error:
            problems += error.problems
    return list(dict.fromkeys(problems))


def _read_object(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError([f"{file}: not JSON ({error}); {AGAIN}"]) from error
    if not isinstance(found, dict):
        raise CheckpointError([f"{file}: a {type(found).__name__}, expected an object; {AGAIN}"])
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
