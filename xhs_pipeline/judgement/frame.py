"""The predictions frame: one row is one judged post, what is true of it and what a model answered. Its columns are named here.

Nothing is read or written, and no model runs. The frame never holds a post's text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from xhs_pipeline.curation.identifiers import HOMOPHONE, VARIANT
from xhs_pipeline.policy import Policy
from xhs_pipeline.vlm.batches import Unfit
from xhs_pipeline.vlm.scoring import Judgement

if TYPE_CHECKING:  # pandas costs 0.4 s to import and only runs that judge need it
    import pandas as pd

# About the post.
POST_ID = "post_id"
GROUP_ID = "group_id"
WEEK = "week"
LABEL_SOURCE = "label_source"
TRUE_VERDICT = "true_verdict"
TRUE_CATEGORY = "true_category"
SEVERITY = "severity"
HAS_IMAGES = "has_images"
TEXT_LENGTH = "text_length"  # characters (code points) of title and body together
LANGUAGE = "language"  # zh, mixed or other, see `language`
DISGUISED = "disguised"  # the text holds an identifier that was written in disguise
# About the answer.
VERDICT = "verdict"
CATEGORY = "category"
VALID = "valid"  # false: the model gave no usable answer
VERDICT_PROBABILITY = "p_verdict_"  # + verdict id
CATEGORY_PROBABILITY = "p_category_"  # + category name

POST_COLUMNS = (
    POST_ID, GROUP_ID, WEEK, LABEL_SOURCE, TRUE_VERDICT, TRUE_CATEGORY, SEVERITY, HAS_IMAGES, TEXT_LENGTH, LANGUAGE, DISGUISED
)  # fmt: skip

INVALID = "(invalid)"  # stands in for an unusable answer while counting; never a policy term
VIOLATION, NORMAL = "violation", "normal"

_PLACEHOLDER = re.compile(r"<[^<>\s]{1,12}>")
_DISGUISE = re.compile(f"<[^<>\\s]{{1,8}}:(?:{HOMOPHONE}|{VARIANT})>")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_LETTERS = re.compile(r"[^\W\d_]+")
MOSTLY_HAN, SOME_HAN = 0.8, 0.2


def verdict_columns(policy: Policy) -> list[str]:
    """Names of the verdict probability columns, in the policy's order."""
    return [VERDICT_PROBABILITY + v for v in policy.verdict_ids]


def category_columns(policy: Policy) -> list[str]:
    """Names of the category probability columns, in the policy's order."""
    return [CATEGORY_PROBABILITY + c for c in policy.category_names]


def predictions_frame(
    posts: pa.Table | pd.DataFrame,
    verdicts: Sequence[str | None],
    categories: Sequence[str | None],
    verdict_probabilities: np.ndarray,
    category_probabilities: np.ndarray,
    valid: Sequence[bool],
    policy: Policy,
) -> pd.DataFrame:
    """Posts (UNIQUE_POSTS columns) and their answers as one frame, in the order given.

    `verdict_probabilities` has shape (posts, verdicts) and `category_probabilities` (posts, categories), columns in the
    policy's order. Raises ValueError when a shape does not fit the posts or the policy.
    """
    import pandas as pd

    table = posts if isinstance(posts, pa.Table) else pa.Table.from_pandas(posts, preserve_index=False)
    n = table.num_rows
    for name, array, wanted in (
        ("verdict_probabilities", verdict_probabilities, (n, len(policy.verdict_ids))),
        ("category_probabilities", category_probabilities, (n, len(policy.category_names))),
    ):
        if array.shape != wanted:
            raise ValueError(
                f"{name} has shape {array.shape}, expected {wanted}: one row a post, columns in policy order"
            )
    if not len(verdicts) == len(categories) == len(valid) == n:
        raise ValueError(
            f"{len(verdicts)} verdicts, {len(categories)} categories, {len(valid)} valid flags for {n} posts"
        )
    names = set(table.column_names)

    def column(name: str) -> list[Any]:
        return table[name].to_pylist() if name in names else [None] * n

    texts = [f"{t or ''}{b or ''}" for t, b in zip(column("title"), column("body"), strict=True)]
    frame = {
        POST_ID: column(POST_ID),
        GROUP_ID: column(GROUP_ID),
        WEEK: column(WEEK),
        LABEL_SOURCE: column(LABEL_SOURCE),
        TRUE_VERDICT: column("verdict"),
        TRUE_CATEGORY: column("category"),
        SEVERITY: [policy.severity(c) for c in column("category")],
        HAS_IMAGES: _has_images(table),
        TEXT_LENGTH: [len(text) for text in texts],
        LANGUAGE: [language(text) for text in texts],
        DISGUISED: [bool(_DISGUISE.search(text)) for text in texts],
        VERDICT: list(verdicts),
        CATEGORY: list(categories),
        VALID: [bool(v) for v in valid],
        **{name: verdict_probabilities[:, i].astype(np.float64) for i, name in enumerate(verdict_columns(policy))},
        **{name: category_probabilities[:, i].astype(np.float64) for i, name in enumerate(category_columns(policy))},
    }
    return pd.DataFrame(frame)


def judged_frame(posts: pa.Table, judged: Sequence[Judgement | Unfit], policy: Policy) -> pd.DataFrame:
    """Posts and what a model said of them (`Judge.judge`, one for one) as a frame in the terms of today's `policy`.

    A post that the model could not read, or that got no finite probability, has no usable answer. A model that was trained
    before a category was added gives it no probability.
    """
    usable_ones = [j if isinstance(j, Judgement) and j.valid else None for j in judged]

    def probabilities(of: str, names: Sequence[str]) -> np.ndarray:
        rows = [[getattr(j, of).get(name, 0.0) if j else np.nan for name in names] for j in usable_ones]
        return np.array(rows, dtype=float).reshape(len(usable_ones), len(names))

    return predictions_frame(
        posts,
        [j.verdict if j else None for j in usable_ones],
        [j.category if j else None for j in usable_ones],
        probabilities("verdict_probs", policy.verdict_ids),
        probabilities("category_probs", policy.category_names),
        [j is not None for j in usable_ones],
        policy,
    )


