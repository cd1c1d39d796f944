"""The golden set: frozen once, growing only, always in test, and out of reach of every training, whatever happens to the posts."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from xhs_pipeline.artifacts import Artifact, ArtifactStore, Built, RejectedArtifact, digest
from xhs_pipeline.curation.labels import LABEL_ISSUES
from xhs_pipeline.curation.minhash import near_duplicate_pairs
from xhs_pipeline.curation.unique import write_unique
from xhs_pipeline.policy import Policy, load_policy
from xhs_pipeline.posts.schema import CLEAN_POSTS, write_table
from xhs_pipeline.profile import Profile
from xhs_pipeline.splits.golden import FILE, KEY, plan
from xhs_pipeline.splits.grouping import SPLITS, split_of
from xhs_pipeline.splits.kept_out import check_never_trained, read_golden
from xhs_pipeline.splits.sharegpt import write_splits
from xhs_pipeline_tests.test_appeals_events import event
from xhs_pipeline_tests.test_curation_duplicates import A, B, C, post
from xhs_pipeline_tests.test_curation_duplicates_texts import edited, sentence
from xhs_pipeline_tests.test_curation_incremental import bridge, planted
from xhs_pipeline_tests.test_splits import issues_file, outcomes_file

POLICY = replace(load_policy(), golden={"per_category": 4})
PROFILE = Profile(base_model="tiny", base_revision="")
FRAUD: dict[str, Any] = {"verdict": "remove", "category": "诈骗"}
# Everything is trained on that nothing keeps out of it: what is in test then is there because of the golden set.
ALL_TRAIN = dict(test_share=0.0, validation_share=0.0, calibration_share=0.0)


def jpeg(seed: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 32), (seed * 37 % 256, seed * 11 % 256, 120)).save(out, "JPEG")
    return out.getvalue()


class Place:
    """A data folder in which posts become unique_posts, the golden set and splits by the assets' own functions."""

    def __init__(self, folder: Path, policy: Policy = POLICY, profile: Profile = PROFILE) -> None:
        self.folder, self.policy, self.profile = folder, policy, profile
        self.store = ArtifactStore(folder / "data")
        folder.mkdir(exist_ok=True)

    def unique(self, posts: list[dict[str, Any]]) -> Artifact:
        weeks: dict[str, Artifact] = {}
        for week in sorted({row["week"] for row in posts}):
            rows = [
                {"images": [{"bytes": jpeg(n), "path": f"{n}.jpg"} for n, _ in enumerate(row["image_hashes"])]}
                | {"severity": POLICY.severity(row["category"])}
                | row
                for row in posts
                if row["week"] == week
            ]
            content = digest([{**row, "images": None, "created_at": str(row["created_at"])} for row in rows])
            place = self.folder / "clean" / content
            if not place.exists():
                place.mkdir(parents=True)
                batch = pa.RecordBatch.from_pylist(rows, CLEAN_POSTS)
                write_table(place / "posts.parquet", CLEAN_POSTS, [batch])
            weeks[week] = Artifact("clean_posts", place, {"content": content})
        return self.store.build(
            "unique_posts",
            lambda work: write_unique(weeks, work, ["appeal"], log=str),
            inputs={name: artifact.content for name, artifact in weeks.items()},
            settings={},
            code_version="1",
            log=str,
        )

    def issues(self, *suspected: str) -> Artifact:
        def write(work: Path) -> Built:
            rows = [{"post_id": post_id} for post_id in suspected]
            pq.write_table(pa.Table.from_pylist(rows, LABEL_ISSUES), work / "label_issues.parquet")
            return Built({})

        inputs = {"suspected": digest(suspected)}
        return self.store.build("label_issues", write, inputs=inputs, settings={}, code_version="1", log=str)

    def freeze(self, posts: list[dict[str, Any]], *suspected: str, **settings: Any) -> Artifact:
        return freeze(self.store, self.unique(posts), self.issues(*suspected), self.policy, self.other(settings))

    def other(self, settings: dict[str, Any]) -> Profile:
        return self.profile.model_copy(update=settings)

    def split(
        self, posts: list[dict[str, Any]], *events: dict[str, Any], policy: Policy | None = None, **settings: Any
    ) -> dict[str, list[dict[str, Any]]]:
        """The rows of every split, published; the golden set is the latest one."""
        golden, unique = self.store.latest(KEY), self.unique(posts)
        assert golden is not None
        arguments = (
            unique.path, outcomes_file(self.folder, *events), issues_file(self.folder, []), policy or self.policy,
            self.other(settings),
        )  # fmt: skip
        self.splits = self.store.build(
            "sharegpt_splits",
            lambda work: write_splits(*arguments, work, golden.file(FILE)),
            inputs={
                "unique": unique.content, "golden": golden.content, "events": digest(events), "policy": digest(policy),
            },
            settings=settings, code_version="1", lineage={KEY: golden.version}, log=str,
        )  # fmt: skip
        return {name: pq.read_table(self.splits.file(f"{name}.parquet")).to_pylist() for name in SPLITS}


