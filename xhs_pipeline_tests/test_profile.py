"""Profiles: what each machine size trains with, and what a wrong setting says."""

import re
from pathlib import Path

import dagster as dg
import pytest

from xhs_pipeline.policy import load_policy
from xhs_pipeline.profile import PROFILES_DIR, Profile, load_profile, profile_names, settings_of
from xhs_pipeline.resources import ProfileSettings, profile_resource
from xhs_pipeline.splits.conversation import render_prompt


@pytest.mark.parametrize("name", [path.stem for path in sorted(PROFILES_DIR.glob("*.yaml"))])
def test_every_profile_that_is_shipped_loads(name: str) -> None:
    profile = load_profile(name)
    assert name in profile_names()
    if profile.base_model != "tiny":  # a hub id may move under us unless a commit is named
        assert re.fullmatch(r"[0-9a-f]{40}", profile.base_revision)
    shares = profile.validation_share + profile.calibration_share + profile.test_share
    assert 0 < shares < 1


def test_the_three_promised_profiles_are_there() -> None:
    assert {"tiny", "qwen2-vl-2b", "qwen2-vl-7b"} <= set(profile_names())


def test_the_2b_profile_has_the_agreed_values() -> None:
    profile = load_profile("qwen2-vl-2b")
    assert profile.base_model == "Qwen/Qwen2-VL-2B-Instruct" and re.fullmatch(r"[0-9a-f]{40}", profile.base_revision)
    assert (profile.lora_rank, profile.lora_alpha, profile.lora_dropout) == (8, 16, 0.05)
    assert sorted(profile.lora_targets) == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    ]  # fmt: skip
    assert (profile.quantization, profile.learning_rate, profile.epochs) == ("nf4", 1e-4, 3)
    assert (profile.batch_size, profile.accumulation) == (1, 8)
    assert (profile.warmup, profile.max_grad_norm, profile.max_length) == (0.1, 1.0, 2048)
    assert (profile.precision, profile.gradient_checkpointing) == ("bf16", True)
    assert not profile.train_embeddings and profile.prompt == "full" and profile.rationale_weight == 1.0
    assert profile.augmentation == 0  # a real model reads real posts


def test_tiny_is_the_real_thing_in_small() -> None:
    profile = load_profile("tiny")
    assert (profile.base_model, profile.quantization, profile.train_embeddings) == ("tiny", "nf4", True)
    assert profile.prompt == "short" and profile.precision == "fp32"


def test_shipped_files_say_only_what_differs_by_machine_and_every_line_is_a_setting() -> None:
    for file in PROFILES_DIR.glob("*.yaml"):
        names = [line.split(":")[0] for line in file.read_text(encoding="utf-8").splitlines() if re.match(r"\w", line)]
        assert len(names) == len(set(names)) and set(names) <= set(Profile.model_fields), file.name


def test_overrides_lie_on_top_of_the_file() -> None:
    assert load_profile("qwen2-vl-2b", {"epochs": 1}) == load_profile("qwen2-vl-2b").model_copy(update={"epochs": 1})


def test_a_profile_of_ones_own_is_a_yaml_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base_model: /models/qwen\nlora_rank: 32\n")
    profile = load_profile(str(file))
    assert (profile.base_model, profile.lora_rank, profile.lora_alpha) == ("/models/qwen", 32, 16)


def test_an_unknown_profile_says_which_there_are() -> None:
    with pytest.raises(ValueError, match=r"XHS_PROFILE='qwen': no such profile; expected one of .*qwen2-vl-2b.*tiny"):
        load_profile("qwen")


def test_an_unknown_setting_says_which_and_the_allowed_ones(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base_model: tiny\nlora_rang: 8\nepoch: 3\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: unknown settings epoch, lora_rang; allowed: .*lora_rank"):
        load_profile(str(file))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("precision: fp16", r"precision='fp16'.*'bf16' or 'fp32'"),
        ("quantization: int8", r"quantization='int8'.*'nf4' or 'none'"),
        ("lora_rank: 0", r"lora_rank=0.*greater than or equal to 1"),
        ("epochs: many", r"epochs='many'.*integer"),
        ("train_quotas: {正常: viele}", r"train_quotas='viele'.*number"),
        ("test_share: 1.5", r"test_share=1\.5.*less than 1"),
    ],
)
def test_a_wrong_value_says_which_setting_and_what_is_allowed(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"base_model: tiny\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"mine\.yaml: {message}"):
        load_profile(str(file))


@pytest.mark.parametrize("text", ["- base_model: tiny\n", "base_model: [tiny\n", "just words"])
def test_a_file_that_is_no_list_of_settings_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.yaml"):
        load_profile(str(file))


def test_every_setting_can_be_overridden_in_the_launchpad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XHS_PROFILE", "qwen2-vl-2b")
    resource = profile_resource()
    assert isinstance(resource, ProfileSettings) and resource.resolve() == load_profile("qwen2-vl-2b")
    changed = type(resource)(epochs=1, train_quotas={"正常": 100}, prompt="short")
    assert changed.resolve() == load_profile(
        "qwen2-vl-2b", {"epochs": 1, "train_quotas": {"正常": 100}, "prompt": "short"}
    )
    with pytest.raises(dg.Failure, match="precision") as refused:
        type(resource)(precision="fp16").resolve()
    assert refused.value.allow_retries is False  # trying again cannot mend a setting


def test_a_setting_redoes_only_what_it_touches() -> None:
    tiny = load_profile("tiny")

    def changed_by(**override: object) -> set[str]:
        other = tiny.model_copy(update=override)
        stages = (
            "clean_posts", "label_issues", "sharegpt_splits", "base_model", "adapter", "merged_model", "evaluation_report",
        )  # fmt: skip
        return {stage for stage in stages if settings_of(tiny, stage) != settings_of(other, stage)}

    assert changed_by(json_export=True) == {"sharegpt_splits"}  # its files decide what follows
    # the configurations for other trainers lie beside the splits; an equal train.parquet still retrains nothing
    assert changed_by(learning_rate=1.0) == {"sharegpt_splits", "adapter", "merged_model"}
    assert changed_by(min_confidence=0.7) == {"evaluation_report"}  # a stricter decision trains nothing anew
    assert changed_by(score_batch_size=1, checkpoints=3) == {"merged_model"}  # neither changes what is learnt
    assert "adapter" not in changed_by(shard_size="1GB") and "base_model" in changed_by(shard_size="1GB")
    assert changed_by(ocr=True) == {"clean_posts", "sharegpt_splits", "adapter", "merged_model"}
    assert "clean_posts" not in changed_by(seed=1)
    assert changed_by(label_issues="exclude") == changed_by(label_issue_weight=0.5) == {"sharegpt_splits"}
    assert "sharegpt_splits" in changed_by(seed=1) and "adapter" in changed_by(seed=1)


def test_the_full_prompt_of_the_longest_post_the_platform_takes_stays_under_2500_characters() -> None:
    prompt = render_prompt("标" * 20, "文" * 1000, load_policy(), "full")
    assert len(prompt.system) + len(prompt.user) < 2500
    assert all(f"{c.name}（{c.description}）" in prompt.user for c in load_policy().categories)
    short = render_prompt("标题", "正文", load_policy(), "short")
    assert (short.system, short.user) == ("", "标题\n正文")
