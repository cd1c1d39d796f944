"""Packing changes nothing but the speed: every record in a row is read as if it stood alone."""

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xhs_pipeline.training.lora import lora_model
from xhs_pipeline.training.loss import answer_loss
from xhs_pipeline.training.packing import (
    attend_within_records,
    best_fit_decreasing,
    micro_batches,
    pack,
    record_attention,
    share_out,
)
from xhs_pipeline.vlm.base import load_model
from xhs_pipeline.vlm.batches import Example, pad
from xhs_pipeline_tests.small import PLAIN, record


@pytest.fixture(scope="module")
def kinds(small_processor: Any) -> dict[str, list[Example]]:
    texts = [record(small_processor, f"t{i}", "内幕消息，本金保证返利。" * i) for i in (3, 1, 5)]
    pictured = [record(small_processor, f"i{i}", "扫码领取" * (4 - i), images=i) for i in (2, 1, 3)]
    mixed = [texts[2], pictured[0], texts[1], pictured[2], texts[0]]
    return {"text": texts, "images": pictured, "mixed": mixed, "one": pictured[:1]}


def tuned(checkpoint: Path, **changes: Any) -> tuple[Any, Any]:
    """The training model with LoRA that is not zero, and the model inside that knows the rotary positions."""
    import torch

    base = load_model(checkpoint, PLAIN, on="cpu")
    answer_loss(base)
    attend_within_records(base)
    torch.manual_seed(1)
    model = lora_model(base, PLAIN.model_copy(update=changes))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model, base


@pytest.mark.parametrize("kind", ["text", "images", "mixed", "one"])
def test_packed_logits_are_those_of_each_record_alone(
    small_checkpoint: Path, small_processor: Any, kinds: dict[str, list[Example]], kind: str
) -> None:
    import torch

    model, base = tuned(small_checkpoint)
    plain = load_model(small_checkpoint, PLAIN, on="cpu")  # the library's own attention, mask and positions
    plain.load_state_dict(
        {
            k.replace(".base_layer", ""): v
            for k, v in base.state_dict().items()
            if "lora_" not in k and "modules_to" not in k
        },
        strict=False,
    )
    row = pack(kinds[kind], small_processor, base.model.get_rope_index)
    assert row["input_ids"].shape == (1, sum(map(len, kinds[kind]))), "no padding"
    assert row["record_lengths"] == [len(e) for e in kinds[kind]]
    inputs = {k: v for k, v in row.items() if k not in ("labels", "loss_weights")}
    with torch.inference_mode(), model.disable_adapter():
        hidden = base.model(**inputs, attention_mask={"full_attention": None}, use_cache=False).last_hidden_state
        packed = base.lm_head(hidden)[0]
        start = 0
        for example in kinds[kind]:
            batch = {k: v for k, v in pad([example], small_processor).items() if k not in ("labels", "loss_weights")}
            alone = plain(**batch).logits[0]
            torch.testing.assert_close(packed[start : start + len(example)], alone, atol=1e-5, rtol=1e-5)
            rotary, _ = base.model.get_rope_index(**{k: v for k, v in batch.items() if k != "pixel_values"})
            places = torch.cat([torch.arange(len(example))[None, None], rotary])
            assert row["position_ids"][..., start : start + len(example)].equal(places), "a record's own places"
            start += len(example)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("kind", ["text", "images", "mixed"])
