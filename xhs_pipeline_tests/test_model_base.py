"""One loading code for the embedded model, a local folder and a hub snapshot; what is wrong is named with its file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xhs_pipeline.artifacts import file_digest, read_json
from xhs_pipeline.profile import Profile, load_profile
from xhs_pipeline.training.stages import build_base, train_adapter
from xhs_pipeline.vlm.base import checkpoint_folder, load_model, resolve_checkpoint
from xhs_pipeline.vlm.batches import pad, tokenise
from xhs_pipeline.vlm.layout import check_checkpoint
from xhs_pipeline.vlm.processor import load_processor
from xhs_pipeline_tests.small import PROFILE, conversation, jpeg

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


def quiet(line: str) -> None:
    pass


@pytest.fixture
def copy(small_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint folder that a test may change."""
    return Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))


def build(base_model: str, splits: Path, out: Path, **changes: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    profile = PROFILE.model_copy(update={"base_model": base_model, **changes})
    return build_base(str(splits), profile.model_dump(), str(out), quiet)


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, **changes}), encoding="utf-8")


def publish_like_the_hub(folder: Path) -> None:
    """Change a checkpoint into the files and keys that Qwen2-VL-2B-Instruct publishes, at its own size."""
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
                "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
                "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
            }
        )
    )  # fmt: skip
    ours = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text, vision = ours["text_config"], ours["vision_config"]
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["Qwen2VLForConditionalGeneration"], "attention_dropout": 0.0,
                "bos_token_id": text["bos_token_id"], "eos_token_id": text["eos_token_id"],
                "vision_start_token_id": ours["vision_start_token_id"], "vision_end_token_id": ours["vision_end_token_id"],
                "vision_token_id": ours["video_token_id"] - 2, "image_token_id": ours["image_token_id"],
                "video_token_id": ours["video_token_id"], "hidden_act": "silu", "hidden_size": text["hidden_size"],
                "initializer_range": 0.02, "intermediate_size": text["intermediate_size"],
                "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2_vl",
                "num_attention_heads": text["num_attention_heads"], "num_hidden_layers": text["num_hidden_layers"],
                "num_key_value_heads": text["num_key_value_heads"], "rms_norm_eps": 1e-06,
                "rope_theta": text["rope_parameters"]["rope_theta"], "sliding_window": 32768,
                "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.41.2",
                "use_cache": True, "use_sliding_window": False,
                "vision_config": {
                    "depth": vision["depth"], "embed_dim": vision["embed_dim"], "mlp_ratio": vision["mlp_ratio"],
                    "num_heads": vision["num_heads"], "in_chans": 3, "hidden_size": vision["hidden_size"],
                    "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
                },
                "rope_scaling": {"type": "mrope", "mrope_section": text["rope_parameters"]["mrope_section"]},
                "vocab_size": text["vocab_size"],
            }
        )
    )  # fmt: skip


# what loads


def test_the_embedded_model_is_of_the_real_class_and_says_that_its_numbers_are_not_the_real_models(
    small_base: Path,
) -> None:
    recorded = read_json(small_base / "checkpoint.json")
    folder = checkpoint_folder(small_base)
    assert recorded["name"] == "tiny" and "不代表真实 Qwen2-VL" in recorded["note"]
    assert folder == (small_base / "model").resolve()
    assert recorded["files"] == {p.name: file_digest(p) for p in folder.iterdir()}
    model = load_model(folder, PROFILE, on="cpu")
    assert type(model).__name__ == "Qwen2VLForConditionalGeneration"
    assert len(list(folder.glob("*.safetensors"))) > 1, "several shards even here"


def test_the_embedded_model_is_the_same_for_the_same_seed_and_texts(
    small_base: Path, small_splits: Path, tmp_path: Path
) -> None:
    build("tiny", small_splits, tmp_path / "again")
    build("tiny", small_splits, tmp_path / "other", seed=5)
    one, again, other = (
        read_json(folder / "checkpoint.json")["files"]
        for folder in (small_base, tmp_path / "again", tmp_path / "other")
    )
    assert one == again
    assert {name for name in one if one[name] != other[name]} >= {n for n in one if "00001-of" in n}
    assert one["tokenizer.json"] == other["tokenizer.json"]


def test_a_local_folder_as_base_model_is_checked_and_pointed_to_and_trains(
    copy: Path, small_splits: Path, tmp_path: Path
) -> None:
    counts = build(str(copy), small_splits, tmp_path / "base")
    recorded = read_json(tmp_path / "base" / "checkpoint.json")
    assert recorded["name"] == recorded["folder"] == str(copy) and recorded["note"] == ""
    assert recorded["files"]["config.json"] == file_digest(copy / "config.json")
    assert set(recorded["files"]) == {p.name for p in copy.iterdir()}
    assert checkpoint_folder(tmp_path / "base") == copy.resolve()
    assert not list((tmp_path / "base").glob("**/*.safetensors")), "weights are not copied"
    assert counts["weight_files"] == len(list(copy.glob("*.safetensors")))
    profile = PROFILE.model_copy(update={"base_model": str(copy), "max_steps": 2, "evaluations": 1})
    (tmp_path / "work").mkdir()
    trained = train_adapter(
        str(tmp_path / "base"), str(small_splits), profile.model_dump(), str(tmp_path / "work"), quiet
    )
    assert trained["steps"] == 2


