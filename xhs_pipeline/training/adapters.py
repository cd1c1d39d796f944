"""Reading a peft LoRA folder, trained here, in LLaMA-Factory or in ms-swift, and fitting it to a base by names and shapes.

Only safetensors are read. What the names mean stands here; the arithmetic of merging is merge.py's.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xhs_pipeline.artifacts import Artifact, ArtifactStore, file_digest
from xhs_pipeline.vlm.layout import module_name, weight_shapes

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
REMEDY = "Merge with the base the adapter was trained on"
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B|magnitude_vector)(?:\.default)?(?:\.weight)?")
_SAVED = re.compile(r"(?P<module>.+?)(?:\.modules_to_save(?:\.default)?)?\.(?P<kind>weight|bias)")
# Settings of peft.LoraConfig that make an update something else than scaling * B @ A on a linear layer (or DoRA's form of it).
_UNSUPPORTED = (
    "fan_in_fan_out", "lora_bias", "layer_replication", "target_parameters", "trainable_token_indices", "use_qalora", "use_bdlora",
    "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Update:
    """One adapted module's tensors by their keys in the file, and what scales them (alpha / r, or alpha / sqrt(r) with rsLoRA)."""

    a: str
    b: str
    magnitude: str | None
    rank: int
    scaling: float


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits its base: updates by module name, and whole weights that replace the base's by weight name."""

    folder: Path
    config: dict[str, Any]
    updates: dict[str, Update]
    saved: dict[str, str]

    @property
    def tensors(self) -> int:
        return sum(2 + (u.magnitude is not None) for u in self.updates.values()) + len(self.saved)


def read_adapter(folder: Path, base: Path) -> Adapter:
    """Read `folder` and fit it to the checkpoint folder `base`, whatever version of the library named its modules.

    Raises ValueError naming at once: pickled weights, another task or kind of adapter, tensors that have no place in the base or
    another shape than it, modules that the adapter's own target_modules names and the file lacks, and updates that are zero.
    """
    config = _read_config(folder)
    _refuse(folder, _config_problems(config))
    shapes = weight_shapes(base)
    stored = _stored_shapes(folder)
    parts, saved, unknown = _sort_out(stored, shapes)
    problems = [f"tensors without a place in the base: {_some(unknown)}"] if unknown else []
    updates: dict[str, Update] = {}
    for module, found in sorted(parts.items()):
        wrong = _misfit(module, found, stored, shapes)
        if wrong:
            problems.append(wrong)
            continue
        rank = stored[found["A"]][0]
        alpha = float(_pattern(config.get("alpha_pattern"), module, config["lora_alpha"]))
        scaling = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
        updates[module] = Update(found["A"], found["B"], found.get("magnitude_vector"), rank, scaling)
    for name, key in sorted(saved.items()):
        in_base = shapes[name if name in shapes else EMBEDDING]
        if stored[key] != in_base:
            problems.append(f"{name} is {stored[key]} in the file and {in_base} in the base")
    lacking = sorted(_promised(config, shapes, stored) - parts.keys())
    if lacking:
        problems.append(f"modules that its target_modules names and the file lacks: {_some(lacking)}")
    if not parts:
        problems.append("no LoRA tensors")
    _refuse(folder, problems)
    adapter = Adapter(folder, config, updates, saved)
    zero = sorted(name for name, norm in update_norms(adapter).items() if norm == 0)
    _refuse(folder, [f"modules whose update is zero: {_some(zero)}"] if zero else [])
    return adapter


def update_norms(adapter: Adapter) -> dict[str, float]:
    """|scaling * B @ A| (Frobenius) per module, without forming the product: the sum of (B'B) * (AA') is its square."""
    from safetensors import safe_open

    norms = {}
    with safe_open(adapter.folder / WEIGHTS, framework="pt") as file:
        for module, update in adapter.updates.items():
            a, b = (file.get_tensor(key).double().flatten(1) for key in (update.a, update.b))
            square = float(((b.T @ b) * (a @ a.T)).sum())
            norms[module] = update.scaling * max(square, 0.0) ** 0.5
    return norms


