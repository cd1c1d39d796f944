"""One loading code for the embedded model, a local folder and a hub snapshot; what is wrong is named with its file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from xhs_pipeline.artifacts import ArtifactStore, Built, file_digest, read_json
from xhs_pipeline.assets.model import base_model
from xhs_pipeline.profile import Profile, load_profile
from xhs_pipeline.resources import Workspace, profile_resource
from xhs_pipeline.training.stages import build_base, train_adapter
from xhs_pipeline.vlm.base import checkpoint_folder, load_model, local_folder, open_base, resolve_checkpoint
from xhs_pipeline.vlm.batches import pad, tokenise
from xhs_pipeline.vlm.layout import check_checkpoint, module_name
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


def test_a_folder_in_the_published_layout_is_taken_as_it_is_and_trains_with_the_profiles_pixels(
    published_checkpoint: Path, small_splits: Path, tmp_path: Path
) -> None:
    counts = build(str(published_checkpoint), small_splits, tmp_path / "base", max_pixels=50176)
    recorded = read_json(tmp_path / "base" / "checkpoint.json")
    assert (counts["weight_files"], counts["vocabulary"]) == (2, 151_657)
    assert (recorded["min_pixels"], recorded["max_pixels"]) == (3136, 50176)  # not the 12,845,056 of the published file
    profile = PROFILE.model_copy(
        update={"base_model": str(published_checkpoint), "max_pixels": 50176, "train_embeddings": False, "max_steps": 2}
    )
    _, processor = open_base(tmp_path / "base", profile)
    example = tokenise(processor, "p", conversation("标题", "稳赚不赔", 2), [jpeg(2000, 1500), jpeg(20, 20)])
    rows = pad([example], processor)["image_grid_thw"].tolist()
    assert all(3136 <= 196 * h * w <= 50176 for _, h, w in rows)
    work = tmp_path / "work"
    work.mkdir()
    trained = train_adapter(str(tmp_path / "base"), str(small_splits), profile.model_dump(), str(work), quiet)
    assert trained["steps"] == 2 and read_json(work / "adapter_config.json")["r"] == PROFILE.lora_rank


def test_the_published_special_tokens_stand_at_the_published_ids(published_checkpoint: Path) -> None:
    processor = load_processor(published_checkpoint, 3136, 12544)
    ids = [151643, 151644, 151645, 151652, 151653, 151655, 151656]
    names = ["endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad"]
    assert processor.tokenizer.convert_tokens_to_ids([f"<|{name}|>" for name in names]) == ids
    model = load_model(published_checkpoint, PROFILE, on="cpu")
    assert tuple(model.get_input_embeddings().weight.shape) == (151_936, 64)
    assert model.config.image_token_id == processor.image_token_id == 151655


@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.up_proj.weight", "visual.merger.ln_q.bias", "lm_head.weight", "model.norm.weight"]
)
def test_the_published_names_are_todays_modules(published_checkpoint: Path, name: str) -> None:
    model = load_model(published_checkpoint, PROFILE, on="cpu")
    assert module_name(name) in model.state_dict()
    assert module_name(module_name(name)) == module_name(name)


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
        return local_folder(Profile(base_model=name))

    assert found("./models/x") == tmp_path / "models" / "x"
    assert found("../x") == tmp_path.parent / "x"
    assert found("~/models/x") == tmp_path / "home" / "models" / "x"
    assert found(str(tmp_path)) == Path(os.path.realpath(tmp_path))
    assert found("tiny") is None and found("owner/name") is None
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert found("owner/name") == tmp_path / "owner" / "name", "a folder that is there is what is meant"


def test_a_name_that_is_a_folder_and_pinned_as_a_hub_id_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"'owner/name' is a folder here .*base_revision pins it .* write \./owner/name"
    ):
        resolve_checkpoint(Profile(base_model="owner/name", base_revision="a" * 40))


def test_a_name_that_is_neither_a_folder_nor_a_hub_id_says_so() -> None:
    with pytest.raises(ValueError, match=r"'models/qwen/2b' is neither a folder under .* nor a hub id \(owner/name\)"):
        resolve_checkpoint(Profile(base_model="models/qwen/2b"))


# what later stages meet


def test_a_base_whose_files_changed_since_is_refused_by_every_later_stage(
    copy: Path, small_splits: Path, tmp_path: Path
) -> None:
    build(str(copy), small_splits, tmp_path / "base")
    edit(copy / "generation_config.json", temperature=0.5)
    sorted(copy.glob("*.safetensors"))[1].unlink()
    profile = PROFILE.model_copy(update={"base_model": str(copy)})
    with pytest.raises(
        ValueError,
        match=r"no longer what base recorded: generation_config\.json \(changed\), model-00002-of-\d+\.safetensors \(missing\); put the",
    ):
        train_adapter(str(tmp_path / "base"), str(small_splits), profile.model_dump(), str(tmp_path), quiet)


def test_pixels_that_are_not_the_bases_are_refused_by_every_later_stage(
    small_base: Path, small_splits: Path, tmp_path: Path
) -> None:
    other = PROFILE.model_copy(update={"max_pixels": 50176}).model_dump()
    with pytest.raises(
        ValueError, match=r"profile says max_pixels 50176 instead of 12544; materialise base_model again"
    ):
        train_adapter(str(small_base), str(small_splits), other, str(tmp_path), quiet)


def test_another_content_of_a_local_folder_is_another_base(
    copy: Path, small_splits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = ArtifactStore(tmp_path / "data")

    def publish_splits(work: Path) -> Built:
        shutil.copytree(small_splits, work, dirs_exist_ok=True)
        return Built({"train": 61})

    store.build("sharegpt_splits", publish_splits, inputs={}, settings={}, code_version="1", log=quiet)
    settings = PROFILE.model_copy(update={"base_model": str(copy)}).model_dump()
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    monkeypatch.setenv("XHS_PROFILE", str(tmp_path / "profile.yaml"))

    def version() -> str:
        resources = {"workspace": Workspace(data_dir=str(store.root), source=""), "profile": profile_resource()}
        done = dg.materialize([base_model], resources=resources)
        assert done.success
        artifact = store.latest("base_model")
        assert artifact is not None
        return artifact.version

    first = version()
    assert version() == first
    edit(copy / "generation_config.json", temperature=0.5)
    assert version() != first


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


def swap_ids(folder: Path) -> None:
    edit(folder / "config.json", image_token_id=151656, video_token_id=151655)


def drop_from_shard(folder: Path) -> None:
    """A shard that lost a tensor, under an index that still names it."""
    from safetensors.torch import load_file, save_file

    shard = sorted(folder.glob("*.safetensors"))[1]
    tensors = load_file(shard)
    tensors.pop("visual.merger.ln_q.weight")
    save_file(tensors, shard, metadata={"format": "pt"})


def plain_template(folder: Path) -> None:
    edit(
        folder / "chat_template.json", chat_template="{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    )


MISMATCHED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "other_ids": (swap_ids, r"config\.json: image_token_id is 151656, but the tokenizer's <\|image_pad\|> is 151655"),
    "other_patches": (
        lambda f: edit(f / "preprocessor_config.json", patch_size=16, merge_size=1),
        r"patch_size is 16, but config\.json's vision_config\.patch_size is 14; copy both.* \| .*merge_size is 1, but .* is 2",
    ),
    "no_pictures": (plain_template, r"the chat template leaves out pictures or text; copy the checkpoint's own"),
    "a_tensor_gone": (drop_from_shard, r"index\.json: visual\.merger\.ln_q\.weight lie elsewhere than the index says"),
    "another_width": (
        lambda f: edit(f / "config.json", intermediate_size=128),
        r"of another shape than config\.json says: model\.language_model\.layers\.0\.mlp\.down_proj\.weight \(64, 96\) instead of \(64, 128\)",
    ),
    "another_depth": (
        lambda f: edit(f / "config.json", num_hidden_layers=3),
        r"weights missing that config\.json calls for: model\.language_model\.layers\.2\..* and \d+ more",
    ),
    "a_small_vocabulary": (
        lambda f: edit(f / "config.json", vocab_size=151_650),
        r"embed_tokens\.weight \(151936, 64\) instead of \(151650, 64\).*vocab_size is 151650, but the tokenizer has ids up to 151656",
    ),
    "half_a_tokenizer": (lambda f: (f / "tokenizer.json").write_text('{"ver'), r"tokenizer\.json: not JSON"),
}


@pytest.mark.parametrize("name", MISMATCHED)
def test_files_of_a_published_checkpoint_that_do_not_belong_together_are_named(
    published_checkpoint: Path, small_splits: Path, tmp_path: Path, name: str
) -> None:
    damage, words = MISMATCHED[name]
    folder = Path(shutil.copytree(published_checkpoint, tmp_path / "checkpoint"))
    damage(folder)
    with pytest.raises(ValueError, match=words):
        build(str(folder), small_splits, tmp_path / "base")


def test_everything_that_is_wrong_is_said_at_once_in_one_line(
    published_checkpoint: Path, small_splits: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(published_checkpoint, tmp_path / "checkpoint"))
    swap_ids(folder)
    plain_template(folder)
    edit(folder / "preprocessor_config.json", patch_size=16)
    sorted(folder.glob("*.safetensors"))[0].unlink()
    with pytest.raises(ValueError) as raised:
        build(str(folder), small_splits, tmp_path / "base")
    words = str(raised.value)
    assert "\n" not in words and words.count(" | ") == 4
    for part in (
        "weight files missing: model-00001",
        "image_token_id",
        "video_token_id",
        "patch_size",
        "chat template",
    ):
        assert part in words


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


def test_image_patches_are_embedded_as_the_convolution_of_the_checkpoint_does(published_checkpoint: Path) -> None:
    import torch
    from transformers import Qwen2VLForConditionalGeneration

    ours = load_model(published_checkpoint, load_profile("tiny"), on="cpu").model.visual.patch_embed
    plain = Qwen2VLForConditionalGeneration.from_pretrained(published_checkpoint, dtype=torch.float32)
    patches = torch.randn(40, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain.model.visual.patch_embed(patches)
        torch.testing.assert_close(ours(patches), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 1e-3
