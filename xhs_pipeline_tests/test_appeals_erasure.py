"""Erasing what a person wrote, on SQLite and PostgreSQL: the words go, what was decided stays, and nothing else becomes changeable."""

import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from xhs_pipeline.appeals import decisions
from xhs_pipeline.appeals.__main__ import main
from xhs_pipeline.appeals.database import HEAD, MIGRATIONS, Database
from xhs_pipeline.appeals.evidence import as_judged
from xhs_pipeline.appeals.outcomes import derive_outcomes
from xhs_pipeline.appeals.records import Content, Decision, Snapshot
from xhs_pipeline.appeals.review_files import export_jsonl
from xhs_pipeline.appeals.store import AppealStore, store_url
from xhs_pipeline.appeals.tables import SNAPSHOT_IMAGES
from xhs_pipeline.privacy import keyed_hash, load_hmac_key
from xhs_pipeline_tests.test_appeals_events import KEY, POLICY
from xhs_pipeline_tests.test_appeals_store import Clock, contents, decided, filed, passed, refusal

SECRET, PICTURE = "只有王写过的字句", b"a picture of wang's"
TABLES = ("snapshots", "snapshot_images", "decisions", "events", "store_info", "erasures")


@pytest.fixture
def store(database_url: str) -> Iterator[AppealStore]:
    with AppealStore.open(database_url, POLICY, KEY, Clock()) as opened:
        yield opened


def wrote(store: AppealStore, n: int, author: str = "wang", verdict: str = "remove") -> str:
    post = Snapshot(f"by-{author}-{n}", SECRET, f"{SECRET}{author}{n}", (PICTURE, b"other"), SECRET, 1, author=author)
    return store.log_decision(post, Decision("m", "v", verdict, "正常" if verdict == "pass" else "私域引流"))


def everything(store: AppealStore) -> str:
    return str([contents(store, table) for table in TABLES])


def test_the_words_and_pictures_of_a_person_go_and_what_was_decided_stays(store: AppealStore) -> None:
    over = store.file_appeal(wrote(store, 1), "wang", f"{SECRET}，请再看")
    store.vote(over.case_id, "judge", "pass", "正常")
    waiting = store.file_appeal(wrote(store, 2), "wang").case_id
    wrote(store, 3, verdict="pass")
    of_others = filed(store, 4, author="li")
    before = {table: contents(store, table) for table in TABLES}
    labels = derive_outcomes(store.events(), POLICY).outcomes

    gone = store.erase("wang")
    assert (gone.snapshots, gone.images, gone.notes, gone.closed) == (3, 6, 1, 1)
    assert SECRET not in everything(store) and str(PICTURE) not in everything(store)
    (trace,) = contents(store, "erasures")
    assert trace[2:] == (keyed_hash(KEY, "wang"), 3, 6, 1)
    # all rows but those of the images are there, and the decisions as they were
    assert contents(store, "decisions") == before["decisions"]
    assert [row[0] for row in contents(store, "snapshots")] == [row[0] for row in before["snapshots"]]
    assert [row[:2] for row in contents(store, "events")][:-1] == [row[:2] for row in before["events"]]
    view = store.case(over.case_id)
    assert (view.state.state, view.state.label, view.snapshot) == ("overturned", ("pass", "正常"), None)
    assert view.decision is not None and view.decision.verdict == "remove"
    assert derive_outcomes(store.events(), POLICY).outcomes == labels
    assert store.case(waiting).state.state == "expired"
    assert store.case(of_others.case_id).snapshot is not None
    assert [case.case_id for case in store.queue()] == [of_others.case_id]


def test_what_was_erased_is_neither_appealed_nor_sampled_nor_exported(store: AppealStore, tmp_path: Path) -> None:
    decision, case = wrote(store, 1), store.file_appeal(wrote(store, 2), "wang").case_id
    wrote(store, 3, verdict="pass")
    store.erase("wang")
    assert refusal(store.file_appeal, decision, "li") == "erased"
    assert refusal(store.vote, case, "judge", "pass", "正常") == "closed"
    assert store.sample_audit(10) == []
    assert export_jsonl(store, tmp_path / "queue.jsonl")[0] == 0
    assert SECRET not in everything(store)
    assert store.erase("wang").snapshots == 0 and len(contents(store, "erasures")) == 2


