"""One synthetic post: composing its text from the wording, deciding its pictures, and refusing texts too much alike."""

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import identifiers
import wording

# No two unplanted posts may share this much (Jaccard of character 3-grams); duplicates count from 0.8 on.
MOST_ALIKE = 0.6
IMAGE_SHARE = 0.4
# Of the posts with pictures in the three categories where that is possible: how often only the picture decides.
IMAGE_DECIDES_SHARE = {"正常": 0.42, "私域引流": 0.68, "虚假宣传": 0.62}
VERDICT_WEIGHTS = {"remove": 50, "needs_edit": 36, "escalate": 14}
DECIDING_PICTURES = {
    ("私域引流", "remove"): ["handle", "code"],
    ("私域引流", "needs_edit"): ["hint"],
    ("私域引流", "escalate"): ["half_code"],
    ("虚假宣传", "remove"): ["strong_poster"],
    ("虚假宣传", "needs_edit"): ["mild_poster"],
    ("正常", "pass"): ["scene", "word"],
}
PICTURE_WHAT = {
    "handle": "画着站外账号",
    "hint": "用英文暗示去主页或群里找",
    "code": "放了二维码",
    "half_code": "有半个被挡住的二维码",
    "strong_poster": "海报写着包治百病式的英文",
    "mild_poster": "海报用了夸张的折扣字样",
}
PICTURE_REASONS = [
    "正文“{quote}”本身无问题，但图里{what}",
    "文字中性（“{quote}”），依据是图片{what}",
    "标题“{title}”看不出什么，判断来自配图：{what}",
    "“{quote}”只是闲聊，图片却{what}",
]


@dataclass
class Post:
    """`pictures` holds (kind, key) to draw, or a path to name as it stands; `raw` changes the finished JSON line."""

    title: str
    body: str
    verdict: str
    category: str
    rationale: str | None = None
    author: str = ""
    label_source: str = "reviewer"
    pictures: list[tuple[str, str] | str] = field(default_factory=list)
    image_decides: bool = False
    identifiers: list[tuple[str, str]] = field(default_factory=list)
    created_at: datetime | None = None
    week: str = ""
    post_id: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    raw: Callable[[str], bytes] | None = None
    planted: bool = False


def expand(rng: random.Random, pattern: str, contacts: list[tuple[str, str]] | None = None) -> str:
    """Fill the slots of a pattern; a contact is a fake identifier, noted in `contacts` as (type, text)."""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name == "contact":
            kind = rng.choices(list(identifiers.CONTACTS), [6, 2, 2])[0]
            text = identifiers.CONTACTS[kind](rng)
            if contacts is not None:
                contacts.append((kind, text))
            return f"QQ{text}" if kind == "qq" else text
        if "-" in name:
            low, high = name.split("-")
            return str(rng.randint(int(low), int(high)))
        return expand(rng, rng.choice(wording.SLOTS[name]))

    return re.sub(r"\{([\w-]+)\}", fill, pattern)


def compose(rng: random.Random, category: str, verdict: str) -> Post:
    """A post of this label, with text, perhaps pictures, perhaps a rationale."""
    deciding = DECIDING_PICTURES.get((category, verdict))
    with_images = rng.random() < IMAGE_SHARE
    image_decides = bool(with_images and deciding and rng.random() < IMAGE_DECIDES_SHARE[category])
    contacts: list[tuple[str, str]] = []
    cores = wording.NEUTRAL if image_decides else wording.CORES[category][verdict]
    wanted = 2 if not image_decides and verdict != "escalate" and rng.random() < 0.3 else 1
    core = [expand(rng, text, contacts) for text in rng.sample(cores, min(wanted, len(cores)))]
    fillers = [expand(rng, text) for text in rng.sample(wording.FILLERS, rng.choices([1, 2, 3], [5, 4, 2])[0])]
    titles = wording.NEUTRAL_TITLES if image_decides else wording.TITLES[category]
    post = Post(
        title="" if rng.random() < 0.06 else expand(rng, rng.choice(titles)),
        body=_arrange(rng, core, fillers, _tags(rng, "" if image_decides else category)),
        verdict=verdict,
        category=category,
        author=f"demo_author_{rng.randint(1, 400):04d}",
        label_source=rng.choices(["reviewer", "user_report", "senior_reviewer"], [70, 18, 12])[0],
        image_decides=image_decides,
        identifiers=contacts,
    )
    if with_images:
        post.pictures = _pictures(rng, deciding if image_decides else None)
    if rng.random() < (0.12 if category == "正常" else 0.3):
        post.rationale = _rationale(rng, post, core)
    return post


