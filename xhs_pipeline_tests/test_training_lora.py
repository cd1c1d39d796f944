"""What is quantised, adapted and trained, and what the profile may choose."""

from pathlib import Path
from typing import Any

import pytest

from xhs_pipeline.training.lora import LANGUAGE, VISION, available_targets, lora_model, trained_parts
from xhs_pipeline.training.loss import answer_loss
from xhs_pipeline.vlm.base import load_model
from xhs_pipeline.vlm.batches import pad
from xhs_pipeline_tests.small import PROFILE, record


def test_the_language_models_linears_are_held_as_nf4_and_nothing_else_is(small_checkpoint: Path) -> None:
    import bitsandbytes as bnb
    import torch

    model = load_model(small_checkpoint, PROFILE, "nf4", on="cpu")
    quantised = {name for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
    linears = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".language_model." in f".{name}."
    }
    assert quantised == linears and len(quantised) == 7 * PROFILE.tiny_layers
    assert not any("visual" in name or "lm_head" in name for name in quantised)
    for name in quantised:
        weight = model.get_submodule(name).weight
        assert weight.dtype == torch.uint8 and weight.quant_state.quant_type == "nf4" and weight.quant_state.nested
    plain = load_model(small_checkpoint, PROFILE, "none", on="cpu")
    assert not any(isinstance(module, bnb.nn.Linear4bit) for module in plain.modules())


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_lora_sits_on_the_language_models_linears_only(small_checkpoint: Path, quantization: Any) -> None:
    profile = PROFILE.model_copy(update={"train_embeddings": False, "quantization": quantization})
    model = lora_model(load_model(small_checkpoint, profile, quantization, on="cpu"), profile)
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert len(adapted) == 7 * PROFILE.tiny_layers
    assert all(".language_model.layers." in name and name.split(".")[-1] in PROFILE.lora_targets for name in adapted)
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


def test_a_profile_may_adapt_fewer_layers(small_checkpoint: Path) -> None:
    profile = PROFILE.model_copy(update={"lora_targets": ["q_proj", "v_proj"]})
    model = lora_model(load_model(small_checkpoint, profile, "nf4", on="cpu"), profile)
    adapted = {name.split(".")[-1] for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == {"q_proj", "v_proj"}


def test_trained_embeddings_stay_tied_with_the_head(small_checkpoint: Path, small_processor: Any) -> None:
    import torch

    base = load_model(small_checkpoint, PROFILE, "nf4", on="cpu")
    answer_loss(base)
    model = lora_model(base, PROFILE)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    trained = [w.modules_to_save["default"].weight for w in (embedding, head)]
    assert trained[0] is trained[1] and trained[0].requires_grad
    assert trained[0].shape == (len(small_processor.tokenizer), PROFILE.tiny_hidden_size)
    others = [n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n]
    assert others and all("modules_to_save" in name for name in others)

    batch = pad([record(small_processor, "a", "垫付", images=1)], small_processor)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(**batch).loss.backward()
    optimiser.step()
    assert (
        model.get_input_embeddings()
        .modules_to_save["default"]
        .weight.equal(model.get_output_embeddings().modules_to_save["default"].weight)
    )
    unused = [i for i in range(len(small_processor.tokenizer)) if i not in batch["input_ids"].unique()]
    assert trained[0].grad[unused].abs().sum() > 0, "the head trains words that the post does not hold"


def test_the_4_bit_weights_survive_a_forward_without_gradients(small_checkpoint: Path, small_processor: Any) -> None:
    """On some CPUs such a forward repacks them in place, and training afterwards fails; validation is such a forward."""
    import torch

    base = load_model(small_checkpoint, PROFILE, "nf4", on="cpu")
    answer_loss(base)
    model = lora_model(base, PROFILE)
    batch = pad([record(small_processor, "a", "垫付", images=1)], small_processor)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.dtype == torch.uint8}
    with torch.inference_mode():
        expected = model(**batch).loss.item()
    found = model(**batch).loss
    found.backward()
    assert found.item() == pytest.approx(expected, abs=1e-6)
    after = dict(model.named_parameters())
    assert before and all(after[name].equal(weight) for name, weight in before.items())