def freeze(store: ArtifactStore, unique: Artifact, issues: Artifact, policy: Policy, profile: Profile) -> Artifact:
    """As the asset does it."""
    with store.alone(KEY, str):
        planned = plan(store, unique, issues, policy, profile)
        lineage = {KEY: planned.previous.version} if planned.previous else {}
        return store.build(
            KEY, planned.write, inputs=planned.inputs, settings=planned.settings, code_version="1", lineage=lineage, log=str
        )  # fmt: skip


def rows_of(golden: Artifact) -> list[dict[str, Any]]:
    return list(pq.read_table(golden.file(FILE)).to_pylist())


def ids(rows: list[dict[str, Any]]) -> set[str]:
    return {row["post_id"] for row in rows}


def name_in(split: str, prefix: str) -> str:
    return next(name for n in range(1000) if split_of([name := f"{prefix}{n}"], PROFILE) == split)


def sample(count: int = 200, seed: int = 5, first_day: int = 0) -> list[dict[str, Any]]:
    """Posts that have nothing to do with one another; a third is fraud, half have an image of their own."""
    generator = random.Random(seed)
    return [
        post(
            f"s{seed}-{n}",
            sentence(generator, 60),
            (f"{generator.getrandbits(64):016x}",) if n % 2 else (),
            first_day + n % 7,
            **(FRAUD if n % 3 == 0 else {}),
        )
        for n in range(count)
    ]


# --- what is enrolled -----------------------------------------------------------------------------------------------------


def test_of_every_category_as_many_posts_are_frozen_with_images_as_without_and_all_of_them_from_test(
    tmp_path: Path,
) -> None:
    rows = rows_of(Place(tmp_path).freeze(sample()))
    strata = [(row["category"], bool(row["images"])) for row in rows]
    assert {stratum: strata.count(stratum) for stratum in strata} == {
        (category, pictured): 4 for category in ("正常", "诈骗") for pictured in (True, False)
    }
    assert {split_of(row["founders"], PROFILE) for row in rows} == {"test"}
    by_id = {row["post_id"]: row for row in sample()}
    for row in rows:
        assert row["body"] == by_id[row["post_id"]]["body"] and row["frozen_at"] == "2026-02-16"
        assert [image["bytes"] for image in row["images"]] == ([jpeg(0)] if row["image_hashes"] else [])


def test_a_group_gives_one_post_and_suspected_or_contradicting_labels_give_none(tmp_path: Path) -> None:
    generator = random.Random(1)
    text, disputed = sentence(generator, 60), sentence(generator, 60)
    group, torn, doubted = (name_in("test", prefix) for prefix in ("group", "torn", "doubted"))
    posts = [
        post(group, text, (A,)), post("mate", text, (B,), 1), post("third", text, (C,), 2),
        post(torn, disputed), post("tears", disputed, day=1, **FRAUD),
        post(doubted, sentence(generator, 60)),
        *(post(f"x{n}", sentence(generator, 60)) for n in range(9)),
    ]  # fmt: skip
    found = ids(rows_of(Place(tmp_path).freeze(posts, doubted)))
    assert len(found & {group, "mate", "third"}) == 1
    assert not found & {torn, "tears", doubted}


