"""The merged model is the adapter's model, proven, in files that plain transformers load without this package."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from xhs_pipeline.artifacts import read_json
from xhs_pipeline.judgement.frame import judged_frame
from xhs_pipeline.judgement.judge import Judge, Post
from xhs_pipeline.policy import Category
from xhs_pipeline.training.adapters import read_adapter, update_norms
from xhs_pipeline.training.proof import with_adapter
from xhs_pipeline.training.stages import build_base, load_examples, merge_adapter
from xhs_pipeline.vlm.base import load_model
from xhs_pipeline.vlm.batches import Unfit, pad, tokenise
from xhs_pipeline.vlm.card import MODEL_CARD
from xhs_pipeline.vlm.scoring import judge_examples
from xhs_pipeline_tests.small import POLICY, PROFILE, conversation, jpeg

PLAIN_USER = """
import json, sys
sys.modules["xhs_pipeline"] = None  # importing it, or anything in it, raises ImportError
import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
folder, request, answer = sys.argv[1:]
asked = json.load(open(request))
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
images = AutoImageProcessor.from_pretrained(folder, backend="pil")
from PIL import Image
pictures = dict(images(images=[Image.open(p).convert("RGB") for p in asked["pictures"]], return_tensors="pt"))
ids = torch.tensor([asked["ids"]])
with torch.inference_mode():
    logits = model(
        input_ids=ids, attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == model.config.image_token_id).int(), **pictures,
    ).logits[0, -1]