# what a profile may choose


def wrapped(checkpoint: Path, quantization: Any = "none", **changes: Any) -> Any:
    profile = PROFILE.model_copy(update={"quantization": quantization, "train_embeddings": False, **changes})
    base = load_model(checkpoint, profile, quantization, on="cpu")
    answer_loss(base)
    return lora_model(base, profile)


def test_the_names_there_are_belong_to_the_language_model_or_to_the_vision_part(small_checkpoint: Path) -> None:
    model = load_model(small_checkpoint, PROFILE, "nf4", on="cpu")
    assert sorted(available_targets(model, LANGUAGE)) == sorted(PROFILE.lora_targets)
    assert sorted(available_targets(model, VISION)) == ["fc1", "fc2", "mlp.0", "mlp.2", "proj", "qkv"]


@pytest.mark.parametrize("modules", ["language", "all"])
def test_a_target_that_the_model_lacks_is_an_error_that_names_those_it_has(
    small_checkpoint: Path, modules: str
) -> None:
    with pytest.raises(ValueError, match=r"lora_targets .* names q_prj not in the model; .*down_proj, .*v_proj"):
        wrapped(
            small_checkpoint, lora_targets=["q_prj", "v_proj", "qkv"][: 2 + (modules == "all")], lora_modules=modules
        )


def test_targets_of_the_vision_part_need_it_and_it_needs_targets(small_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="names qkv not in the model"):
        wrapped(small_checkpoint, lora_targets=["q_proj", "qkv"])
    with pytest.raises(ValueError, match="names nothing of visual; expected of each of .*visual: fc1, fc2, mlp.0"):
        wrapped(small_checkpoint, lora_modules="all")


def test_vision_tower_and_projector_may_be_adapted_too(small_checkpoint: Path, small_processor: Any) -> None:
    targets = ["q_proj", "qkv", "proj", "fc1", "fc2", "mlp.0", "mlp.2"]
    model = wrapped(small_checkpoint, "nf4", lora_modules="all", lora_targets=targets)
    adapted = trained_parts(model)["adapted_modules"]
    vision = [name for name in adapted if ".visual." in name]
    assert len(vision) == 4 * PROFILE.tiny_vision_depth + 2 and len(adapted) == len(vision) + PROFILE.tiny_layers
    assert not any(name.endswith("o_proj") for name in adapted), "proj is not every name that ends in it"
    model(**pad([record(small_processor, "a", "垫付", images=2)], small_processor)).loss.backward()
    moved = {n for n, p in model.named_parameters() if "visual" in n and p.grad is not None and p.grad.abs().sum() > 0}
    assert any("merger" in name for name in moved) and any("blocks" in name for name in moved)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_dora_trains_a_length_for_every_adapted_weight(
    small_checkpoint: Path, small_processor: Any, quantization: str
) -> None:
    model = wrapped(small_checkpoint, quantization, lora_dora=True)
    lengths = {name: p for name, p in model.named_parameters() if "magnitude" in name}
    assert len(lengths) == len(trained_parts(model)["adapted_modules"])
    model(**pad([record(small_processor, "a", "垫付", images=1)], small_processor)).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lengths.values())


def test_rank_stabilised_lora_scales_by_the_root_of_the_rank(small_checkpoint: Path) -> None:
    scales = {}
    for stabilised in (False, True):
        model = wrapped(small_checkpoint, lora_rslora=stabilised)
        scales[stabilised] = {m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")}
    rank, alpha = PROFILE.lora_rank, PROFILE.lora_alpha
    assert scales == {False: {alpha / rank}, True: {alpha / rank**0.5}}


def test_frozen_weights_stay_in_half_precision_and_trained_ones_are_single(small_checkpoint: Path) -> None:
    import torch

    model = wrapped(small_checkpoint, "nf4", precision="bf16", train_embeddings=True)
    kinds = {(p.requires_grad, p.dtype) for p in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16), (False, torch.uint8)}
