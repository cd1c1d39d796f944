"""Do appeals alone teach leniency, and does the audit sample prevent it? Rounds of the loop on posts whose truth is known.

    python -m xhs_pipeline_tests.benchmarks.leniency                     # real texts
    python -m xhs_pipeline_tests.benchmarks.leniency --texts made        # strings of words that overlap; or sample: the committed one's

Every round the model decides new posts; who was blocked may appeal; reviewers, who know the truth, decide the appeals; then the
model is trained again on all posts so far. With the audit, reviewers also see a sample of what passed. It all goes through the
project's own code: decisions, appeals, votes and samples in a real appeals store (SQLite), labels by derive_outcomes and
apply_outcomes as in sharegpt_splits, the decision by judgement.decisions with calibrated probabilities. The learner is
curation.learner's (character TF-IDF, logistic regression), and stands for the model that is fine-tuned.

Assumed, and to be varied by the options: a new post that nobody looked at keeps the decision as its label (`stand`), or is not
trained on (`--labels adjudicated`); a post is blocked when it is likelier a violation than not (`--prices policy`: by the policy's
prices), and what those send to human review comes back with the true label; INNOCENT of the wrongly and GUILTY of the rightly
blocked appeal; reviewers never err.

Missed: violations that pass, of all violations of a held-out part that is the same in every round. Blocked: harmless posts that
are edited or removed, of all harmless ones there. Review: posts of it sent to human review.
"""

import argparse
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from xhs_pipeline.appeals.outcomes import apply_outcomes, derive_outcomes
from xhs_pipeline.appeals.records import Decision, Snapshot
from xhs_pipeline.appeals.store import AppealStore
from xhs_pipeline.curation.learner import character_features, class_probabilities
from xhs_pipeline.judgement.calibration import fit_temperature
from xhs_pipeline.judgement.decisions import Decisions, decide
from xhs_pipeline.policy import Policy, load_policy
from xhs_pipeline_tests.benchmarks.label_issues import REAL_POSTS, real_posts

POLICY = load_policy()
NORMAL, PASS = POLICY.normal_category, POLICY.pass_verdict
BLOCK, REVIEW = POLICY.verdict_ids[-2], POLICY.verdict_ids[-1]
INNOCENT, GUILTY = 0.6, 0.1  # of those that were blocked wrongly, and rightly, how many appeal
# "even": every mistake costs the same and human review as much, so that the model blocks what is likelier a violation than not
PRICES = {
    "policy": POLICY,
    "even": replace(POLICY, costs={"over_block": 1, "over_edit": 1, "missed": {1: 1, 2: 1, 3: 1}, "escalate": 1}),
}
CALIBRATION = 5  # every fifth post fits the temperature instead of the model
VIOLATION = next(
    c.name for c in POLICY.categories if c.severity == 2
)  # of the made-up posts; one reviewer can take it back
START = datetime(2026, 3, 2, tzinfo=UTC)
SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample"


@dataclass(frozen=True)
class World:
    """Posts with their true categories, and the assumptions. Sizes in posts; `audit` a round, 0 for none."""

    texts: tuple[str, ...]
    truth: tuple[str, ...]
    begin: int = 600
    new: int = 400
    rounds: int = 3
    audit: int = 0
    stand: bool = True
    prices: str = "even"
    innocent: float = INNOCENT
    guilty: float = GUILTY

    def shuffled(self, seed: int) -> "World":
        """The same posts in another order: other posts to begin with, new ones and held-out ones."""
        order = random.Random(seed).sample(range(len(self.texts)), len(self.texts))
        return replace(self, texts=tuple(self.texts[i] for i in order), truth=tuple(self.truth[i] for i in order))


def label_of(category: str) -> tuple[str, str]:
    """Verdicts are not what is studied here: a violation is removed."""
    return (PASS if category == NORMAL else BLOCK), category


def judge(posts: pa.Table, others: Sequence[str], policy: Policy) -> tuple[Decisions, np.ndarray]:
    """Train on `posts`; the decisions about `others` and their probabilities of the categories, (others, categories)."""
    texts, categories = posts["body"].to_pylist(), posts["category"].to_pylist()
    learned, held = [i for i in range(len(texts)) if i % CALIBRATION], range(0, len(texts), CALIBRATION)
    features = character_features([texts[i] for i in learned], [texts[i] for i in held] + list(others))
    assert features is not None
    names = POLICY.category_names
    p = class_probabilities(features[0], features[1], [categories[i] for i in learned], names, 0)
    scores = np.log(np.maximum(p, 1e-9))
    answers = [label_of(name) for name in names]
    fitted = fit_temperature(scores[: len(held)], [label_of(categories[i]) for i in held], answers)
    scaled = np.exp(scores[len(held) :] / fitted.temperature)
    p = scaled / scaled.sum(axis=1, keepdims=True)
    verdict_p = np.zeros((len(others), len(POLICY.verdict_ids)))
    verdict_p[:, 0] = p[:, names.index(NORMAL)]
    verdict_p[:, -2] = 1 - verdict_p[:, 0]
    return decide(verdict_p, p, policy), p


