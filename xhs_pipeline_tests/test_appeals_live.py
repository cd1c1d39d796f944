"""The loop as it runs: a real `dagster dev`, a real service and a real PostgreSQL, from appeals over HTTP to the next model in use.

One story (appeal_story.py), told once; each test reads what was seen of it. A retraining is killed in the middle of its training,
then everything over the instance at once, and then the database.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from xhs_pipeline.appeals.evidence import evidence
from xhs_pipeline.appeals.outcomes import effective_digest
from xhs_pipeline.artifacts import read_json
from xhs_pipeline.judgement.champion import read_history
from xhs_pipeline_tests.appeal_story import MISSED, PASSING, RESUMED, TOKENS, WEEK, Story, tell, write_world
from xhs_pipeline_tests.databases import Postgres
from xhs_pipeline_tests.live import MODULE, Instance
from xhs_pipeline_tests.serving import serving

ENOUGH = "4 of 4 adjudicated, 2 of 2 audit: "
NOTHING_NEW = "0 of 4 adjudicated, 0 of 2 audit: waiting for 4 more decided appeals and 2 more decided audit cases"


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Story]:
    """Both instances share the data folder and the appeals; Dagster's own storage is PostgreSQL in one, SQLite in the other."""
    if not Path("/proc/self/environ").is_file():
        pytest.skip("the processes over an instance are found in /proc, which is not here")
    folder = tmp_path_factory.mktemp("live")
    settings = write_world(folder) | {"XHS_APPEALS_URL": postgres.url()}
    storage = postgres.url().replace("+psycopg:", "+psycopg2:")  # the driver that dagster-postgres brings
    with ExitStack() as ending:
        main = Instance(folder / "home", settings, storage)
        ending.callback(main.close)
        other = Instance(folder / "other_home", settings | {"XHS_SOURCE": str(folder / "other_source.yaml")})
        ending.callback(other.close)
        told = Story(folder, main, other)
        main.call("dagster", "asset", "materialize", "-m", MODULE, "--select", "*", "--partition", WEEK)
        told.first_model = told.in_use()
        main.start_dev(told.port)
        service = ending.enter_context(serving(told.data, environment=settings | TOKENS, ready=told.first_model))
        tell(told, service, postgres)
        yield told


def runs(story: Story) -> list[Any]:
    return [(instance, run) for instance in (story.main, story.other) for run in instance.requested()]


def test_before_enough_is_decided_the_tick_is_skipped_and_says_the_numbers(story: Story) -> None:
    tick = story.ticks["too few"]
    assert (tick.status.value, tick.run_ids) == ("SKIPPED", [])
    assert tick.skip_reason == (
        "1 of 4 adjudicated, 0 of 2 audit: waiting for 3 more decided appeals and 2 more decided audit cases"
    )


def test_once_it_is_a_tick_asks_for_one_retraining_that_is_named_by_its_evidence(story: Story) -> None:
    tick, asked = story.ticks["enough"], story.main.requested()[0]
    assert (tick.status.value, tick.run_ids) == ("SUCCESS", [asked.run_id])
    assert asked.job_name == "appeal_retrain" and asked.tags["xhs/reason"] == f"{ENOUGH}retraining"
    outcomes = pq.read_table(story.latest("appeal_outcomes").file("outcomes.parquet"))
    assert outcomes.num_rows == 6
    read = evidence(outcomes, story.latest("unique_posts").path).outcomes
    assert tick.run_keys == [f"appeals-{effective_digest(read)}"]


def test_a_retraining_that_is_killed_is_started_again_by_the_job_and_goes_on_from_what_it_had_learned(
    story: Story,
) -> None:
    first, second, third = story.main.requested()
    assert [run.status.value for run in (first, second, third)] == ["FAILURE", "FAILURE", "SUCCESS"]
    assert (second.parent_run_id, third.parent_run_id) == (first.run_id, second.run_id)
    assert RESUMED in story.main.said_in(second), "after its process was killed"
    assert [RESUMED in instance.said_in(run) for instance, run in runs(story)[2:]].count(True) == 1, (
        "and after all were"
    )
    chain = {key for run in (first, second, third) for key in story.main.materialised(run)}
    assert chain >= {"appeal_outcomes", "sharegpt_splits", "base_model"}
    assert set(story.main.materialised(third)) == {"adapter", "merged_model", "evaluation_report", "released_model"}