text = tokenizer.apply_chat_template(
    [{"role": "user", "content": asked["text"]}], tokenize=False, add_generation_prompt=True
)
json.dump(
    {"logits": logits.tolist(), "ids": tokenizer(text, add_special_tokens=False)["input_ids"],
     "class": type(model).__name__, "quantised": hasattr(model.config, "quantization_config"),
     "pad": tokenizer.pad_token, "end": tokenizer.eos_token},
    open(answer, "w"),
)
"""


def quiet(line: str) -> None:
    pass


def merged_with(base: Path, adapter: Path, splits: Path, out: Path) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    return merge_adapter(str(base), str(adapter), str(splits), PROFILE.model_dump(), str(out), quiet)


def test_the_proof_counts_every_module_and_finds_no_difference(
    small_merged: tuple[Path, dict[str, Any]], small_adapter: Path
) -> None:
    from safetensors import safe_open

    _, counts = small_merged
    with safe_open(small_adapter / "adapter_model.safetensors", framework="pt") as file:
        assert counts["lora_tensors"] == len(list(file.keys()))
    assert counts["lora_modules"] == 7 * PROFILE.tiny_layers == len(counts["update_norms"])
    assert counts["weights_changed"] == counts["weights_to_change"] == counts["lora_modules"] + 1  # and the embeddings
    assert counts["smallest_update_norm"] > 1e-3
    assert counts["probe_posts"] > 10
    assert counts["largest_probability_difference"] < 1e-4
    assert counts["agreement_with_adapter"] == 1.0
    assert 0.5 < counts["agreement_with_quantised_base"] <= 1.0


def test_merged_probabilities_are_the_adapters_on_the_full_precision_base_and_not_the_bases(
    small_merged: tuple[Path, dict[str, Any]],
    small_checkpoint: Path,
    small_adapter: Path,
    small_splits: Path,
    small_processor: Any,
) -> None:
    examples, _ = load_examples(small_splits / "test.parquet", small_processor, PROFILE)

    def probabilities(model: Any) -> list[list[float]]:
        judged = judge_examples(model, small_processor, POLICY, examples, 8)
        return [list(j.category_probs.values()) for j in judged]

    merged = probabilities(load_model(small_merged[0], PROFILE, on="cpu"))
    base = probabilities(load_model(small_checkpoint, PROFILE, on="cpu"))
    tuned = probabilities(with_adapter(load_model(small_checkpoint, PROFILE, on="cpu"), small_adapter))
    for found, expected, before in zip(merged, tuned, base, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
        assert max(abs(a - b) for a, b in zip(found, before, strict=True)) > 1e-2


def test_the_folder_has_the_published_layout_in_several_shards_and_no_pickles(
    small_merged: tuple[Path, dict[str, Any]],
) -> None:
    folder, counts = small_merged
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"} <= names
    assert "chat_template.jinja" in names and not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in names)
    assert "adapter_config.json" not in names, "a folder with it would be taken for an adapter"
    index = read_json(folder / "model.safetensors.index.json")
    shards = {name for name in names if name.endswith(".safetensors")}
    assert set(index["weight_map"].values()) == shards and len(shards) == counts["shards"] > 1
    assert not any("lora" in name or "modules_to_save" in name for name in index["weight_map"])
    config = read_json(folder / "config.json")
    assert config["model_type"] == "qwen2_vl" and "quantization_config" not in config
    assert json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["truncation"] is None


def test_trained_embeddings_reach_the_merged_model_and_stay_tied(
    small_merged: tuple[Path, dict[str, Any]], small_checkpoint: Path
) -> None:
    merged, base = (load_model(folder, PROFILE, on="cpu") for folder in (small_merged[0], small_checkpoint))
    assert merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert (merged.get_input_embeddings().weight - base.get_input_embeddings().weight).abs().max() > 1e-3
    for (name, after), before in zip(
        merged.model.visual.named_parameters(), base.model.visual.parameters(), strict=True
    ):
        assert after.equal(before), f"{name}: the vision tower is not trained"


def test_the_folder_loads_with_plain_transformers_where_this_package_cannot_be_imported(
    small_merged: tuple[Path, dict[str, Any]], small_processor: Any, tmp_path: Path
) -> None:
    import torch

    folder, _ = small_merged
    picture = jpeg(120, 90)
    (tmp_path / "picture.jpg").write_bytes(picture)
    example = tokenise(small_processor, "p", conversation("根治失眠", "祖传秘方，停药也不复发。", 1), [picture])
    asked = {"ids": example.prompt, "pictures": [str(tmp_path / "picture.jpg")], "text": "周末散步，返利。"}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    done = subprocess.run(
        [sys.executable, "-I", "-c", PLAIN_USER, str(folder), str(tmp_path / "asked.json"), str(tmp_path / "answer.json")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answer = read_json(tmp_path / "answer.json")
    assert answer["class"] == "Qwen2VLForConditionalGeneration" and not answer["quantised"]
    assert (answer["pad"], answer["end"]) == ("<|endoftext|>", "<|im_end|>")
    model = load_model(folder, PROFILE, on="cpu").eval()
    inputs = {k: v for k, v in pad([example], small_processor).items() if k not in ("labels", "loss_weights")}
    with torch.inference_mode():
        expected = model(**inputs).logits[0, -1]
    torch.testing.assert_close(torch.tensor(answer["logits"]), expected, atol=1e-4, rtol=1e-4)
    text = small_processor.apply_chat_template(
        [{"role": "user", "content": asked["text"]}], add_generation_prompt=True, tokenize=False
    )
    assert answer["ids"] == small_processor.tokenizer(text, add_special_tokens=False)["input_ids"]


# adapters that do not fit


def altered(adapter: Path, folder: Path, change: Any) -> Path:
    """A copy of the adapter whose tensors went through `change(name, tensor)`; None drops one."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, folder)
    file = folder / "adapter_model.safetensors"
    changed = {name: change(name, tensor) for name, tensor in load_file(file).items()}
    save_file({n: t.contiguous() for n, t in changed.items() if t is not None}, file, metadata={"format": "pt"})
    return folder


