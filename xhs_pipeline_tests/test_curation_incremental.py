"""Weeks one after another, through published versions, against all weeks at once: the same files, byte for byte."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xhs_pipeline.artifacts import Artifact, ArtifactStore, file_digest
from xhs_pipeline.curation.minhash import near_duplicate_pairs
from xhs_pipeline.curation.short_texts import short_text_pairs
from xhs_pipeline.curation.unique import write_unique
from xhs_pipeline.policy import load_policy
from xhs_pipeline.profile import Profile
from xhs_pipeline.splits.grouping import SPLITS, split_of
from xhs_pipeline.splits.sharegpt import write_splits
from xhs_pipeline_tests.test_curation_duplicates import LONG, Found, clean_weeks, post
from xhs_pipeline_tests.test_curation_duplicates_texts import connected, edited, sentence
from xhs_pipeline_tests.test_splits import issues_file, outcomes_file

POLICY = load_policy()
PROFILE = Profile(base_model="tiny", base_revision="")
FRAUD: dict[str, Any] = {"verdict": "remove", "category": "诈骗"}


def publish(
    folder: Path,
    weeks: dict[str, Artifact],
    previous: Artifact | None = None,
    trusted: tuple[str, ...] = ("appeal",),
    log: Callable[[str], None] = str,
) -> Artifact:
    """unique_posts of these weeks, published in a store of its own under `folder`."""
    return ArtifactStore(folder).build(
        "unique_posts",
        lambda work: write_unique(weeks, work, trusted, previous, log),
        inputs={name: artifact.content for name, artifact in weeks.items()},
        settings={"trusted_sources": trusted},
        code_version="1",
        log=str,
    )


def one_by_one(folder: Path, weeks: dict[str, Artifact], previous: Artifact | None = None) -> Artifact:
    for count in range(1, len(weeks) + 1):
        previous = publish(folder, dict(list(weeks.items())[:count]), previous)
        assert previous.manifest["counts"]["weeks_folded"] == 1
    assert previous is not None
    return previous


def assert_same(one: Artifact, other: Artifact) -> None:
    files = [artifact.manifest["files"] for artifact in (one, other)]
    assert sorted(files[0]) == sorted(files[1])
    assert [name for name in files[0] if files[0][name]["sha256"] != files[1][name]["sha256"]] == []
    assert one.content == other.content and one.path != other.path


def near_image(generator: random.Random, image: str) -> str:
    bits = sum(1 << generator.randrange(64) for _ in range(generator.choice([0, 1, 2])))
    return f"{int(image, 16) ^ bits:016x}"


def bridge(generator: random.Random) -> tuple[str, str, str]:
    """Two texts that are not near to one another, and a third one that is near to both."""
    text = sentence(generator, 100)
    left, right = edited(generator, text[:50], 3) + text[50:], text[:50] + edited(generator, text[50:], 3)
    return left, right, text


def planted(seed: int, days: int = 28) -> list[dict[str, Any]]:
    """Four weeks of posts in which everything happens that can happen between posts, mostly across weeks."""
    generator = random.Random(seed)
    photos = [f"{generator.getrandbits(64):016x}" for _ in range(12)]
    template = sentence(generator, 70)
    short = sentence(generator, 12)
    said: list[str] = [sentence(generator, generator.choice([3, 9, 20, 60, 150])) for _ in range(30)]
    bridges = [text for _ in range(8) for text in bridge(generator)]
    said += bridges
    said += [LONG] * 12 + [template + sentence(generator, generator.choice([4, 12, 30])) for _ in range(130)]
    said += [edited(generator, short, 1) for _ in range(40)] + ["", "哈", "哈哈", "好看", "？！"] * 8
    posts = []
    for number in range(520):
        text = generator.choice(said)
        if generator.random() < 0.4 and len(text) > 4:
            text = edited(generator, text, generator.randint(1, 4))
            said.append(text)
        pictured = generator.random() < (0.8 if len(text) < 4 else 0.3)
        images = [near_image(generator, photo) for photo in generator.sample(photos, generator.choice([1, 1, 2]))]
        other: dict[str, Any] = generator.choice([{}, {}, {}, {}, FRAUD])
        posts.append(
            post(
                f"p{generator.randrange(490):04}" if number % 9 == 0 else f"q{generator.getrandbits(40):010x}",
                text,
                tuple(images if pictured else ()),
                generator.randrange(days),
                label_source=generator.choice(["source", "source", "appeal", "expert"]),
                rationale=generator.choice([None, None, "因为"]),
                **other,
            )
        )
    return posts


@pytest.mark.parametrize("seed", range(6))
def test_week_by_week_gives_the_same_files_as_all_weeks_at_once(tmp_path: Path, seed: int) -> None:
    weeks = clean_weeks(tmp_path, planted(seed))
    step_by_step, at_once = one_by_one(tmp_path / "steps", weeks), publish(tmp_path / "once", weeks)
    assert_same(step_by_step, at_once)
    found = Found.read(at_once.path)
    reasons = {row["reason"] for row in found.removed}
    assert reasons == {"exact_duplicate", "near_duplicate", "repeated_post_id", "label_conflict"}
    assert len({len(row["founders"]) for row in found.kept}) > 1, "some groups came together later"
    skipping = publish(tmp_path / "skip", weeks, publish(tmp_path / "skip", dict(list(weeks.items())[:2])))
    assert_same(skipping, at_once)


@pytest.mark.parametrize("seed", range(3))
def test_weeks_connect_exactly_the_texts_that_one_comparison_of_all_texts_connects(tmp_path: Path, seed: int) -> None:
    generator = random.Random(100 + seed)
    posts = [row | {"post_id": f"{n:04}", "image_hashes": []} for n, row in enumerate(planted(100 + seed))]
    posts = [row for row in posts if len(row["match_text"]) >= 4]
    template = sentence(generator, 60)
    posts += [post(f"t{n:03}", template + sentence(generator, 22), (), n % 28) for n in range(150)]
    found = Found.read(one_by_one(tmp_path / "data", clean_weeks(tmp_path, posts)).path)
    posts.sort(key=lambda row: (row["created_at"], row["post_id"]))
    texts = list(dict.fromkeys(row["match_text"] for row in posts))
    near, edits = near_duplicate_pairs(texts), short_text_pairs(texts)

    class Both:
        left, right = (
            pa.concat_arrays([pa.array(getattr(p, side)) for p in (near, edits)]).to_numpy()
            for side in ("left", "right")
        )

    groups = dict(zip(texts, connected(Both, len(texts)), strict=True))
    shown = [*found.kept, *found.aside]
    names = {(groups[row["match_text"]], row["group_id"]) for row in shown}
    assert len(names) == len({ours for ours, _ in names}) == len({theirs for _, theirs in names})
    oldest = {ours: next(row["post_id"] for row in posts if groups[row["match_text"]] == ours) for ours, _ in names}
    assert all(theirs == oldest[ours] for ours, theirs in names)


def test_a_middle_week_that_is_cleaned_anew_is_folded_again_with_those_after_it(tmp_path: Path) -> None:
    posts = planted(21)
    weeks = clean_weeks(tmp_path, posts)
    before = one_by_one(tmp_path / "steps", weeks)
    middle = list(weeks)[2]
    changed = [row | {"match_text": row["match_text"][1:]} if row["week"] == middle else row for row in posts]
    anew = clean_weeks(tmp_path, changed)
    after = publish(tmp_path / "steps", anew, before)
    assert after.manifest["counts"]["weeks_folded"] == 2
    assert_same(after, publish(tmp_path / "once", anew))
    fewer = {name: artifact for name, artifact in weeks.items() if name != middle}
    assert_same(publish(tmp_path / "steps", fewer, after), publish(tmp_path / "fewer", fewer))
    assert_same(publish(tmp_path / "again", weeks, after), before)


def test_another_order_of_trust_decides_anew_and_compares_nothing_anew(tmp_path: Path) -> None:
    weeks = clean_weeks(tmp_path, planted(22))
    before = publish(tmp_path / "steps", weeks)
    after = publish(tmp_path / "steps", weeks, before, ("expert", "appeal"))
    assert after.manifest["counts"]["weeks_folded"] == 0
    assert_same(after, publish(tmp_path / "once", weeks, None, ("expert", "appeal")))
    assert after.content != before.content


def test_what_a_new_week_does_not_touch_is_linked_and_keeps_its_digest(tmp_path: Path) -> None:
    generator = random.Random(5)
    posts = [post(f"p{n:04}", sentence(generator, 60), (), n * 21 // 2400) for n in range(2400)]
    weeks = clean_weeks(tmp_path, posts)
    before = one_by_one(tmp_path / "data", weeks)
    (first, *_), touched = list(weeks), 400
    assert posts[touched]["week"] == first
    posts.append(post("late", posts[touched]["match_text"], (), 27, rationale="更完整"))
    weeks = clean_weeks(tmp_path, posts)
    after = publish(tmp_path / "data", weeks, before)
    names = [name for name in before.manifest["files"] if name.startswith(("posts/", "index/2"))]
    assert sum(name.startswith(f"posts/{first}") for name in names) == 7, "a part holds 128 rows"
    linked = {name for name in names if after.file(name).stat().st_ino == before.file(name).stat().st_ino}
    assert set(names) - linked == {f"posts/{first}-0003.parquet"}, "the part whose post gave way, and no other"
    assert after.manifest["counts"]["files_written"] == 2
    assert all(after.manifest["files"][name]["sha256"] == file_digest(after.file(name)) for name in linked)
    assert_same(after, publish(tmp_path / "once", weeks))
    assert len(pd.read_parquet(after.file("posts"))) == 2400


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped": lambda file: file.write_bytes(file.read_bytes()[:-9] + b"?" + file.read_bytes()[-8:]),
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "gone": lambda file: file.unlink(),
}


FOLDED_THEN = {
    "index/WEEK/entries.u64": 3, "index/WEEK/texts.arrow": 3, "index/WEEK/posts.arrow": 3, "index/WEEK/pairs.arrow": 3,
    "index/WEEK/segment.json": 3, "index/state.json": 4, "index/decisions.arrow": 1, "index/founders.arrow": 1,
    "posts/WEEK-0000.parquet": 1,
}  # fmt: skip


# Of posts, which nobody reads here, only the size is looked at.
@pytest.mark.parametrize(
    ("name", "damage"),
    [(n, d) for n in FOLDED_THEN for d in DAMAGE if not (n.startswith("posts/") and d == "flipped")],
)
def test_a_damaged_earlier_version_costs_time_and_changes_nothing(tmp_path: Path, name: str, damage: str) -> None:
    weeks = clean_weeks(tmp_path, planted(23)[:200])
    before = publish(tmp_path / "steps", dict(list(weeks.items())[:3]))
    DAMAGE[damage](before.file(name.replace("WEEK", list(weeks)[1])))
    said: list[str] = []
    after = publish(tmp_path / "steps", weeks, before, log=said.append)
    assert after.manifest["counts"]["weeks_folded"] == FOLDED_THEN[name]
    assert ("damaged" in " ".join(said)) == (not name.startswith("posts/"))
    assert_same(after, publish(tmp_path / "once", weeks))


KILLED = """
import json, os, signal, sys
from pathlib import Path
from xhs_pipeline.artifacts import Artifact, ArtifactStore
from xhs_pipeline_tests.test_curation_incremental import publish

