"""The appeals store on SQLite and on PostgreSQL: the same rules, the same answers, and nothing ever changed or deleted."""

import json
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from xhs_pipeline.appeals import tables
from xhs_pipeline.appeals.database import HEAD, MIGRATIONS, StoreError
from xhs_pipeline.appeals.events import APPEAL_EVENTS
from xhs_pipeline.appeals.outcomes import derive_outcomes
from xhs_pipeline.appeals.records import Decision, Filed, Snapshot
from xhs_pipeline.appeals.rules import REFUSALS, Refused
from xhs_pipeline.appeals.store import AppealStore, store_url
from xhs_pipeline.privacy import keyed_hash
from xhs_pipeline.serve.messages import CaseOut
from xhs_pipeline_tests.databases import Postgres
from xhs_pipeline_tests.test_appeals_events import KEY, POLICY, event, lines

START = datetime(2026, 3, 2, 12, tzinfo=UTC)
LIMITS = POLICY.appeals


class Clock:
    """A clock that stands still until it is moved, in whichever direction."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def move(self, **by: float) -> None:
        self.now += timedelta(**by)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database_url: str, clock: Clock) -> Iterator[AppealStore]:
    with AppealStore.open(database_url, POLICY, KEY, clock) as opened:
        yield opened


def decided(store: AppealStore, n: int = 1, verdict: str = "remove", category: str = "私域引流", **more: Any) -> str:
    """The id of a logged decision about post n."""
    post = Snapshot(
        f"p-{n}",
        more.pop("title", f"标题{n}"),
        more.pop("body", f"正文{n}"),
        (b"jpeg", b"other"),
        author=more.pop("author", None),
    )
    return store.log_decision(post, Decision("m-1", POLICY.version, verdict, category, **more))


def filed(store: AppealStore, n: int = 1, by: str | None = None, **more: Any) -> Filed:
    return store.file_appeal(decided(store, n, **more), by or f"author-{n}", "请再看一遍")


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    assert caught.value.zh in REFUSALS[caught.value.reason] and caught.value.en in str(caught.value)
    return caught.value.reason


def kinds(store: AppealStore) -> list[str]:
    return store.events()["kind"].to_pylist()


# --- from a decision to a label -----------------------------------------------------------------------------------------


def test_an_appeal_shows_the_reviewer_what_was_judged_and_what_was_decided(store: AppealStore) -> None:
    decision = Decision("m-1", "v-1", "remove", "诈骗", {"remove": 0.9}, {"诈骗": 0.8}, "serve", decided_by="judge")
    snapshot = Snapshot("p-1", "标题", "正文", (b"one", b"two"), "图中字", 1, author="wang")
    appeal = store.file_appeal(store.log_decision(snapshot, decision), "wang", "我的电话13812345678")
    view = store.case(appeal.case_id)
    assert view.snapshot == Snapshot("p-1", "标题", "正文", (b"one", b"two"), "图中字", 1)
    assert view.decision == Decision("m-1", "v-1", "remove", "诈骗", {"remove": 0.9}, {"诈骗": 0.8}, "serve")
    assert (view.kind, view.state.state, view.decided_at) == ("appeal", "filed", START)
    (only,) = view.events
    assert only["note"] == "我的电话<手机号>"
    named = ("post_id", "model_version", "policy_version", "verdict", "category", "actor_hash", "decided_by_hash")
    assert [only[name] for name in named] == [
        "p-1", "m-1", "v-1", "remove", "诈骗", keyed_hash(KEY, "wang"), keyed_hash(KEY, "judge")
    ]  # fmt: skip


def test_a_note_takes_no_more_work_the_longer_it_is_whoever_hands_it_in(store: AppealStore) -> None:
    long = "加微信 abc123 电话13800138000 " * 40_000  # 1 MB, which would take 13 s of masking
    decision_id = decided(store)
    began = time.thread_time()
    appeal = store.file_appeal(decision_id, "author", long)
    store.vote(appeal.case_id, "han", "pass", "正常", long)
    store.log_decision(Snapshot("p-2", "", long), Decision("m-1", POLICY.version, "remove", "诈骗"))
    assert time.thread_time() - began < 5, "seconds of a core"
    notes = [event["note"] for event in store.case(appeal.case_id).events][:2]
    assert all(len(note) == 500 and "138001" not in note for note in notes)
    blank = store.file_appeal(decided(store, 3), "author", " " * 5000 + "later").case_id
    assert store.case(blank).events[0]["note"] is None, "what follows 5000 characters is not looked at"


def test_one_vote_decides_and_every_event_names_post_decision_model_and_policy(store: AppealStore) -> None:
    appeal = filed(store)
    case = store.vote(appeal.case_id, "judge", "通过", "正常")
    assert (case.state, case.label) == ("overturned", ("pass", "正常"))
    rows = store.events().to_pylist()
    assert [(row["kind"], row["actor_role"]) for row in rows] == [
        ("filed", "author"), ("voted", "reviewer"), ("overturned", "system")
    ]  # fmt: skip
    for name in ("post_id", "decision_id", "model_version", "policy_version"):
        assert len({row[name] for row in rows}) == 1 and rows[0][name]
    (label,) = derive_outcomes(store.events(), POLICY).outcomes.to_pylist()
    assert (label["verdict"], label["event_ids"], label["event_id"]) == ("pass", [1, 2, 3], 3)


def test_taking_severity_3_back_waits_for_a_second_reviewer(store: AppealStore) -> None:
    case_id = filed(store, category="诈骗").case_id
    assert store.vote(case_id, "one", "pass", "正常").state == "voted"
    assert refusal(store.vote, case_id, "one", "pass", "正常") == "repeated"
    assert derive_outcomes(store.events(), POLICY).outcomes.num_rows == 0
    assert store.vote(case_id, "two", "pass", "正常").state == "overturned"


@pytest.mark.parametrize("again", ["p-5", "p-6"])
def test_a_severe_label_is_not_taken_back_by_judging_the_same_content_again(store: AppealStore, again: str) -> None:
    def reviewed(post_id: str, category: str, reviewer: str, verdict: str, label: str) -> None:
        decision = Decision("m", "v", "remove", category)
        appeal = store.file_appeal(store.log_decision(Snapshot(post_id, "", "稳赚不赔"), decision), f"for {reviewer}")
        assert not store.vote(appeal.case_id, reviewer, verdict, label).open

    def labels() -> dict[str, str]:
        found = derive_outcomes(store.events(), POLICY)
        reasons.append(found.quarantine["reason"].to_pylist())
        return dict(zip(found.outcomes["post_id"].to_pylist(), found.outcomes["category"].to_pylist(), strict=True))

    reasons: list[list[str]] = []
    reviewed("p-5", "诈骗", "han", "remove", "诈骗")
    assert labels() == {"p-5": "诈骗"}
    reviewed(again, "私域引流", "bo", "pass", "正常")
    assert labels() == {} and reasons[-1] == ["reviewers_disagree"] * 2
    reviewed(again, "私域引流", "bo", "pass", "正常") if again == "p-6" else None
    assert labels() == {}, "one reviewer stays one, however often"
    reviewed(again, "私域引流", "cy", "pass", "正常")
    assert labels()[again] == "正常"


def test_reviewers_who_disagree_escalate_the_case_until_they_agree(store: AppealStore) -> None:
    case_id = filed(store, category="诈骗").case_id
    store.vote(case_id, "one", "pass", "正常")
    assert store.vote(case_id, "two", "remove", "诈骗").state == "escalated"
    assert store.vote(case_id, "three", "pass", "正常").state == "escalated", "a majority is no agreement"
    assert derive_outcomes(store.events(), POLICY).outcomes.num_rows == 0
    assert [view.case_id for view in store.queue("escalated")] == [case_id]
    assert store.vote(case_id, "two", "pass", "正常").state == "overturned"
    assert kinds(store).count("overturned") == 1


def test_nobody_reviews_their_own_decision_appeal_or_post(store: AppealStore) -> None:
    case_id = filed(store, by="wang", decided_by="judge", author="li").case_id
    reasons = [refusal(store.vote, case_id, who, "pass", "正常") for who in ("judge", "wang", "li", "李")[:3]]
    assert reasons == ["own_decision", "own_appeal", "own_appeal"]
    assert refusal(store.vote, case_id, "ｊｕｄｇｅ ", "pass", "正常") == "own_decision", "however the name is typed"
    assert kinds(store) == ["filed"]


def test_a_closed_case_takes_nothing_more(store: AppealStore) -> None:
    done, back = filed(store, 1), filed(store, 2)
    store.vote(done.case_id, "judge", "remove", "私域引流")
    assert refusal(store.withdraw, back.case_id, "someone") == "not_the_appellant"
    assert store.withdraw(back.case_id, "author-2").state == "withdrawn"
    for case_id in (done.case_id, back.case_id):
        assert refusal(store.vote, case_id, "other", "pass", "正常") == "closed"
        assert refusal(store.triage, case_id, "other") == "closed"
    assert refusal(store.withdraw, done.case_id, "author-1") == "closed"
    assert refusal(store.vote, "nothing", "other", "pass", "正常") == refusal(store.case, "nothing") == "unknown_case"


def test_what_cannot_be_appealed_or_voted_is_refused_with_a_reason(store: AppealStore) -> None:
    assert refusal(store.file_appeal, "no such decision", "wang") == "unknown_decision"
    assert refusal(store.file_appeal, decided(store, 1, "pass", "正常"), "wang") == "passed_post"
    assert refusal(store.file_appeal, decided(store), " ") == "no_actor"
    case_id = filed(store).case_id
    assert refusal(store.vote, case_id, "judge", "pass", "诈骗") == "label_not_allowed"
    assert refusal(store.vote, case_id, "judge", "外星结论", "诈骗") == "label_not_allowed"


def test_open_cases_expire_when_nothing_happens_and_decided_ones_do_not(store: AppealStore, clock: Clock) -> None:
    old, done, busy = filed(store, 1), filed(store, 2), filed(store, 3)
    store.vote(done.case_id, "judge", "pass", "正常")
    clock.move(days=20)
    store.triage(busy.case_id, "judge")
    clock.move(days=20)
    assert store.expire(clock.now, timedelta(days=30)) == 1
    assert [store.case(c.case_id).state.state for c in (old, done, busy)] == ["expired", "overturned", "triaged"]
    assert store.expire(clock.now, timedelta(days=30)) == 0


def test_the_queue_lists_what_is_open_the_oldest_first_and_goes_on_where_it_was_left(store: AppealStore) -> None:
    ids = [filed(store, n).case_id for n in range(6)]
    store.vote(ids[1], "judge", "pass", "正常")
    store.triage(ids[2], "judge")
    first = store.queue(limit=3)
    assert [view.case_id for view in first] == [ids[0], ids[2], ids[3]]
    assert [view.case_id for view in store.queue(after=first[-1].cursor)] == ids[4:]
    assert [view.case_id for view in store.queue("overturned")] == [ids[1]]
    assert [view.case_id for view in store.queue("triaged")] == [ids[2]]
    assert store.queue("withdrawn") == []
    with pytest.raises(ValueError, match="state is 'lost'; expected one of filed, sampled, triaged"):
        store.queue("lost")


def test_a_queue_read_without_images_says_how_many_there_are_and_reads_none_of_them(store: AppealStore) -> None:
    post = Snapshot("p", "标题", "正文", (b"one", b"two"), author="wang")
    case_id = store.file_appeal(store.log_decision(post, Decision("m", "v", "remove", "私域引流")), "wang").case_id
    read: list[str] = []
    sa.event.listen(store.database.engine, "before_cursor_execute", lambda *told: read.append(told[2]))
    [listed] = store.queue(with_images=False)
    assert not any("snapshot_images.bytes" in statement for statement in read)
    assert listed.snapshot is not None and listed.snapshot.images == () and listed.snapshot.body == "正文"
    for whole in (store.case(case_id), *store.queue()):
        assert whole.snapshot is not None and whole.snapshot.images == (b"one", b"two")
    assert any("snapshot_images.bytes" in statement for statement in read)
    shown, out = CaseOut.of(store.case(case_id)), CaseOut.of(listed)
    assert out.image_count == shown.image_count == 2 and (out.images, len(shown.images)) == ([], 2)
    store.erase("wang")
    assert store.case(case_id).image_count == 0


def test_a_queue_longer_than_a_page_is_read_to_its_end(store: AppealStore, tmp_path: Path) -> None:
    many = [event(n, appeal=f"a-{n:04}", post=f"p-{n}") for n in range(1, 451)]
    (tmp_path / "appeals.jsonl").write_bytes(lines(*many))
    store.import_jsonl(tmp_path / "appeals.jsonl")
    assert [view.case_id for view in store.queue(limit=1000)] == [f"a-{n:04}" for n in range(1, 451)]


# --- what was judged does not change --------------------------------------------------------------------------------------


def test_a_post_that_is_edited_and_judged_again_is_another_snapshot(store: AppealStore) -> None:
    before, after = decided(store, body="原来的话"), decided(store, body="改过的话")
    same = decided(store, body="原来的话")
    one, two = store.file_appeal(before, "wang"), store.file_appeal(after, "wang")
    assert store.case(one.case_id).snapshot.body == "原来的话"  # type: ignore[union-attr]
    assert store.case(two.case_id).snapshot.body == "改过的话"  # type: ignore[union-attr]
    assert len({before, after, same}) == 3
    with store.database.read() as db:
        assert db.execute(sa.select(sa.func.count()).select_from(tables.SNAPSHOTS)).scalar() == 2
        assert db.execute(sa.select(sa.func.count()).select_from(tables.SNAPSHOT_IMAGES)).scalar() == 4


@pytest.mark.parametrize("table", ["events", "decisions", "snapshots", "snapshot_images", "store_info", "erasures"])
def test_nothing_is_ever_updated_or_deleted(store: AppealStore, table: str) -> None:
    filed(store)
    store.erase("nobody")
    column = {
        "events": "verdict",
        "decisions": "verdict",
        "snapshots": "title",
        "snapshot_images": "sha256",
        "store_info": "value",
        "erasures": "author_hash",
    }[table]
    before = contents(store, table)
    statements = [f"UPDATE {table} SET {column} = 'changed'", f"DELETE FROM {table}"]
    statements.append(
        f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}"
        if store.database.sqlite
        else f"TRUNCATE {table} CASCADE"
    )
    for statement in statements:
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), store.database.engine.begin() as connection:
            connection.exec_driver_sql(statement)
    assert contents(store, table) == before and before


def contents(store: AppealStore, table: str) -> list[Any]:
    with store.database.read() as db:
        return [tuple(row) for row in db.execute(sa.text(f"SELECT * FROM {table} ORDER BY 1, 2"))]


def test_an_event_is_not_replaced_under_its_origin_either(store: AppealStore) -> None:
    appeal = filed(store)
    if not store.database.sqlite:
        pytest.skip("INSERT OR REPLACE is SQLite's")
    with pytest.raises(sa.exc.IntegrityError, match="append-only"), store.database.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT OR REPLACE INTO events (case_id, case_kind, kind, at, post_id, actor_role, origin, origin_id) "
            "SELECT case_id, case_kind, 'withdrawn', at, post_id, actor_role, origin, origin_id FROM events"
        )
    assert store.case(appeal.case_id).state.state == "filed"


def test_people_are_stored_as_keyed_hashes_alone(store: AppealStore, database_url: str) -> None:
    appeal = filed(store, by="appellant-wang", author="author-wang", decided_by="judge-wang")
    store.vote(appeal.case_id, "reviewer-wang", "pass", "正常", "微信号abc12345的作者")
    everything = str([contents(store, table) for table in ("events", "decisions", "snapshots")])
    assert "-wang" not in everything and keyed_hash(KEY, "reviewer-wang") in everything
    assert "abc12345" not in everything


ONE_PERSON = ["Judge One", " judge one", "Judge\u200b One", "JUDGE\u3000ONE", "ju\xaddge  one\n", "ｊｕｄｇｅ one"]


@pytest.mark.parametrize("typed", ONE_PERSON)
def test_one_person_is_one_person_however_the_name_is_typed(store: AppealStore, typed: str, tmp_path: Path) -> None:
    case_id = filed(store, 1, category="诈骗", decided_by="judge one").case_id
    assert refusal(store.vote, case_id, typed, "pass", "正常") == "own_decision"
    grave = filed(store, 2, category="诈骗").case_id
    assert store.vote(grave, "Judge One", "pass", "正常").state == "voted"
    assert refusal(store.vote, grave, typed, "pass", "正常") == "repeated"
    decision = decided(store, 3)
    store.file_appeal(decision, "judge one")
    assert refusal(store.file_appeal, decision, typed) == "duplicate"
    mine = filed(store, 4, author="Judge One").case_id
    assert refusal(store.vote, mine, typed, "pass", "正常") == "own_appeal"
    (tmp_path / "appeals.jsonl").write_bytes(
        lines(
            event(1, decided_by="Judge One"), event(2, "overturned", actor=typed), event(3, "overturned", actor="two")
        )
    )
    store.import_jsonl(tmp_path / "appeals.jsonl")
    assert store.case("a-1").state.ignored[0][1] == "own_decision"
    assert store.erase(typed).snapshots == 1


def test_a_name_of_which_nothing_is_seen_is_none(store: AppealStore) -> None:
    assert [refusal(store.file_appeal, decided(store), name) for name in ("", " ", "\u200b", "\x00\xad")] == [
        "no_actor"
    ] * 4
    assert refusal(store.vote, filed(store).case_id, "\u2060 ", "pass", "正常") == "no_actor"


def test_what_was_stored_under_a_name_as_it_was_typed_is_erased_too(store: AppealStore) -> None:
    with store.database.write() as db:
        old = {"snapshot_id": "old", "post_id": "p", "title": "t", "body": "b", "group_id": "g", "at": START}
        db.execute(sa.insert(tables.SNAPSHOTS).values(**old, author_hash=keyed_hash(KEY, "Wang")))
    decided(store, 1, author="Wang")
    assert store.erase("Wang").snapshots == 2


# --- abuse --------------------------------------------------------------------------------------------------------------


def test_one_appeal_of_a_person_against_a_decision_counts_even_after_it_was_withdrawn(store: AppealStore) -> None:
    decision = decided(store)
    first = store.file_appeal(decision, "wang")
    assert refusal(store.file_appeal, decision, "wang") == "duplicate"
    assert refusal(store.file_appeal, decision, " ＷＡＮＧ".lower()) == "duplicate"
    store.withdraw(first.case_id, "wang")
    assert refusal(store.file_appeal, decision, "wang") == "duplicate"
    assert store.file_appeal(decision, "li").flag is None, "another person may"


def test_one_person_has_so_many_appeals_in_seven_days(store: AppealStore, clock: Clock) -> None:
    for n in range(LIMITS["max_per_author_per_week"]):
        filed(store, n, by="wang")
        clock.move(hours=1)
    assert refusal(filed, store, 100, "wang") == "author_cap"
    assert filed(store, 101, by="li").flag is None
    clock.move(days=-3)  # a clock that was set back frees nobody
    assert refusal(filed, store, 102, "wang") == "author_cap"
    clock.move(days=10)
    assert filed(store, 103, by="wang").flag is None


def test_one_content_is_appealed_so_often_in_seven_days_whoever_posts_it(store: AppealStore, clock: Clock) -> None:
    def copy(n: int) -> Filed:
        # copies differ in what no reader sees as a difference: width, case, marks between the letters
        body = ("加V：ABC，免费领", "加v:abc 免费领", "ＡＢＣ".join(["加·V", "免·费领"]))[n % 3]
        post = Snapshot(f"p-{n}", "标题", body, (b"jpeg",))
        return store.file_appeal(store.log_decision(post, Decision("m", "v", "remove", "私域引流")), f"author-{n}")

    for n in range(LIMITS["max_per_group_per_week"]):
        copy(n)
        clock.move(hours=1)
    assert refusal(copy, 1000) == "group_cap"
    clock.move(days=8)
    assert copy(1001).flag is None


def test_people_who_write_the_same_words_under_other_pictures_do_not_use_up_each_others_appeals(
    store: AppealStore, clock: Clock
) -> None:
    def photo(n: int, picture: bytes) -> Filed:
        post = Snapshot(f"p-{n}", "", "今日穿搭", (picture,))
        return store.file_appeal(store.log_decision(post, Decision("m", "v", "remove", "私域引流")), f"author-{n}")

    many = LIMITS["max_per_group_per_week"] + 1
    assert [photo(n, b"picture %d" % n).flag for n in range(many)] == [None] * many
    for n in range(1, many - 1):
        clock.move(hours=1)
        photo(1000 + n, b"picture 0")
    with pytest.raises(Refused) as refused:
        photo(2000, b"picture 0")
    assert refused.value.reason == "group_cap" and "七天内的申诉已达上限" in refused.value.zh
    assert "outcome" not in refused.value.en, "what becomes of the others is not promised to this one"


def test_a_burst_is_taken_counted_and_waits_for_a_reviewer(store: AppealStore, clock: Clock) -> None:
    flags = []
    for n in range(LIMITS["burst"]["per_author"] + 2):
        flags.append(filed(store, n, by="wang").flag)
        clock.move(seconds=1)
    assert flags == [None] * LIMITS["burst"]["per_author"] + ["author_burst"] * 2
    late = store.queue()[-1]
    assert late.state.waits_for_triage
    assert refusal(store.vote, late.case_id, "judge", "pass", "正常") == "not_triaged"
    assert store.triage(late.case_id, "judge").state == "triaged"
    assert refusal(store.triage, late.case_id, "judge") == "repeated"
    assert store.vote(late.case_id, "judge", "pass", "正常").state == "overturned"
    clock.move(minutes=LIMITS["burst"]["minutes"])
    assert filed(store, 99, by="wang").flag is None


def test_a_burst_of_many_people_about_one_content_is_one_too(store: AppealStore) -> None:
    decision = decided(store)
    flags = [store.file_appeal(decision, f"puppet-{n}").flag for n in range(LIMITS["burst"]["per_group"] + 1)]
    assert flags == [None] * LIMITS["burst"]["per_group"] + ["group_burst"]


# --- the audit sample -----------------------------------------------------------------------------------------------------


def passed(store: AppealStore, n: int, fraud: float = 0.01, source: str = "serve", **more: Any) -> str:
    rest = {"正常": 1 - fraud, "诈骗": fraud * 0.6, "赌博": fraud * 0.4}
    return decided(store, n, "pass", "正常", category_probs=rest, source=source, **more)


def test_an_audit_case_is_reviewed_like_an_appeal_and_gives_a_label(store: AppealStore) -> None:
    passed(store, 1, decided_by="judge")
    (case_id,) = store.sample_audit()
    view = store.case(case_id)
    assert (view.kind, view.state.state, view.state.first) == ("audit", "sampled", ("pass", "正常"))
    assert view.snapshot and view.snapshot.body == "正文1"
    assert refusal(store.vote, case_id, "judge", "pass", "正常") == "own_decision"
    assert store.vote(case_id, "other", "remove", "诈骗").state == "modified"
    (label,) = derive_outcomes(store.events(), POLICY).outcomes.to_pylist()
    assert (label["case_kind"], label["outcome"], label["verdict"], label["category"]) == (
        "audit",
        "modified",
        "remove",
        "诈骗",
    )


def test_no_decision_is_sampled_twice_nor_two_with_the_same_content_nor_one_that_blocked(store: AppealStore) -> None:
    for n in range(30):
        passed(store, n)
        passed(store, 100 + n, title="同样", body="的话")
        decided(store, 200 + n)
    first, second, third = (store.sample_audit(20) for _ in range(3))
    assert (len(first), len(second), len(third)) == (20, 11, 0)  # of thirty copies one
    posts = [store.case(case_id).state.post_id for case_id in [*first, *second]]
    assert len(set(posts)) == 31


def test_the_same_seed_draws_the_same_posts_and_another_one_others(database_url: str, tmp_path: Path) -> None:
    drawn = []
    for place, seed in (("a", 1), ("b", 1), ("c", 2)):
        with AppealStore.open(f"sqlite:///{tmp_path / place}", POLICY, KEY) as store:
            for n in range(50):
                passed(store, n)
            drawn.append({store.case(case_id).state.post_id for case_id in store.sample_audit(10, seed)})
    assert drawn[0] == drawn[1] != drawn[2]


def test_half_the_sample_is_random_and_half_is_spread_over_what_the_model_was_unsure_of(store: AppealStore) -> None:
    for n in range(200):
        passed(store, n, fraud=0.3 if n < 4 else 0.01, source="demo" if n == 10 else "serve")
    posts = {store.case(case_id).state.post_id for case_id in store.sample_audit(20, 5)}
    assert {"p-0", "p-1", "p-2", "p-3", "p-10"} <= posts, "rare strata are drawn out of turn"
    assert len(posts) == 20


def test_decisions_older_than_the_policy_says_are_not_sampled(store: AppealStore, clock: Clock) -> None:
    passed(store, 1)
    clock.move(days=LIMITS["audit"]["days"] + 1)
    passed(store, 2)
    assert [store.case(case_id).state.post_id for case_id in store.sample_audit()] == ["p-2"]


# --- files of events -------------------------------------------------------------------------------------------------------


def file_of(folder: Path, *events: dict[str, Any], name: str = "appeals.jsonl") -> Path:
    (folder / name).write_bytes(lines(*events))
    return folder / name


def test_a_file_is_taken_over_once_however_often_it_is_read(store: AppealStore, tmp_path: Path) -> None:
    path = file_of(tmp_path, event(1), event(2, "upheld"))
    counts = [store.import_jsonl(path) for _ in range(2)]
    assert [(c.new, c.known, c.refused.num_rows) for c in counts] == [(2, 0, 0), (0, 2, 0)]
    file_of(tmp_path, event(1), event(2, "upheld"), event(3, appeal="a-2", post="p-2"))
    assert store.import_jsonl(path).new == 1
    table = store.events()
    assert table.schema.equals(APPEAL_EVENTS) and table["event_id"].to_pylist() == [1, 2, 3]
    assert table["origin_id"].to_pylist() == ["1", "2", "3"]
    assert set(table["origin"].to_pylist()) == {table["origin"][0].as_py()} and str(tmp_path) not in str(
        table["origin"]
    )


def test_a_line_that_was_changed_after_it_was_read_is_refused_and_says_what_to_do(
    store: AppealStore, tmp_path: Path
) -> None:
    store.import_jsonl(file_of(tmp_path, event(1), event(2, "upheld")))
    counts = store.import_jsonl(file_of(tmp_path, event(1), event(2, "overturned")))
    (row,) = counts.refused.to_pylist()
    assert (counts.new, counts.known, row["reason"]) == (0, 1, "conflicting_event_id")
    assert "write a change as an event of its own" in row["detail"]
    assert kinds(store) == ["filed", "upheld"]


def test_a_file_closes_no_case_of_another_post_nor_takes_back_anothers_appeal(
    store: AppealStore, tmp_path: Path
) -> None:
    done, open_one, own = filed(store, 1).case_id, filed(store, 2).case_id, filed(store, 3, by="wang").case_id
    store.vote(done, "judge", "pass", "正常")
    about = [(done, "p-1"), (done, "other"), (open_one, "p-2")]
    closing = [event(n, "withdrawn", appeal=a, post=p, actor="stranger") for n, (a, p) in enumerate(about, 1)]
    closing += [
        event(4, "expired", appeal=open_one, post="other"),
        event(5, "withdrawn", appeal=own, post="p-3", actor="Wang"),
    ]
    store.import_jsonl(file_of(tmp_path, *closing))
    assert [store.case(case_id).state.state for case_id in (done, open_one, own)] == [
        "overturned",
        "filed",
        "withdrawn",
    ]
    assert [view.case_id for view in store.queue()] == [open_one]
    assert derive_outcomes(store.events(), POLICY).outcomes["post_id"].to_pylist() == ["p-1"]


def test_two_files_of_one_name_are_two_and_a_file_that_moved_changes_no_label(
    store: AppealStore, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    history = [
        event(1),
        event(2, "upheld"),
        event(3, appeal="a-2", post="p-2"),
        event(4, "withdrawn", appeal="a-2", post="p-2", actor="person-3"),
    ]
    store.import_jsonl(file_of(tmp_path, *history))
    labels = derive_outcomes(store.events(), POLICY)
    assert store.import_jsonl(file_of(tmp_path / "other", *history)).new == 4
    again = derive_outcomes(store.events(), POLICY)
    assert again.outcomes.equals(labels.outcomes) and again.quarantine.num_rows == 0


def test_a_file_of_votes_alone_decides_cases_of_the_store(store: AppealStore, tmp_path: Path) -> None:
    appeal = filed(store, category="诈骗")
    votes = [
        event(n, "voted", appeal=appeal.case_id, post="p-1", actor=f"judge-{n}", verdict="pass", category="正常")
        for n in (1, 2)
    ]
    store.import_jsonl(file_of(tmp_path, votes[0]))
    assert store.case(appeal.case_id).state.state == "voted"
    store.import_jsonl(file_of(tmp_path, *votes))
    assert store.case(appeal.case_id).state.state == "overturned"
    assert kinds(store) == ["filed", "voted", "voted", "overturned"]


def test_caps_and_bursts_hold_for_a_file_too(store: AppealStore, tmp_path: Path) -> None:
    copies = [event(n, appeal=f"a-{n}", post="p-1", actor=f"puppet-{n}") for n in range(1, 41)]
    store.import_jsonl(
        file_of(tmp_path, *copies, *(event(100 + n, "overturned", appeal=f"a-{n}") for n in range(1, 41)))
    )
    flags = store.events()["flag"].to_pylist()[:40]
    fine, week = LIMITS["burst"]["per_group"], LIMITS["max_per_group_per_week"]
    assert flags == [None] * fine + ["group_burst"] * (week - fine) + ["group_cap"] * (40 - week)
    found = derive_outcomes(store.events(), POLICY)
    assert found.outcomes.num_rows == 1
    assert found.quarantine["reason"].to_pylist().count("not_triaged") == 40 - fine


def test_bad_lines_are_counted_and_half_a_line_is_left_for_the_next_read(store: AppealStore, tmp_path: Path) -> None:
    path = tmp_path / "appeals.jsonl"
    whole = lines(event(1), event(2, "upheld"))
    path.write_bytes(b"nonsense\n" + whole[:-20])
    counts = store.import_jsonl(path)
    assert (counts.new, counts.refused["reason"].to_pylist(), counts.torn_tail) == (1, ["bad_json"], True)
    path.write_bytes(b"nonsense\n" + whole)
    assert store.import_jsonl(path).new == 1
    with pytest.raises(FileNotFoundError, match="does not exist"):
        store.import_jsonl(tmp_path / "nothing.jsonl")


# --- opening --------------------------------------------------------------------------------------------------------------


def test_a_database_is_made_once_and_then_found(database_url: str) -> None:
    with AppealStore.open(database_url, POLICY, KEY) as store:
        appeal = filed(store)
        assert store.database.version() == HEAD
    with AppealStore.open(database_url, POLICY, KEY) as store:
        assert store.case(appeal.case_id).state.state == "filed"


def test_the_steps_lead_to_the_tables_that_are_used(store: AppealStore) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    with store.database.read() as db:
        differences = compare_metadata(MigrationContext.configure(db), tables.METADATA)
    assert differences == []
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_a_database_of_a_newer_version_is_refused_untouched(store: AppealStore, database_url: str) -> None:
    with store.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(
        StoreError, match="its schema is not known here .*9999.* knows up to 0002: install the version that"
    ):
        AppealStore.open(database_url, POLICY, KEY)
    assert store.database.version() == "9999"


def test_another_key_is_refused_since_one_reviewer_would_be_two(store: AppealStore, database_url: str) -> None:
    with pytest.raises(StoreError, match="hashed with another key; set XHS_HMAC_KEY"):
        AppealStore.open(database_url, POLICY, b"another key of sixteen bytes")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("no url at all hunter2", "XHS_APPEALS_URL is not a database URL; expected sqlite:"),
        ("mysql://root:hunter2@host/db", "names a mysql database; expected sqlite or postgresql"),
        ("sqlite://", "in memory, which ends with the process"),
        ("sqlite:////proc/nowhere/appeals.sqlite3", "/proc/nowhere: .*; check that the file and its folder exist, can be written"),
        ("sqlite:////proc/appeals.sqlite3", r"/proc/appeals.sqlite3.lock: .*; check that the file and its folder exist, can be written"),
        ("postgresql://wang:hunter2@127.0.0.1:1/db?password=hunter2", r"wang:\*\*\*@127.0.0.1:1/db: nothing was read: .*check that the server runs"),
    ],
)  # fmt: skip
def test_a_database_that_cannot_be_used_is_told_without_its_password(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        AppealStore.open(url, POLICY, KEY)
    assert "hunter2" not in str(caught.value)


def test_a_server_that_asks_for_a_password_is_not_told_it_in_the_error(postgres: Postgres) -> None:
    url = postgres.url(password="hunter2").replace("postgres:", "nobody:")
    with pytest.raises(StoreError, match="nothing was read") as caught:
        AppealStore.open(url, POLICY, KEY)
    assert "hunter2" not in repr(caught.value) and caught.value.__suppress_context__


def test_the_url_comes_from_the_environment_else_from_the_data_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XHS_APPEALS_URL", raising=False)
    with AppealStore.open(store_url(tmp_path / "data"), POLICY, KEY):
        assert sqlite3.connect(tmp_path / "data" / "appeals.sqlite3").execute("PRAGMA journal_mode").fetchone() == (
            "wal",
        )
    monkeypatch.setenv("XHS_APPEALS_URL", "postgresql://elsewhere/db")
    assert store_url(tmp_path) == "postgresql://elsewhere/db"


def test_no_error_of_the_database_shows_what_was_written(store: AppealStore, tmp_path: Path) -> None:
    if not store.database.sqlite:
        pytest.skip("made by closing SQLite's file to writers")
    with store.database.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE snapshot_images")
    with pytest.raises(StoreError) as caught:
        decided(store, body="一个人的话")
    assert "一个人的话" not in str(caught.value) and "nothing was written" in str(caught.value)
    assert json.dumps(str(caught.value), ensure_ascii=False).count("\\n") == 0
