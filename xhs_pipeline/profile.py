"""A profile is every setting of one machine size, read from a flat YAML file; `XHS_PROFILE` names it.

Policy (what is allowed) lives in policy.yaml, and where data lives in resources.py; neither belongs here.
"""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

PROFILES_DIR = Path(__file__).with_name("profiles")


class Profile(BaseModel):
    """Resolved settings. Units: pixels, tokens, characters and optimiser steps as the names say; shares are of 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # posts
    ocr: bool = Field(False, description="read text and QR codes in images; needs pip install xhs-pipeline[ocr]")

    # base checkpoint
    base_model: str = Field(description="hub id, local folder, or 'tiny' to build the embedded model")
    base_revision: str = Field("", description="commit of the hub id (40 hex digits); required for a hub id")
    base_hub: Literal["huggingface", "modelscope"] = Field(
        "huggingface", description="where a hub id is fetched from; modelscope needs the extra of that name"
    )
    quantization: Literal["nf4", "none"] = Field("nf4", description="how the frozen base is held while training")

    # prompt
    prompt: Literal["full", "short"] = Field("full", description="full = instructions and category descriptions")
    text_head: int = Field(0, ge=0, description="characters kept from the start of a long text; 0 = never elide")
    text_tail: int = Field(0, ge=0, description="characters kept from its end")
    max_images: int = Field(9, ge=0, description="images per post; later ones are left out and recorded")
    min_pixels: int = Field(3136, ge=784, description="smallest image area the processor works with")
    max_pixels: int = Field(589824, ge=784, description="largest; 28 x 28 pixels are one token")
    max_length: int = Field(2048, ge=32, description="tokens of prompt and answer together")
    answer_length: int = Field(128, ge=1, description="of these, kept for the answer; the prompt never grows into them")

    # splits; what the three shares leave is train
    validation_share: float = Field(0.1, ge=0, lt=1)
    calibration_share: float = Field(0.05, ge=0, lt=1)
    test_share: float = Field(0.2, ge=0, lt=1)
    balance_by: Literal["category", "verdict"] = Field("category", description="what train_quotas counts")
    train_quotas: dict[str, float] = Field(
        default_factory=dict, description="posts per label in train ({正常: 15000}), or shares that sum to 1; {} = all"
    )
    label_issues: Literal["keep", "exclude", "down_weight"] = Field(
        "down_weight", description="what becomes of suspected labels in train; the other splits keep every post"
    )
    label_issue_weight: float = Field(
        0.3,
        gt=0,
        le=1,
        description="what a post with a suspected label counts in the loss under down_weight; 1 = as any other",
    )
    json_export: bool = Field(False, description="also write the splits as JSON with an image folder")

    # adapter
    adapter: str = Field("", description="folder of a peft adapter trained elsewhere, used instead of training one")
    lora_rank: int = Field(8, ge=1)
    lora_alpha: int = Field(16, ge=1)
    lora_dropout: float = Field(0.05, ge=0, lt=1)
    lora_rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead of alpha / rank")
    lora_dora: bool = Field(False, description="learn each weight's length apart from its direction; slower")
    lora_modules: Literal["language", "all"] = Field(
        "language", description="where lora_targets are looked for; all = also in the vision tower and its projector"
    )
    lora_targets: list[str] = Field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="names of linear layers; in the vision part: qkv, proj, fc1, fc2, mlp.0, mlp.2",
    )
    train_embeddings: bool = Field(False, description="also train embed_tokens and lm_head")

    # optimisation
    epochs: int = Field(3, ge=1)
    max_steps: int = Field(0, ge=0, description="optimiser steps at most; 0 = as many as the epochs take")
    batch_size: int = Field(1, ge=1, description="records that go through the model together, where not packed")
    accumulation: int = Field(
        8, ge=1, description="batch_size x accumulation records make one update, however computed"
    )
    pack_length: int = Field(
        0,
        ge=0,
        description="tokens of a row in which an update's records stand one after the other; 0 = padded batches",
    )
    optimizer: Literal["adamw", "paged_adamw_8bit"] = Field("adamw", description="the second needs a GPU")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced = every category counts alike in the loss, however rare"
    )
    learning_rate: float = Field(1e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(0.0, ge=0)
    adam_beta2: float = Field(0.999, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    rationale_weight: float = Field(
        1.0, ge=0, description="weight in the loss of a rationale's tokens; 1 = as the decision's"
    )
    augmentation: float = Field(0.0, ge=0, le=1, description="share of examples whose post text loses or turns tokens")
    evaluations: int = Field(3, ge=1, description="evenly spaced validations; the best one is kept")
    early_stopping: int = Field(
        0, ge=0, description="validations in a row without a new best that end the run; 0 = never"
    )
    checkpoints: int = Field(
        10, ge=1, description="evenly spaced saves: what a killed run loses is one interval at most"
    )
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: bool = True
    seed: int = 20260216

    # several processes, one a GPU; an update stays batch_size x accumulation records
    num_processes: int = Field(1, ge=1, description="on this machine")
    distribution: Literal["ddp", "fsdp"] = Field(
        "ddp", description="ddp = each process holds the whole model; fsdp = each holds a share of it (GPUs only)"
    )

    # scoring
    score_batch_size: int = Field(8, ge=1)
    min_confidence: float = Field(
        0.0, ge=0, le=1, description="a verdict less probable than this goes to human review; 0 = off"
    )
    evasion_posts: int = Field(
        200, ge=0, description="violating and as many harmless test posts that are judged in every disguise; 0 = none"
    )
    newest_week_posts: int = Field(
        2000, ge=0, description="posts of the newest week that the model in use is judged on before any are trained on"
    )
    shard_size: str = Field("2GB", description="largest file of the merged model")

    # the embedded model, used only where base_model is 'tiny'
    tiny_vocabulary: int = Field(4000, ge=600)
    tiny_hidden_size: int = Field(128, ge=32)
    tiny_layers: int = Field(2, ge=1)
    tiny_heads: int = Field(4, ge=1)
    tiny_vision_size: int = Field(96, ge=32)
    tiny_vision_depth: int = Field(2, ge=1)
    tiny_pretrain_epochs: int = Field(0, ge=0, description="language-model passes over the train split's texts")

    @model_validator(mode="after")
    def _leave_something_to_train_on(self) -> "Profile":
        held_out = self.validation_share + self.calibration_share + self.test_share
        if held_out >= 1:
            raise ValueError(
                f"validation, calibration and test share sum to {held_out:g}; expected less than 1, the rest is train"
            )
        return self

    @model_validator(mode="after")
    def _fit_together(self) -> "Profile":
        if self.answer_length >= self.max_length:
            raise ValueError(f"answer_length is {self.answer_length}, expected less than max_length {self.max_length}")
        if self.num_processes > self.batch_size * self.accumulation:
            raise ValueError(
                f"num_processes is {self.num_processes}, but an update has batch_size x accumulation = "
                f"{self.batch_size * self.accumulation} records; raise accumulation"
            )
        if self.num_processes > 1 and self.lora_modules == "all" and self.distribution == "fsdp":
            raise ValueError(
                "lora_modules is 'all' with distribution 'fsdp'; expected 'language', or 'ddp': processes that share out the "
                "weights exchange the gradients they have, and one whose records have no image has none for the vision tower"
            )
        return self


def profile_names() -> list[str]:
    """Names that `XHS_PROFILE` may take beside the path of a YAML file."""
    return sorted(path.stem for path in PROFILES_DIR.glob("*.yaml"))


def load_profile(name: str, overrides: dict[str, Any] | None = None) -> Profile:
    """Read profile `name` (a name in profiles/ or the path of a YAML file), with `overrides` on top.

    Raises ValueError naming the file, the setting, the value and the allowed ones.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PROFILES_DIR / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(
            f"XHS_PROFILE={name!r}: no such profile; expected one of {', '.join(profile_names())} or the path of a YAML file"
        )
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file in UTF-8: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{path}: a {type(read).__name__}, expected one `setting: value` a line")
    values = {**read, **(overrides or {})}
    unknown = sorted(map(str, set(values) - set(Profile.model_fields)))
    if unknown:
        raise ValueError(f"{path}: unknown settings {', '.join(unknown)}; allowed: {', '.join(Profile.model_fields)}")
    try:
        return Profile(**values)
    except ValidationError as error:
        problems = "; ".join(
            f"{e['loc'][0]}={e['input']!r}: {e['msg']}" if e["loc"] else e["msg"] for e in error.errors()
        )
        raise ValueError(f"{path}: {problems}") from error


