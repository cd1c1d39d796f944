"""The training settings written for other trainers are the profile's; that those take them is test_conformance.py's."""

import subprocess
from pathlib import Path

import yaml

from xhs_pipeline.profile import load_profile
from xhs_pipeline.splits.exports import LLAMAFACTORY, MS_SWIFT, ms_swift, write_exports

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
    for name, value in same.items():
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
