"""The appeals store: decisions, snapshots of what was judged, and the append-only events of appeals and audits.

One store is shared by whoever serves a model, reviews or retrains, in any number of processes. Rules are not made here (see
states and rules); every method that writes does so in one transaction, after all other writers. People are known by keyed
hashes alone.
"""

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import pyarrow as pa
import sqlalchemy as sa

from xhs_pipeline.appeals import audit, decisions, rules, states
from xhs_pipeline.appeals.cases import COPIED, HERE, add, append, in_state, newest, rows_of, settle, state, view
from xhs_pipeline.appeals.database import ERASURE, Database, StoreError
from xhs_pipeline.appeals.erasure import Erased, erase
from xhs_pipeline.appeals.events import APPEAL_EVENTS
from xhs_pipeline.appeals.importing import Imported, import_events
from xhs_pipeline.appeals.records import CaseView, Decision, Filed, Snapshot
from xhs_pipeline.appeals.rules import Limits, Refused
from xhs_pipeline.appeals.states import CaseState, case_state
from xhs_pipeline.appeals.tables import EVENTS, STORE_INFO
from xhs_pipeline.policy import Policy
from xhs_pipeline.privacy import keyed_hash, person_hash

MAX_NOTE_SENT = 5000  # characters of a note that are looked at, whoever hands it in: masking takes time for each
MAX_NOTE_CHARS = 500  # that are kept of it


def store_url(data_dir: Path) -> str:
    """XHS_APPEALS_URL, else the SQLite file in the data folder."""
    return os.environ.get("XHS_APPEALS_URL") or f"sqlite:///{data_dir.absolute() / 'appeals.sqlite3'}"