def test_packed_loss_and_gradients_are_those_of_the_padded_batch(
    small_checkpoint: Path, small_processor: Any, kinds: dict[str, list[Example]], kind: str, checkpointing: bool
) -> None:
    import torch

    found = []
    for packed in (False, True):
        model, base = tuned(small_checkpoint, gradient_checkpointing=checkpointing, lora_modules="all",
                            lora_targets=[*PLAIN.lora_targets, "qkv", "fc1", "mlp.0"])  # fmt: skip
        model.train()
        if packed:
            batch = pack(kinds[kind], small_processor, base.model.get_rope_index, rationale_weight=0.3)
        else:
            batch = pad(kinds[kind], small_processor, rationale_weight=0.3)
        loss = model(**batch).loss
        loss.backward()
        found.append((loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (loss, gradients), (packed_loss, packed_gradients) = found
    assert packed_loss == pytest.approx(loss, abs=1e-5)
    assert set(gradients) == set(packed_gradients)
    assert any("visual" in name for name in gradients) == (kind != "text")
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, atol=1e-5, rtol=1e-4)


def test_a_record_does_not_see_its_neighbours(small_checkpoint: Path, small_processor: Any) -> None:
    import torch

    _, base = tuned(small_checkpoint)
    base.eval()
    subject = record(small_processor, "s", "周末公园散步", images=1)
    seen = []
    for other in (record(small_processor, "a", "内幕消息"), record(small_processor, "b", "祖传秘方" * 9, images=2)):
        row = pack([other, subject], small_processor, base.model.get_rope_index)
        inputs = {k: v for k, v in row.items() if k not in ("labels", "loss_weights")}
        with torch.inference_mode():
            hidden = base.model(**inputs, attention_mask={"full_attention": None}, use_cache=False).last_hidden_state
        seen.append(hidden[0, len(other) :])
    torch.testing.assert_close(*seen, atol=1e-5, rtol=1e-5)


def test_attention_record_by_record_is_attention_under_a_block_diagonal_causal_mask() -> None:
    """The reference is one call with a mask that keeps the records apart."""
    import torch

    lengths, module = [3, 5, 1], SimpleNamespace(is_causal=True, num_key_value_groups=2, training=False)
    query, key, value = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    found, _ = record_attention(module, query, key, value, None, record_lengths=lengths, scaling=8**-0.5, dropout=0.0)
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    mask = (owner[:, None] == owner[None]) & torch.ones(9, 9).tril().bool()
    wide = [tensor.repeat_interleave(2, dim=1) for tensor in (key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(query, *wide, attn_mask=mask).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


# which records share a row


def test_packs_hold_every_record_once_and_none_is_over_full() -> None:
    for seed in range(30):
        rng = random.Random(seed)
        lengths = [rng.randint(5, 400) for _ in range(rng.randint(1, 60))]
        packs = best_fit_decreasing(lengths, 300)
        assert Counter(i for pack in packs for i in pack) == Counter(range(len(lengths)))
        assert all(sum(lengths[i] for i in pack) <= 300 or len(pack) == 1 for pack in packs)
        fewest = -(-sum(min(n, 300) for n in lengths) // 300)
        assert len(packs) <= 11 / 9 * fewest + 1 + sum(n > 150 for n in lengths)
        assert packs == best_fit_decreasing(list(lengths), 300)


def test_the_tightest_room_is_taken() -> None:
    assert best_fit_decreasing([60, 50, 40, 45], 100) == [[0, 2], [1, 3]]
    assert best_fit_decreasing([500, 10, 90], 100) == [[0], [1, 2]]


def test_processes_get_alike_many_tokens_and_together_every_record() -> None:
    rng = random.Random(3)
    lengths = [rng.randint(20, 400) for _ in range(32)]
    shares = share_out(list(range(32)), lengths, 3)
    assert Counter(r for share in shares for r in share) == Counter(range(32))
    loads = [sum(lengths[r] for r in share) for share in shares]
    assert max(loads) - min(loads) < 0.05 * sum(lengths)
    assert share_out(["a", "b"], [3, 5], 1) == [["a", "b"]]


def test_without_a_pack_length_records_go_in_batches() -> None:
    assert micro_batches(list("abcde"), [1] * 5, 2, 0) == [["a", "b"], ["c", "d"], ["e"]]
    assert micro_batches(list("abc"), [5, 5, 5], 1, 10) == [["a", "b"], ["c"]]