# Which settings each artefact depends on, so that changing one redoes only what it touches.
_PROMPT = {"prompt", "text_head", "text_tail", "max_images", "ocr"}
_SPLITS = {
    "validation_share", "calibration_share", "test_share", "balance_by", "train_quotas", "label_issues", "label_issue_weight",
    "json_export",
}  # fmt: skip
_DECISIONS = {"min_confidence", "evasion_posts", "newest_week_posts"}  # nothing is trained or merged by them
# How often a run saves and how many posts it judges at once: nothing that it trains depends on them.
_PACE = {"checkpoints", "score_batch_size"}
_TINY = {name for name in Profile.model_fields if name.startswith("tiny_")}
# The configurations for other trainers lie beside the splits; later stages look at the posts' files only.
_EXPORTED = {
    "base_model", "base_revision", "base_hub", "quantization", "min_pixels", "max_pixels", "max_length", "lora_rank",
    "lora_alpha", "lora_dropout", "lora_rslora", "lora_dora", "lora_modules", "lora_targets", "train_embeddings", "epochs",
    "max_steps", "batch_size", "accumulation", "optimizer", "learning_rate", "schedule", "warmup", "weight_decay", "adam_beta2",
    "max_grad_norm", "evaluations", "early_stopping", "precision", "gradient_checkpointing", "num_processes",
    "distribution",
}  # fmt: skip
STAGE_SETTINGS: dict[str, set[str]] = {
    "clean_posts": {"ocr"},
    "label_issues": {"seed"},
    "sharegpt_splits": _PROMPT | _SPLITS | _EXPORTED | {"seed"},
    "base_model": {"base_model", "base_revision", "base_hub", "min_pixels", "max_pixels", "shard_size", "seed"} | _TINY,
    "adapter": set(Profile.model_fields) - _SPLITS - _TINY - _DECISIONS - _PACE - {"shard_size"},
    "merged_model": set(Profile.model_fields) - _SPLITS - _DECISIONS,
    "evaluation_report": _DECISIONS | {"seed"},
}


def settings_of(profile: Profile, stage: str) -> dict[str, Any]:
    """The values of `profile` that the artefact `stage` depends on."""
    return profile.model_dump(include=STAGE_SETTINGS[stage])