def test_after_a_restart_no_daemon_asks_again_for_what_was_asked_for(story: Story) -> None:
    asked, key = story.main.requested()[0], story.ticks["enough"].run_keys[0]
    tick = story.ticks["restarted"]
    assert tick.status.value == "SKIPPED" and str(tick.skip_reason).startswith(ENOUGH)
    assert [run.run_id for run in story.main.requested() if run.parent_run_id is None] == [asked.run_id]
    assert [run_key for tick in story.main.ticks() for run_key in tick.run_keys] == [key]


def test_another_instance_that_asks_for_the_same_evidence_at_the_same_time_trains_nothing_twice(story: Story) -> None:
    assert story.ticks["other"].run_keys == story.ticks["enough"].run_keys
    assert [run.status.value for run in story.other.requested()] == ["SUCCESS"]
    for key in ("sharegpt_splits", "base_model", "adapter", "merged_model", "evaluation_report", "released_model"):
        versions = {path.parent.name for path in (story.data / key).glob("*/manifest.json")}
        assert len(versions) == 2 and story.latest(key).version in versions, "the first one, and the retrained one"
        built = [instance.materialised(run).get(key) for instance, run in runs(story)]
        assert built.count(False) == 1, f"{key}: built by one run and found by the others"


def test_the_retraining_ends_in_a_verdict_of_the_gate_and_a_passing_one_in_the_next_model_in_use(story: Story) -> None:
    report, released, merged = (story.latest(key) for key in ("evaluation_report", "released_model", "merged_model"))
    assert report.manifest["counts"]["gate"]["status"] == "pass"
    assert report.manifest["inputs"]["champion"] == story.first_model, "it was judged beside the model in use"
    assert [check["passed"] for check in released.manifest["checks"]] == [True]
    assert (
        read_json(released.file("decision.json"))["champion"] == merged.version == story.in_use() != story.first_model
    )
    history = read_history(story.data / "released_model")
    assert [(line["action"], line["champion"]["version"]) for line in history] == [
        ("released", story.first_model),
        ("released", merged.version),
    ]
    reply = story.replies["released"]
    assert (reply.status, reply.body["model_version"]) == (200, merged.version), "the service has taken it"


def test_the_decided_labels_stand_in_the_new_splits_with_the_events_that_gave_them(story: Story) -> None:
    train = {
        row["post_id"]: row for row in pq.read_table(story.latest("sharegpt_splits").file("train.parquet")).to_pylist()
    }
    outcomes = pq.read_table(story.latest("appeal_outcomes").file("outcomes.parquet")).to_pylist()
    events = {row["case_id"]: (row["event_ids"], row["decided_at"].isoformat()) for row in outcomes}
    for cases, source in ((story.appealed, "appeal"), (story.audited, "audit")):
        for post_id, case_id in cases.items():
            ids, decided_at = events[case_id]
            assert train[post_id]["label_source"] == source and len(ids) == (4 if source == "appeal" else 3)
            assert json.loads(train[post_id]["label_provenance"]) == {
                "source": source,
                "event_ids": ids,
                "decided_at": decided_at,
            }
    labels = [(train[post]["verdict"], train[post]["category"]) for post in (*story.appealed, *story.audited)]
    assert labels[:-1] == [tuple(PASSING.values())] * 5 and labels[-1] == tuple(MISSED.values())
    assert train[list(story.appealed)[0]]["messages"][-1]["content"].startswith("审核结论：通过")


def test_a_later_tick_on_the_same_evidence_starts_nothing(story: Story) -> None:
    for name in ("trained", "in the end"):
        assert (story.ticks[name].status.value, story.ticks[name].skip_reason) == ("SKIPPED", NOTHING_NEW)
    assert len(story.main.requested()) == 3 and len(story.other.requested()) == 1


def test_while_the_database_is_away_ticks_are_red_and_say_what_to_do_and_afterwards_all_go_on(story: Story) -> None:
    tick, reply = story.ticks["no database"], story.replies["no database"]
    assert tick.status.value == "FAILURE" and tick.error and not tick.run_ids
    assert "check that the server runs and that XHS_APPEALS_URL" in tick.error.to_string()
    assert (reply.status, reply.body["error"]) == (503, "store_unavailable")
    tick, reply = story.ticks["database"], story.replies["database"]
    assert (tick.status.value, tick.skip_reason, reply.status) == ("SKIPPED", NOTHING_NEW, 200)


def test_a_database_that_restarts_in_the_middle_of_a_tick_is_survived(story: Story) -> None:
    tick = story.ticks["restart in the middle"]
    assert (tick.status.value, tick.skip_reason) == ("SKIPPED", NOTHING_NEW)
