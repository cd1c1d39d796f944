"""The training settings written for other trainers are the profile's; that those take them is test_conformance.py's."""

import subprocess
from pathlib import Path

import yaml

from xhs_pipeline.profile import Profile, load_profile
from xhs_pipeline.splits.exports import LLAMAFACTORY, MS_SWIFT, llamafactory, ms_swift, write_exports

PROFILE = load_profile("qwen2-vl-2b")


def test_both_files_say_what_the_profile_says(tmp_path: Path) -> None:
    write_exports(PROFILE, tmp_path)
    theirs = yaml.safe_load((tmp_path / LLAMAFACTORY).read_text(encoding="utf-8"))
    swift = ms_swift(PROFILE)
    same = {
        "learning_rate": PROFILE.learning_rate, "num_train_epochs": PROFILE.epochs, "seed": PROFILE.seed,
        "per_device_train_batch_size": PROFILE.batch_size, "gradient_accumulation_steps": PROFILE.accumulation,
        "lora_rank": PROFILE.lora_rank, "lora_alpha": PROFILE.lora_alpha, "lora_dropout": PROFILE.lora_dropout,
        "lr_scheduler_type": PROFILE.schedule, "warmup_ratio": PROFILE.warmup, "max_steps": -1, "bf16": True,
        "model_revision": PROFILE.base_revision,
    }  # fmt: skip
    for name, value in (same | {"use_rslora": False, "use_dora": False, "optim": "adamw_torch"}).items():
        assert theirs[name] == swift[name] == value, name
    assert theirs["model_name_or_path"] == PROFILE.base_model
    assert (theirs["cutoff_len"], swift["max_length"]) == (PROFILE.max_length, PROFILE.max_length)
    assert (theirs["image_min_pixels"], theirs["image_max_pixels"]) == (PROFILE.min_pixels, PROFILE.max_pixels)
    assert (theirs["quantization_bit"], swift["quant_bits"], swift["quant_method"]) == (4, 4, "bnb")
    assert theirs["lora_target"].split(",") == swift["target_modules"] == PROFILE.lora_targets
    assert "additional_target" not in theirs and "modules_to_save" not in swift


def test_the_tiny_profiles_own_settings_arrive_too(tmp_path: Path) -> None:
    tiny = load_profile("tiny", {"quantization": "none"})
    write_exports(tiny, tmp_path)
    theirs = yaml.safe_load((tmp_path / LLAMAFACTORY).read_text(encoding="utf-8"))
    assert theirs["additional_target"].split(",") == ms_swift(tiny)["modules_to_save"] == ["embed_tokens", "lm_head"]
    assert not {"quantization_bit", "quantization_type"} & theirs.keys() and "quant_bits" not in ms_swift(tiny)
    assert theirs["max_steps"] == tiny.max_steps and theirs["bf16"] is False


def test_the_script_is_one_command_that_a_shell_reads_as_meant(tmp_path: Path) -> None:
    write_exports(PROFILE.model_copy(update={"base_model": "/models/my base"}), tmp_path)
    shell = 'swift() { printf "%s\\n" "$MIN_PIXELS" "$MAX_PIXELS" "$@"; }; . ./ms-swift.sh'
    done = subprocess.run(
        ["bash", "-c", shell, "-", "--logging_steps", "1"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[:3] == [str(PROFILE.min_pixels), str(PROFILE.max_pixels), "sft"]
    assert words[words.index("--model") + 1] == "/models/my base"
    start = words.index("--target_modules") + 1
    assert words[start : start + 7] == PROFILE.lora_targets
    assert (tmp_path / MS_SWIFT).stat().st_mode & 0o100


def test_every_option_of_the_recipe_is_a_setting_there_or_named_as_one_that_has_none(tmp_path: Path) -> None:
    profile = Profile(
        **{
            **PROFILE.model_dump(), "lora_rslora": True, "lora_dora": True, "lora_modules": "all",
            "lora_targets": ["q_proj", "qkv", "proj", "fc1", "mlp.0"], "optimizer": "paged_adamw_8bit", "evaluations": 4,
            "early_stopping": 2, "num_processes": 2, "batch_size": 2, "accumulation": 3,
        }
    )  # fmt: skip
    write_exports(profile, tmp_path)
    text = (tmp_path / LLAMAFACTORY).read_text(encoding="utf-8")
    theirs, swift = yaml.safe_load(text), ms_swift(profile)
    for name, value in {
        "use_rslora": True, "use_dora": True, "optim": "paged_adamw_8bit", "eval_steps": 0.25, "save_steps": 0.25,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "ddp_find_unused_parameters": True,
        "metric_for_best_model": "loss",
    }.items():  # fmt: skip
        assert theirs[name] == swift[name] == value, name
    assert theirs["lora_target"].split(",") == ["q_proj", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.0"]
    assert theirs["lora_target"].split(",") == swift["target_modules"]
    assert not any((theirs["freeze_vision_tower"], theirs["freeze_multi_modal_projector"], swift["freeze_vit"]))
    assert theirs["early_stopping_steps"] == swift["early_stop_interval"] == 2
    script = (tmp_path / MS_SWIFT).read_text(encoding="utf-8")
    assert "FORCE_TORCHRUN=1 NPROC_PER_NODE=2 llamafactory-cli" in text and " NPROC_PER_NODE=2 swift sft" in script
    for file in (text, script):
        words = "".join(line for line in file.splitlines() if line.startswith("#"))
        without = ("augmentation", "rationale_weight", "class_weights", "label_issue_weight", "macro-F1", "pack_length")
        assert not [name for name in (*without, "checkpoints") if name not in words]


def test_sharded_training_is_exported_where_the_trainer_has_a_setting_for_it(tmp_path: Path) -> None:
    profile = PROFILE.model_copy(update={"num_processes": 3, "distribution": "fsdp"})
    write_exports(profile, tmp_path)
    swift, theirs = ms_swift(profile), (tmp_path / LLAMAFACTORY).read_text(encoding="utf-8")
    assert (swift["fsdp"], swift["bnb_4bit_quant_storage"]) == ("fsdp2", "bfloat16")
    assert "distribution fsdp: there a setting of accelerate's launcher" in theirs
    assert "8 records an update on 3 processes: there 6" in theirs


def test_without_validation_posts_nothing_is_validated_there() -> None:
    profile = PROFILE.model_copy(update={"validation_share": 0.0, "early_stopping": 2})
    for settings in (llamafactory(profile), ms_swift(profile)):
        assert not [name for name in settings if "eval" in name or "best" in name or "early" in name or "val_" in name]
        assert settings["save_strategy"] == "epoch"
