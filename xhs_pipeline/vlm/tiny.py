"""The embedded default: a tiny Qwen2-VL of the real class with a tokenizer of its own, built from the train split.

It is written in the published checkpoint layout and then loaded by the code that loads a real one. Its vocabulary and its
first weights come from the texts it will be fine-tuned on, so it says nothing about the quality of a real checkpoint.
"""

import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from xhs_pipeline.policy import Policy
from xhs_pipeline.profile import Profile

NOTE = "内置的微型模型：与 Qwen2-VL 同类，从零训练，只证明流程可用；这里的任何数字都不代表真实 Qwen2-VL 的质量。"

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]

# Qwen2-VL's published template, for system, text and image parts.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _tokenizer(texts: Iterable[str], policy: Policy, vocabulary: int) -> Any:
    """Byte-level BPE that keeps Chinese characters single and Latin words, digits and the answer's wording whole."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    wording = {policy.label(v) for v in policy.verdict_ids} | set(policy.category_names)
    wording |= {line.split("{")[0] for line in policy.answer.values()}
    phrases = "|".join(re.escape(w) for w in sorted(wording, key=lambda w: (-len(w), w)))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf"{phrases}|[A-Za-z]+|[0-9]|\s+|."), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The wording first and often, so that it becomes whole tokens whatever the texts hold.
    tokenizer.train_from_iterator([*(w for w in sorted(wording) for _ in range(1000)), *texts], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
        additional_special_tokens=SPECIAL_TOKENS, chat_template=CHAT_TEMPLATE, model_max_length=32768,
    )  # fmt: skip


def build_tiny(
    folder: Path, texts: Sequence[str], policy: Policy, profile: Profile, log: Callable[[str], None] = print
) -> dict[str, Any]:
    """Write a tiny Qwen2-VL checkpoint into `folder`, its tokenizer and language model fitted to `texts`.

    Returns counts: parameters, vocabulary, pre-training steps and the first and last loss (nats per token).
    """
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = _tokenizer(texts, policy, profile.tiny_vocabulary)
    token_id = tokenizer.convert_tokens_to_ids
    hidden, heads = profile.tiny_hidden_size, profile.tiny_heads
    half = hidden // heads // 2  # mrope_section must sum to half a head
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": hidden, "intermediate_size": 2 * hidden,
            "num_hidden_layers": profile.tiny_layers, "num_attention_heads": heads, "num_key_value_heads": heads,
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "bos_token_id": token_id("<|endoftext|>"),
            "eos_token_id": token_id("<|im_end|>"), "pad_token_id": token_id("<|endoftext|>"),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [half // 4, half // 4, half - 2 * (half // 4)][::-1]},
            "tie_word_embeddings": True,
        },
        vision_config={"depth": profile.tiny_vision_depth, "embed_dim": profile.tiny_vision_size, "hidden_size": hidden,
                       "num_heads": 4, "mlp_ratio": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2},
        image_token_id=token_id("<|image_pad|>"), video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"), vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(profile.seed)
    model = Qwen2VLForConditionalGeneration(config)
    losses = _pretrain(model, tokenizer, texts, profile, log)
    model.save_pretrained(folder, max_shard_size=profile.shard_size)
    tokenizer.save_pretrained(folder)
    image_processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": profile.min_pixels, "longest_edge": profile.max_pixels}
    )
    image_processor.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "pretrain_steps": len(losses),
        "pretrain_first_loss": round(losses[0], 4) if losses else None,
        "pretrain_last_loss": round(losses[-1], 4) if losses else None,
    }


def _pretrain(
    model: Any, tokenizer: Any, texts: Sequence[str], profile: Profile, log: Callable[[str], None]
) -> list[float]:
    """Plain next-token training on the texts (AdamW, lr 3e-3, linear decay, batch 16, 96 tokens): words before verdicts."""
    import torch

    # Cut here, not by the tokenizer: it would keep the limit, and tokenizer.json would carry it to every later reader.
    ids = [tokenizer(text)["input_ids"][:96] for text in texts]
    ids = sorted((row for row in ids if len(row) > 1), key=len)
    batches = [ids[i : i + 16] for i in range(0, len(ids), 16)]  # rows of like length share a batch
    steps = profile.tiny_pretrain_epochs * len(batches)
    if not steps:
        return []
    rng = random.Random(profile.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 3e-3, total_steps=steps, pct_start=0.05, anneal_strategy="linear"
    )
    losses = []
    model.train()
    for step in range(steps):
        rows = rng.choice(batches)
        width = max(map(len, rows))
        batch = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        loss = model(input_ids=batch, attention_mask=mask, labels=batch.masked_fill(mask == 0, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            log(f"base_model: language-model step {step + 1}/{steps}, loss {losses[-1]:.3f}")
    return losses
