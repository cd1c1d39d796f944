"""Merging an adapter into the full-precision base, shard by shard on the CPU. Whether the result is the same model: proof.py.

Memory holds one weight at a time, whatever the model's size: each shard is read, changed and written weight by weight, under
the base's own names, so that the merged folder has the layout the base was published in.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xhs_pipeline.artifacts import write_json
from xhs_pipeline.training.adapters import EMBEDDING, HEAD, WEIGHTS, Adapter, update_norms
from xhs_pipeline.vlm.layout import FILES, INDEX, module_name, read_header, shard_names


def merge(
    base: Path, adapter: Adapter, min_pixels: int, max_pixels: int, out: Path, log: Callable[[str], None]
) -> dict[str, Any]:
    """Write base + adapter into `out` as safetensors shards with the base's other files, its pixels set to the profile's.

    In float32 per weight: W + scaling * B @ A; with DoRA m * (W + scaling * B @ A) / |W + scaling * B @ A| by rows (as peft's
    merge does); rounded once to the dtype that the base stores. Returns counts and the norm of every module's update.
    """
    from safetensors import safe_open

    names = shard_names(base)
    held = {module_name(weight.name) for name in names for weight in _weights(base / name)}
    untied = _untied_head(held, adapter)
    with safe_open(adapter.folder / WEIGHTS, framework="pt") as tensors:
        for number, name in enumerate(names, 1):
            _merge_shard(base / name, out / name, adapter, tensors)
            log(f"merged_model: shard {number}/{len(names)}")
        if untied:
            _write_untied_head(base, out, adapter, tensors, names)
    for pattern in FILES:
        for file in base.glob(pattern):
            if file.suffix != ".safetensors" and not (out / file.name).exists():
                shutil.copy(file, out / file.name)
    if untied:
        _edit(out / "config.json", lambda config: config | {"tie_word_embeddings": False} | _text_untied(config))
    _edit(out / "preprocessor_config.json", lambda config: _with_pixels(config, min_pixels, max_pixels))
    norms = update_norms(adapter)
    return {
        "lora_modules": len(adapter.updates),
        "lora_tensors": adapter.tensors,
        "smallest_update_norm": min(norms.values()),
        "weights_changed": sum(_differing(base / name, out / name) for name in names),
        "weights_to_change": len(adapter.updates) + len(adapter.saved.keys() & held),
        "shards": len(list(out.glob("*.safetensors"))),
        "update_norms": norms,
    }


@dataclass(frozen=True)
class _Weight:
    """One entry of a safetensors header, and where its bytes lie."""

    name: str
    dtype: str
    shape: list[int]
    start: int
    size: int


def _weights(shard: Path) -> list[_Weight]:
    header, data = read_header(shard)
    entries = (
        _Weight(name, e["dtype"], e["shape"], data + e["data_offsets"][0], e["data_offsets"][1] - e["data_offsets"][0])
        for name, e in header.items()
    )
    return sorted(entries, key=lambda weight: weight.start)


def _torch_dtype(name: str) -> Any:
    import torch

    return {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}[name]


def _merge_shard(source: Path, target: Path, adapter: Adapter, tensors: Any) -> None:
    """Copy a shard, changing the weights that the adapter adapts or replaces."""
    import torch

    weights = _weights(source)

    def contents() -> Iterator[Any]:
        with source.open("rb") as file:
            for weight in weights:
                file.seek(weight.start)
                name = module_name(weight.name)
                module = name.removesuffix(".weight")
                if name in adapter.saved:
                    after = tensors.get_tensor(adapter.saved[name])
                elif module in adapter.updates:
                    content = bytearray(weight.size)
                    file.readinto(content)
                    before = torch.frombuffer(content, dtype=_torch_dtype(weight.dtype)).view(weight.shape)
                    after = _updated(before, adapter, module, tensors)
                else:
                    yield from (file.read(step) for step in _steps(weight.size))
                    continue
                if not after.isfinite().all():
                    raise ValueError(f"{adapter.folder}: {name} is not finite; train again with a lower learning rate")
                yield _bytes(after.to(_torch_dtype(weight.dtype)))

    _write_safetensors(target, weights, contents())


def _steps(size: int) -> list[int]:
    """Bytes to read at a time: an embedding that only passes through need not be in memory whole."""
    return [min(2**24, size - done) for done in range(0, size, 2**24)]


def _bytes(tensor: Any) -> Any:
    import torch

    return tensor.contiguous().view(torch.uint8).numpy().data


def _differing(before: Path, after: Path) -> int:
    """How many weights of two shards with the same names differ, read back from the files."""
    differing = 0
    with before.open("rb") as old, after.open("rb") as new:
        for one, other in zip(_weights(before), _weights(after), strict=True):
            old.seek(one.start)
            new.seek(other.start)
            differing += one.name != other.name or any(old.read(n) != new.read(n) for n in _steps(one.size))
    return differing


def _updated(before: Any, adapter: Adapter, module: str, tensors: Any) -> Any:
    """The merged weight in float32; see `merge` for the formula."""
    import torch

    update = adapter.updates[module]
    a, b = (tensors.get_tensor(key).float().flatten(1) for key in (update.a, update.b))
    after = torch.addmm(before.float().flatten(1), b, a, alpha=update.scaling)
    if update.magnitude is not None:
        magnitude = tensors.get_tensor(update.magnitude).float().flatten()
        after *= (magnitude / torch.linalg.norm(after, dim=1))[:, None]
    return after.view(before.shape)


def _write_safetensors(target: Path, weights: list[_Weight], contents: Iterator[Any]) -> None:
    """The safetensors format: header length in 8 little-endian bytes, JSON header padded with spaces to 8, then the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for weight in weights:
        header[weight.name] = {
            "dtype": weight.dtype, "shape": weight.shape, "data_offsets": [offset, offset + weight.size],
        }  # fmt: skip
        offset += weight.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for content in contents:
            file.write(content)


