"""The QLoRA recipe: the right loss on the right modules, and a run that survives being killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xhs_pipeline.profile import load_profile
from xhs_pipeline.training.qlora import answer_loss, lora_model, train
from xhs_pipeline.training.stages import load_examples, train_adapter
from xhs_pipeline.vlm.base import load_model
from xhs_pipeline.vlm.batches import IGNORED, Example, loss_total, pad, tokenise
from xhs_pipeline.worker import run
from xhs_pipeline_tests.small import PROFILE, conversation, jpeg

FRAUD = ("remove", "诈骗")
PLAIN = PROFILE.model_copy(update={"quantization": "none", "lora_dropout": 0.0, "augmentation": 0.0})


def quiet(line: str) -> None:
    pass


def record(processor: Any, name: str, text: str, images: int = 0, rationale: str | None = None) -> Example:
    messages = conversation("标题", text, images, FRAUD, rationale)
    return tokenise(processor, name, messages, [jpeg(90 + 20 * i, 120) for i in range(images)])


# loss


@pytest.fixture(scope="module")
def batches(small_processor: Any) -> dict[str, list[Example]]:
    texts = [record(small_processor, f"t{i}", "内幕消息，本金保证返利。" * i) for i in range(1, 4)]
    pictured = [record(small_processor, f"i{i}", "扫码领取", images=i) for i in (1, 2)]
    return {"text": texts, "images": pictured, "mixed": [texts[2], pictured[1], texts[0]]}


@pytest.mark.parametrize("kind", ["text", "images", "mixed"])
def test_the_loss_equals_the_librarys_own_on_the_answer_tokens(
    small_checkpoint: Path, small_processor: Any, batches: dict[str, list[Example]], kind: str
) -> None:
    import torch

    batch = pad(batches[kind], small_processor)
    weights = batch.pop("loss_weights")
    model = load_model(small_checkpoint, PLAIN, on="cpu")
    reference = model(**batch)
    reference.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    answer_loss(model)
    found = model(**batch, loss_weights=weights)
    found.loss.backward()
    assert found.logits is None, "logits of whole sequences are never made"
    assert found.loss.item() == pytest.approx(reference.loss.item(), abs=1e-5)
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(expected)
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-4)


def test_a_weighted_loss_is_the_weighted_mean_over_tokens(small_checkpoint: Path, small_processor: Any) -> None:
    import torch

    examples = [record(small_processor, "a", "返利", rationale="催促转账"), record(small_processor, "b", "垫付" * 9)]
    batch = pad(examples, small_processor, rationale_weight=0.3)
    weights = batch.pop("loss_weights")
    model = load_model(small_checkpoint, PLAIN, on="cpu")
    with torch.inference_mode():
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1].double()
        labels, weight = batch["labels"][:, 1:], weights[:, 1:].double()
        chosen = labels != IGNORED
        nll = -logits.log_softmax(-1)[chosen].gather(1, labels[chosen][:, None])[:, 0]
        expected = float((nll * weight[chosen]).sum() / weight[chosen].sum())
        answer_loss(model)
        assert model(**batch, loss_weights=weights).loss.item() == pytest.approx(expected, abs=1e-5)
    assert weights.unique().tolist() == pytest.approx([0, 0.3, 1])


def test_a_record_of_weight_a_quarter_moves_the_model_a_quarter_as_far_even_in_a_batch_of_its_own(
    small_checkpoint: Path, small_processor: Any
) -> None:
    import torch

    model = load_model(small_checkpoint, PLAIN, on="cpu")
    answer_loss(model)
    found = {}
    for weight in (1.0, 0.25):
        examples = [replace(record(small_processor, "a", "返利", rationale="催促转账"), weight=weight)]
        batch = pad(examples, small_processor, 0.3) | {"loss_total": torch.tensor(loss_total(examples, 0.3))}
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        found[weight] = (loss.item(), model.lm_head.weight.grad.clone())
    assert found[0.25][0] == pytest.approx(found[1.0][0] / 4, rel=1e-5)
    torch.testing.assert_close(found[0.25][1], found[1.0][1] / 4, atol=1e-6, rtol=1e-4)


def test_the_splits_label_weight_is_the_weight_a_record_is_trained_with(
    small_splits: Path, small_processor: Any, tmp_path: Path
) -> None:
    rows = pq.read_table(small_splits / "train.parquet")
    weights = [0.3 if n % 5 == 0 else 1.0 for n in range(rows.num_rows)]
    place = rows.schema.get_field_index("label_weight")
    pq.write_table(
        rows.set_column(place, rows.schema.field(place), pa.array(weights, pa.float32())), tmp_path / "t.parquet"
    )
    examples, unfit = load_examples(tmp_path / "t.parquet", small_processor, PROFILE)
    assert not unfit and [e.weight for e in examples] == pytest.approx(weights)


def test_without_labels_the_model_answers_as_before(small_checkpoint: Path, small_processor: Any) -> None:
    import torch

    batch = pad([record(small_processor, "a", "返利", images=1)], small_processor)
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "loss_weights")}
    model = load_model(small_checkpoint, PLAIN, on="cpu")
    with torch.inference_mode():
        before = model(**inputs).logits
        answer_loss(model)
        assert model(**inputs).logits.equal(before)


# what is quantised, adapted and trained


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


# the run


@pytest.fixture(scope="module")
def alike(small_processor: Any) -> list[Example]:
    """Four records of different length and images whose answers have the same number of tokens."""
    examples = [record(small_processor, f"e{i}", "内幕消息" * (2 * i + 1), images=i % 3) for i in range(4)]
    assert len({len(e.answer) for e in examples}) == 1 and len({len(e) for e in examples}) == 4
    return examples


def test_accumulated_gradients_are_the_gradients_of_the_whole_batch(
    small_checkpoint: Path, small_processor: Any, alike: list[Example], tmp_path: Path
) -> None:
    """Four batches of one record an update, against one batch of four: the same losses, gradient norms and weights.

    The library counts tokens itself and then does not divide by the accumulation steps, unless told that our loss is a mean
    already: gradients four times too large, which Adam and clipping would hide from the loss curve.
    """
    from safetensors.torch import load_file

    results = {}
    for batch, accumulation in ((4, 1), (1, 4)):
        profile = PLAIN.model_copy(
            update={"batch_size": batch, "accumulation": accumulation, "epochs": 6, "evaluations": 1,
                    "max_grad_norm": 1e9, "learning_rate": 0.003}
        )  # fmt: skip
        work = tmp_path / f"{batch}x{accumulation}"
        work.mkdir()
        ends = iter(range(100))
        found = train(
            small_checkpoint, alike, lambda model, n=ends: {"macro_f1": next(n)}, small_processor, profile, work, quiet
        )
        steps = [entry for entry in found["history"] if "loss" in entry]
        assert found["steps"] == len(steps) == 6
        results[batch] = (
            [entry["loss"] for entry in steps],
            [entry["grad_norm"] for entry in steps],
            load_file(work / "adapter" / "adapter_model.safetensors"),
        )
    (loss, norm, weights), (loss_4, norm_4, weights_4) = results[4], results[1]
    assert loss_4 == pytest.approx(loss, rel=1e-4)
    assert norm_4 == pytest.approx(norm, rel=1e-3)
    assert loss[-1] < loss[0] - 0.1
    for name, tensor in weights.items():
        assert float((tensor - weights_4[name]).abs().max()) < 1e-3, name


def test_without_a_validation_split_the_last_step_is_kept(
    small_checkpoint: Path, small_processor: Any, alike: list[Example], tmp_path: Path
) -> None:
    profile = PLAIN.model_copy(update={"epochs": 3})
    found = train(small_checkpoint, alike, None, small_processor, profile, tmp_path, quiet)
    assert found["best_step"] == found["steps"] == 3
    assert not [entry for entry in found["history"] if "eval_macro_f1" in entry]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_max_steps_ends_a_run_early(
    small_checkpoint: Path, small_processor: Any, alike: list[Example], tmp_path: Path
) -> None:
    profile = PLAIN.model_copy(update={"batch_size": 1, "accumulation": 2, "epochs": 5, "max_steps": 3})
    found = train(small_checkpoint, alike, lambda model: {"macro_f1": 1.0}, small_processor, profile, tmp_path, quiet)
    assert found["steps"] == 3


def poison(checkpoint: Path, folder: Path) -> Path:
    """A copy of the checkpoint whose last norm holds NaN."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, folder)
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        if "model.norm.weight" in tensors:
            tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], float("nan"))
            save_file(tensors, shard, metadata={"format": "pt"})
            return folder
    raise AssertionError("no shard holds model.norm.weight")


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_records(
    small_checkpoint: Path, small_processor: Any, alike: list[Example], tmp_path: Path
) -> None:
    broken = poison(small_checkpoint, tmp_path / "broken")
    profile = PLAIN.model_copy(update={"batch_size": 2})
    with pytest.raises(FloatingPointError) as raised:
        train(broken, alike, lambda model: {"macro_f1": 0.0}, small_processor, profile, tmp_path / "work", quiet)
    words = str(raised.value)
    assert "nan at step 1" in words and "learning_rate" in words and "内幕" not in words
    assert sum(e.post_id in words for e in alike) == 2
    assert not (tmp_path / "work" / "adapter").exists()