def import_adapter(
    adapter: str, base: str, profile: dict[str, Any], work: str, log: Callable[[str], None]
) -> dict[str, Any]:
    """adapter, when the profile names a folder instead of training: check it against the base and store it in our names.

    Raises ValueError as `read_adapter` does.
    """
    from xhs_pipeline.profile import Profile
    from xhs_pipeline.vlm.base import open_base

    checkpoint, _ = open_base(Path(base), Profile(**profile))
    found = read_adapter(Path(adapter).expanduser().resolve(), checkpoint)
    save_in_our_names(found, Path(work))
    log(f"adapter: {len(found.updates)} modules from {found.folder}, trained elsewhere")
    return {"lora_modules": len(found.updates), "lora_tensors": found.tensors, "trained_elsewhere": str(found.folder)}


def splits_trained_on(adapter: Artifact, store: ArtifactStore) -> Artifact | None:
    """The splits that a stored adapter was trained on; None for one from elsewhere, which lies beside splits it has not seen.

    Raises FileNotFoundError where they are gone.
    """
    if "trained_elsewhere" in adapter.manifest["counts"]:
        return None
    return store.get("sharegpt_splits", adapter.manifest["lineage"]["sharegpt_splits"])


def folder_digest(adapter: Path) -> dict[str, str]:
    """SHA-256 of the two files that an adapter folder is. Raises ValueError when one is missing."""
    _read_config(adapter)
    return {name: file_digest(adapter / name) for name in (CONFIG, WEIGHTS)}


def save_in_our_names(adapter: Adapter, out: Path) -> None:
    """Write the adapter as peft writes it for today's module names, its targets listed one by one."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter.folder / WEIGHTS)
    named: dict[str, Any] = {}
    for module, update in adapter.updates.items():
        stem = f"base_model.model.{module}.lora_"
        named |= {f"{stem}A.weight": tensors[update.a], f"{stem}B.weight": tensors[update.b]}
        if update.magnitude:
            named[f"{stem}magnitude_vector"] = tensors[update.magnitude]
    named |= {f"base_model.model.{name}": tensors[key] for name, key in adapter.saved.items()}
    save_file({name: t.contiguous() for name, t in named.items()}, out / WEIGHTS, metadata={"format": "pt"})
    rank, alpha = adapter.config["r"], adapter.config["lora_alpha"]
    alphas = {m: _pattern(adapter.config.get("alpha_pattern"), m, alpha) for m in adapter.updates}
    config = adapter.config | {
        "target_modules": sorted(adapter.updates),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {m: u.rank for m, u in adapter.updates.items() if u.rank != rank},
        "alpha_pattern": {m: a for m, a in alphas.items() if a != alpha},
        "modules_to_save": sorted({name.rpartition(".")[0] for name in adapter.saved}) or None,
        "base_model_name_or_path": None,  # the path of another machine; the manifest says which base this was fitted to
    }
    (out / CONFIG).write_text(json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True), encoding="utf-8")


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder / CONFIG}: missing; expected the folder that peft's save_pretrained wrote")
    if not (folder / WEIGHTS).is_file():
        pickled = sorted(path.name for path in folder.glob("adapter_model.*"))
        hint = f"found {', '.join(pickled)}, and pickles are not loaded; " if pickled else ""
        raise ValueError(
            f"{folder / WEIGHTS}: missing; {hint}save the adapter as safetensors: model.save_pretrained(folder, safe_serialization=True)"
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / CONFIG}: not JSON ({error}); copy the adapter again") from error
    return dict(config)


def _config_problems(config: Mapping[str, Any]) -> list[str]:
    problems = []
    if config.get("peft_type") != "LORA":
        problems.append(f"{CONFIG}: peft_type is {config.get('peft_type')!r}, expected 'LORA'; train a LoRA adapter")
    if config.get("task_type") not in ("CAUSAL_LM", None):
        problems.append(
            f"{CONFIG}: task_type is {config['task_type']!r}, expected 'CAUSAL_LM'; train it as a language model"
        )
    if config.get("bias", "none") != "none":
        problems.append(f"{CONFIG}: bias is {config['bias']!r}, expected 'none'; train without biases")
    used = [name for name in _UNSUPPORTED if config.get(name)]
    if used:
        problems.append(
            f"{CONFIG}: {', '.join(used)} set, and only plain LoRA, rsLoRA and DoRA on linear layers merge here"
        )
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(_CHANGES_THE_BASE):
        problems.append(
            f"{CONFIG}: init_lora_weights is {start!r}, which changed the base while training; save it with "
            "path_initial_model_for_weight_conversion, which turns it into a plain LoRA"
        )
    return problems


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, framework="np") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no iterator
    except SafetensorError as error:
        raise ValueError(
            f"{folder / WEIGHTS}: not a whole safetensors file ({error}); copy the adapter again"
        ) from error


def _sort_out(
    stored: Mapping[str, Any], shapes: Mapping[str, Any]
) -> tuple[dict[str, dict[str, str]], dict[str, str], list[str]]:
    """LoRA parts by module, whole weights by name, and keys that are neither, all in today's names."""
    parts: dict[str, dict[str, str]] = {}
    saved: dict[str, str] = {}
    unknown = []
    for key in stored:
        name = key.removeprefix("base_model.model.")
        lora, whole = _LORA.fullmatch(name), _SAVED.fullmatch(name)
        if lora:
            parts.setdefault(module_name(lora["module"]), {})[lora["part"]] = key
        elif whole and _is_weight(module_name(f"{whole['module']}.{whole['kind']}"), shapes):
            saved[module_name(f"{whole['module']}.{whole['kind']}")] = key
        else:
            unknown.append(key)
    return parts, saved, sorted(unknown)


