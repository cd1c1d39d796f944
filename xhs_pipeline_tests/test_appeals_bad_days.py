"""Bad days of the appeals store, on SQLite and PostgreSQL: many writers, killed writers, a server that goes away, wrong clocks,
floods. Nothing lost, nothing doubled, nothing trained on that should not be, and the message says what to do."""

import dataclasses
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from xhs_pipeline.appeals.cases import append
from xhs_pipeline.appeals.database import StoreError
from xhs_pipeline.appeals.decision import decide_retrain
from xhs_pipeline.appeals.evidence import evidence
from xhs_pipeline.appeals.outcomes import derive_outcomes
from xhs_pipeline.appeals.records import Decision, Snapshot
from xhs_pipeline.appeals.rules import Refused
from xhs_pipeline.appeals.store import AppealStore
from xhs_pipeline.appeals.tables import DECISIONS, SNAPSHOT_IMAGES, SNAPSHOTS
from xhs_pipeline.artifacts import Built
from xhs_pipeline.automation import appeal_sensor
from xhs_pipeline.policy import Policy
from xhs_pipeline.resources import Workspace
from xhs_pipeline_tests.appeal_services import UNLIMITED, half_an_event, opens, service, writes_half
from xhs_pipeline_tests.databases import Postgres
from xhs_pipeline_tests.small import write_unique_folder
from xhs_pipeline_tests.test_appeals_events import KEY, POLICY, event, lines
from xhs_pipeline_tests.test_appeals_store import START, Clock, decided, file_of, filed

SPAWN = multiprocessing.get_context("spawn")
CASES = 1667  # per service; three events each, so two services write 10,002


@pytest.fixture
def store(database_url: str) -> Iterator[AppealStore]:
    with AppealStore.open(database_url, POLICY, KEY, Clock()) as opened:
        yield opened


# --- many writers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def memory_url(database_url: str) -> Iterator[str]:
    """A database that waits for no disk: what is looked at is order, not what a power cut leaves."""
    in_memory = Path("/dev/shm")
    if not database_url.startswith("sqlite") or not in_memory.is_dir():
        yield database_url
        return
    with tempfile.TemporaryDirectory(dir=in_memory) as folder:
        yield f"sqlite:///{folder}/appeals.sqlite3"


def test_two_services_write_ten_thousand_events_and_a_reader_that_goes_on_misses_none(memory_url: str) -> None:
    with AppealStore.open(memory_url, UNLIMITED, KEY) as store:
        services = [SPAWN.Process(target=service, args=(memory_url, name, CASES)) for name in ("a", "b")]
        for process in services:
            process.start()
        read: list[dict[str, Any]] = []
        while alive := any(process.is_alive() for process in services):
            time.sleep(0.1)
            read += store.events(after=read[-1]["event_id"] if read else 0).to_pylist()
        assert not alive and [process.exitcode for process in services] == [0, 0]
        read += store.events(after=read[-1]["event_id"]).to_pylist()
        whole = store.events().to_pylist()
    ids = [row["event_id"] for row in read]
    assert read == whole, "the reader saw every event, in the order of their ids, and once"
    assert ids == sorted(set(ids)) and len(ids) == 2 * CASES * 3
    assert Counter(row["kind"] for row in read) == {"filed": 2 * CASES, "voted": 2 * CASES, "overturned": 2 * CASES}
    assert len({row["case_id"] for row in read}) == len({row["post_id"] for row in read}) == 2 * CASES
    assert derive_outcomes(store_table(read), UNLIMITED).outcomes.num_rows == 2 * CASES