def test_every_record_is_trained_or_set_aside_in_a_quarantine_table(
    small_base: Path, small_splits: Path, small_processor: Any, tmp_path: Path
) -> None:
    lengths = sorted(len(e) for e in load_examples(small_splits / "train.parquet", small_processor, PROFILE)[0])
    profile = PROFILE.model_copy(update={"max_length": lengths[len(lengths) // 2], "max_steps": 2, "evaluations": 1})
    counts = train_adapter(str(small_base), str(small_splits), profile.model_dump(), str(tmp_path), quiet)
    table = pq.read_table(tmp_path / "quarantine.parquet")
    rows = pq.read_metadata(small_splits / "train.parquet").num_rows
    assert counts["set_aside"] == table.num_rows > 0
    assert counts["train_records"] == 2 * profile.batch_size * profile.accumulation and counts["not_reached"] > 0
    assert counts["train_records"] + counts["set_aside"] + counts["not_reached"] == rows
    assert set(table["reason"].to_pylist()) == {"too_long"} and set(table["stage"].to_pylist()) == {"adapter"}


def test_nothing_to_train_on_is_an_error_that_counts_the_records(
    small_base: Path, small_splits: Path, tmp_path: Path
) -> None:
    profile = PROFILE.model_copy(update={"max_length": 32, "max_images": 0})
    with pytest.raises(ValueError, match=r"train\.parquet: \d+ records, 0 to train on and \d+ set aside"):
        train_adapter(str(small_base), str(small_splits), profile.model_dump(), str(tmp_path), quiet)


def test_an_adapter_folder_holds_peft_files_a_history_and_no_checkpoints(small_adapter: Path) -> None:
    names = {path.name for path in small_adapter.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "history.json", "quarantine.parquet"} <= names
    assert ".training" not in names and not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in names)
    history = json.loads((small_adapter / "history.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in history["history"] if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    assert len([entry for entry in history["history"] if "eval_macro_f1" in entry]) == PROFILE.evaluations
    assert len(history["adapted_modules"]) == 7 * PROFILE.tiny_layers


# killed and started again

TRAIN = """
import json, sys
from xhs_pipeline.worker import run
arguments = json.loads(sys.argv[1])
run("xhs_pipeline.training.stages:train_adapter", arguments, lambda line: print(line, flush=True))
"""


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    ends = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < ends, f"waited {seconds} s for {what}"
        time.sleep(0.003)
    return value


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the child process through /proc")
def test_a_training_killed_after_a_checkpoint_ends_with_the_adapter_of_an_undisturbed_one(
    small_base: Path, small_splits: Path, small_adapter: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    work = tmp_path / "work"
    work.mkdir()
    arguments = {
        "base": str(small_base), "splits": str(small_splits), "profile": PROFILE.model_dump(), "work": str(work),
    }  # fmt: skip
    checkpoints = work / ".training" / "checkpoints"
    parent = subprocess.Popen([sys.executable, "-c", TRAIN, json.dumps(arguments)], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: list(checkpoints.glob("checkpoint-*/trainer_state.json")), 120, "the first checkpoint")
        for pid in [*children(parent.pid), parent.pid]:
            os.kill(pid, signal.SIGKILL)
    finally:
        parent.kill()
        parent.wait()
    assert not (work / "history.json").exists(), "killed in the middle, not at the end"

    said: list[str] = []
    run("xhs_pipeline.training.stages:train_adapter", arguments, said.append)
    resumed = next(line for line in said if "resumed from step" in line)
    at, total = map(int, resumed.rpartition(" ")[2].split("/"))
    assert 0 < at < total

    undisturbed, again = (
        json.loads((folder / "history.json").read_text(encoding="utf-8"))["history"] for folder in (small_adapter, work)
    )
    best = max((e for e in undisturbed if "eval_macro_f1" in e), key=lambda e: (e["eval_macro_f1"], -e["step"]))
    assert best["step"] > at, "the kept weights were trained after the resume, or this test would show nothing"
    curves = [{e["step"]: e["loss"] for e in history if "loss" in e} for history in (undisturbed, again)]
    assert list(curves[0]) == list(curves[1])
    # each logged loss is a mean since the one before; the first one after the resume misses the steps before the kill
    joined = next(step for step in curves[0] if step > at)
    assert all(curves[1][step] == pytest.approx(curves[0][step], abs=1e-5) for step in curves[0] if step != joined)
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (small_adapter, work))
    assert set(one) == set(other)
    worst = max(float((one[name] - other[name]).abs().max()) for name in one)
    print(f"resumed from step {at}/{total}; largest difference of a weight {worst:g}")
    assert worst <= 1e-5


@pytest.mark.parametrize(("scores", "best"), [((1, 2, 3, 4), 8), ((4, 1, 2, 3), 2)], ids=["rising", "falling"])
def test_a_checkpoint_that_was_only_half_written_is_passed_over_and_the_best_adapter_is_kept(
    small_checkpoint: Path,
    small_processor: Any,
    alike: list[Example],
    tmp_path: Path,
    scores: tuple[int, ...],
    best: int,
) -> None:
    """A kill in the middle of writing a checkpoint leaves the newest one without its last file."""
    from safetensors.torch import load_file

    class Killed(Exception):
        pass

    def attempt(work: Path, killed_at: int | None, evaluated: int = 0) -> tuple[dict[str, Any] | None, list[str]]:
        calls = iter(range(evaluated + 1, 100))

        def validate(model: Any) -> dict[str, float]:
            number = next(calls)
            if number == killed_at:
                raise Killed
            return {"macro_f1": float(scores[number - 1])}

        said: list[str] = []
        profile = PLAIN.model_copy(update={"batch_size": 4, "epochs": 8, "evaluations": 4, "checkpoints": 4})
        try:
            return train(small_checkpoint, alike, validate, small_processor, profile, work, said.append), said
        except Killed:
            return None, said

    whole, _ = attempt(tmp_path / "whole", None)
    attempt(tmp_path / "work", 3)
    checkpoints = tmp_path / "work" / "checkpoints"
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == ["checkpoint-2", "checkpoint-4"]
    half = checkpoints / "checkpoint-6"
    half.mkdir()
    shutil.copy(checkpoints / "checkpoint-4" / "adapter_model.safetensors", half)
    again, said = attempt(tmp_path / "work", None, evaluated=2)
    assert "adapter: resumed from step 4/8" in said
    assert whole and again and again["steps"] == whole["steps"] == 8
    assert again["best_step"] == whole["best_step"] == best
    one, other = (load_file(tmp_path / n / "adapter" / "adapter_model.safetensors") for n in ("whole", "work"))
    assert max(float((one[name] - other[name]).abs().max()) for name in one) <= 1e-5


def test_the_profile_used_here_walks_the_path_of_the_embedded_default() -> None:
    default = load_profile("tiny")
    same = ("base_model", "quantization", "train_embeddings", "precision", "lora_targets", "rationale_weight", "prompt")
    assert all(getattr(PROFILE, name) == getattr(default, name) for name in same)