def _arrange(rng: random.Random, core: list[str], fillers: list[str], tags: list[str]) -> str:
    """Sentences in a random order with the punctuation of a phone: commas, full stops, line breaks, emoji or blanks."""
    sentences = core + fillers
    if rng.random() < 0.6:
        rng.shuffle(sentences)
    if rng.random() < 0.45:
        sentences[0] = expand(rng, "{hello}") + rng.choice(["，", "！", "～", " "]) + sentences[0]
    if rng.random() < 0.4:
        sentences.append(expand(rng, "{tail}"))
    text = ""
    for sentence in sentences:
        end = rng.choices(["。", "！", "，", "\n", "～", " "], [6, 3, 4, 4, 1, 1])[0]
        emoji = expand(rng, "{emoji}") if rng.random() < 0.2 else ""
        text += sentence + emoji + end
    return (text.rstrip("，\n ") + ("\n" if tags else "") + " ".join(f"#{tag}" for tag in tags)).strip()


def _tags(rng: random.Random, category: str) -> list[str]:
    general = rng.sample(wording.HASHTAGS[""], rng.randint(0, 3))
    own = wording.HASHTAGS.get(category, []) if category else []
    return general + ([rng.choice(own)] if own and rng.random() < 0.35 else [])


def _pictures(rng: random.Random, deciding: list[str] | None) -> list[tuple[str, str] | str]:
    """One to three pictures; where only they decide, one of them shows it."""
    count = rng.choices([1, 2, 3], [60, 28, 12])[0]
    kinds = [rng.choice(["scene", "word"]) for _ in range(count)]
    if deciding:
        kinds[rng.randrange(count)] = rng.choice(deciding)
    return [(kind, f"{rng.getrandbits(64):016x}") for kind in kinds]


def _rationale(rng: random.Random, post: Post, core: list[str]) -> str | None:
    """A reason that quotes the post; clauses with letters or digits are not quoted, since they may hold identifiers."""
    clauses = [c for text in core for c in re.split(r"[，：；。！？（）“”\s]", text)]
    quotes = [c for c in clauses if 4 <= len(c) <= 16 and not re.search(r"[0-9A-Za-z]", c)]
    what = next((PICTURE_WHAT[p[0]] for p in post.pictures if p[0] in PICTURE_WHAT), None)
    if not quotes or (post.image_decides and post.category != "正常" and (what is None or not post.title)):
        return None
    quote = rng.choice(quotes)
    if post.image_decides and what:
        return rng.choice(PICTURE_REASONS).format(quote=quote, title=post.title, what=what)
    return rng.choice(wording.RATIONALES[post.verdict]).format(quote=quote, why=rng.choice(wording.WHY[post.category]))


def grams(text: str) -> frozenset[str]:
    """The character 3-grams of a text without blanks, by which posts are compared."""
    text = re.sub(r"\s", "", text)
    return frozenset(text[i : i + 3] for i in range(max(1, len(text) - 2)))


class Alike:
    """The texts so far, indexed by the rarest of their 3-grams so that close ones are found exactly."""

    def __init__(self, frequency: Counter[str]) -> None:
        # Fixed beforehand: any one order of the grams gives an exact prefix filter, rarest first a short search.
        self.frequency = frequency
        self.texts: list[frozenset[str]] = []
        self.index: dict[str, list[int]] = defaultdict(list)

    def _prefix(self, text: frozenset[str]) -> list[str]:
        # Sets with Jaccard >= t share at least ceil(t * size) grams of each, so they meet in the first few of any order.
        keep = len(text) - math.ceil(MOST_ALIKE * len(text)) + 1
        return sorted(text, key=lambda gram: (self.frequency[gram], gram))[:keep]

    def closest(self, text: frozenset[str]) -> float:
        """The largest Jaccard similarity to a text so far, exact when at least MOST_ALIKE (lower ones may read as 0)."""
        candidates = {i for gram in self._prefix(text) for i in self.index[gram]}
        return max((len(text & self.texts[i]) / len(text | self.texts[i]) for i in candidates), default=0.0)

    def add(self, text: frozenset[str]) -> None:
        for gram in self._prefix(text):
            self.index[gram].append(len(self.texts))
        self.texts.append(text)
