"""The service on the stores that it may keep its decisions in: the same path on both, and PostgreSQL's own bad days."""

import base64
from pathlib import Path

import pytest
import sqlalchemy as sa

from xhs_pipeline.appeals.store import AppealStore
from xhs_pipeline.appeals.tables import DECISIONS, SNAPSHOT_IMAGES, SNAPSHOTS
from xhs_pipeline.policy import load_policy
from xhs_pipeline.privacy import load_hmac_key
from xhs_pipeline_tests.databases import Postgres
from xhs_pipeline_tests.serving import REVIEW_ON, REVIEWERS, add_model, put_in_use, serving
from xhs_pipeline_tests.small import jpeg
from xhs_pipeline_tests.test_serve_bad_days import Clients

PICTURE = base64.b64encode(jpeg(300, 200)).decode()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, untrained_model: Path) -> Path:
    data = tmp_path_factory.mktemp("stores") / "data"
    data.mkdir()
    add_model(data, untrained_model, "v1", temperature=2.5)
    put_in_use(data, "v1")
    return data


def opened(url: str, data: Path) -> AppealStore:
    return AppealStore.open(url, load_policy(), load_hmac_key(data))


def test_a_post_goes_from_its_judgement_over_an_appeal_to_a_label(data: Path, database_url: str) -> None:
    han = REVIEWERS["han"]
    with serving(data, environment=REVIEW_ON | {"XHS_APPEALS_URL": database_url}, ready="v1") as service:
        posts = [
            {"post_id": f"p{n}", "body": f"稳赚不赔加我{n}", "images": [PICTURE], "author": "u1"} for n in range(20)
        ]
        results = service.ask("POST", "/judge/batch", {"posts": posts}).body["results"]
        blocked = next(r for r in results if r["verdict"] != "pass")
        appeal = {"decision_id": blocked["decision_id"], "appellant": "u1", "note": "我的电话13912345678"}
        filed = service.ask("POST", "/appeals", appeal)
        assert (filed.status, filed.body["state"]) == (201, "filed")
        assert service.ask("POST", "/appeals", appeal).body["error"] == "duplicate"
        path = f"/appeals/{filed.body['case_id']}"
        assert [case["case_id"] for case in service.ask("GET", "/appeals", token=han).body["cases"]] == [path[9:]]
        case = service.ask("GET", path, token=han).body
        assert (case["post_id"], case["verdict_probs"]) == (blocked["post_id"], blocked["verdict_probs"])
        assert len(case["images"]) == 1 and case["events"][0]["note"] == "我的电话<手机号>"
        for reviewer in REVIEWERS.values():  # two, should it be of severity 3
            voted = service.ask("POST", f"{path}/vote", {"verdict": "通过", "category": "正常"}, token=reviewer)
        assert voted.status == 200 or voted.body["error"] == "closed"
        assert service.ask("GET", path, token=han).body["state"] == "overturned"
    with opened(database_url, data) as store:
        assert store.case(path[9:]).state.label == ("pass", "正常")
        assert store.events()["kind"].to_pylist()[-1] == "overturned"
        assert counts(store) == (20, 20, 20)


def counts(store: AppealStore) -> tuple[int, ...]:
    """Decisions, snapshots, images."""
    with store.database.read() as db:
        tables = (DECISIONS, SNAPSHOTS, SNAPSHOT_IMAGES)
        return tuple(db.execute(sa.select(sa.func.count()).select_from(table)).scalar() or 0 for table in tables)


def test_a_service_that_is_killed_in_mid_request_leaves_no_half_decision_on_postgresql(
    data: Path, postgres: Postgres
) -> None:
    posts = [{"post_id": f"p{n}", "body": f"散步{n}", "images": [PICTURE]} for n in range(40)]
    url = postgres.url()
    with serving(data, environment={"XHS_APPEALS_URL": url}, ready="v1") as service:
        with Clients(service, 8, posts) as clients:
            clients.wait_for(40)
            service.kill()
        assert clients.lost, "requests were under way"
    with opened(url, data) as store, store.database.read() as db:
        kept = set(db.execute(sa.select(DECISIONS.c.decision_id)).scalars())
        asked = sa.select(SNAPSHOTS.c.snapshot_id, sa.func.count(SNAPSHOT_IMAGES.c.position)).outerjoin(SNAPSHOT_IMAGES)
        images = {count for _, count in db.execute(asked.group_by(SNAPSHOTS.c.snapshot_id))}
    assert {decision["decision_id"] for decision in clients.decisions} <= kept and images == {1}


def test_a_server_that_goes_away_is_told_and_judging_goes_on_once_it_is_back(data: Path, postgres: Postgres) -> None:
    url = postgres.url()
    with serving(data, environment={"XHS_APPEALS_URL": url}, ready="v1") as service:
        first = service.judge(body="好")
        postgres.kill()
        try:
            refused, health = service.judge(body="好"), service.ask("GET", "/health")
        finally:
            postgres.start()
        assert first.status == 200 and (refused.status, refused.body["error"]) == (503, "store_unavailable")
        assert (health.status, health.body["store"]) == (503, "unreachable")
        assert service.judge(body="好").status == 200
        assert "check that the server runs and that XHS_APPEALS_URL names it" in service.log
    with opened(url, data) as store:
        assert counts(store) == (2, 2, 0)
