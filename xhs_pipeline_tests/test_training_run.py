"""The run: updates that mean the same however they are computed, every record accounted for, every setting named."""

import json
import math
import re
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from xhs_pipeline.profile import Profile
from xhs_pipeline.training.qlora import plan, train
from xhs_pipeline.training.records import Records
from xhs_pipeline.training.stages import _prepare, load_examples, train_adapter
from xhs_pipeline.training.trainer import best_step, out_of_patience
from xhs_pipeline_tests.small import PLAIN, PROFILE, record, records_file


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def alike(small_processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Four records of different length and images whose answers have the same number of tokens."""
    examples = [record(small_processor, f"e{i}", "内幕消息" * (2 * i + 1), images=i % 3) for i in range(4)]
    assert len({len(e.answer) for e in examples}) == 1 and len({len(e) for e in examples}) == 4
    return records_file(tmp_path_factory.mktemp("alike") / "train.arrow", examples)


def test_accumulated_gradients_are_the_gradients_of_the_whole_batch(
    small_checkpoint: Path, small_processor: Any, alike: Any, tmp_path: Path
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
            small_checkpoint,
            alike,
            lambda model, n=ends: {"verdict_macro_f1": next(n)},
            small_processor,
            profile,
            work,
            quiet,
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
    small_checkpoint: Path, small_processor: Any, alike: Any, tmp_path: Path
) -> None:
    profile = PLAIN.model_copy(update={"epochs": 3})
    found = train(small_checkpoint, alike, None, small_processor, profile, tmp_path, quiet)
    assert found["best_step"] == found["steps"] == 3
    assert not [entry for entry in found["history"] if "eval_verdict_macro_f1" in entry]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_max_steps_ends_a_run_early(small_checkpoint: Path, small_processor: Any, alike: Any, tmp_path: Path) -> None:
    profile = PLAIN.model_copy(update={"batch_size": 1, "accumulation": 2, "epochs": 5, "max_steps": 3})
    found = train(
        small_checkpoint, alike, lambda model: {"verdict_macro_f1": 1.0}, small_processor, profile, tmp_path, quiet
    )
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
    small_checkpoint: Path, small_processor: Any, alike: Any, tmp_path: Path
) -> None:
    broken = poison(small_checkpoint, tmp_path / "broken")
    profile = PLAIN.model_copy(update={"batch_size": 2})
    with pytest.raises(FloatingPointError) as raised:
        train(
            broken, alike, lambda model: {"verdict_macro_f1": 0.0}, small_processor, profile, tmp_path / "work", quiet
        )
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
    with pytest.raises(ValueError, match=r"train\.parquet: 0 records to train on and \d+ set aside"):
        train_adapter(str(small_base), str(small_splits), profile.model_dump(), str(tmp_path), quiet)


def test_an_adapter_folder_holds_peft_files_a_history_and_no_checkpoints(small_adapter: Path) -> None:
    names = {path.name for path in small_adapter.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "history.json", "quarantine.parquet"} <= names
    assert ".training" not in names and not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in names)
    history = json.loads((small_adapter / "history.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in history["history"] if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    assert len([entry for entry in history["history"] if "eval_verdict_macro_f1" in entry]) == PROFILE.evaluations
    assert len(history["adapted_modules"]) == 7 * PROFILE.tiny_layers


@pytest.fixture(scope="module")
def unlike(small_processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Records of different length and images, with and without a rationale: their answers weigh differently."""
    examples = [
        record(small_processor, f"u{i}", "祖传秘方" * (i % 5 + 1), i % 3, "内幕消息，催促转账" if i % 2 else None)
        for i in range(10)
    ]
    return records_file(tmp_path_factory.mktemp("unlike") / "train.arrow", examples)


def losses_of(checkpoint: Path, examples: Any, processor: Any, work: Path, **changes: Any) -> tuple[list[float], Any]:
    from safetensors.torch import load_file

    work.mkdir()
    found = train(checkpoint, examples, None, processor, PLAIN.model_copy(update=changes), work, quiet)
    weights = load_file(work / "adapter" / "adapter_model.safetensors")
    return [entry["loss"] for entry in found["history"] if "loss" in entry], weights


def test_packed_or_one_at_a_time_an_update_learns_the_same(
    small_checkpoint: Path, small_processor: Any, unlike: Any, tmp_path: Path
) -> None:
    """An update is its records, not how they are computed: the loss is divided by the weights of all of them.

    Dividing each part by its own weights, and then by the number of parts, would let short answers count for more.
    """
    common = {"epochs": 4, "max_grad_norm": 1e9, "learning_rate": 0.003, "rationale_weight": 0.3}
    ways = {
        "one at a time": {"batch_size": 1, "accumulation": 4, "pack_length": 0},
        "packed": {"batch_size": 4, "accumulation": 1, "pack_length": 4096},
        "in several packs": {"batch_size": 4, "accumulation": 1, "pack_length": 90},
    }
    curves = {
        name: losses_of(small_checkpoint, unlike, small_processor, tmp_path / name, **common, **way)
        for name, way in ways.items()
    }
    expected, weights = curves["one at a time"]
    assert len(expected) == 10 and expected[-1] < expected[0]
    for name, (losses, found) in curves.items():
        assert losses == pytest.approx(expected, rel=1e-4), name
        assert max(float((found[n] - weights[n]).abs().max()) for n in weights) < 1e-3, name


def test_a_padded_batch_and_a_packed_row_of_the_same_records_make_the_same_updates(
    small_checkpoint: Path, small_processor: Any, unlike: Any, tmp_path: Path
) -> None:
    """With all that the embedded default has: NF4, trained embeddings, varied texts. An update of all records is the same
    records however their order was chosen; in smaller ones, padding brings records of like length together.
    """
    common = {"quantization": "nf4", "train_embeddings": True, "augmentation": 0.85, "rationale_weight": 0.02,
              "batch_size": len(unlike), "epochs": 3, "warmup": 0.0, "learning_rate": 0.003}  # fmt: skip
    ways = {"padded": 0, "packed": 65536}
    (padded, weights), (packed, found) = (
        losses_of(small_checkpoint, unlike, small_processor, tmp_path / way, **common, pack_length=length)
        for way, length in ways.items()
    )
    assert len(padded) == 3 and padded[2] < padded[0]
    assert packed == pytest.approx(padded, abs=1e-5)
    for name, tensor in weights.items():
        assert float((found[name] - tensor).abs().max()) < 1e-5, name


def test_accumulation_changes_neither_the_records_of_an_update_nor_their_number() -> None:
    lengths = [20 + 7 * i % 90 for i in range(53)]
    for changes in ({"batch_size": 8, "accumulation": 1}, {"batch_size": 2, "accumulation": 4}):
        updates = plan(lengths, PLAIN.model_copy(update={"epochs": 3, "max_steps": 0, **changes}))
        assert [len(update) for update in updates[:-1]] == [8] * (3 * 53 // 8)
        assert len(updates[-1]) == 3 * 53 % 8
    assert plan(lengths, PLAIN.model_copy(update={"max_steps": 4})) == plan(lengths, PLAIN)[:4]


def test_a_seed_decides_the_run_bit_for_bit(
    small_checkpoint: Path, small_processor: Any, unlike: Any, tmp_path: Path
) -> None:
    random = {"lora_dropout": 0.1, "augmentation": 0.9, "epochs": 2}
    runs = [
        losses_of(small_checkpoint, unlike, small_processor, tmp_path / f"{i}", seed=seed, **random)
        for i, seed in enumerate((5, 5, 6))
    ]
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert all(tensor.equal(runs[1][1][name]) for name, tensor in runs[0][1].items())


def test_only_the_record_that_breaks_the_loss_is_named(
    small_checkpoint: Path, small_processor: Any, alike: Any, tmp_path: Path
) -> None:
    broken = [replace(e, weight=float("nan")) if e.post_id == "e2" else e for e in alike]
    examples = records_file(tmp_path / "train.arrow", broken)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 1; records: e2\. Lower learning_rate"):
        train(small_checkpoint, examples, None, small_processor, PLAIN, tmp_path / "work", quiet)


@pytest.mark.parametrize(
    ("scores", "patience", "ends"),
    [
        ([1, 2, 2, 1], 2, True),
        ([1, 2, 2], 2, False),
        ([3, 2, 1, 4], 3, False),
        ([3, 2, 1, 3], 3, True),
        ([2, 1], 0, False),
    ],
)
def test_patience_counts_validations_since_the_best(scores: list[float], patience: int, ends: bool) -> None:
    history = [{"step": step, "eval_verdict_macro_f1": score} for step, score in enumerate(scores)]
    assert out_of_patience([{"loss": 1.0}, *history], patience) is ends


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("linear", lambda share: 1 - share),
        ("cosine", lambda share: (1 + math.cos(math.pi * share)) / 2),
        ("constant", lambda share: 1.0),
    ],
)
def test_the_learning_rate_warms_up_and_then_follows_the_schedule(
    schedule: str, after: Any, small_checkpoint: Path, small_processor: Any, alike: Any, tmp_path: Path
) -> None:
    profile = Profile(**{**PLAIN.model_dump(), "epochs": 10, "schedule": schedule, "warmup": 0.2})
    found = train(small_checkpoint, alike, None, small_processor, profile, tmp_path, quiet)
    rates = [entry["learning_rate"] / profile.learning_rate for entry in found["history"]]
    assert rates == pytest.approx([0, 0.5, *(after(step / 8) for step in range(8))])