def test_a_folder_in_the_hubs_layout_loads_as_the_same_model_with_the_profiles_pixels(
    copy: Path, small_checkpoint: Path, small_processor: Any, small_splits: Path, tmp_path: Path
) -> None:
    import torch

    publish_like_the_hub(copy)
    build(str(copy), small_splits, tmp_path / "base")
    processor = load_processor(copy, PROFILE.min_pixels, PROFILE.max_pixels)
    assert processor.chat_template == small_processor.chat_template
    messages, pictures = conversation("标题", "稳赚不赔", 2), [jpeg(2000, 1500), jpeg(20, 20)]
    example = tokenise(processor, "p", messages, pictures)
    assert example == tokenise(small_processor, "p", messages, pictures)
    batch, expected = pad([example], processor), pad([example], small_processor)
    assert all(batch[name].equal(expected[name]) for name in expected)
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "loss_weights")}
    hub, ours = (load_model(folder, PROFILE, on="cpu").eval() for folder in (copy, small_checkpoint))
    with torch.inference_mode():
        torch.testing.assert_close(hub(**inputs).logits, ours(**inputs).logits, atol=1e-5, rtol=1e-5)


def test_a_chat_template_inside_the_tokenizers_config_is_enough(copy: Path) -> None:
    template = (copy / "chat_template.jinja").read_text(encoding="utf-8")
    (copy / "chat_template.jinja").unlink()
    edit(copy / "tokenizer_config.json", chat_template=template)
    assert load_processor(copy, 3136, 12544).chat_template == template


# which checkpoint a profile names


def test_a_hub_id_without_a_pinned_revision_is_refused(small_splits: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"'Qwen/Qwen2-VL-2B-Instruct' needs base_revision .*an unpinned model may change"
    ):
        build("Qwen/Qwen2-VL-2B-Instruct", small_splits, tmp_path / "base")


def test_the_committed_profiles_pin_their_checkpoints() -> None:
    for name in ("qwen2-vl-2b", "qwen2-vl-7b"):
        profile = load_profile(name)
        assert len(profile.base_revision) == 40 and set(profile.base_revision) <= set("0123456789abcdef")


def test_relative_and_home_paths_are_folders_and_not_hub_ids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def found(name: str) -> Path | None:
        return resolve_checkpoint(Profile(base_model=name))

    assert found("./models/x") == tmp_path / "models" / "x"
    assert found("../x") == tmp_path.parent / "x"
    assert found("~/models/x") == tmp_path / "home" / "models" / "x"
    assert found(str(tmp_path)) == Path(os.path.realpath(tmp_path))
    assert found("tiny") is None


# what does not load


def cut_short(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no_config": (lambda f: (f / "config.json").unlink(), r"config\.json: missing; expected a Qwen2-VL checkpoint"),
    "half_a_config": (lambda f: (f / "config.json").write_text('{"model_ty'), r"config\.json: not JSON .* copy the ch"),
    "a_list_as_config": (lambda f: (f / "config.json").write_text("[]"), r"config\.json: a list, expected an object"),
    "another_model": (
        lambda f: edit(f / "config.json", model_type="llama"),
        r"config\.json: model_type is 'llama', expected 'qwen2_vl'; point base_model at a Qwen2-VL checkpoint",
    ),
    "the_next_generation": (lambda f: edit(f / "config.json", model_type="qwen2_5_vl"), r"model_type is 'qwen2_5_vl'"),
    "no_shard": (
        lambda f: sorted(f.glob("*.safetensors"))[1].unlink(),
        r"weight files missing: model-00002-of-\d+\.safetensors; download or copy",
    ),
    "no_index": (
        lambda f: (f / "model.safetensors.index.json").unlink(),
        r"weight files missing: model\.safetensors; download or copy",
    ),
    "an_empty_index": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), r"index\.json: no weight_map"),
    "a_shard_cut_short": (cut_short, r"model-00002-of-\d+\.safetensors: not a whole safetensors file"),
    "no_tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json missing; expected the published"),
    "no_tokenizer_config": (lambda f: (f / "tokenizer_config.json").unlink(), r"tokenizer_config\.json missing"),
    "no_preprocessor": (lambda f: (f / "preprocessor_config.json").unlink(), r"preprocessor_config\.json missing"),
    "no_template": (
        lambda f: (f / "chat_template.jinja").unlink(),
        r"no chat template \(chat_template\.jinja or chat_template\.json\)",
    ),
    "no_folder": (shutil.rmtree, r"config\.json: missing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_checkpoint_that_cannot_be_used_is_refused_with_the_file_and_the_remedy(
    copy: Path, small_splits: Path, tmp_path: Path, name: str
) -> None:
    damage, words = BROKEN[name]
    damage(copy)
    with pytest.raises(ValueError, match=words) as raised:
        build(str(copy), small_splits, tmp_path / "base")
    assert str(copy) in str(raised.value)
    assert not (tmp_path / "base" / "checkpoint.json").exists()


def test_a_tokenizer_without_the_vision_tokens_is_refused(copy: Path) -> None:
    file = copy / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    config = (copy / "tokenizer_config.json").read_text(encoding="utf-8")
    file.write_text(text.replace("<|vision_start|>", "<|other|>"), encoding="utf-8")
    (copy / "tokenizer_config.json").write_text(config.replace("<|vision_start|>", "<|other|>"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"the tokenizer lacks <\|vision_start\|>; it does not belong to a Qwen2-VL"):
        load_processor(copy, 3136, 12544)


def test_every_special_token_is_one_id_inside_the_vocabulary(small_checkpoint: Path, small_processor: Any) -> None:
    config = read_json(small_checkpoint / "config.json")
    ids = [small_processor.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL]
    assert len(set(ids)) == len(SPECIAL) and max(ids) < config["text_config"]["vocab_size"]
    assert config["image_token_id"] == small_processor.image_token_id == ids[-1]
    assert len(check_checkpoint(small_checkpoint)) > 1
