"""One post as a conversation: the prompt the model reads and the answer it should give. The same words everywhere.

Training, evaluation and the command line render prompts here and nowhere else; `prompt_digest` names the wording.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xhs_pipeline.policy import Policy

IMAGE_PLACEHOLDER = "<image>"
ELISION = "……"

# What a hostile post may hold: chat-template tokens, media placeholders of this and other frameworks, and lines that
# look like the model's own answer.
_TEMPLATE_TOKEN = re.compile(r"<\s*\|([^<>|]{0,64})\|\s*>")
_PLACEHOLDER = re.compile(
    r"<(\s*/?\s*(?:image|video|audio|img|box|ref|quad|tool_call|s|pad|unk|eos|bos)\s*)>", re.IGNORECASE
)


@dataclass(frozen=True)
class Prompt:
    """Rendered user turn; `elided` is how many characters of the body were left out in its middle."""

    system: str
    user: str
    elided: int


def neutralise(text: str, policy: Policy) -> str:
    """Make post text safe inside a prompt: nothing in it can be a control token, a placeholder or an answer line.

    Angle brackets of control tokens become their look-alikes ‹ ›, and the answer's field names get a middle dot, so the
    words stay readable for the model but no longer are what it is trained to write.
    """
    text = _TEMPLATE_TOKEN.sub(r"‹|\1|›", text)
    text = _PLACEHOLDER.sub(r"‹\1›", text)
    for line in policy.answer.values():
        name = line.split("{")[0].rstrip("：: ")
        # spaces within, brackets or 是 before any kind of colon, or the end of a title whose body brings the colon
        written = r"\s*".join(map(re.escape, name))
        text = re.sub(rf"{written}(?=[\s】」』\])）]*是?\s*[：:∶︓]|\s*$)", f"{name[0]}·{name[1:]}", text)
    return text


def render_prompt(title: str, body: str, policy: Policy, style: str, head: int = 0, tail: int = 0) -> Prompt:
    """The system and user turns for a post, without images. `head` and `tail` are characters kept of a longer body."""
    title, body = neutralise(title or "", policy), neutralise(body or "", policy)
    elided = 0
    if head and len(body) > head + tail:
        elided = len(body) - head - tail
        body = body[:head] + ELISION + (body[-tail:] if tail else "")
    template = policy.prompt[style]
    fields = {
        "{verdicts}": "；".join(f"{v.label}（{v.description}）" for v in policy.verdicts),
        "{categories}": "；".join(f"{c.name}（{c.description}）" for c in policy.categories),
        "{title}": title,
        "{body}": body,
    }
    # One pass, so that a post whose title is "{body}" stays what it is.
    user = re.sub("|".join(map(re.escape, fields)), lambda m: fields[m[0]], template).strip()
    return Prompt(policy.prompt["system"] if style == "full" else "", user, elided)


def render_answer(verdict: str, category: str, policy: Policy, rationale: str | None = None) -> str:
    """The answer's lines. A rationale is only ever the post's own; none is made up."""
    lines = [
        policy.answer["verdict"].format(verdict=policy.label(verdict)),
        policy.answer["category"].format(category=category),
    ]
    if rationale and rationale.strip():
        lines.append(policy.answer["rationale"].format(rationale=neutralise(" ".join(rationale.split()), policy)))
    return "\n".join(lines)


def to_messages(prompt: Prompt, images: int, answer: str | None) -> list[dict[str, str]]:
    """sharegpt messages with role/content; as many <image> placeholders as images, at the start of the user turn."""
    messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
    messages.append({"role": "user", "content": IMAGE_PLACEHOLDER * images + prompt.user})
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return messages


def chat_parts(messages: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """sharegpt messages as the parts that a Qwen2-VL chat template takes (placeholders become image parts)."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        parts: list[dict[str, str]] = []
        for number, text in enumerate(message["content"].split(IMAGE_PLACEHOLDER)):
            if number:
                parts.append({"type": "image"})
            if text:
                parts.append({"type": "text", "text": text})
        turns.append({"role": message["role"], "content": parts})
    return turns


def prompt_digest(policy: Policy, style: str, chat_template: str) -> str:
    """Hash of everything that shapes a prompt beside the post; equal in training, evaluation and use."""
    sample = render_prompt("标题", "正文", policy, style)
    payload = [
        sample.system,
        sample.user,
        [render_answer(*answer, policy) for answer in policy.answers()],
        chat_template,
    ]
    return hashlib.sha256(json.dumps(payload, ensure_ascii=False).encode()).hexdigest()[:16]