def figures(made: Decisions, truth: Sequence[str]) -> dict[str, float]:
    """Shares on the held-out posts."""
    verdict, harmless = made.verdict, np.array([name == NORMAL for name in truth])
    review = len(POLICY.verdict_ids) - 1
    return {
        "missed": float((verdict == 0)[~harmless].mean()),
        "blocked": float(((verdict > 0) & (verdict < review))[harmless].mean()),
        "review": float((verdict == review).mean()),
    }


class Loop:
    """One run of the rounds with a store of its own."""

    def __init__(self, world: World, seed: int, store: AppealStore):
        self.world, self.store, self.rng, self.now = world, store, random.Random(seed), START
        store.clock = lambda: self.now
        self.posts = self._table(range(world.begin), [label_of(c) for c in world.truth[: world.begin]])
        self.held = slice(world.begin + world.rounds * world.new, None)

    def _table(self, places: Sequence[int], labels: Sequence[tuple[str, str]]) -> pa.Table:
        columns = {
            "post_id": [f"p{i}" for i in places],
            "body": [self.world.texts[i] for i in places],
            "verdict": [verdict for verdict, _ in labels],
            "category": [category for _, category in labels],
        }
        return pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns]))

    def run(self) -> list[dict[str, float]]:
        """The figures before the first round and after each."""
        world, found = self.world, []
        priced = PRICES[world.prices]
        for number in range(world.rounds + 1):
            new = list(range(world.begin + number * world.new, world.begin + (number + 1) * world.new))
            new = new if number < world.rounds else []
            posts = apply_outcomes(self.posts, derive_outcomes(self.store.events(), POLICY).outcomes).posts
            made, p = judge(posts, [world.texts[i] for i in new] + list(world.texts[self.held]), priced)
            rest = Decisions(made.verdict[len(new) :], made.category[len(new) :], made.confidence, made.expected_cost)
            found.append(figures(rest, world.truth[self.held]))
            if new:
                self._decided(new, made, p)
        return found

    def _decided(self, new: list[int], made: Decisions, p: np.ndarray) -> None:
        """A week: the new posts are decided, appealed against, audited, and join the posts to train on."""
        given = [
            (POLICY.verdict_ids[v], POLICY.category_names[c])
            for v, c in zip(made.verdict[: len(new)], made.category[: len(new)], strict=True)
        ]
        pairs = []
        for (verdict, category), i, row in zip(given, new, p, strict=False):
            probabilities = dict(zip(POLICY.category_names, row.tolist(), strict=True))
            decision = Decision("m", POLICY.version, verdict, category, {}, probabilities)
            pairs.append((Snapshot(f"p{i}", "", self.world.texts[i]), decision))
        for decision_id, i, (verdict, _) in zip(self.store.log_decisions(pairs), new, given, strict=True):
            wrongly = self.world.truth[i] == NORMAL
            share = self.world.innocent if wrongly else self.world.guilty
            if verdict == BLOCK and self.rng.random() < share:
                self._review(self.store.file_appeal(decision_id, f"author-{i}").case_id, i)
                self.now += timedelta(seconds=60)
        before = self.now
        if self.world.audit:
            for case_id in self.store.sample_audit(self.world.audit, seed=self.rng.randrange(2**31)):
                post_id = self.store.case(case_id).state.post_id
                assert post_id is not None
                self._review(case_id, int(post_id[1:]))
        self.now = before + timedelta(days=7)
        self._join(new, given)

    def _review(self, case_id: str, i: int) -> None:
        """Reviewers say the truth, as many as the rules want."""
        for reviewer in ("reviewer-1", "reviewer-2"):
            if self.store.vote(case_id, reviewer, *label_of(self.world.truth[i])).label:
                return

    def _join(self, new: list[int], given: Sequence[tuple[str, str]]) -> None:
        decided = {row["post_id"] for row in derive_outcomes(self.store.events(), POLICY).outcomes.to_pylist()}
        places, labels = [], []
        for i, (verdict, category) in zip(new, given, strict=True):
            if verdict == REVIEW:
                label = label_of(self.world.truth[i])
            elif f"p{i}" in decided or self.world.stand:
                label = (verdict, category)  # what outcomes say is put over it
            else:
                continue
            places.append(i)
            labels.append(label)
        self.posts = pa.concat_tables([self.posts, self._table(places, labels)])


def simulate(world: World, seed: int) -> list[dict[str, float]]:
    """The figures of one seed, one entry before the first round and one after each."""
    with (
        tempfile.TemporaryDirectory() as folder,
        AppealStore.open(f"sqlite:///{folder}/appeals.sqlite3", POLICY, b"0123456789abcdef") as store,
    ):
        return Loop(world.shuffled(seed), seed, store).run()


