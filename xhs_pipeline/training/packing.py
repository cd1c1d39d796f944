"""Several records in one row, without padding, each as if it stood alone. Which records share an update is not decided here.

A packed row is `(1, tokens)`: the records one after the other, each at its own rotary positions, attending to itself only.
Losses and gradients are those of the same records padded into a batch (tested), so packing changes nothing but the speed.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from xhs_pipeline.vlm.batches import Example, columns, seen

ATTENTION = "records"  # the name under which transformers finds `record_attention`
Item = TypeVar("Item")


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in packs of at most `capacity` tokens; a longer record has a pack of its own.

    Each record, longest first, goes where it leaves the least room (ties: the earliest), which needs at most 11/9 of the
    fewest packs, plus one (D. S. Johnson, Near-optimal bin packing algorithms, 1973). Within a pack the given order stays.
    """
    packs: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [pack for pack in range(len(packs)) if room[pack] >= lengths[index]]
        if fitting:
            pack = min(fitting, key=lambda p: room[p])
            packs[pack].append(index)
            room[pack] -= lengths[index]
        else:
            packs.append([index])
            room.append(capacity - lengths[index])
    return [sorted(pack) for pack in packs]


def share_out(records: Sequence[Item], lengths: Sequence[int], processes: int) -> list[list[Item]]:
    """The records of one update for each process: longest first to the process with the fewest tokens, order kept."""
    shares: list[list[int]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for index in sorted(range(len(records)), key=lambda i: (-lengths[i], i)):
        least = loads.index(min(loads))
        shares[least].append(index)
        loads[least] += lengths[index]
    return [[records[i] for i in sorted(share)] for share in shares]


def micro_batches(
    records: Sequence[Item], lengths: Sequence[int], batch_size: int, pack_length: int
) -> list[list[Item]]:
    """What one process puts through the model at once: packs of `pack_length` tokens, or batches when that is 0."""
    if pack_length:
        return [[records[i] for i in pack] for pack in best_fit_decreasing(lengths, pack_length)]
    return [list(records[i : i + batch_size]) for i in range(0, len(records), batch_size)]


def pack(
    examples: Sequence[Example], processor: Any, rope_index: Callable[..., Any], rationale_weight: float = 1.0
) -> dict[str, Any]:
    """Records as one row without padding; what their tensors hold is as in a padded batch (vlm.batches.pad).

    `rope_index` is the model's own `get_rope_index`. int64 of shape (1, tokens): input_ids, labels; int32: mm_token_type_ids;
    float32: loss_weights; int64 (4, 1, tokens): position_ids, the place in the record and then the three rotary axes, as
    transformers takes packed rows; record_lengths: a list of int. With images pixel_values and image_grid_thw.
    """
    import torch

    lengths = [len(e) for e in examples]
    parts = zip(*(columns(e, rationale_weight) for e in examples), strict=True)
    ids, labels, weights = (torch.tensor([list(itertools.chain.from_iterable(part))]) for part in parts)
    row = {"input_ids": ids, "labels": labels, "loss_weights": weights} | seen(examples, ids, processor)
    # These go on from record to record, each from the last one's end: a record's own are counted from its first token.
    rotary, _ = rope_index(ids, mm_token_type_ids=row["mm_token_type_ids"], image_grid_thw=row.get("image_grid_thw"))
    sizes = torch.tensor(lengths)
    first = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    places = torch.arange(len(first)) - first
    positions = torch.cat([places[None, None], rotary - rotary[:, :, first]])
    return row | {"position_ids": positions, "record_lengths": lengths}


def attend_within_records(model: Any) -> None:
    """Let the language model of `model` take `record_lengths`; without them it attends as before (sdpa, any mask)."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, record_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation({"text_config": ATTENTION})


def record_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    record_lengths: list[int] | None = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """Causal attention of each record with itself. query (1, heads, tokens, size); returns (1, tokens, heads, size).

    One kernel call a record and no mask: the cost grows with the sum of the squared lengths, not with the square of their
    sum. On a GPU in half precision one call of flash-attn takes all records, where that library is installed.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if record_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and (varlen := _flash_attention()):
        ends = torch.tensor([0, *record_lengths], device=query.device).cumsum(0, dtype=torch.int32)
        rows = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        longest, scale = max(record_lengths), kwargs.get("scaling")
        return varlen(*rows, ends, ends, longest, longest, softmax_scale=scale, causal=True)[None], None
    parts = zip(*(tensor.split(record_lengths, dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, q, k, v, None, **kwargs)[0] for q, k, v in parts], dim=1), None


@functools.cache
def _flash_attention() -> Any:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func