def _is_weight(name: str, shapes: Mapping[str, Any]) -> bool:
    return name in shapes or name == HEAD  # which a checkpoint with tied embeddings does not hold


def _misfit(
    module: str, found: Mapping[str, str], stored: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> str:
    """Why a module's tensors do not fit the base, or nothing."""
    if not {"A", "B"} <= found.keys():
        return f"{module}: lora_{'B' if 'A' in found else 'A'} is missing"
    a, b, weight = stored[found["A"]], stored[found["B"]], shapes.get(f"{module}.weight")
    if weight is None:
        return f"{module}: the base has no such module"
    rank, (rows, columns) = a[0], _flat(weight)  # a convolution's kernel is a matrix with its other sides in one
    fits = _flat(a) == (rank, columns) and _flat(b) == (rows, rank)
    if "magnitude_vector" in found:
        fits = fits and math.prod(stored[found["magnitude_vector"]]) == rows
    return "" if fits else f"{module}: A {a} and B {b} do not fit the base's weight {weight}"


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value that peft's rank_pattern or alpha_pattern gives a module, whichever version's name the pattern was written for."""
    from peft.utils.other import get_pattern_key

    for name in (module, _older_name(module)):
        found = get_pattern_key(list(patterns or {}), name)
        if patterns and found in patterns:
            return patterns[found]
    return default


def _older_name(module: str) -> str:
    """The reverse of layout.module_name: how transformers before 4.52 called the module."""
    return (
        module.replace("model.language_model.", "model.", 1)
        if "language_model" in module
        else module.removeprefix("model.")
    )


def _promised(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, Any]) -> set[str]:
    """Modules that peft would have adapted for this config: its own rule, on the names that the file's keys show."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    fields = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern")
    kept: dict[str, Any] = {name: config.get(name) for name in fields}
    rule = LoraConfig(**kept)
    if rule.target_modules in (None, "all-linear"):
        return set()  # peft saves the names that it found instead
    newer = any("model.language_model." in key or "model.model.visual." in key for key in stored)
    adaptable = [
        name.removesuffix(".weight") for name, shape in shapes.items() if name.endswith(".weight") and len(shape) > 1
    ]
    return {
        m
        for m in adaptable
        if "embed_tokens" not in m and check_target_module_exists(rule, m if newer else _older_name(m))
    }


def _refuse(folder: Path, problems: list[str]) -> None:
    if problems:
        raise ValueError(f"{folder}: does not fit its base: {'; '.join(problems)}. {REMEDY}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