folder, inputs = Path(sys.argv[1]), json.loads(sys.argv[2])
weeks = {name: Artifact("clean_posts", Path(path), {"content": content}) for name, (path, content) in inputs.items()}

def log(line):
    if "week 3/4" in line:
        os.kill(os.getpid(), signal.SIGKILL)

publish(folder, weeks, ArtifactStore(folder).latest("unique_posts"), log=log)
"""


def test_a_run_killed_in_the_middle_of_a_fold_leaves_nothing_wrong_behind(tmp_path: Path) -> None:
    weeks = clean_weeks(tmp_path, planted(24))
    first = publish(tmp_path / "steps", dict(list(weeks.items())[:1]))
    inputs = json.dumps({name: (str(artifact.path), artifact.content) for name, artifact in weeks.items()})
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "steps"), inputs], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert list((tmp_path / "steps" / "unique_posts" / ".work").glob("*/index/*/segment.json")), "it was in the middle"
    latest = ArtifactStore(tmp_path / "steps").latest("unique_posts")
    assert latest is not None and latest.version == first.version
    assert_same(publish(tmp_path / "steps", weeks, latest), publish(tmp_path / "once", weeks))


def test_a_fold_tells_week_by_week_how_far_it_is(tmp_path: Path) -> None:
    said: list[str] = []
    weeks = clean_weeks(tmp_path, planted(25))
    publish(tmp_path / "data", weeks, publish(tmp_path / "data", dict(list(weeks.items())[:2])), log=said.append)
    lines = [line for line in said if "posts/s" in line]
    assert [line.split(" (")[0] for line in lines] == ["unique_posts: week 3/4", "unique_posts: week 4/4"]
    assert lines[-1].endswith(", 0 s left") and "1 of" not in said[0] and "2 of 4 weeks" in said[0]


def placed(folder: Path, unique: Artifact) -> dict[str, str]:
    work = folder / f"splits-{unique.version}"
    work.mkdir()
    built = write_splits(unique.path, outcomes_file(folder), issues_file(folder, []), POLICY, PROFILE, work)
    assert all(check.passed for check in built.checks if check.blocking)
    return {row: name for name in SPLITS for row in pq.read_table(work / f"{name}.parquet")["post_id"].to_pylist()}


def name_in(split: str, prefix: str) -> str:
    return next(name for n in range(1000) if split_of([name := f"{prefix}{n}"], PROFILE) == split)


@pytest.mark.parametrize("stronger", ["test", "calibration", "validation"])
def test_a_later_post_that_connects_two_groups_takes_nothing_out_of_the_stronger_split(
    tmp_path: Path, stronger: str
) -> None:
    generator = random.Random(31)
    left, right, between = bridge(generator)
    old, young = name_in("train", "old"), name_in(stronger, "young")
    posts = [post(old, left, day=0), post(young, right, day=8), post("bridging", between, day=15)]
    posts += [post(f"x{n}", sentence(generator, 50), day=n % 14) for n in range(30)]
    weeks = clean_weeks(tmp_path, posts)
    two = publish(tmp_path / "data", dict(list(weeks.items())[:2]))
    assert (placed(tmp_path, two)[old], placed_of(two, young)) == ("train", [young])
    three = publish(tmp_path / "data", weeks, two)
    splits = placed(tmp_path, three)
    group = [row for row in Found.read(three.path).kept if row["group_id"] == old]
    assert group and all(row["founders"] == sorted([old, young]) for row in group)
    assert {splits[row["post_id"]] for row in group} == {stronger}
    assert young not in splits or splits[young] == stronger


def placed_of(unique: Artifact, post_id: str) -> list[str]:
    return next(row["founders"] for row in Found.read(unique.path).kept if row["post_id"] == post_id)


def test_no_post_ever_leaves_test_whatever_later_weeks_bring(tmp_path: Path) -> None:
    for seed in range(40, 43):
        folder = tmp_path / str(seed)
        weeks = clean_weeks(
            folder, [row | {"label_source": "source", "verdict": "pass", "category": "正常"} for row in planted(seed)]
        )
        unique, before = None, dict[str, str]()
        rank = {name: place for place, name in enumerate(SPLITS)}
        for count in range(1, len(weeks) + 1):
            unique = publish(folder / "data", dict(list(weeks.items())[:count]), unique)
            now = placed(folder, unique)
            moved = {
                name: (before[name], now[name]) for name in before.keys() & now.keys() if before[name] != now[name]
            }
            assert all(rank[new] > rank[old] for old, new in moved.values()), moved
            before = now


def test_an_artefact_of_another_store_or_format_is_no_help_and_no_harm(tmp_path: Path) -> None:
    weeks = clean_weeks(tmp_path, planted(26)[:150])
    before = publish(tmp_path / "steps", weeks)
    bare = replace(before, manifest={**before.manifest, "files": {}})
    after = publish(tmp_path / "other", weeks, bare)
    assert after.manifest["counts"]["weeks_folded"] == 4
    assert_same(after, before)