def store_table(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    from xhs_pipeline.appeals.events import APPEAL_EVENTS

    return pa.Table.from_pylist(rows, schema=APPEAL_EVENTS)


def test_a_writer_waits_for_the_one_before_it_so_that_no_id_becomes_visible_late(store: AppealStore) -> None:
    decision = decided(store)
    later = threading.Thread(target=store.file_appeal, args=(decision, "wang"))
    with store.database.write() as db:
        first = append(db, half_an_event())
        later.start()
        later.join(0.5)
        assert later.is_alive(), "an id given now could be read, and gone on from, before the earlier one is there"
        assert store.events().num_rows == 0
    later.join(30)
    assert store.events()["event_id"].to_pylist()[0] == first and store.events().num_rows == 2


def test_two_services_at_once_take_one_appeal_once(store: AppealStore, database_url: str) -> None:
    decision, answers = decided(store), []

    def ask() -> None:
        with AppealStore.open(database_url, POLICY, KEY) as mine:
            try:
                answers.append(mine.file_appeal(decision, "wang").state)
            except Refused as refused:
                answers.append(refused.reason)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert Counter(answers) == {"filed": 1, "duplicate": 7} and store.events().num_rows == 1


def test_two_services_that_log_the_same_posts_in_another_order_keep_each_once_and_wait_in_no_circle(
    store: AppealStore, database_url: str
) -> None:
    posts = [[Snapshot(f"p-{turn}-{n}", "", f"正文{n}", (b"jpeg",) * 2) for n in range(40)] for turn in range(15)]
    together, failed = threading.Barrier(2), list[Exception]()

    def log(forwards: bool) -> None:
        with AppealStore.open(database_url, POLICY, KEY) as own:
            for batch in posts:
                together.wait()
                pairs = [(post, Decision("m", "v", "pass", "正常")) for post in batch]
                try:
                    own.log_decisions(pairs if forwards else pairs[::-1])
                except StoreError as error:
                    failed.append(error)

    threads = [threading.Thread(target=log, args=(forwards,)) for forwards in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    with store.database.read() as db:
        counts = [db.execute(sa.select(sa.func.count()).select_from(table)).scalar() for table in (DECISIONS, SNAPSHOTS, SNAPSHOT_IMAGES)]  # fmt: skip
    assert counts == [2 * 600, 600, 1200]


def test_services_that_start_at_once_make_one_database(database_url: str) -> None:
    barrier = SPAWN.Barrier(4)
    processes = [SPAWN.Process(target=opens, args=(database_url, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    with AppealStore.open(database_url, POLICY, KEY) as store:
        assert filed(store).event_id == 1


def test_two_processes_that_read_one_file_at_once_take_each_event_once(
    store: AppealStore, database_url: str, tmp_path: Path
) -> None:
    path = file_of(tmp_path, *(event(n, appeal=f"a-{n}", post=f"p-{n}") for n in range(1, 501)))
    counts = []

    def read() -> None:
        with AppealStore.open(database_url, POLICY, KEY) as mine:
            counts.append(mine.import_jsonl(path).new)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(counts) == [0, 0, 0, 500] and store.events().num_rows == 500


# --- killed writers, a server that goes away --------------------------------------------------------------------------------


def test_a_service_that_is_killed_while_it_writes_leaves_nothing_half_and_stops_nobody(
    store: AppealStore, database_url: str
) -> None:
    before = filed(store, 1)
    ready = SPAWN.Event()
    process = SPAWN.Process(target=writes_half, args=(database_url, ready))
    process.start()
    assert ready.wait(60) and process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    after = filed(store, 2)
    assert [row["case_id"] for row in store.events().to_pylist()] == [before.case_id, after.case_id]


def test_a_transaction_that_a_restart_of_the_server_cut_is_not_written_and_the_next_one_is(postgres: Postgres) -> None:
    with AppealStore.open(postgres.url(), POLICY, KEY, Clock()) as store:
        decision = decided(store)
        with (
            pytest.raises(
                StoreError, match=r"nothing was written: .*check that the server runs and that XHS_APPEALS_URL"
            ),
            store.database.write() as db,
        ):
            append(db, half_an_event())
            postgres.restart()
            append(db, half_an_event())
        appeal = store.file_appeal(decision, "wang")  # on a connection that the restart did not cut
        assert [row["case_id"] for row in store.events().to_pylist()] == [appeal.case_id]


POSTS = 60


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: Postgres) -> Workspace:
    """Posts, and an appeals file that is a pipe: a tick stands still in the middle of its reading until somebody writes."""
    monkeypatch.delenv("XHS_HMAC_KEY", raising=False)
    monkeypatch.setenv("XHS_APPEALS_URL", postgres.url())
    (tmp_path / "source.yaml").write_text("format: jsonl\npath: posts.jsonl\nappeals: appeals.jsonl\n")
    os.mkfifo(tmp_path / "appeals.jsonl")
    there = Workspace(data_dir=str(tmp_path / "data"), source=str(tmp_path / "source.yaml"))
    posts = [{"post_id": f"p-{n}", "match_text": f"正文{n}"} for n in range(POSTS)]
    there.store.build(
        "unique_posts",
        lambda work: write_unique_folder(work, posts) or Built({}),
        inputs={},
        settings={},
        code_version="1",
    )
    return there


def enough() -> bytes:
    events = []
    for n in range(POSTS):
        name = {"appeal": f"c-{n}", "post": f"p-{n}"}
        events += [event(2 * n + 1, "sampled" if n % 3 else "filed", **name), event(2 * n + 2, "upheld", **name)]
    return lines(*events)


def tick(workspace: Workspace, cursor: str | None = None) -> Any:
    with (
        dg.DagsterInstance.ephemeral() as instance,
        dg.build_sensor_context(instance=instance, cursor=cursor, resources={"workspace": workspace}) as context,
    ):
        return appeal_sensor(context)


def in_the_middle(workspace: Workspace, what: Any) -> threading.Thread:
    """Does `what` once a tick has opened the store and reads the pipe, then lets it read on."""
    pipe = Path(workspace.source).parent / "appeals.jsonl"

    def wait_for_the_reader() -> None:
        with pipe.open("wb") as writing:  # opens when the tick does
            what()
            writing.write(enough())

    thread = threading.Thread(target=wait_for_the_reader)
    thread.start()
    return thread


def test_a_server_that_goes_away_in_the_middle_of_a_tick_turns_it_red_and_the_next_tick_is_right(
    workspace: Workspace, postgres: Postgres
) -> None:
    thread = in_the_middle(workspace, postgres.kill)
    try:
        with pytest.raises(StoreError, match="nothing was read: .*check that the server runs and that XHS_APPEALS_URL"):
            tick(workspace)
    finally:
        thread.join(60)
        postgres.start()
    pipe = Path(workspace.source).parent / "appeals.jsonl"
    pipe.unlink()
    pipe.write_bytes(enough())
    result = tick(workspace)
    assert isinstance(result, dg.SensorResult) and result.cursor == str(2 * POSTS)
    (request,) = result.run_requests or []
    assert request.run_key == tick(workspace).run_requests[0].run_key


def test_a_server_that_restarts_in_the_middle_of_a_tick_is_survived(workspace: Workspace, postgres: Postgres) -> None:
    thread = in_the_middle(workspace, postgres.restart)
    result = tick(workspace)
    thread.join(60)
    assert isinstance(result, dg.SensorResult) and result.cursor == str(2 * POSTS)


def test_a_full_disk_is_told_with_what_to_do_and_nothing_is_half_written(tmp_path: Path) -> None:
    with AppealStore.open(f"sqlite:///{tmp_path / 'appeals.sqlite3'}", POLICY, KEY, Clock()) as store:
        appeal = filed(store)
        store.close()  # no connection without the limit stays
        sa.event.listen(store.database.engine, "connect", lambda raw, _: raw.execute("PRAGMA max_page_count = 40"))
        with pytest.raises(
            StoreError, match="nothing was written: database or disk is full; make room on the disk and try again"
        ):
            store.log_decision(Snapshot("big", "", "x", (b"0" * 10**6,)), Decision("m", "v", "remove", "诈骗"))
        assert store.events().num_rows == 1 and store.case(appeal.case_id).snapshot


# --- clocks, posts that are gone, floods -------------------------------------------------------------------------------------


def test_a_clock_that_jumps_back_reorders_nothing(store: AppealStore) -> None:
    clock = store.clock
    assert isinstance(clock, Clock)
    case_id = filed(store, category="诈骗").case_id
    store.vote(case_id, "one", "pass", "正常")
    clock.move(days=-400)
    assert store.vote(case_id, "two", "pass", "正常").state == "overturned"
    table = store.events()
    assert table["event_id"].to_pylist() == [1, 2, 3, 4]
    assert table["at"].to_pylist() != sorted(table["at"].to_pylist())
    assert derive_outcomes(table, POLICY).outcomes["event_ids"].to_pylist() == [[1, 2, 3, 4]]
    open_one = filed(store, 2).case_id
    clock.move(days=400)
    assert store.expire(clock.now - timedelta(days=800), timedelta(days=30)) == 0
    assert store.case(open_one).state.state == "filed"


def judge_evidence(store: AppealStore, folder: Path, policy: Policy = POLICY) -> Any:
    """What the sensor would decide of the store's events with posts p-0 to p-59."""
    if not folder.exists():
        write_unique_folder(folder, [{"post_id": f"p-{n}", "match_text": f"正文{n}"} for n in range(POSTS)])
    events = store.events()
    found = evidence(derive_outcomes(events, policy).outcomes, folder)
    return decide_retrain(found, [], policy, running=False, largest_event_id=events.num_rows, now=START)


EAGER = dataclasses.replace(
    POLICY, appeals=POLICY.appeals | {"min_adjudicated": 2, "min_audit": 0, "audits_per_appeal": 0}
)


def test_an_appeal_about_a_post_that_is_gone_is_kept_and_counted_and_never_trained_on(
    store: AppealStore, tmp_path: Path
) -> None:
    for n in (3, 1000, 1001):
        logged = store.log_decision(Snapshot(f"p-{n}", "正文", str(n)), Decision("m", "v", "remove", "私域引流"))
        store.vote(store.file_appeal(logged, f"author-{n}").case_id, "judge", "pass", "正常")
    decision = judge_evidence(store, tmp_path / "unique", EAGER)
    assert not decision.run
    assert decision.reason == (
        "1 of 2 adjudicated, 0 of 0 audit: waiting for 1 more decided appeal (2 about posts that are not there not counted: "
        "they are kept, and count once a week that holds their posts is in unique_posts)"
    )
    assert len(store.queue("overturned")) == 3


@pytest.mark.parametrize("puppets", [False, True])
def test_ten_thousand_copies_of_one_appeal_trigger_nothing(store: AppealStore, tmp_path: Path, puppets: bool) -> None:
    copies = 10_000
    appeals = [
        event(n, appeal=f"a-{n}", post="p-1", actor=f"puppet-{n}" if puppets else "wang") for n in range(1, copies + 1)
    ]
    decided_all = [
        event(copies + n, "overturned", appeal=f"a-{n}", post="p-1", actor="judge") for n in range(1, copies + 1)
    ]
    store.import_jsonl(file_of(tmp_path, *appeals, *decided_all))
    decision = judge_evidence(store, tmp_path / "unique", EAGER)
    assert not decision.run and decision.reason.startswith("1 of 2 adjudicated")
    assert decision.cursor == store.events().num_rows >= 2 * copies
    flags = Counter(flag for flag in store.events()["flag"].to_pylist() if flag)
    assert sum(flags.values()) >= copies - max(
        POLICY.appeals["burst"]["per_author"], POLICY.appeals["burst"]["per_group"]
    )


def test_ten_thousand_appeals_of_one_person_over_the_service_are_one(tmp_path: Path) -> None:
    with AppealStore.open(f"sqlite:///{tmp_path / 'appeals.sqlite3'}", POLICY, KEY, Clock()) as store:
        decision, refused = decided(store), Counter[str]()
        for _ in range(10_000):
            try:
                store.file_appeal(decision, "wang")
            except Refused as refusal:
                refused[refusal.reason] += 1
        assert refused == {"duplicate": 9_999} and store.events().num_rows == 1


def test_a_writer_that_hangs_and_a_server_that_does_not_answer_hold_nobody_up_for_ever(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AppealStore.open(postgres.url(), POLICY, KEY) as store, store.database.engine.connect() as hanging:
        monkeypatch.setattr("xhs_pipeline.appeals.database.BUSY_SECONDS", 1)
        hanging.execute(sa.text("LOCK TABLE decisions IN ACCESS EXCLUSIVE MODE"))
        letting_go = threading.Timer(5, hanging.rollback)
        letting_go.start()
        with pytest.raises(StoreError, match="another writer held it for 1 s"):
            decided(store)
        letting_go.join()
        decided(store)
        monkeypatch.setattr("xhs_pipeline.appeals.database.STATEMENT_SECONDS", 1)
        with pytest.raises(StoreError, match="the server took over 1 s"), store.database.write(alone=False) as db:
            db.execute(sa.text("SELECT pg_sleep(5)"))
        asked = hanging.connection.driver_connection.info.get_parameters()  # type: ignore[union-attr]
        assert asked["tcp_user_timeout"] == "30000" and asked["keepalives_idle"] == "10"
