"""The loss of a training: on the answer's tokens and nothing else, in memory that the vocabulary does not decide."""

from pathlib import Path
from typing import Any

import pytest

from xhs_pipeline.training.loss import answer_loss, answer_nll
from xhs_pipeline.vlm.base import load_model
from xhs_pipeline.vlm.batches import IGNORED, Example, pad
from xhs_pipeline_tests.small import PLAIN, record


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


def test_without_labels_the_model_answers_as_before(small_checkpoint: Path, small_processor: Any) -> None:
    import torch

    batch = pad([record(small_processor, "a", "返利", images=1)], small_processor)
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "loss_weights")}
    model = load_model(small_checkpoint, PLAIN, on="cpu")
    with torch.inference_mode():
        before = model(**inputs).logits
        answer_loss(model)
        assert model(**inputs).logits.equal(before)


def test_only_positions_that_predict_an_answers_token_reach_the_head(
    small_checkpoint: Path, small_processor: Any, batches: dict[str, list[Example]]
) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Logits(TorchDispatchMode):
        """Rows of every matrix whose columns are the vocabulary."""

        rows: list[int] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func.__name__.startswith("mm.") and out.shape[-1] == words:
                self.rows.append(out.shape[0])
            return out

    model = load_model(small_checkpoint, PLAIN, on="cpu")
    words = model.config.text_config.vocab_size
    answer_loss(model)
    with Logits() as seen:
        model(**pad(batches["mixed"], small_processor))
    assert seen.rows == [sum(len(e.answer) for e in batches["mixed"])]


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_a_loss_in_chunks_is_the_loss_at_once_and_so_are_its_gradients(chunk: int) -> None:
    import torch

    torch.manual_seed(0)
    results = []
    for size in (50, chunk):
        generator = torch.Generator().manual_seed(1)
        head = torch.nn.Linear(16, 300, bias=False)
        torch.nn.init.normal_(head.weight, generator=generator)
        hidden = torch.randn(50, 16, generator=generator).requires_grad_()
        labels = torch.randint(300, (50,), generator=generator)
        weights = torch.rand(50, generator=generator)
        live: list[int] = []
        head.register_forward_hook(lambda module, inputs, output, live=live: live.append(len(output)))
        loss = answer_nll(hidden, labels, weights, head, size) / weights.sum()
        loss.backward()
        assert max(live) <= size and sum(live) == (50 if size >= 50 else 100), "each chunk once forward, once backward"
        results.append((loss.detach(), hidden.grad, head.weight.grad))
    expected = torch.nn.functional.cross_entropy(head(hidden), labels, reduction="none")
    assert results[0][0].item() == pytest.approx(((expected * weights).sum() / weights.sum()).item(), abs=1e-6)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_the_loss_of_an_update_is_divided_by_the_weights_it_is_given(
    small_checkpoint: Path, small_processor: Any, batches: dict[str, list[Example]]
) -> None:
    import torch

    model = load_model(small_checkpoint, PLAIN, on="cpu")
    answer_loss(model)
    with torch.inference_mode():
        whole = model(**pad(batches["mixed"], small_processor)).loss.item()
        total = sum(len(e.answer) for e in batches["mixed"])
        parts = [model(**pad([e], small_processor), num_items_in_batch=total).loss.item() for e in batches["mixed"]]
    assert sum(parts) == pytest.approx(whole, abs=1e-5)