def test_a_post_that_its_author_publishes_again_after_an_erasure_is_a_new_one_however_often(store: AppealStore) -> None:
    for erasures in range(3):
        before = [wrote(store, 1), wrote(store, 1)]
        assert len(contents(store, "snapshots")) == erasures + 1, "what was judged twice since is kept once"
        shown = store.case(store.file_appeal(before[0], "li").case_id).snapshot
        assert shown is not None and shown.body == f"{SECRET}wang1" and shown.images == (PICTURE, b"other")
        gone = store.erase("wang")
        assert (gone.snapshots, gone.images, gone.closed) == (1, 2, 1)
        assert SECRET not in everything(store) and str(PICTURE) not in everything(store)
        assert refusal(store.file_appeal, before[1], "li") == "erased"


def test_a_label_whose_post_was_erased_fits_that_post_alone_and_no_empty_one(store: AppealStore) -> None:
    case = store.file_appeal(wrote(store, 1), "wang").case_id
    store.vote(case, "judge", "pass", "正常")
    store.erase("wang")
    outcomes = derive_outcomes(store.events(), POLICY).outcomes
    assert outcomes.num_rows == 1
    said, shown = f"{SECRET}{SECRET}wang1", tuple(hashlib.sha256(image).hexdigest() for image in (PICTURE, b"other"))
    assert as_judged(outcomes, {"by-wang-1": Content(said, shown)}).num_rows == 1, "the post as it was judged"
    for other in (Content(""), Content("别的", shown), Content(said), Content(said, shown[::-1])):
        assert as_judged(outcomes, {"by-wang-1": other}).num_rows == 0


def test_an_erasure_waits_for_the_posts_that_are_being_logged_and_takes_them_with_it(database_url: str) -> None:
    with AppealStore.open(database_url, POLICY, KEY, Clock()) as store, ThreadPoolExecutor(2) as threads:
        post = Snapshot("p", SECRET, SECRET, (PICTURE,), author="wang")
        wrote(store, 1)

        def log() -> None:
            rows = decisions.rows_of([(post, Decision("m", "v", "remove", "私域引流"))], store.clock(), store._hash)
            with store._logging() as db:
                decisions.insert(db, rows)
                logged.set()
                time.sleep(0.5)  # in which the erasure begins

        logged = threading.Event()
        logging = threads.submit(log)
        assert logged.wait(20)
        gone = threads.submit(store.erase, "wang").result(20)
        logging.result(20)
        assert (gone.snapshots, gone.images) == (2, 3)
        assert SECRET not in everything(store) and str(PICTURE) not in everything(store)


def test_pictures_that_a_later_writer_added_to_an_erased_post_go_with_the_next_erasure(store: AppealStore) -> None:
    wrote(store, 1)
    store.erase("wang")
    ((snapshot_id, *_),) = contents(store, "snapshots")
    with store.database.write() as db:
        db.execute(sa.insert(SNAPSHOT_IMAGES).values(snapshot_id=snapshot_id, position=0, sha256="x", bytes=PICTURE))
    assert (store.erase("wang").images, contents(store, "snapshot_images")) == (1, [])


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE snapshots SET title = '', body = '', ocr_text = NULL",
        "UPDATE snapshots SET title = '', body = '', ocr_text = NULL, erased_at = '{now}'",
        "UPDATE snapshots SET title = '', body = '', ocr_text = NULL, erased_at = (SELECT max(at) FROM erasures)",
        "UPDATE snapshots SET body = 'x', erased_at = (SELECT max(at) FROM erasures) WHERE author_hash = '{wang}'",
        "UPDATE snapshots SET title = '', body = '', ocr_text = NULL, erased_at = (SELECT max(at) FROM erasures), "
        "post_id = 'x' WHERE author_hash = '{wang}'",
        "UPDATE snapshots SET title = '标题', erased_at = NULL WHERE erased_at IS NOT NULL",
        "DELETE FROM snapshots WHERE erased_at IS NOT NULL",
        "DELETE FROM snapshot_images",
        "UPDATE snapshot_images SET sha256 = 'x'",
        "UPDATE events SET note = NULL",
        "UPDATE events SET note = 'x' WHERE actor_hash = '{wang}'",
        "UPDATE events SET note = NULL, verdict = 'pass' WHERE actor_hash = '{wang}'",
        "DELETE FROM events WHERE actor_hash = '{wang}'",
    ],
)
def test_an_erasure_opens_the_way_for_nothing_else(store: AppealStore, statement: str) -> None:
    filed(store, 1, author="li")
    store.file_appeal(wrote(store, 1), "wang", "请再看")
    store.erase("wang")
    wrote(store, 2)
    before = everything(store)
    statement = statement.format(wang=keyed_hash(KEY, "wang"), now="2026-03-02 12:00:00.000000")
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), store.database.engine.begin() as connection:
        connection.execute(sa.text(statement))
    assert everything(store) == before