class AppealStore:
    """Open one with `AppealStore.open`; close it, or use it in a `with` block. Safe to share between threads.

    Methods raise StoreError when the database cannot be used (nothing is half written then), and Refused for what the rules
    forbid. `clock` gives the time that events carry; their order never depends on it.
    """

    def __init__(self, database: Database, policy: Policy, key: bytes, clock: Callable[[], datetime]):
        self.database, self.policy, self.clock = database, policy, clock
        self._key = key

    @classmethod
    def open(
        cls, url: str, policy: Policy, key: bytes, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> "AppealStore":
        """Open the database at `url` (SQLAlchemy's form), made or brought up to date first; `key` is the one of `keyed_hash`.

        Raises StoreError when the database cannot be reached, was made by a newer version, or holds hashes of another key.
        """
        database = Database(url)
        database.upgrade()
        store = cls(database, policy, key, clock)
        store._check_key()
        return store

    def _check_key(self) -> None:
        """With another key one reviewer would be two, and could do alone what takes two."""
        mine = self.hash_of("fingerprint")
        theirs = sa.select(STORE_INFO.c.value).where(STORE_INFO.c.name == "key")
        with self.database.read() as db:
            found = db.execute(theirs).scalar()
        if found is None:
            with self.database.write() as db:
                found = db.execute(theirs).scalar()
                if found is None:
                    db.execute(sa.insert(STORE_INFO).values(name="key", value=mine))
                    found = mine
        if found != mine:
            raise StoreError(
                f"{self.database.shown}: its people are hashed with another key; "
                "set XHS_HMAC_KEY to the key that this store was first opened with, or name another store"
            )

    def __enter__(self) -> "AppealStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self.database.close()

    def hash_of(self, person: str) -> str:
        """The keyed hash that stands for a person in the store. Raises Refused for an empty name."""
        try:
            return person_hash(self._key, person)
        except ValueError:
            raise Refused("no_actor") from None

    # --- what was judged ------------------------------------------------------------------------------------------------

    def log_decision(self, snapshot: Snapshot, decision: Decision) -> str:
        """Keep what was judged and what was decided; returns the id that an appeal names. Equal snapshots are kept once."""
        return self.log_decisions([(snapshot, decision)])[0]

    def log_decisions(self, pairs: Sequence[tuple[Snapshot, Decision]]) -> list[str]:
        """`log_decision` for a batch, in one transaction."""
        rows = decisions.rows_of(pairs, self.clock(), self._hash)
        with self._logging() as db:
            decisions.insert(db, rows)
        return [row["decision_id"] for row in rows.decisions]

    @contextmanager
    def _logging(self) -> Iterator[sa.Connection]:
        """A transaction beside other writers, but not beside an erasure, which would miss what is not yet committed."""
        with self.database.write(alone=False) as db:
            self.database.take(db, ERASURE, shared=True)
            yield db

    def _hash(self, person: str | None) -> str | None:
        return self.hash_of(person) if person else None

    # --- appeals --------------------------------------------------------------------------------------------------------

    def file_appeal(self, decision_id: str, appellant: str, note: str = "") -> Filed:
        """Appeal against a decision. Raises Refused for an unknown decision, a post that passed, a second appeal of the same
        appellant against it, and one over the policy's caps. In a burst it is taken, and waits for a reviewer's triage.
        """
        who, limits, said = self.hash_of(appellant), Limits.of(self.policy.appeals), clean_note(note)
        with self.database.write() as db:
            decision = decisions.find(db, decision_id)
            if decision is None:
                raise Refused("unknown_decision")
            if decision["verdict"] == self.policy.pass_verdict:
                raise Refused("passed_post")
            if decisions.is_erased(db, decision_id):
                raise Refused("erased")
            once = f"{decision_id}:{who}"
            if db.execute(
                sa.select(EVENTS.c.event_id).where(EVENTS.c.origin == HERE, EVENTS.c.origin_id == once)
            ).first():
                raise Refused("duplicate")
            now = self.clock()
            by_author = self._filed(db, EVENTS.c.actor_hash == who, now)
            about_group = self._filed(db, EVENTS.c.group_id == decision["group_id"], now)
            if cap := rules.over_cap(limits, now, by_author, about_group):
                most = limits.author_week if cap == "author_cap" else limits.group_week
                raise Refused(cap, f"{most} in seven days")
            flag = rules.burst(limits, now, by_author, about_group)
            opener = {name: decision[name] for name in COPIED} | {
                "case_id": uuid.uuid4().hex,
                "at": now,
                "origin_id": once,
            }
            opener |= {"case_kind": states.APPEAL, "kind": states.FILED, "actor_hash": who, "actor_role": states.AUTHOR}
            event_id = append(db, opener | {"flag": flag, "note": said})
        return Filed(opener["case_id"], event_id, states.FILED, flag)

    @staticmethod
    def _filed(db: sa.Connection, of_whom: sa.ColumnElement[bool], now: datetime) -> list[datetime]:
        asked = sa.select(EVENTS.c.at).where(of_whom, EVENTS.c.kind == states.FILED, EVENTS.c.at > now - rules.WEEK)
        return list(db.execute(asked).scalars())

    def withdraw(self, case_id: str, appellant: str) -> CaseState:
        """Take an open appeal back. Raises Refused unless it is the appellant who does."""
        who = self.hash_of(appellant)
        with self.database.write() as db:
            case = self._state(db, case_id)
            if who != case.appellant_hash:
                raise Refused("not_the_appellant")
            if not case.open:
                raise Refused("closed", str(case.state))
            self._add(db, case, states.WITHDRAWN, who, states.AUTHOR)
            return self._state(db, case_id)

    def expire(self, now: datetime, older_than: timedelta) -> int:
        """Close the open cases in which nothing has happened for `older_than` before `now`; returns how many."""
        with self.database.write() as db:
            idle = [
                case
                for case, _ in in_state(db, None, 0, self.policy)
                if case.last_at and case.last_at < now - older_than
            ]
            for case in idle:
                self._add(db, case, states.EXPIRED, None, states.SYSTEM)
        return len(idle)

    def erase(self, author: str) -> Erased:
        """Erase the texts, images and notes of a person; ids, decisions and what became of cases stay. See erasure."""
        with self.database.write() as db:
            self.database.take(db, ERASURE)
            # stores of before know a name by the hash of how it was typed
            hashes = dict.fromkeys((self.hash_of(author), keyed_hash(self._key, author)))
            gone = erase(db, self.policy, list(hashes), self.clock())
        return replace(gone, from_log=self.database.empty_log())

    # --- review ---------------------------------------------------------------------------------------------------------

    def triage(self, case_id: str, reviewer: str, note: str = "") -> CaseState:
        """Say that a case is one of its own, which one that came in a burst needs before it can be voted on."""
        who, said = self.hash_of(reviewer), clean_note(note)
        with self.database.write() as db:
            case, reason = self._reviewed(db, case_id, who)
            if case.triaged and reason is None:
                raise Refused("repeated")
            if reason and reason != "not_triaged":
                raise Refused(reason, str(case.state) if reason == "closed" else "")
            self._add(db, case, states.TRIAGED, who, states.REVIEWER, note=said)
            return self._state(db, case_id)

    def vote(
        self,
        case_id: str,
        reviewer: str,
        verdict: str,
        category: str,
        note: str = "",
        origin: tuple[str, str] | None = None,
    ) -> CaseState:
        """A reviewer's answer to a case; a later one by the same reviewer takes its place while the case is open.

        What the votes come to by the rules (upheld, overturned, modified) is written in the same transaction. `verdict` is the
        policy's id or label. Raises Refused, e.g. for a reviewer's own decision or appeal and for a closed case. `origin`: where
        an imported vote comes from and its id there; what was taken over before is refused as "imported", whatever came after.
        """
        who, verdict_id = self.hash_of(reviewer), self.policy.verdict_id(verdict)
        if verdict_id is None or not self.policy.allows(verdict_id, category):
            raise Refused("label_not_allowed", f"policy {self.policy.version}")
        came_from = {"origin": origin[0], "origin_id": origin[1]} if origin else {}
        said = {"verdict": verdict_id, "category": category, "note": clean_note(note), **came_from}
        with self.database.write() as db:
            if origin and db.execute(sa.select(EVENTS.c.event_id).filter_by(**came_from)).first():
                raise Refused("imported")
            case, reason = self._reviewed(db, case_id, who)
            if reason:
                raise Refused(reason, str(case.state) if reason == "closed" else "")
            if any(vote.reviewer_hash == who and vote.label == (verdict_id, category) for vote in case.votes):
                raise Refused("repeated")
            self._add(db, case, states.VOTED, who, states.REVIEWER, **said)
            return settle(db, self._state(db, case_id), self.policy, self.clock())

    def sample_audit(self, size: int | None = None, seed: int | None = None) -> list[str]:
        """Open audit cases on decisions that let a post pass, as many as the policy says or `size`; returns their ids.

        Which ones is audit's matter. The same store and seed (None: the largest event id) draw the same ones.
        """
        with self.database.write() as db:
            passed = audit.candidates(db, self.policy, self.clock())
            opened = []
            for decision in audit.draw(passed, self.policy, size, newest(db) if seed is None else seed):
                opener = {name: decision[name] for name in COPIED} | {"case_id": uuid.uuid4().hex, "at": self.clock()}
                opener |= {"case_kind": states.AUDIT, "kind": states.SAMPLED, "actor_role": states.SYSTEM}
                append(db, opener | {"origin_id": f"audit:{decision['decision_id']}"})
                opened.append(str(opener["case_id"]))
        return opened

    def _state(self, db: sa.Connection, case_id: str) -> CaseState:
        return state(db, case_id, self.policy)

    def _reviewed(self, db: sa.Connection, case_id: str, reviewer_hash: str) -> tuple[CaseState, str | None]:
        case = self._state(db, case_id)
        return case, rules.may_vote(case, reviewer_hash, decisions.author_of(db, case.decision_id))

    def _add(
        self, db: sa.Connection, case: CaseState, kind: str, actor: str | None, role: str, **said: str | None
    ) -> None:
        add(db, case, self.policy, self.clock(), kind, actor, role, **said)

    # --- reading --------------------------------------------------------------------------------------------------------

    def case(self, case_id: str) -> CaseView:
        """One case with everything that a reviewer needs. Raises Refused when there is none."""
        with self.database.read() as db:
            events = rows_of(db, [case_id])
            if not events:
                raise Refused("unknown_case")
            return view(db, case_state(events, self.policy), events)

    def queue(
        self, state: str | None = None, limit: int = 50, after: int | None = None, with_images: bool = True
    ) -> list[CaseView]:
        """Up to `limit` cases, the oldest first; those in `state`, or all that are open. `after`: the last one's `cursor`.

        Without images a list of cases costs no more for the megabytes in them; `image_count` tells of them. Raises ValueError
        for a state that there is not.
        """
        if state is not None and state not in states.STATES:
            raise ValueError(f"state is {state!r}; expected one of {', '.join(states.STATES)}")
        with self.database.read() as db:
            found = islice(in_state(db, state, after or 0, self.policy), limit)
            return [view(db, case, events, with_images) for case, events in found]

    def events(self, after: int = 0) -> pa.Table:
        """The events with larger ids than `after`, in order: APPEAL_EVENTS. Going on from the last one seen misses none."""
        columns = [EVENTS.c[name] for name in APPEAL_EVENTS.names]
        with self.database.read() as db:
            rows = db.execute(sa.select(*columns).where(EVENTS.c.event_id > after).order_by(EVENTS.c.event_id)).all()
        return pa.Table.from_pydict(
            {name: [row[i] for row in rows] for i, name in enumerate(APPEAL_EVENTS.names)}, schema=APPEAL_EVENTS
        )

    def import_jsonl(self, path: Path) -> Imported:
        """Take over the events of an appeals file; those that are here already are left as they are. See importing."""
        return import_events(self.database, self.policy, self._key, self.clock, path)


def clean_note(note: str) -> str | None:
    """A note without identifiers, cut to MAX_NOTE_CHARS; None for an empty one. Of a longer one than MAX_NOTE_SENT the rest is
    not looked at. Call it outside of transactions: every writer would wait for the masking.
    """
    note = note[:MAX_NOTE_SENT]
    if not note.strip():
        return None
    from xhs_pipeline.curation.identifiers import mask
    from xhs_pipeline.curation.text import normalise

    return mask(normalise(note))[0][:MAX_NOTE_CHARS] or None
