"""The loss of a batch: weighted cross-entropy on the answers' tokens, in bounded memory. Knows no optimiser and no data."""

import functools
from typing import Any

# Logits that exist at once, in float32. With 151,936 words that is 110 tokens; a small vocabulary is never cut into chunks.
LOGITS_BYTES = 64 * 2**20


def answer_nll(hidden: Any, labels: Any, weights: Any, head: Any, chunk: int) -> Any:
    """Sum of weight * -log p(label), float32 scalar, for hidden (n, size), labels (n,) int64, weights (n,) float32.

    The head is applied to `chunk` rows at a time, and again in the backward pass, so that neither pass holds the logits of
    more than one chunk.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    def part(states: Any, goals: Any, weight: Any) -> Any:
        losses = torch.nn.functional.cross_entropy(head(states).float(), goals, reduction="none")
        return (losses * weight).sum()

    if len(labels) <= chunk:  # one chunk: computing it twice would bound nothing
        return part(hidden, labels, weights)
    parts = zip(hidden.split(chunk), labels.split(chunk), weights.split(chunk), strict=True)
    return torch.stack([checkpoint(part, *rows, use_reentrant=False, preserve_rng_state=False) for rows in parts]).sum()


def answer_loss(model: Any) -> None:
    """Make `model.forward`, given labels, return the loss of the answer's tokens only, and no logits.

    Only the hidden states that predict an answer's token reach the head: with a vocabulary of 151,936, logits of whole
    sequences would be the largest tensor of the step by far. The loss is sum(w_i * nll_i) over the batch, divided by
    `num_items_in_batch`: the weights of all records of the update, or of this batch when it is not given. With
    `record_lengths` the batch is a packed row (training.packing).
    """
    import torch
    from transformers.modeling_outputs import CausalLMOutputWithPast

    forward = model.forward
    chunk = max(1, LOGITS_BYTES // (4 * model.config.text_config.vocab_size))

    def answer_forward(
        labels: Any = None,
        loss_weights: Any = None,
        num_items_in_batch: Any = None,
        record_lengths: list[int] | None = None,
        **inputs: Any,
    ) -> Any:
        if labels is None:
            return forward(**inputs)
        if record_lengths is not None:
            # a mask for each kind of layer, which is none: attention goes by the records' lengths
            kinds = set(model.config.text_config.layer_types)
            inputs |= {"attention_mask": dict.fromkeys(kinds), "record_lengths": record_lengths}
        hidden = model.model(**{**inputs, "use_cache": False}).last_hidden_state
        weights = loss_weights[:, 1:]
        chosen = weights > 0
        # The weight, not the module: under FSDP, which has gathered it by now, every call of the module is an exchange among the
        # processes, and they differ in their number of chunks.
        head = functools.partial(torch.nn.functional.linear, weight=model.lm_head.weight)
        total = answer_nll(hidden[:, :-1][chosen], labels[:, 1:][chosen], weights[chosen], head, chunk)
        return CausalLMOutputWithPast(
            loss=total / (weights.sum() if num_items_in_batch is None else num_items_in_batch)
        )

    model.forward = answer_forward