def test_a_store_of_before_is_brought_up_to_date_with_all_that_it_holds(database_url: str) -> None:
    from alembic import command
    from alembic.config import Config

    database = Database(database_url)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    post = {"snapshot_id": "s", "post_id": "p", "title": "t", "body": "b", "group_id": "g", "at": "2026-03-02 12:00:00"}
    names = ", ".join(post)
    with database.write(alone=False) as db:
        config.attributes["connection"] = db
        command.upgrade(config, "0001")
        db.execute(sa.text(f"INSERT INTO snapshots ({names}) VALUES (:{names.replace(', ', ', :')})"), post)
    assert database.version() == "0001"
    database.close()
    with AppealStore.open(database_url, POLICY, KEY) as store:
        assert store.database.version() == HEAD
        (row,) = contents(store, "snapshots")
        assert "t" in row and row[-1] is None
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), store.database.engine.begin() as connection:
            connection.execute(sa.text("UPDATE snapshots SET title = ''"))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XHS_APPEALS_URL", "XHS_HMAC_KEY", "XHS_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XHS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def held(data: Path, words: bytes) -> bool:
    return any(words in file.read_bytes() for file in data.iterdir())


@pytest.mark.parametrize("service_open", [False, True])
def test_the_command_names_nobody_and_the_files_hold_the_words_no_more(
    data: Path, service_open: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with AppealStore.open(store_url(data), POLICY, load_hmac_key(data)) as store:
        wrote(store, 1)
        decided(store, 2, author="li")
        passed(store, 3)
        if not service_open:
            store.close()
        assert held(data, SECRET.encode()) and held(data, PICTURE)
        assert main(["erase", "--author", "wang"]) == 0
        assert capsys.readouterr() == ("1 posts, 2 images and 0 notes erased; 0 open cases closed\n", "")
        assert not held(data, SECRET.encode()) and not held(data, PICTURE) and held(data, "正文2".encode())


def test_the_command_says_how_many_notes_of_others_about_the_posts_stay(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with AppealStore.open(store_url(data), POLICY, load_hmac_key(data)) as store:
        case_id = store.file_appeal(wrote(store, 1), "wang", "请再看").case_id
        store.vote(case_id, "judge", "remove", "私域引流", "原文如此")
        filed(store, 2, author="li")
        assert main(["erase", "--author", "Wang"]) == 0
    assert capsys.readouterr().out == (
        "1 posts, 2 images and 1 notes erased; 0 open cases closed\n"
        "1 notes by others on cases about these posts stay, and may quote them\n"
    )


def test_a_reader_that_keeps_the_words_in_the_log_is_told_of_and_the_next_erasure_takes_them_out(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("xhs_pipeline.appeals.database.BUSY_SECONDS", 1)
    with AppealStore.open(store_url(data), POLICY, load_hmac_key(data)) as store:
        wrote(store, 1)
        with store.database.read() as db:
            db.execute(sa.text("SELECT count(*) FROM snapshots"))
            assert main(["erase", "--author", "wang"]) == 1
            assert "appeals.sqlite3: the file beside it that ends in -wal" in capsys.readouterr().err
            assert held(data, SECRET.encode())
        assert main(["erase", "--author", "wang"]) == 0
        assert not held(data, SECRET.encode()) and not held(data, PICTURE)