def test_no_post_is_frozen_that_an_earlier_model_may_have_learnt_from(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.freeze(sample(10))
    splits = place.split(sample(), seed=1)
    known = {row["post_id"] for name in SPLITS if name != "test" for row in splits[name]}
    candidates = {p["post_id"] for p in sample() if split_of([p["post_id"]], PROFILE) == "test"}
    assert candidates & known, "the seed that splits now would test on them"
    train = place.splits.file("train.parquet")
    pq.write_table(pq.read_table(train).drop_columns(["founders"]), train)  # as the oldest versions wrote it
    found = ids(rows_of(place.freeze(sample())))
    assert len(found) > 5 and not found & known


def test_a_version_holds_the_one_before_it_unchanged_and_then_what_is_new(tmp_path: Path) -> None:
    place = Place(tmp_path)
    first = place.freeze(sample(40))
    later = [*sample(40), *sample(200, seed=6, first_day=7)]
    second = place.freeze(later)
    before, after = pq.read_table(first.file(FILE)), pq.read_table(second.file(FILE))
    assert 0 < before.num_rows < after.num_rows == second.manifest["counts"]["posts"]
    assert after.slice(0, before.num_rows).equals(before)
    assert set(after["frozen_at"].to_pylist()[before.num_rows :]) == {"2026-02-23"}
    assert second.manifest["counts"]["enrolled"] == after.num_rows - before.num_rows
    assert second.manifest["lineage"][KEY] == first.version


def test_where_nothing_is_to_be_added_the_version_that_is_there_is_the_next_one(tmp_path: Path) -> None:
    place = Place(tmp_path)
    first = place.freeze(sample())
    written = first.file(FILE).stat().st_mtime_ns
    full = [*sample(), *sample(300, seed=6, first_day=7)]
    for again in (place.freeze(sample()), place.freeze(full), place.freeze(sample(), seed=1)):
        assert (again.version, again.reused) == (first.version, True)
    assert first.file(FILE).stat().st_mtime_ns == written
    assert len(list(place.store.folder(KEY).glob("*/manifest.json"))) == 1


# --- whatever happens -----------------------------------------------------------------------------------------------------

GENERATOR = random.Random(9)
TEXT, OTHERS = sentence(GENERATOR, 80), [post(f"o{n}", sentence(GENERATOR, 60), day=n % 14) for n in range(30)]
G = name_in("test", "golden")
GOLDEN = post(G, TEXT, (A,), day=8, rationale="理由", **FRAUD)
NEAR, FULLER = edited(GENERATOR, TEXT, 1), post("fuller", TEXT, (A, C), day=15, rationale="更多的理由", **FRAUD)
MATE = post("mate", TEXT, (B,), day=9, **FRAUD)  # under the same text another picture: no duplicate, but the same group

# What there is later (beside OTHERS), and which of it may not be trained on.
LATER: dict[str, tuple[list[dict[str, Any]], set[str]]] = {
    "nothing new": ([GOLDEN, MATE], {"mate"}),
    "a near-duplicate in a later week": ([GOLDEN, MATE, post("near", NEAR, (C,), day=30)], {"mate", "near"}),
    "a near-duplicate in an earlier week, backfilled": ([GOLDEN, MATE, post("near", NEAR, (C,), day=1)], {"mate", "near"}),
    "the post is the duplicate of a fuller one": ([GOLDEN, MATE, FULLER], {"mate"}),
    "the post contradicts another": ([GOLDEN, MATE, post("torn", TEXT, (A,), day=15)], {"mate"}),
    "its text was cleaned anew": ([post(G, sentence(GENERATOR, 80), (A,), day=8, **FRAUD), MATE], {"mate"}),
    "its id was given to another week's post": ([post(G, sentence(GENERATOR, 80), day=1), GOLDEN, MATE], {"mate"}),
    "the post is gone": ([MATE], {"mate"}),
    "the post is gone and its duplicate comes": ([post("again", TEXT, (A,), day=40, **FRAUD)], {"again"}),
    "the post is gone and a near-duplicate comes": ([post("near", NEAR, (), day=40)], {"near"}),
    "its week was deleted": ([post("near", NEAR, (C,), day=1)], {"near"}),
    "nothing of it is left": ([], set()),
}  # fmt: skip


@pytest.mark.parametrize("happened", LATER)
def test_a_golden_post_and_what_is_alike_to_it_is_never_trained_on_and_always_judged_as_frozen(
    tmp_path: Path, happened: str
) -> None:
    place = Place(tmp_path)
    frozen = {row["post_id"]: row for row in rows_of(place.freeze([*OTHERS, GOLDEN]))}
    assert G in frozen
    posts, kept_out = LATER[happened]
    splits = place.split([*OTHERS, *posts], **ALL_TRAIN)
    assert ids(splits["test"]) == {*frozen, *kept_out} and len(splits["test"]) == len(frozen) + len(kept_out)
    assert not splits["validation"] and not splits["calibration"] and ids(splits["train"]) <= ids([*OTHERS, *posts])
    for row in splits["test"]:
        assert row["golden"] == (row["post_id"] in frozen)
        if row["golden"]:
            was = frozen[row["post_id"]]
            for name in (
                "title",
                "body",
                "images",
                "verdict",
                "category",
                "severity",
                "rationale",
                "label_source",
                "week",
            ):
                assert row[name] == was[name], name
            assert set(was["founders"]) <= set(row["founders"])
    assert not any(row["golden"] for row in splits["train"])
    assert place.splits.manifest["counts"]["golden_posts"] == len(frozen)


def test_without_the_golden_set_all_of_them_would_be_trained_on(tmp_path: Path) -> None:
    """What the test above would miss if its posts stayed out of train for another reason; and the check sees it."""
    place = Place(tmp_path)
    golden = place.freeze([*OTHERS, GOLDEN])
    for happened, (posts, kept_out) in LATER.items():
        unique, work = place.unique([*OTHERS, *posts]).path, tmp_path / digest(happened)
        work.mkdir()
        files = (unique, outcomes_file(tmp_path), issues_file(tmp_path, []))
        write_splits(*files, POLICY, place.other(ALL_TRAIN), work)
        assert kept_out <= ids(pq.read_table(work / "train.parquet").to_pylist())
        parts = sorted(unique.glob("posts/*.parquet"))
        found = check_never_trained(work, read_golden(golden.file(FILE), parts, {}), 0)
        assert not found.passed and found.blocking


def test_a_text_that_only_posts_between_connected_goes_with_its_group_while_they_are_there(tmp_path: Path) -> None:
    left, right, between = bridge(random.Random(31))
    golden, far = post(G, left, day=0, **FRAUD), post("far", right, day=8)
    place = Place(tmp_path)
    place.freeze([golden, *OTHERS])
    assert "far" in ids(place.split([golden, far, *OTHERS], **ALL_TRAIN)["train"])
    with_bridge = place.split([golden, far, post("bridge", between, day=15), *OTHERS], **ALL_TRAIN)
    assert G in ids(with_bridge["test"]) and not {"far", "bridge"} & ids(with_bridge["train"])


@pytest.mark.parametrize("seed", range(3))
def test_whatever_arrives_goes_or_comes_back_under_any_seed_nothing_alike_to_a_golden_post_is_trained_on(
    tmp_path: Path, seed: int
) -> None:
    generator = random.Random(seed)
    place = Place(tmp_path)
    posts = planted(70 + seed)
    weeks = sorted({row["week"] for row in posts})
    before: list[dict[str, Any]] = []
    for _ in range(6):
        chosen = generator.sample(weeks, generator.randint(1, len(weeks)))
        here = [row for row in posts if row["week"] in chosen]
        settings = {"seed": generator.randrange(3), "test_share": generator.choice([0.05, 0.2])}
        rows = rows_of(place.freeze(here, **settings))
        assert rows[: len(before)] == before
        before = rows
        splits = place.split(here, **settings)
        texts = {row["post_id"]: row["match_text"] for row in posts}
        learnt = [row for name in SPLITS if name != "test" for row in splits[name]]
        judged = {row["post_id"]: row["match_text"] for row in rows}
        assert judged.keys() <= ids(splits["test"]) and not judged.keys() & ids(learnt)
        groups = {row["group_id"] for row in splits["test"] if row["golden"]}
        assert not groups & {row["group_id"] for row in learnt}
        both = [*judged.values(), *(texts[row["post_id"]] for row in learnt)]
        near = near_duplicate_pairs(both)
        crossing = [(a, b) for a, b in zip(near.left, near.right, strict=True) if a < len(judged) <= b]
        assert [both[a] for a, _ in crossing if len(both[a]) >= 4] == []
    assert len(before) >= 8


# --- labels ---------------------------------------------------------------------------------------------------------------


def overturned(*names: str) -> list[dict[str, Any]]:
    return [
        made
        for number, name in enumerate(names)
        for made in (
            event(2 * number + 1, appeal=f"a-{number}", post=name),
            event(2 * number + 2, "overturned", appeal=f"a-{number}", post=name),
        )
    ]


@pytest.mark.parametrize(
    ("appealed", "posts"),
    [
        (G, [GOLDEN]),
        (G, []),  # of a post that is gone
        (G, [GOLDEN, FULLER]),  # of which another one stands in unique_posts by now
        ("fuller", [GOLDEN, FULLER]),
        ("late", [GOLDEN, FULLER, post("late", TEXT, (A,), day=20, **FRAUD)]),
        (G, [GOLDEN, post("torn", TEXT, (A,), day=15)]),  # whose duplicate has another label
        ("torn", [GOLDEN, post("torn", TEXT, (A,), day=15)]),
    ],
)
def test_a_golden_label_follows_appeals_on_the_post_and_on_its_duplicates_and_nothing_else(
    tmp_path: Path, appealed: str, posts: list[dict[str, Any]]
) -> None:
    place = Place(tmp_path)
    place.freeze([*OTHERS, GOLDEN])
    for events, expected in (
        ([], ("remove", "诈骗", 3, "理由", "source")),
        (overturned(appealed), ("pass", "正常", 0, None, "appeal")),
        ([*overturned(appealed), event(9, "withdrawn", appeal="a-0", post=appealed, actor="person-1")], ("remove", "诈骗", 3, "理由", "source")),
    ):  # fmt: skip
        tests = place.split([*OTHERS, *posts], *events)["test"]
        (row,) = (row for row in tests if row["post_id"] == G)
        assert tuple(row[n] for n in ("verdict", "category", "severity", "rationale", "label_source")) == expected
        assert not ids(tests) & {"fuller", "late", "torn"}, "the golden post stands for its duplicates"
        assert ("通过" in row["messages"][-1]["content"]) == (expected[0] == "pass")


def test_of_two_golden_posts_that_turn_out_to_be_duplicates_both_stay(tmp_path: Path) -> None:
    other = name_in("test", "second")
    place = Place(tmp_path)
    place.freeze([*OTHERS, GOLDEN, post(other, sentence(random.Random(3), 80), day=2, **FRAUD)])
    tests = place.split([*OTHERS, GOLDEN, post(other, TEXT, (A,), day=2, **FRAUD), FULLER], *overturned("fuller"))[
        "test"
    ]
    labels = {row["post_id"]: row["label_source"] for row in tests if row["post_id"] in (G, other, "fuller")}
    assert sorted(labels) == sorted([G, other]) and sorted(labels.values()) == ["appeal", "source"]


def test_a_label_that_a_later_policy_does_not_know_is_not_judged_and_still_never_trained_on(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.freeze([*OTHERS, GOLDEN])
    renamed = replace(POLICY, categories=tuple(c for c in POLICY.categories if c.name != "诈骗"))
    again = post("again", TEXT, (B,), day=20)
    splits = place.split(
        [*OTHERS, GOLDEN | {"verdict": "pass", "category": "正常"}, again], policy=renamed, **ALL_TRAIN
    )
    assert G not in ids([row for name in SPLITS for row in splits[name]]) and "again" in ids(splits["test"])
    (left,) = pq.read_table(place.splits.file("quarantine.parquet")).to_pylist()
    assert (left["post_id"], left["reason"]) == (G, "golden_label_not_in_policy")
    assert place.splits.manifest["counts"]["golden_left_out"] == 1


def test_a_severity_is_the_policys_of_today(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.freeze([*OTHERS, GOLDEN])
    milder = tuple(replace(c, severity=2) if c.name == "诈骗" else c for c in POLICY.categories)
    tests = place.split([*OTHERS, GOLDEN], policy=replace(POLICY, categories=milder))["test"]
    assert [row["severity"] for row in tests if row["post_id"] == G] == [2]


def test_text_in_frozen_images_is_taken_from_weeks_that_were_read_later(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.freeze([*OTHERS, GOLDEN])
    read = [row | {"qr_codes": 0} for row in (*OTHERS, GOLDEN)]
    read[-1] |= {"ocr_text": "加<微信号>", "qr_codes": 1}
    (row,) = (row for row in place.split(read, ocr=True)["test"] if row["post_id"] == G)
    assert (row["ocr_text"], row["qr_codes"]) == ("加<微信号>", 1) and "【图片文字】加<微信号>" in row["messages"][1][
        "content"
    ]
    other_picture = [*read[:-1], read[-1] | {"image_hashes": [B]}]
    (row,) = (row for row in place.split(other_picture, ocr=True)["test"] if row["post_id"] == G)
    assert row["ocr_text"] is None and row["qr_codes"] is None


# --- what breaks -----------------------------------------------------------------------------------------------------------


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [flip, lambda file: os.truncate(file, 100), Path.unlink], ids=["edited", "cut", "gone"]
)
def test_a_damaged_golden_set_is_refused_and_the_version_before_it_is_a_way_back(tmp_path: Path, damage: Any) -> None:
    place = Place(tmp_path)
    first = place.freeze(sample(40))
    posts = [*sample(40), *sample(200, seed=6, first_day=7)]
    second = place.freeze(posts)
    whole = pq.read_table(second.file(FILE))
    damage(second.file(FILE))
    with pytest.raises(ValueError) as refused:
        place.freeze(posts)
    said = str(refused.value)
    assert str(second.file(FILE)) in said and "restore the file from a backup" in said and first.version in said
    assert place.store.latest(KEY) == second and not list(place.store.folder(KEY).glob(".work/*/"))

    shutil.rmtree(second.path)  # as the message says
    (place.store.folder(KEY) / "latest.json").write_text(json.dumps({"version": first.version}))
    assert pq.read_table(place.freeze(posts).file(FILE)).equals(whole)


def test_a_lost_pointer_or_folder_never_founds_another_golden_set(tmp_path: Path) -> None:
    place = Place(tmp_path)
    first = place.freeze(sample(40))
    place.split(sample(40))
    pointer = place.store.folder(KEY) / "latest.json"
    kept = pointer.read_text()
    for broken in (None, "", '{"version": "0000"}', "[]"):
        pointer.unlink()
        if broken is not None:
            pointer.write_text(broken)
        with pytest.raises(ValueError, match=r"latest\.json: .*never frozen anew: restore the folder from a backup"):
            place.freeze(sample(60))
        pointer.write_text(kept)
    assert place.freeze(sample(40)).version == first.version
    place.store.folder(KEY).rename(tmp_path / "moved away")
    with pytest.raises(ValueError, match=rf'expected {{"version": "{first.version}"}}'):
        place.freeze(sample(60))
    (place.store.folder("sharegpt_splits") / "latest.json").unlink()  # the second step of giving it up on purpose
    assert place.freeze(sample(60)).manifest["counts"]["frozen_before"] == 0


CHILD = """
import os, signal, sys, time
from pathlib import Path
from xhs_pipeline import artifacts
from xhs_pipeline.artifacts import ArtifactStore
from xhs_pipeline.splits import golden
from xhs_pipeline_tests.test_golden import KEY, POLICY, PROFILE, freeze

folder, unique, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
store = ArtifactStore(folder / "data")
write = golden.write_golden

def dies(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def dies_after_writing(*arguments):
    write(*arguments)
    dies()

def takes_its_time(*arguments):
    time.sleep(2)
    return write(*arguments)

if how == "writing":
    golden.write_golden = dies_after_writing
elif how == "pointing":
    artifacts._point = dies
else:
    golden.write_golden = takes_its_time
    (folder / f"{unique}.ready").touch()
    while len(list(folder.glob("*.ready"))) < 2:
        time.sleep(0.01)
print(freeze(store, store.get("unique_posts", unique), store.latest("label_issues"), POLICY, PROFILE).version)
"""


def child(place: Place, unique: Artifact, how: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(place.folder), unique.version, how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("when", ["writing", "pointing"])
@pytest.mark.parametrize("frozen_before", [0, 40])
def test_a_run_killed_while_it_freezes_loses_nothing_and_doubles_nothing(
    tmp_path: Path, when: str, frozen_before: int
) -> None:
    place = Place(tmp_path)
    before = rows_of(place.freeze(sample(frozen_before))) if frozen_before else []
    place.issues()
    posts = [*sample(40), *sample(100, seed=6, first_day=7)]
    killed = child(place, place.unique(posts), when)
    assert killed.wait(timeout=120) == -signal.SIGKILL
    after = place.freeze(posts)
    rows = rows_of(after)
    assert rows[: len(before)] == before and len(ids(rows)) == len(rows) > len(before)
    undisturbed = Place(tmp_path / "undisturbed")
    if frozen_before:
        undisturbed.freeze(sample(frozen_before))
    other = undisturbed.freeze(posts)
    assert (rows_of(other), other.content) == (rows, after.content)


def test_two_runs_at_once_on_different_posts_lose_none_of_what_either_froze(tmp_path: Path) -> None:
    place = Place(tmp_path)
    first = rows_of(place.freeze(sample(20)))
    weeks = [sample(12, seed=6, first_day=7), sample(12, seed=7, first_day=14)]
    uniques = [place.unique([*sample(20), *week]) for week in weeks]
    children = [child(place, unique, "at once") for unique in uniques]
    versions = [process.communicate(timeout=120)[0].strip() for process in children]
    assert [process.returncode for process in children] == [0, 0] and versions[0] != versions[1]
    latest = place.store.latest(KEY)
    assert latest is not None and latest.version in versions
    rows = rows_of(latest)
    assert rows[: len(first)] == first and len(ids(rows)) == len(rows)
    for version in versions:
        assert ids(rows_of(place.store.get(KEY, version))) <= ids(rows)
    for week in weeks:
        assert ids(rows) & ids(week), "both found something to freeze"


def test_the_splits_of_a_golden_set_that_they_do_not_hold_are_not_published(tmp_path: Path) -> None:
    place = Place(tmp_path)
    golden = place.freeze([*OTHERS, GOLDEN])
    files = (place.unique([*OTHERS, GOLDEN]).path, outcomes_file(tmp_path), issues_file(tmp_path, []))

    def write(work: Path) -> Built:
        built = write_splits(*files, POLICY, PROFILE, work, golden.file(FILE))
        tests = pq.read_table(work / "test.parquet")
        pq.write_table(tests.slice(0, 0), work / "test.parquet")
        known = read_golden(golden.file(FILE), sorted(files[0].glob("posts/*.parquet")), {})
        return replace(built, checks=[check_never_trained(work, known, 0)])

    with pytest.raises(RejectedArtifact, match=r"0 of \d+ golden posts in test"):
        place.store.build("sharegpt_splits", write, inputs={}, settings={}, code_version="1", log=str)


def test_an_empty_golden_set_is_one_that_grows_later(tmp_path: Path) -> None:
    place = Place(tmp_path)
    nothing = [row for row in sample(40) if split_of([row["post_id"]], PROFILE) != "test"]
    assert rows_of(place.freeze(nothing)) == []
    assert not any(row["golden"] for rows in place.split(nothing).values() for row in rows)
    assert rows_of(place.freeze(sample(60)))