def real_world(violations: int = 1400) -> World:
    """The real harmless posts and as many violations, the rarer kinds as rare as they are there."""
    table = real_posts()
    rng = random.Random(0)
    pairs = [
        (text, NORMAL if category in ("normal", NORMAL) else category)
        for text, category in zip(table["match_text"].to_pylist(), table["category"].to_pylist(), strict=True)
    ]
    harmless = [pair for pair in pairs if pair[1] == NORMAL]
    chosen = harmless + rng.sample([pair for pair in pairs if pair[1] != NORMAL], violations)
    return World(tuple(text for text, _ in chosen), tuple(category for _, category in chosen))


def sample_world(posts: int, seed: int = 0) -> World:
    """Made-up posts in the wording of the committed sample, half of them harmless; labels that only an image gives are left out."""
    sys.path.insert(0, str(SAMPLE))
    try:
        from posts import compose  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(SAMPLE))
    rng = random.Random(seed)
    violations = [name for name in POLICY.category_names if name != NORMAL]
    texts: dict[str, str] = {}
    while len(texts) < posts:
        category = NORMAL if rng.random() < 0.5 else rng.choice(violations)
        verdict = PASS if category == NORMAL else rng.choice(["remove", "needs_edit", "escalate"])
        post = compose(rng, category, verdict)
        if not post.image_decides:
            texts[f"{post.title}\n{post.body}"] = category
    return World(tuple(texts), tuple(texts.values()))


def made_world(posts: int, seed: int = 0, overlap: float = 0.25) -> World:
    """Posts of 12 words out of 60, half of them violations, whose words differ in how often they come and not in which: a share
    of both kinds cannot be told apart by anyone who sees the text alone.
    """
    rng = np.random.default_rng(seed)
    words = np.array([chr(0x4E00 + 2 * i) + chr(0x4E01 + 2 * i) for i in range(60)])
    lean = overlap * rng.normal(size=len(words))
    weights = [np.exp(-lean), np.exp(lean)]
    kinds = rng.integers(2, size=posts)
    texts = ["".join(rng.choice(words, 12, p=weights[kind] / weights[kind].sum())) for kind in kinds]
    return World(tuple(texts), tuple((NORMAL, VIOLATION)[kind] for kind in kinds))


def interval(values: Sequence[float]) -> str:
    """Mean and its 95% interval over seeds (Student's t), in percent."""
    from scipy.stats import t

    mean, n = statistics.mean(values), len(values)
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.nan
    return f"{mean:.1%} ± {half:.1%}"


def report(arms: dict[str, list[list[dict[str, float]]]]) -> str:
    """One row an arm and round; `rise` is the difference to round 0 of the same seed, `against` the one to the first arm."""
    lines = ["| arm | round | missed | rise | against | blocked | review |", "|---|---|---|---|---|---|---|"]
    first = next(iter(arms.values()))
    for arm, seeds in arms.items():
        for number in range(len(seeds[0])):
            at = [run[number] for run in seeds]
            rise = interval([run[number]["missed"] - run[0]["missed"] for run in seeds]) if number else ""
            apart = [run[number]["missed"] - other[number]["missed"] for run, other in zip(seeds, first, strict=True)]
            against = interval(apart) if number and seeds is not first else ""
            missed, blocked, review = (interval([row[name] for row in at]) for name in ("missed", "blocked", "review"))
            lines.append(f"| {arm} | {number} | {missed} | {rise} | {against} | {blocked} | {review} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", choices=("real", "sample", "made"), default="real")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--labels", choices=("stand", "adjudicated"), default="stand")
    parser.add_argument("--prices", choices=tuple(PRICES), default="even")
    parser.add_argument("--guilty", type=float, default=GUILTY)
    parser.add_argument("--audits", type=int, nargs="*", default=[int(POLICY.appeals["audit"]["size"]), 120])
    options = parser.parse_args()
    if options.texts == "real" and not REAL_POSTS.exists():
        print(f"{REAL_POSTS} is not here: nothing is measured; try --texts made")
        return
    made = {"real": real_world, "sample": lambda: sample_world(2800), "made": lambda: made_world(2800)}
    world = replace(
        made[options.texts](), stand=options.labels == "stand", prices=options.prices, guilty=options.guilty
    )
    worlds = {"appeals alone": world, "no appeals": replace(world, innocent=0, guilty=0)}
    worlds |= {f"appeals, {audit} audited": replace(world, audit=audit) for audit in options.audits}
    started = time.process_time()
    arms = {arm: [simulate(each, seed) for seed in range(options.seeds)] for arm, each in worlds.items()}
    print(f"{options.seeds} seeds, {time.process_time() - started:.0f} CPU s\n\n{report(arms)}")


if __name__ == "__main__":
    main()
