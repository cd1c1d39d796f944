"""What goes into the appeals store and comes out of it, as plain values. Knows neither the database nor the rules."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from xhs_pipeline.appeals.states import CaseState

TEXT_GROUP, IMAGES_GROUP = "text:", "images:"  # what the parts of a group id are hashes of
POST_GROUP = "post:"  # the group of a post whose content nobody knows, with its own id


@dataclass(frozen=True)
class Content:
    """What of a post is judged: its matching form (see `curation.text.matching_form`) and the SHA-256 (hex) of every image."""

    match_text: str
    images: tuple[str, ...] = ()

    @property
    def group_id(self) -> str:
        """Equal for equal content: a hash of the text, where there is any, and the number and a hash of the images likewise."""
        text = [TEXT_GROUP + _digest(self.match_text)[:32]] if self.match_text else []
        images = [f"{IMAGES_GROUP}{len(self.images)}:{_digest(self.images)[:32]}"] if self.images or not text else []
        return " ".join(text + images)

    def is_what_was_judged(self, group_id: str, max_images: int | None = None) -> bool:
        """Whether that group is of this text and these images, of which it may lack those that come after `max_images`."""
        judged = max((n for n in range(len(self.images) + 1) if self._first(n).group_id == group_id), default=-1)
        return judged >= min(len(self.images), len(self.images) if max_images is None else max_images)

    def _first(self, images: int) -> "Content":
        return Content(self.match_text, self.images[:images])


def is_known(group_id: str | None) -> bool:
    """Whether a group id says what was judged; one of a file's appeal names the post alone."""
    return (group_id or "").startswith((TEXT_GROUP, IMAGES_GROUP))


@dataclass(frozen=True)
class Snapshot:
    """A post as it was judged: de-identified title and body, the JPEG bytes the model saw, what was read in those.

    author: the author's id where it is known; only its keyed hash is stored.
    """

    post_id: str
    title: str
    body: str
    images: tuple[bytes, ...] = ()
    ocr_text: str | None = None
    qr_codes: int | None = None
    author: str | None = None

    @property
    def group_id(self) -> str:
        """Equal for posts that say and show the same; see Content."""
        from xhs_pipeline.curation.text import matching_form

        images = tuple(hashlib.sha256(image).hexdigest() for image in self.images)
        return Content(matching_form(self.title, self.body), images).group_id

    def identity(self, author_hash: str | None, images: Sequence[str]) -> str:
        """The snapshot's content address: SHA-256 in hex over everything that is stored of it; `images`: theirs, in hex."""
        content = [self.post_id, self.title, self.body, self.ocr_text, self.qr_codes, author_hash, list(images)]
        return _digest(content)


@dataclass(frozen=True)
class Decision:
    """What was first decided of a post, by a model or by a person (`decided_by`, of whom only a keyed hash is stored).

    Probabilities are by verdict id and by category name. source: who asked, e.g. "serve".
    """

    model_version: str
    policy_version: str
    verdict: str
    category: str
    verdict_probs: Mapping[str, float] = field(default_factory=dict)
    category_probs: Mapping[str, float] = field(default_factory=dict)
    source: str = "serve"
    decided_by: str | None = None


@dataclass(frozen=True)
class Filed:
    """An appeal that was taken. flag: None, or why it waits for a reviewer's triage before votes count."""

    case_id: str
    event_id: int
    state: str
    flag: str | None


@dataclass(frozen=True)
class CaseView:
    """A case as a reviewer needs it. snapshot and decision are None for cases of a file, which brings neither.

    image_count: how many the snapshot has, where it was read without them, too. `cursor` is what `queue(after=...)` goes on from.
    `events` are rows of the table, notes included, the oldest first.
    """

    case_id: str
    kind: str
    state: CaseState
    snapshot: Snapshot | None
    image_count: int
    decision: Decision | None
    decided_at: datetime | None
    events: tuple[Mapping[str, Any], ...]

    @property
    def cursor(self) -> int:
        return int(self.events[0]["event_id"])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()
