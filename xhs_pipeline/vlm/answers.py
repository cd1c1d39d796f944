"""All allowed answers to a prompt in one forward pass: the tree they hang on, and what the model is given to read it.

Verdict after verdict, categories below each. The pass reads the prompt once and the tree's nodes beside each other, each node
seeing the prompt and its own ancestors only (a 4-D attention mask), at the rotary position it would have in its own answer.
What many prompts begin with, the system's words and the policy's, is read once for all of them. Likelihoods equal those of one
pass per answer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from xhs_pipeline.policy import Policy
from xhs_pipeline.splits.conversation import render_answer
from xhs_pipeline.vlm.batches import Example, seen

WORTH_SHARING = 8  # tokens; a forward pass of its own for fewer costs more than it saves


@dataclass(frozen=True)
class AnswerTree:
    """Token tree of the allowed answers; node 0 is the root (the prompt's last token), `paths[i]` leads to answer i.

    `read` are the nodes with children, the root first: of an answer's last token the likelihood is wanted, and nothing that comes
    after it. `sees` says of each of these without the root which of them it reads, bool (read - 1, read - 1): its ancestors and
    itself, so the sum of its row is its depth. `sums` adds each answer's steps up: 0 and 1, float64 (nodes but the root, answers).
    """

    answers: tuple[tuple[str, str], ...]
    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]
    read: tuple[int, ...]
    sees: np.ndarray
    sums: np.ndarray


def answer_tree(tokenizer: Any, policy: Policy) -> AnswerTree:
    """Build the tree from the same token ids that training sees; shared beginnings are shared nodes."""
    tokens, parents = [-1], [-1]
    children: dict[tuple[int, int], int] = {}
    paths = []
    texts = [render_answer(verdict, category, policy) for verdict, category in policy.answers()]
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        node, path = 0, []
        for token in ids:
            if (node, token) not in children:
                children[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
            node = children[node, token]
            path.append(node)
        paths.append(tuple(path))
    read = sorted(set(parents[1:]))
    sees = np.eye(len(read), dtype=bool)
    for place, node in enumerate(read[1:], start=1):  # parents come before their children
        sees[place] |= sees[read.index(parents[node])]
    sums = np.zeros((len(tokens), len(paths)))
    for answer, nodes in enumerate(paths):
        sums[list(nodes), answer] = 1
    return AnswerTree(
        tuple(policy.answers()), tuple(tokens), tuple(parents), tuple(paths), tuple(read), sees[1:, 1:], sums[1:]
    )


def inputs_for(model: Any, processor: Any, tree: AnswerTree, examples: Sequence[Example], known: Any) -> dict[str, Any]:
    """What the model is given to score `examples` on the tree, on the CPU; without the tokens that `known`, of `read_once`, holds.

    Of texts and images as `seen` has them, besides: input_ids (rows, tokens) and position_ids (3, rows, tokens), both of the
    prompts, padded on the left, and then the tree; and `real`, bool (rows, prompt tokens), false where there is padding.
    """
    import torch

    width, size, shared = max(len(e.prompt) for e in examples), len(tree.read) - 1, _known_tokens(known)
    rows = [[processor.tokenizer.pad_token_id] * (width - len(e.prompt)) + e.prompt for e in examples]
    ids = torch.tensor(rows)
    real = torch.arange(width) >= torch.tensor([[width - len(example.prompt)] for example in examples])
    batch = seen(examples, ids, processor)
    types = batch.pop("mm_token_type_ids")
    # rotary positions: the prompt's own (image-aware), then depth by depth after its last one
    if "image_grid_thw" in batch:
        positions, _ = _inner(model).model.get_rope_index(
            ids, mm_token_type_ids=types, image_grid_thw=batch["image_grid_thw"], attention_mask=real.long()
        )
    else:  # what that gives texts, without its loop over rows
        positions = (real.cumsum(1) - 1).clamp(min=0).expand(3, *ids.shape)
    after = positions.amax(dim=(0, 2))[:, None] + torch.from_numpy(tree.sees.sum(1))
    nodes = torch.tensor([tree.tokens[node] for node in tree.read[1:]], dtype=torch.long)
    # Without the first `shared` columns, padding or not, each row keeps its own tokens; as many before those as there were of
    # padding count as padding now.
    return batch | {
        "input_ids": torch.cat([ids[:, shared:], nodes.expand(len(examples), size)], dim=1),
        "position_ids": torch.cat([positions[:, :, shared:], after.expand(3, -1, size)], dim=2),
        "real": real[:, : width - shared],
    }


def log_likelihoods(model: Any, tree: AnswerTree, inputs: dict[str, Any], known: Any) -> np.ndarray:
    """Log-likelihood of every answer for every row of `inputs_for`: float64 (rows, answers), in one forward pass after `known`."""
    import torch

    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    real, (rows, tokens) = inputs.pop("real"), inputs["input_ids"].shape
    length, shared = real.shape[1], _known_tokens(known)
    mask = torch.ones(rows, 1, tokens, shared + tokens, dtype=torch.bool, device=model.device)
    own = mask[:, 0, :, shared:]
    own[:, :length, :length] = torch.ones(length, length, device=model.device).tril().bool() & real[:, None, :]
    own[:, :length, length:] = False
    own[:, length:, :length] = real[:, None, :]
    own[:, length:, length:] = torch.from_numpy(tree.sees).to(model.device)
    # a row of padding sees itself, or its softmax over nothing would be NaN and spread
    own.diagonal(dim1=1, dim2=2).fill_(True)
    # no_grad, not inference_mode: sharded weights (FSDP) would stay inference tensors, and training fail
    with torch.no_grad(), _last_layer_for(_inner(model).model.language_model.layers[-1], len(tree.read)):
        logits = model(
            **inputs,
            attention_mask=mask,
            past_key_values=None if known is None else _for_rows(known, rows),
            use_cache=False,
            logits_to_keep=len(tree.read),
        ).logits
        before = [tree.read.index(parent) for parent in tree.parents[1:]]
        steps = logits.float().log_softmax(-1)[:, before, tree.tokens[1:]].double().cpu().numpy()
    return np.asarray(steps @ tree.sums)


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _known_tokens(known: Any) -> int:
    return 0 if known is None else int(known.get_seq_length())


def shared_tokens(prompts: Sequence[list[int]], image_token: int) -> int:
    """How many tokens several prompts all begin with, before any image and leaving each at least one of its own; else 0."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)  # in lexicographic order: what these two share, all share
    count = 0
    for one, other in zip(first, last, strict=False):
        if one != other or one == image_token:
            break
        count += 1
    count = min(count, min(map(len, prompts)) - 1)
    return count if count >= WORTH_SHARING else 0


def read_once(model: Any, prompts: Sequence[list[int]], image_token: int) -> Any:
    """The keys and values (one row) of what all of `prompts` begin with; None where that is too little."""
    import torch

    if not (shared := shared_tokens(prompts, image_token)):
        return None
    beginning = torch.tensor([prompts[0][:shared]], device=model.device)
    places = torch.arange(shared, device=model.device).expand(3, 1, -1)
    with torch.no_grad():
        return model(input_ids=beginning, position_ids=places, use_cache=True, logits_to_keep=1).past_key_values


def _for_rows(known: Any, rows: int) -> Any:
    """The same keys and values for each of `rows` prompts; what a forward pass adds to them, `known` does not get."""
    from transformers import DynamicCache

    return DynamicCache(
        [(part.keys.expand(rows, -1, -1, -1), part.values.expand(rows, -1, -1, -1)) for part in known.layers]
    )


@contextmanager
def _last_layer_for(layer: Any, keep: int) -> Iterator[None]:
    """While open, a decoder's last layer computes the last `keep` positions only; nobody reads what it makes of the others.

    Their keys and values it needs. The same arithmetic as transformers' Qwen2VLDecoderLayer with sdpa otherwise.
    """
    import torch
    from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb

    attention = layer.self_attn

    def forward(
        hidden: Any, attention_mask: Any, position_embeddings: Any, past_key_values: Any = None, **kwargs: Any
    ) -> Any:
        def heads(projected: Any) -> Any:
            return projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

        normed = layer.input_layernorm(hidden)
        query, key, value = (
            heads(attention.q_proj(normed[:, -keep:])),
            heads(attention.k_proj(normed)),
            heads(attention.v_proj(normed)),
        )
        cos, sin = position_embeddings
        query, _ = apply_rotary_pos_emb(query, query, cos[..., -keep:, :], sin[..., -keep:, :])
        key, _ = apply_rotary_pos_emb(key, key[:, :1], cos, sin)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, attention.layer_idx)
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask[:, :, -keep:],
            scale=attention.scaling,
            enable_gqa=attention.num_key_value_groups > 1,
        )
        kept = hidden[:, -keep:] + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        return kept + layer.mlp(layer.post_attention_layernorm(kept))

    own = vars(layer).get("forward")  # a library may have put its own there
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
        if own is not None:
            layer.forward = own
