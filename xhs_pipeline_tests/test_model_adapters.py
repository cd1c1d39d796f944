"""Adapters of every kind that merge, made by peft itself on the real class: our shard-wise merge is peft's, to rounding."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from xhs_pipeline.artifacts import ArtifactStore, Built, read_json
from xhs_pipeline.assets.judgement import evaluation_report
from xhs_pipeline.assets.model import adapter, merged_model
from xhs_pipeline.resources import Workspace, profile_resource
from xhs_pipeline.training.adapters import CONFIG, WEIGHTS, folder_digest, import_adapter, read_adapter, update_norms
from xhs_pipeline.training.merge import merge
from xhs_pipeline.training.proof import TOLERANCE, merge_checks, with_adapter
from xhs_pipeline.training.stages import merge_adapter
from xhs_pipeline.vlm.base import load_model
from xhs_pipeline_tests.small import PROFILE, make_splits

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora, with the vision tower's convolution": {"use_dora": True, "target_modules": r".*visual.*\.proj"},
    "by a pattern, with the vision tower": {"target_modules": r"model\.(language_model|visual)\..*\.(q_proj|fc1|fc2|proj|qkv)"},
    "ranks and alphas of their own": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 64}},
    "some layers only": {"layers_to_transform": [1]},
    "embeddings and head, tied": {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "embeddings and head, each its own": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "the embeddings alone": {"modules_to_save": ["embed_tokens"]},
    "the head alone": {"modules_to_save": ["lm_head"]},
}  # fmt: skip


def quiet(line: str) -> None:
    pass


def adapter_model(base: Path, **settings: Any) -> Any:
    """A PeftModel whose every trainable tensor is away from where it started, as after a training."""
    import torch
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 8, "target_modules": PROJECTIONS, "task_type": "CAUSAL_LM"} | settings
    model = get_peft_model(load_model(base, PROFILE, on="cpu"), LoraConfig(**settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def saved(base: Path, folder: Path, **settings: Any) -> Path:
    adapter_model(base, **settings).save_pretrained(folder)
    return folder


def in_older_names(adapter: Path, folder: Path, **config: Any) -> Path:
    """As the trainers' versions before transformers 4.52 wrote it: model.layers and visual instead of today's modules."""
    from safetensors.torch import load_file, save_file

    def older(name: str) -> str:
        name = name.replace("base_model.model.model.language_model.", "base_model.model.model.")
        return name.replace("base_model.model.model.visual.", "base_model.model.visual.")

    shutil.copytree(adapter, folder)
    tensors = {older(name): tensor for name, tensor in load_file(adapter / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    edit(folder / CONFIG, **config)
    return folder


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(read_json(file) | changes), encoding="utf-8")


def logits(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model.eval()(input_ids=torch.arange(40, 90)[None]).logits.float()


def merged_here(base: Path, adapter: Path, out: Path) -> Any:
    out.mkdir(exist_ok=True)
    counts = merge(base, read_adapter(adapter, base), PROFILE.min_pixels, PROFILE.max_pixels, out, quiet)
    assert counts["weights_changed"] == counts["weights_to_change"]
    return load_model(out, PROFILE, on="cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_by_shards_is_pefts_own_merge(small_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    import torch

    model = adapter_model(small_checkpoint, **KINDS[kind])
    model.save_pretrained(tmp_path / "adapter")
    found = merged_here(small_checkpoint, tmp_path / "adapter", tmp_path / "merged")
    expected = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits(found), logits(expected), atol=2e-5, rtol=1e-4)
    weights = dict(found.named_parameters())
    for name, weight in expected.named_parameters():
        if name in weights:  # a tied head is one tensor with the embeddings
            torch.testing.assert_close(weights[name], weight, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_in_bfloat16_the_merge_is_pefts_to_one_rounding(published_checkpoint: Path, tmp_path: Path) -> None:
    import torch

    model = adapter_model(published_checkpoint, use_rslora=True)  # float32, from bfloat16 files
    model.save_pretrained(tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter", published_checkpoint)
    merge(published_checkpoint, adapter, 3136, 12544, tmp_path, quiet)
    expected = model.merge_and_unload(safe_merge=True).state_dict()
    bf16 = load_model(tmp_path, PROFILE.model_copy(update={"precision": "bf16"}), on="cpu").state_dict()
    assert all(bf16[name].equal(expected[name].to(torch.bfloat16)) for name in bf16)


@pytest.mark.parametrize("kind", ["plain", "by a pattern, with the vision tower", "embeddings and head, each its own"])
def test_names_of_older_versions_are_taken_for_todays_modules(
    small_checkpoint: Path, tmp_path: Path, kind: str
) -> None:
    import torch

    today = saved(small_checkpoint, tmp_path / "today", **KINDS[kind])
    pattern = (
        {"target_modules": r"^(?!.*lm_head)(model|visual)\..*\.(q_proj|fc1|fc2|proj|qkv)$"} if "pattern" in kind else {}
    )
    older = in_older_names(today, tmp_path / "older", **pattern)
    one, other = (merged_here(small_checkpoint, a, tmp_path / f"m-{a.name}") for a in (today, older))
    assert all(weight.equal(other.state_dict()[name]) for name, weight in one.state_dict().items())
    assert update_norms(read_adapter(today, small_checkpoint)) == update_norms(read_adapter(older, small_checkpoint))
    assert not torch.equal(logits(one), logits(load_model(small_checkpoint, PROFILE, on="cpu")))


def test_an_adapter_from_elsewhere_is_stored_in_our_names_and_is_the_same_adapter(
    small_base: Path, small_checkpoint: Path, small_splits: Path, tmp_path: Path
) -> None:
    import torch

    kind = KINDS["embeddings and head, each its own"] | KINDS["ranks and alphas of their own"] | {"use_rslora": True}
    older = in_older_names(saved(small_checkpoint, tmp_path / "today", **kind), tmp_path / "older")
    ours, merged = tmp_path / "ours", tmp_path / "merged"
    ours.mkdir()
    merged.mkdir()
    said = import_adapter(str(older), str(small_base), PROFILE.model_dump(), str(ours), quiet)
    assert said["lora_tensors"] == 2 * said["lora_modules"] + 2 and said["trained_elsewhere"] == str(older)
    assert {p.name for p in ours.iterdir()} == {CONFIG, WEIGHTS}
    one, other = (
        logits(with_adapter(load_model(small_checkpoint, PROFILE, on="cpu"), a)) for a in (tmp_path / "today", ours)
    )
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    settings = PROFILE.model_copy(update={"quantization": "none"}).model_dump()
    counts = merge_adapter(str(small_base), str(ours), str(small_splits), settings, str(merged), quiet)
    assert all(
        check.passed
        for check in merge_checks(counts, "fp32", {"min_merge_agreement": 1, "min_training_base_agreement": 1})
    )
    assert counts["probe_from"].startswith("22 of validation") and counts["probe_posts"] == 96
    assert read_json(merged / "config.json")["tie_word_embeddings"] is False


def test_the_assets_take_an_adapter_from_elsewhere_prove_the_merge_and_do_not_claim_to_know_what_it_has_seen(
    small_checkpoint: Path, small_base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shares = {"validation_share": 0.0, "calibration_share": 0.0, "test_share": 0.15}
    profile = PROFILE.model_copy(update=shares | {"quantization": "none"})
    folders = {"sharegpt_splits": make_splits(tmp_path, profile), "base_model": small_base}
    store = ArtifactStore(tmp_path / "data")

    def publish(key: str) -> None:
        def copy(work: Path) -> Built:
            shutil.copytree(folders[key], work, dirs_exist_ok=True)
            return Built({"train": 96})

        store.build(key, copy, inputs={}, settings={}, code_version="1", log=quiet)

    for key in folders:
        publish(key)
    elsewhere = saved(small_checkpoint, tmp_path / "elsewhere")
    settings = profile.model_copy(update={"adapter": str(elsewhere)}).model_dump()
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    monkeypatch.setenv("XHS_PROFILE", str(tmp_path / "profile.yaml"))
    done = dg.materialize(
        [adapter, merged_model, evaluation_report],
        resources={"workspace": Workspace(data_dir=str(store.root), source=""), "profile": profile_resource()},
    )
    assert done.success
    tuned, merged = store.latest("adapter"), store.latest("merged_model")
    assert tuned is not None and merged is not None
    assert all("which posts it has seen is not known" in check["description"] for check in tuned.manifest["checks"])
    checks = {check["name"]: check for check in merged.manifest["checks"]}
    assert set(checks) == {"adapter_applied", "merged_equals_adapter", "agrees_with_training_base"}
    assert all(check["passed"] and check["blocking"] for check in checks.values())
    assert re.fullmatch("0 of validation, [0-9]+ of train, [0-9]+ of test", merged.manifest["counts"]["probe_from"])
    assert len(merged.manifest["counts"]["update_norms"]) == merged.manifest["counts"]["lora_modules"]
    judged = store.latest("evaluation_report")
    assert judged is not None
    report = read_json(judged.file("report.json"))
    assert report["context"]["groups_across_splits"] is None, "its own training posts are not those of these splits"
    gates = {gate["name"]: gate for gate in report["gate"]["gates"]}
    assert gates["groups_across_splits"]["status"] == "insufficient" and report["gate"]["status"] != "pass"
    words = "不知道适配器训练时见过哪些帖子"
    assert words in gates["groups_across_splits"]["reason"]
    assert words in judged.file("report.html").read_text(encoding="utf-8")


# what is refused


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickled": (
        pickled,
        r"adapter_model\.safetensors: missing; found adapter_model\.bin, and pickles are not loaded; save",
    ),
    "no_config": (
        lambda f: (f / CONFIG).unlink(),
        r"adapter_config\.json: missing; expected the folder that peft's save",
    ),
    "half_a_config": (lambda f: (f / CONFIG).write_text('{"peft'), r"adapter_config\.json: not JSON"),
    "cut_short": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]),
        r"not a whole safetensors file",
    ),
    "several_reasons": (
        lambda f: edit(f / CONFIG, peft_type="IA3", task_type="SEQ_CLS", bias="all", fan_in_fan_out=True),
        r"peft_type is 'IA3', expected 'LORA'.*task_type is 'SEQ_CLS', expected 'CAUSAL_LM'.*bias is 'all'.*fan_in_fan_out set",
    ),
    "another_start": (
        lambda f: edit(f / CONFIG, init_lora_weights="pissa_niter_16"),
        r"init_lora_weights is 'pissa_niter_16', which changed the base .*path_initial_model_for_weight_conversion",
    ),
    "more_promised": (
        lambda f: edit(f / CONFIG, target_modules=[*PROJECTIONS, "qkv"]),
        r"modules that its target_modules names and the file lacks: model\.visual\.blocks\.0\.attn\.qkv",
    ),
}


@pytest.fixture(scope="module")
def plain(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(small_checkpoint, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("name", REFUSED)
def test_an_adapter_that_cannot_be_merged_is_refused_with_the_remedy(
    plain: Path, small_checkpoint: Path, tmp_path: Path, name: str
) -> None:
    damage, words = REFUSED[name]
    folder = Path(shutil.copytree(plain, tmp_path / "adapter"))
    damage(folder)
    with pytest.raises(ValueError, match=words) as refused:
        read_adapter(folder, small_checkpoint)
    assert str(folder) in str(refused.value)


def test_every_tensor_that_does_not_fit_is_named_at_once(plain: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(plain, tmp_path / "adapter"))
    tensors = load_file(folder / WEIGHTS)
    stem = "base_model.model.model.language_model.layers."
    tensors[f"{stem}0.self_attn.q_proj.lora_A.weight"] = tensors[f"{stem}0.self_attn.q_proj.lora_A.weight"][
        :, :5
    ].contiguous()
    tensors.pop(f"{stem}1.mlp.up_proj.lora_B.weight")
    tensors[f"{stem}7.mlp.up_proj.lora_A.weight"] = tensors[f"{stem}1.mlp.up_proj.lora_A.weight"].clone()
    tensors["base_model.model.classifier.weight"] = tensors[f"{stem}1.mlp.up_proj.lora_A.weight"].clone()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError) as refused:
        read_adapter(folder, small_checkpoint)
    for part in (
        "tensors without a place in the base: base_model.model.classifier.weight",
        "layers.0.self_attn.q_proj: A (4, 5) and B (64, 4) do not fit the base's weight (64, 64)",
        "layers.1.mlp.up_proj: lora_B is missing",
        "layers.7.mlp.up_proj: lora_B is missing",
        "Merge with the base the adapter was trained on",
    ):
        assert part in str(refused.value)


def test_an_update_that_is_not_finite_is_refused(plain: Path, small_checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(plain, tmp_path / "adapter"))
    tensors = load_file(folder / WEIGHTS)
    next(tensor for name, tensor in tensors.items() if "lora_B" in name)[0, 0] = float("inf")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"down_proj\.weight is not finite; train again with a lower learning rate"):
        merge(small_checkpoint, read_adapter(folder, small_checkpoint), 3136, 12544, tmp_path / "out", quiet)


def test_another_content_of_an_adapter_folder_is_another_adapter(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "adapter"))
    (folder / "training_args.bin").write_bytes(b"what a trainer leaves beside it")
    assert folder_digest(folder) == folder_digest(plain)
    edit(folder / CONFIG, lora_alpha=16)
    assert folder_digest(folder) != folder_digest(plain)


# the proof


COUNTS = {
    "lora_tensors": 30, "lora_modules": 14, "smallest_update_norm": 0.5, "weights_changed": 15, "weights_to_change": 15,
    "probe_posts": 200, "largest_probability_difference": 1e-6, "agreement_with_adapter": 1.0,
    "agreement_with_quantised_base": 0.98,
}  # fmt: skip
LIMITS = {"min_merge_agreement": 0.995, "min_training_base_agreement": 0.8}


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, set()),
        ({"agreement_with_adapter": 199 / 200}, set()),  # what "at least 0.995" lets through needs 200 posts to show
        ({"agreement_with_adapter": 198 / 200}, {"merged_equals_adapter"}),
        ({"largest_probability_difference": 0.01}, {"merged_equals_adapter"}),
        ({"weights_changed": 14}, {"adapter_applied"}),
        ({"agreement_with_quantised_base": 0.79}, {"agrees_with_training_base"}),
    ],
)
def test_each_part_of_the_proof_blocks(change: dict[str, float], failed: set[str]) -> None:
    checks = merge_checks(COUNTS | change, "fp32", LIMITS)
    assert {check.name for check in checks if not check.passed} == failed
    assert all(check.blocking for check in checks)


def test_bfloat16_is_allowed_its_rounding() -> None:
    counts = COUNTS | {"largest_probability_difference": 0.01}
    assert TOLERANCE["bf16"] > 0.01 and all(check.passed for check in merge_checks(counts, "bf16", LIMITS))