def test_the_best_checkpoint_is_that_of_the_verdicts_and_of_equals_that_of_the_categories() -> None:
    scores = [(1, 0.5, 0.9), (2, 0.7, 0.1), (3, 0.7, 0.4), (4, 0.7, 0.4), (5, 0.6, 1.0)]
    history: list[dict[str, Any]] = [{"step": 1, "loss": 9.0}]
    history += [{"step": s, "eval_verdict_macro_f1": v, "eval_category_macro_f1": c} for s, v, c in scores]
    assert best_step(history) == 3
    assert best_step(history[:3]) == 2 and best_step(history[:1]) is None


def test_a_run_ends_when_validation_no_longer_improves(
    small_checkpoint: Path, small_processor: Any, alike: Any, tmp_path: Path
) -> None:
    scores = iter([0.3, 0.5, 0.4, 0.5, 0.9])
    profile = PLAIN.model_copy(update={"epochs": 5, "evaluations": 5, "early_stopping": 2})
    found = train(
        small_checkpoint, alike, lambda m: {"verdict_macro_f1": next(scores)}, small_processor, profile, tmp_path, quiet
    )
    assert (found["steps"], found["best_step"]) == (4, 2)
    assert found["settings"]["planned_steps"] == 5


def test_balanced_class_weights_let_every_category_count_alike(
    small_splits: Path, small_processor: Any, tmp_path: Path
) -> None:
    sums: dict[str, float] = defaultdict(float)
    rows = pq.read_table(small_splits / "train.parquet", columns=["post_id", "category"]).to_pylist()
    category = {row["post_id"]: row["category"] for row in rows}
    profile = PROFILE.model_copy(update={"class_weights": "balanced"})
    _prepare(small_splits, "train", small_processor, profile, tmp_path)
    for example in Records(tmp_path / "train.arrow"):
        sums[category[example.post_id]] += example.weight
    assert len(sums) > 2 and list(sums.values()) == pytest.approx([len(rows) / len(sums)] * len(sums))


