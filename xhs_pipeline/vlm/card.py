"""moderation.json beside a model's weights: the profile and the policy's words that it was trained with. Loads no weights."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from xhs_pipeline.artifacts import read_json, write_json
from xhs_pipeline.policy import Policy
from xhs_pipeline.profile import Profile

MODEL_CARD = "moderation.json"
REMEDY = "expected what merged_model wrote; copy the folder again"


@dataclass(frozen=True)
class ModelCard:
    """What a user of the folder needs to put the same question in the same words.

    `policy` has today's costs and limits with the wording of the training: its version is the version trained with.
    `prompt` is splits.conversation.prompt_digest of that wording and of the folder's chat template.
    """

    profile: Profile
    policy: Policy
    prompt: str


def write_card(folder: Path, card: ModelCard) -> None:
    """Write moderation.json into a model's folder."""
    write_json(
        folder / MODEL_CARD,
        {
            "policy_version": card.policy.version,
            "wording": card.policy.wording,
            "prompt": card.prompt,
            "profile": card.profile.model_dump(),
        },
    )


def read_card(folder: Path, policy: Policy) -> ModelCard:
    """Read moderation.json; `policy` gives the costs and limits, which are today's whatever the model was trained with.

    Raises ValueError naming the file when it is missing, is not JSON, or lacks or spoils an entry.
    """
    file = folder / MODEL_CARD
    if not file.is_file():
        raise ValueError(f"{file}: missing; expected a folder that merged_model wrote")
    try:
        card = read_json(file)
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{file}: not JSON ({error}); {REMEDY}") from error
    kinds = {"profile": dict, "wording": dict, "prompt": str, "policy_version": str}
    missing = [
        name for name, kind in kinds.items() if not isinstance(card, dict) or not isinstance(card.get(name), kind)
    ]
    if missing:
        raise ValueError(f"{file}: holds no {' and no '.join(missing)}; {REMEDY}")
    try:
        profile = Profile.model_validate(card["profile"])
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{file}: profile: {problems}; {REMEDY}") from error
    try:
        trained = policy.with_wording(card["policy_version"], card["wording"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: wording: {type(error).__name__}: {error}; {REMEDY}") from error
    return ModelCard(profile, trained, card["prompt"])