def test_a_lora_that_changes_nothing_is_refused(
    small_base: Path, small_adapter: Path, small_splits: Path, tmp_path: Path
) -> None:
    zero = altered(
        small_adapter, tmp_path / "zero", lambda name, t: t * 0 if "layers.1" in name and "lora_B" in name else t
    )
    with pytest.raises(ValueError) as raised:
        merged_with(small_base, zero, small_splits, tmp_path / "out")
    words = str(raised.value)
    assert str(zero) in words and "modules whose update is zero: model.language_model" in words and "layers.1" in words
    assert "Merge with the base the adapter was trained on" in words
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_missing_tensor_is_refused_and_named(
    small_base: Path, small_adapter: Path, small_splits: Path, tmp_path: Path
) -> None:
    part = altered(small_adapter, tmp_path / "part", lambda name, t: None if "layers.0.self_attn.q_proj" in name else t)
    with pytest.raises(ValueError, match=r"the file lacks: model\.language_model\.layers\.0\.self_attn\.q_proj"):
        merged_with(small_base, part, small_splits, tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [{"tiny_hidden_size": 32}, {"tiny_layers": 1}, {"tiny_layers": 3}],
    ids=["narrower", "shallower", "deeper"],
)
def test_an_adapter_of_another_base_is_refused_with_what_to_do(
    small_adapter: Path, small_splits: Path, tmp_path: Path, change: dict[str, int]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    profile = PROFILE.model_copy(update={**change, "tiny_pretrain_epochs": 0})
    build_base(str(small_splits), profile.model_dump(), str(other), quiet)
    with pytest.raises(ValueError) as raised:
        merged_with(other, small_adapter, small_splits, tmp_path / "out")
    words = str(raised.value)
    assert f"{small_adapter}: does not fit its base" in words
    assert "Merge with the base the adapter was trained on" in words


def test_the_norm_of_an_update_is_that_of_the_scaled_product(small_checkpoint: Path, small_adapter: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(small_adapter / "adapter_model.safetensors")
    norms = update_norms(read_adapter(small_adapter, small_checkpoint))
    for name, a in tensors.items():
        if "lora_A" in name:
            product = PROFILE.lora_alpha / PROFILE.lora_rank * tensors[name.replace("lora_A", "lora_B")] @ a
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            assert norms.pop(module) == pytest.approx(float(product.norm()), rel=1e-4)
    assert not norms


# the model in use


def test_a_merged_model_judges_posts_as_the_evaluation_does(
    small_merged: tuple[Path, dict[str, Any]], small_splits: Path
) -> None:
    import pyarrow.parquet as pq

    judge = Judge(small_merged[0], POLICY)
    rows = pq.read_table(small_splits / "test.parquet").to_pylist()
    posts = [Post(r["post_id"], r["title"], r["body"], tuple(i["bytes"] for i in r["images"])) for r in rows]
    long = Post("too-long", "标题", "稳赚不赔" * 2000)
    judge.profile = judge.profile.model_copy(update={"text_head": 0, "text_tail": 0})
    found = list(judge.judge([posts[0], long, *posts[1:]]))
    assert [j.post_id for j in found] == [posts[0].post_id, "too-long", *(p.post_id for p in posts[1:])]
    assert isinstance(found[1], Unfit) and found[1].reason == "too_long"
    examples, _ = load_examples(small_splits / "test.parquet", judge.processor, PROFILE)
    direct = list(judge_examples(load_model(small_merged[0], PROFILE), judge.processor, POLICY, examples, 3))
    for one, other in zip([found[0], *found[2:]], direct, strict=True):
        assert not isinstance(one, Unfit)
        assert one.verdict == other.verdict
        assert list(one.category_probs.values()) == pytest.approx(list(other.category_probs.values()), abs=1e-5)


def test_a_model_is_asked_in_its_own_words_after_the_policy_has_changed(
    small_merged: tuple[Path, dict[str, Any]],
) -> None:
    category = Category("新规", 1, ("remove",), "一条新规则")
    changed = replace(
        POLICY,
        version="later",
        prompt={**POLICY.prompt, "short": "标题：{title}\n正文：{body}"},
        categories=(*POLICY.categories, category),
        costs={**POLICY.costs, "escalate": 7},
    )
    post = Post("p", "内部消息", "稳赚不赔，加导师")
    (before,), (after,) = Judge(small_merged[0], POLICY).judge([post]), Judge(small_merged[0], changed).judge([post])
    assert before == after
    judge = Judge(small_merged[0], changed)
    assert (judge.policy.version, judge.policy.costs["escalate"]) == (POLICY.version, 7)
    frame = judged_frame(_table(post), list(judge.judge([post])), changed)
    assert frame["p_category_新规"].tolist() == [0.0], "a category it was not trained on gets no probability"


def _table(post: Post) -> pa.Table:
    labels = {"category": "诈骗", "verdict": "remove"}
    return pa.Table.from_pylist([{"post_id": post.post_id, "title": post.title, "body": post.body, **labels}])


def test_a_folder_whose_chat_template_was_edited_is_refused(
    small_merged: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(small_merged[0], tmp_path / "model"))
    (template,) = [f for f in folder.iterdir() if f.name.startswith("chat_template")]
    template.write_text(template.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(ValueError, match=r"moderation\.json: the model was trained on prompt .* merge the model again"):
        Judge(folder, POLICY)


def test_a_folder_that_merged_model_did_not_write_is_refused(small_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=rf"{MODEL_CARD}: missing; expected a folder that merged_model wrote"):
        Judge(small_checkpoint, POLICY)
