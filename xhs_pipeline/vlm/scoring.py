"""Probabilities of every allowed answer for a post, by log-likelihood; the model never writes free text here.

All answers hang on one prompt as a token tree: verdict after verdict, categories below each. One forward pass reads the
prompt once and the tree's nodes beside each other, each node seeing the prompt and its own ancestors only (a 4-D
attention mask), at the rotary position it would have in its own answer. What all prompts of a batch begin with, the system's
words and the policy's, is read once for all of them. Scores equal those of one pass per answer.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from xhs_pipeline.policy import Policy
from xhs_pipeline.splits.conversation import render_answer
from xhs_pipeline.vlm.batches import Example, answer_ids, pad

SECONDS_BETWEEN_LINES = 10
WORTH_SHARING = 8  # tokens; a second forward pass for fewer costs more than it saves


@dataclass(frozen=True)
class AnswerTree:
    """Token tree of the allowed answers; node 0 is the root (the prompt's last token), `paths[i]` leads to answer i."""

    answers: tuple[tuple[str, str], ...]
    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]


def answer_tree(tokenizer: Any, policy: Policy) -> AnswerTree:
    """Build the tree from the same token ids that training sees; shared beginnings are shared nodes."""
    tokens, parents = [-1], [-1]
    children: dict[tuple[int, int], int] = {}
    paths = []
    for verdict, category in policy.answers():
        node, path = 0, []
        for token in answer_ids(tokenizer, render_answer(verdict, category, policy), end=False):
            if (node, token) not in children:
                children[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
            node = children[node, token]
            path.append(node)
        paths.append(tuple(path))
    return AnswerTree(tuple(policy.answers()), tuple(tokens), tuple(parents), tuple(paths))


def tree_log_likelihoods(
    model: Any, processor: Any, tree: AnswerTree, examples: Sequence[Example], known: Any = None
) -> np.ndarray:
    """Log-likelihood of every answer for every example: float64 (examples, answers), in one forward pass.

    `known` is what `_read_once` gave for prompts among which these are. Only nodes with children are read: of an answer's last
    token the likelihood is wanted, and nothing that comes after it.
    """
    import torch

    read = sorted({parent for parent in tree.parents[1:] if parent})
    place = {node: number for number, node in enumerate([0, *read])}
    prompts = [replace(example, answer=[]) for example in examples]
    batch = {name: value for name, value in pad(prompts, processor).items() if name not in ("labels", "loss_weights")}
    rows, width = batch["input_ids"].shape
    shared = known.get_seq_length() if known else 0
    length, size = width - shared, len(read)

    # rotary positions: the prompt's own (image-aware), then depth by depth after its last one; all of this is made before
    # anything goes to the GPU, where every look at a number would wait for it
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    types = batch.pop("mm_token_type_ids")
    if "image_grid_thw" in batch:
        positions, _ = inner.model.get_rope_index(
            batch["input_ids"],
            mm_token_type_ids=types,
            image_grid_thw=batch["image_grid_thw"],
            attention_mask=batch["attention_mask"],
        )
    else:  # what that gives texts, without its loop over rows
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0).expand(3, rows, width)
    depth = [0] * len(tree.tokens)
    sees = torch.zeros(size, size, dtype=torch.bool)
    for node in read:
        parent = tree.parents[node]
        depth[node] = depth[parent] + 1
        if parent:
            sees[place[node] - 1] = sees[place[parent] - 1]
        sees[place[node] - 1, place[node] - 1] = True
    after = positions.amax(dim=(0, 2))[:, None] + torch.tensor([depth[node] for node in read], dtype=torch.long)
    positions = torch.cat([positions[:, :, shared:], after.expand(3, rows, size)], dim=2)

    # Rows are padded on the left: without the first `shared` columns each keeps its own tokens, and as much padding as before.
    nodes = torch.tensor([tree.tokens[node] for node in read], dtype=torch.long)
    batch["input_ids"] = torch.cat([batch["input_ids"][:, shared:], nodes.expand(rows, size)], dim=1)
    padding = width - batch.pop("attention_mask").sum(1, keepdim=True)
    real = (torch.arange(length) >= padding).to(model.device)
    mask = torch.ones(rows, 1, length + size, width + size, dtype=torch.bool, device=model.device)
    own = mask[:, 0, :, shared:]
    own[:, :length, :length] = torch.ones(length, length, device=model.device).tril().bool() & real[:, None, :]
    own[:, :length, length:] = False
    own[:, length:, :length] = real[:, None, :]
    own[:, length:, length:] = sees.to(model.device)
    # a row of padding sees itself, or its softmax over nothing would be NaN and spread
    own.diagonal(dim1=1, dim2=2).fill_(True)

    batch = {name: value.to(model.device) for name, value in batch.items()}
    # no_grad, not inference_mode: sharded weights (FSDP) would stay inference tensors, and training fail
    with torch.no_grad(), _last_layer_for(inner.model.language_model.layers[-1], size + 1):
        logits = model(
            **batch,
            attention_mask=mask,
            position_ids=positions.to(model.device),
            past_key_values=known and _for_rows(known, rows),
            use_cache=False,
            logits_to_keep=size + 1,
        ).logits
        before = [place[parent] for parent in tree.parents[1:]]
        steps = logits.float().log_softmax(-1)[:, before, tree.tokens[1:]].double().cpu().numpy()
    return np.stack([steps[:, np.array(path) - 1].sum(1) for path in tree.paths], axis=1)