def language(text: str) -> str:
    """zh when at least 80% of the words are Chinese characters, mixed from 20%, other below, and without any word.

    A Chinese character is a word, and so is a run of other letters: one brand name does not make a Chinese post a mixed one.
    Typed placeholders (`<微信号>`) do not count.
    """
    text = _PLACEHOLDER.sub(" ", text)
    han = len(_HAN.findall(text))
    words = han + len(_LETTERS.findall(_HAN.sub(" ", text)))
    if not words or han < SOME_HAN * words:
        return "other"
    return "zh" if han >= MOSTLY_HAN * words else "mixed"


def _has_images(table: pa.Table) -> list[bool]:
    """Whether each post has an image, from list lengths: image bytes are never copied into Python."""
    import pyarrow.compute as pc

    if "images" not in table.column_names or pa.types.is_null(table.schema.field("images").type):
        return [False] * table.num_rows
    return [bool(n) for n in pc.list_value_length(table["images"]).to_pylist()]


def usable(predictions: pd.DataFrame, policy: Policy) -> np.ndarray:
    """Mask of rows whose answer counts: flagged valid, finite probabilities, and a pair that may be given.

    That is an allowed (verdict, category) pair, or human review with any category: a decision asks for a person also where
    the likeliest category is the harmless one, though no label does.
    """
    review = policy.verdict_ids[-1]
    may_be_given = {*policy.answers(), *((review, category) for category in policy.category_names)}
    pairs = zip(predictions[VERDICT], predictions[CATEGORY], strict=True)
    known = np.array([pair in may_be_given for pair in pairs], dtype=bool)
    numbers = predictions[verdict_columns(policy) + category_columns(policy)].to_numpy(dtype=float)
    # `== True` so that a missing flag counts as not valid
    flagged = np.array([flag == True for flag in predictions[VALID]], dtype=bool)  # noqa: E712
    return flagged & known & np.isfinite(numbers).all(axis=1)


def check_predictions(predictions: pd.DataFrame, policy: Policy) -> None:
    """Raise ValueError that lists all faults: missing columns, repeated posts, true labels unknown to the policy."""
    wanted = [*POST_COLUMNS, VERDICT, CATEGORY, VALID, *verdict_columns(policy), *category_columns(policy)]
    faults = []
    missing = [name for name in wanted if name not in predictions.columns]
    if missing:
        faults.append(f"columns missing: {', '.join(missing)}")
    for name, allowed in ((TRUE_VERDICT, policy.verdict_ids), (TRUE_CATEGORY, policy.category_names)):
        if name in predictions.columns:
            unknown = sorted({str(v) for v in predictions[name] if v not in allowed})
            if unknown:
                faults.append(f"{name} holds {', '.join(unknown)}, policy {policy.version} allows {', '.join(allowed)}")
    if POST_ID in predictions.columns and predictions[POST_ID].duplicated().any():
        faults.append(f"{int(predictions[POST_ID].duplicated().sum())} posts are judged more than once")
    if faults:
        raise ValueError("predictions cannot be evaluated: " + "; ".join(faults))


@dataclass(frozen=True)
class Question:
    """One question put to every post: `truth` and `answer` (posts,) as indices of `names`; -1 is an unusable answer.

    `probabilities` (posts, names) is NaN where the answer is unusable.
    """

    names: tuple[str, ...]
    truth: np.ndarray
    answer: np.ndarray
    probabilities: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """Indices of the classes that occur in the truth."""
        return np.unique(self.truth)


@dataclass(frozen=True)
class Answers:
    """A frame as numbers: which rows are usable, and the three questions (verdict; category; violation or normal).

    For the binary question `truth` and `answer` index (normal, violation), and an unusable answer is the opposite of the truth.
    """

    ok: np.ndarray
    verdict: Question
    category: Question
    binary: Question


def answers(predictions: pd.DataFrame, policy: Policy) -> Answers:
    """A checked frame as numbers. Raises ValueError as `check_predictions` does."""
    check_predictions(predictions, policy)
    ok = usable(predictions, policy)

    def question(names: Sequence[str], truth: str, answer: str, columns: list[str]) -> Question:
        index = {name: i for i, name in enumerate(names)}
        probabilities = np.where(ok[:, None], predictions[columns].to_numpy(dtype=float), np.nan)
        return Question(
            tuple(names),
            np.array([index[v] for v in predictions[truth]], dtype=np.int64),
            np.array(
                [index[v] if good else -1 for v, good in zip(predictions[answer], ok, strict=True)], dtype=np.int64
            ),
            probabilities,
        )

    category = question(policy.category_names, TRUE_CATEGORY, CATEGORY, category_columns(policy))
    normal = policy.category_names.index(policy.normal_category)
    truth = (category.truth != normal).astype(np.int64)
    answer = np.where(ok, (category.answer != normal).astype(np.int64), 1 - truth)
    harmless = category.probabilities[:, normal]
    binary = Question((NORMAL, VIOLATION), truth, answer, np.column_stack([harmless, 1 - harmless]))
    verdict = question(policy.verdict_ids, TRUE_VERDICT, VERDICT, verdict_columns(policy))
    return Answers(ok, verdict, category, binary)