def test_an_adapter_says_how_each_record_was_shown_and_how_the_run_was_set(
    small_adapter: Path, small_splits: Path
) -> None:
    table = pq.read_table(small_adapter / "budget.parquet").to_pylist()
    for split in ("train", "validation"):
        posts = pq.read_table(small_splits / f"{split}.parquet", columns=["post_id"])["post_id"].to_pylist()
        assert [row["post_id"] for row in table if row["split"] == split] == posts
    assert all(0 < row["answer_tokens"] < row["tokens"] <= PROFILE.max_length for row in table)
    assert {row["images"] for row in table} == {0, 1, 2} and not any(row["images_left_out"] for row in table)


def test_the_curves_are_there_for_tensorboard(small_adapter: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(small_adapter / "runs"))
    events.Reload()
    assert {"train/loss", "train/learning_rate", "train/tokens_per_second", "validation/verdict_macro_f1"} <= set(
        events.Tags()["scalars"]
    )
    history = json.loads((small_adapter / "history.json").read_text(encoding="utf-8"))["history"]
    drawn = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert drawn == [(e["step"], pytest.approx(e["loss"], rel=1e-5)) for e in history if "loss" in e]


def test_progress_lines_say_loss_rate_time_left_and_memory(
    small_checkpoint: Path, small_processor: Any, alike: Any, tmp_path: Path
) -> None:
    said: list[str] = []
    train(small_checkpoint, alike, None, small_processor, PLAIN.model_copy(update={"epochs": 3}), tmp_path, said.append)
    lines = [line for line in said if "loss" in line]
    pattern = r"adapter: step \d/3, loss \d+\.\d{4}, lr \d\.\d\de[+-]\d\d, [1-9]\d* tokens/s, \d+ s left, [1-9]\d+ MB"
    assert len(lines) == 3 and all(re.fullmatch(pattern, line) for line in lines), lines
    assert "0 s left" in lines[-1]


def test_an_optimizer_for_gpus_needs_one(
    small_checkpoint: Path, small_processor: Any, alike: Any, tmp_path: Path
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    profile = PLAIN.model_copy(update={"optimizer": "paged_adamw_8bit"})
    with pytest.raises(ValueError, match="optimizer is 'paged_adamw_8bit' and there is no GPU; expected 'adamw'"):
        train(small_checkpoint, alike, None, small_processor, profile, tmp_path, quiet)


def test_settings_that_do_not_fit_together_are_refused() -> None:
    def made(**changes: Any) -> Profile:
        return Profile(**{**PROFILE.model_dump(), **changes})

    with pytest.raises(ValueError, match="answer_length is 600, expected less than max_length 512"):
        made(answer_length=600)
    with pytest.raises(ValueError, match="num_processes is 9, but an update has .* 4 records; raise accumulation"):
        made(num_processes=9)
    with pytest.raises(
        ValueError, match="lora_modules is 'all' with distribution 'fsdp'; expected 'language', or 'ddp'"
    ):
        made(num_processes=2, lora_modules="all", distribution="fsdp")
    made(num_processes=2, lora_modules="all")