def _shared_tokens(prompts: Sequence[list[int]], image_token: int) -> int:
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


def _read_once(model: Any, prompts: Sequence[list[int]], image_token: int) -> Any:
    """The keys and values (one row) of what all of `prompts` begin with; None where that is too little."""
    import torch

    if not (shared := _shared_tokens(prompts, image_token)):
        return None
    beginning = torch.tensor([prompts[0][:shared]], device=model.device)
    places = torch.arange(shared, device=model.device).expand(3, 1, -1)
    with torch.no_grad():
        return model(input_ids=beginning, position_ids=places, use_cache=True, logits_to_keep=1).past_key_values


def _for_rows(known: Any, rows: int) -> Any:
    """The same keys and values for each of `rows` prompts, uncopied; what a forward pass adds to them stays its own."""
    from transformers import DynamicCache

    return DynamicCache([(part.keys.expand(rows, -1, -1, -1), part.values.expand(rows, -1, -1, -1)) for part in known.layers])


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


@dataclass(frozen=True)
class Judgement:
    """What the model says of one post: the most likely allowed answer, and probabilities that sum to 1 each.

    `scores` are the log-likelihoods that they come from, in nats, one per answer in the order of `Policy.answers()` of the
    model's policy; `temperature` is what they were divided by.
    """

    post_id: str
    verdict: str
    category: str
    verdict_probs: dict[str, float]
    category_probs: dict[str, float]
    valid: bool
    scores: tuple[float, ...] = ()
    temperature: float = 1.0


@dataclass
class Progress:
    """Says done/total, rate and time left every 10 seconds and at the end; without `total`, which nobody may know, no time left."""

    log: Callable[[str], None] | None = None
    total: int | None = None
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    spoken: float = field(default_factory=time.monotonic)

    def add(self, posts: int) -> None:
        """Count `posts` more as done."""
        self.done += posts
        if self.done == self.total or time.monotonic() - self.spoken > SECONDS_BETWEEN_LINES:
            self.say()

    def say(self) -> None:
        self.spoken = time.monotonic()
        rate = self.done / max(self.spoken - self.started, 1e-9)
        if self.log and self.total is None:
            self.log(f"judged {self.done} posts, {rate:.1f} posts/s")
        elif self.log and self.total is not None:
            left = (self.total - self.done) / max(rate, 1e-9)
            self.log(f"judged {self.done}/{self.total} posts, {rate:.1f} posts/s, {left:.0f} s left")


def judge_examples(
    model: Any,
    processor: Any,
    policy: Policy,
    examples: Sequence[Example],
    batch_size: int,
    progress: Progress | None = None,
    temperature: float = 1.0,
) -> Iterator[Judgement]:
    """Judge examples in batches of like length, yielding in the order given; every batch is added to `progress`.

    `temperature` is the model's own, fitted on its calibration split; 1 leaves the probabilities as the model gives them.
    """
    tree = answer_tree(processor.tokenizer, policy)
    prompts = [example.prompt for example in examples]
    order = sorted(range(len(examples)), key=lambda i: len(prompts[i]))
    scores = np.empty((len(examples), len(tree.answers)))
    was_training = model.training
    model.eval()
    # texts apart from posts with images, which stand before the policy's words and leave less to share
    for pictured in (False, True):
        kind = [i for i in order if bool(examples[i].images) == pictured]
        known = _read_once(model, [prompts[i] for i in kind], processor.image_token_id)
        for begin in range(0, len(kind), batch_size):
            chosen = kind[begin : begin + batch_size]
            scores[chosen] = tree_log_likelihoods(model, processor, tree, [examples[i] for i in chosen], known)
            if progress:
                progress.add(len(chosen))
    model.train(was_training)
    for example, row in zip(examples, scores, strict=True):
        yield _judgement(example.post_id, row, policy, temperature)


def at_temperature(judgement: Judgement, policy: Policy, temperature: float) -> Judgement:
    """The same scores at another temperature, without asking the model again; `policy` is the one it was judged with.

    Raises ValueError when the judgement's scores are not one per answer of `policy`.
    """
    expected = len(policy.answers())
    if len(judgement.scores) != expected:
        raise ValueError(
            f"post {judgement.post_id}: {len(judgement.scores)} scores, policy {policy.version} has {expected} answers; "
            "give the policy that the model was asked with"
        )
    return _judgement(judgement.post_id, np.array(judgement.scores), policy, temperature)


def _judgement(post_id: str, scores: np.ndarray, policy: Policy, temperature: float) -> Judgement:
    """Softmax of scores / temperature over the allowed answers, then sums over those that share a verdict, or a category."""
    answers = policy.answers()
    valid = bool(np.isfinite(scores).all())
    if valid:
        share = np.exp((scores - scores.max()) / temperature)
        share /= share.sum()
    else:
        share = np.full(len(scores), 1 / len(scores))
    verdicts = dict.fromkeys(policy.verdict_ids, 0.0)
    categories = dict.fromkeys(policy.category_names, 0.0)
    for (verdict, category), probability in zip(answers, share, strict=True):
        verdicts[verdict] += float(probability)
        categories[category] += float(probability)
    verdict, category = answers[int(share.argmax())]
    return Judgement(
        post_id, verdict, category, verdicts, categories, valid, tuple(map(float, scores)), float(temperature)
    )