def _untied_head(held: set[str], adapter: Adapter) -> bool:
    """Whether embeddings and head, one tensor in the base, are two after this adapter: it trained both, or one alone."""
    from safetensors import safe_open

    ours = {name: key for name, key in adapter.saved.items() if name in (EMBEDDING, HEAD)}
    if HEAD in held or not ours:
        return False
    if len(ours) == 1:
        return not adapter.config.get("ensure_weight_tying")
    with safe_open(adapter.folder / WEIGHTS, framework="pt") as tensors:
        return not tensors.get_tensor(ours[EMBEDDING]).equal(tensors.get_tensor(ours[HEAD]))


def _write_untied_head(base: Path, out: Path, adapter: Adapter, tensors: Any, names: list[str]) -> None:
    """A shard of its own for the head that the base did not hold, and an index that names it."""
    place = {weight.name: name for name in names for weight in _weights(base / name)}
    source = next((base / place[n], n) for n in place if module_name(n) == EMBEDDING)
    like = next(w for w in _weights(source[0]) if w.name == source[1])
    if HEAD in adapter.saved:
        head = tensors.get_tensor(adapter.saved[HEAD]).to(_torch_dtype(like.dtype))
        content = _bytes(head)
    else:
        with source[0].open("rb") as file:
            file.seek(like.start)
            content = file.read(like.size)
    shard = "model-lm_head.safetensors"
    _write_safetensors(out / shard, [_Weight(HEAD, like.dtype, like.shape, 0, like.size)], iter([content]))
    total = sum(weight.size for name in names for weight in _weights(base / name)) + like.size
    write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": place | {HEAD: shard}})


def _text_untied(config: dict[str, Any]) -> dict[str, Any]:
    inner = config.get("text_config")
    return {"text_config": inner | {"tie_word_embeddings": False}} if inner else {}


def _with_pixels(config: dict[str, Any], smallest: int, largest: int) -> dict[str, Any]:
    """Both spellings where both stand: older versions read min_pixels and max_pixels, newer ones size."""
    size = {"size": {"shortest_edge": smallest, "longest_edge": largest}} if "size" in config else {}
    older = "min_pixels" in config or not size
    return config | size | ({"min_pixels": smallest, "max_pixels": largest} if older else {})


def _edit(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    write_json(file, change(json.loads(file.read_text(encoding="utf-8"))))
