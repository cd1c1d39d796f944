"""The weekly schedule and the appeal sensor, on real instances."""

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pyarrow.parquet as pq
import pytest

from xhs_pipeline.appeals.stages import Read, read_outcomes, write_outcomes
from xhs_pipeline.artifacts import ArtifactStore, Built
from xhs_pipeline.assets.posts import WEEKS
from xhs_pipeline.automation import appeal_retrain, appeal_sensor, weekly_retrain
from xhs_pipeline.definitions import defs
from xhs_pipeline.policy import POLICY_FILE, load_policy
from xhs_pipeline.posts.source_yaml import SourceError
from xhs_pipeline.resources import Workspace, profile_resource
from xhs_pipeline_tests.small import write_unique_folder
from xhs_pipeline_tests.test_appeals_events import event, lines

POLICY = load_policy()
NEEDED = int(POLICY.appeals["min_adjudicated"])


def quota(appeals: int) -> int:
    """The audits that the policy wants beside so many decided appeals."""
    return max(int(POLICY.appeals["min_audit"]), math.ceil(appeals * POLICY.appeals["audits_per_appeal"]))


AUDITS = quota(NEEDED + 1)
POSTS = 3 * NEEDED + 2 * AUDITS
LAST = f"p-{POSTS - 1}"
SHANGHAI = ZoneInfo("Asia/Shanghai")


# --- the weekly schedule ------------------------------------------------------------------------------------------------


def requested(workspace: Workspace, at: datetime) -> Any:
    resources = {"workspace": workspace, "profile": profile_resource()}
    context = dg.build_schedule_context(
        scheduled_execution_time=at, repository_def=defs.get_repository_def(), resources=resources
    )
    return weekly_retrain(context)


def test_every_monday_at_three_in_shanghai_last_weeks_partition_is_asked_for(workspace: Workspace) -> None:
    assert (weekly_retrain.cron_schedule, weekly_retrain.execution_timezone) == ("0 3 * * 1", "Asia/Shanghai")
    request = requested(workspace, datetime(2026, 2, 23, 3, tzinfo=SHANGHAI))
    assert (request.partition_key, request.run_key) == ("2026-02-16", "week-2026-02-16")
    over_the_years_end = requested(workspace, datetime(2026, 1, 5, 3, tzinfo=SHANGHAI))
    assert over_the_years_end.partition_key == "2025-12-29"


def test_the_week_is_shanghais_whatever_zone_the_tick_is_told_in(workspace: Workspace) -> None:
    same_moment = datetime(2026, 2, 22, 19, tzinfo=UTC)
    assert requested(workspace, same_moment).partition_key == "2026-02-16"


def test_a_week_whose_file_is_missing_is_asked_for_and_the_run_says_what_to_do(workspace: Workspace) -> None:
    request = requested(workspace, datetime(2026, 2, 23, 3, tzinfo=SHANGHAI))
    assert "posts.jsonl: no such file, expected the jsonl posts of week 2026-02-16" in request.tags["xhs/reason"]


def test_a_source_that_cannot_be_read_turns_the_schedules_tick_red(workspace: Workspace) -> None:
    Path(workspace.source).write_text("format: jsonl\npaths: posts.jsonl\n")
    with pytest.raises(SourceError, match="paths"):
        requested(workspace, datetime(2026, 2, 23, 3, tzinfo=SHANGHAI))


def test_the_partition_that_the_schedule_asks_for_is_there_at_that_time(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    at = datetime(2026, 2, 23, 3, tzinfo=SHANGHAI)
    assert requested(workspace, at).partition_key in WEEKS.get_partition_keys(current_time=at)
    resources = {"workspace": workspace, "profile": profile_resource()}
    with dg.build_schedule_context(
        instance, at, repository_def=defs.get_repository_def(), resources=resources
    ) as context:
        tick = defs.resolve_schedule_def("weekly_retrain").evaluate_tick(context)
    (request,) = tick.run_requests or []
    assert request.tags["dagster/partition"] == "2026-02-16"


def steps(job: str) -> set[str]:
    return {key.to_user_string() for key in defs.resolve_job_def(job).asset_layer.executable_asset_keys}


def test_the_weekly_job_takes_the_weeks_as_its_partitions() -> None:
    assert defs.resolve_job_def("weekly_job").partitions_def == WEEKS


def test_the_weekly_job_runs_everything_and_the_appeal_job_the_golden_set_and_what_follows_appeals() -> None:
    everything = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
    assert steps("weekly_job") == everything
    assert steps("appeal_retrain") == everything - {"raw_posts", "clean_posts", "unique_posts", "label_issues"}
    for job in ("weekly_job", "appeal_retrain"):  # a killed run is started again: see the instance's run_retries
        assert int(defs.resolve_job_def(job).tags["dagster/max_retries"]) > 0


# --- the appeal sensor --------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A data folder with published posts, and a source that names an appeals file."""
    monkeypatch.delenv("XHS_HMAC_KEY", raising=False)
    monkeypatch.delenv("XHS_APPEALS_URL", raising=False)
    (tmp_path / "source.yaml").write_text("format: jsonl\npath: posts.jsonl\nappeals: appeals.jsonl\n")
    there = Workspace(data_dir=str(tmp_path / "data"), source=str(tmp_path / "source.yaml"))
    posts = [{"post_id": f"p-{n}", "match_text": f"正文{n}"} for n in range(POSTS)]
    publish(there.store, "unique_posts", lambda work: write_unique_folder(work, posts) or Built({}))
    appeals(there, 0, audits=0)
    return there


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as there:
        yield there


def write_train(words: str) -> Any:
    """A stage that writes splits whose records to train on are these words."""

    def write(work: Path) -> Built:
        for name in ("train", "validation"):
            (work / f"{name}.parquet").write_text(words)
        return Built({})

    return write


def publish(store: ArtifactStore, key: str, write: Any = lambda work: Built({}), **lineage: str) -> str:
    return store.build(key, write, inputs=lineage, settings={}, code_version="1", lineage=lineage).version


def appeals(workspace: Workspace, decided: int, *more: dict[str, Any], audits: int = AUDITS, first: int = 0) -> None:
    """Write an appeals file with that many decided audits and upheld appeals, about posts from `first` on."""
    events = []
    for n in range(audits + decided):
        name = {"appeal": f"a-{n}", "post": f"p-{first + n}"}
        events += [event(2 * n + 1, "sampled" if n < audits else "filed", **name), event(2 * n + 2, "upheld", **name)]
    (Path(workspace.source).parent / "appeals.jsonl").write_bytes(lines(*events, *more))


def later_audits() -> list[dict[str, Any]]:
    """As many decided audits again, of posts that nothing else names."""
    about = [{"appeal": f"later-{n}", "post": f"p-{POSTS - 1 - n}"} for n in range(AUDITS)]
    made = [
        (event(1001 + 2 * n, "sampled", **name), event(1002 + 2 * n, "upheld", **name)) for n, name in enumerate(about)
    ]
    return [each for pair in made for each in pair]


def read(workspace: Workspace) -> Read:
    with workspace.open_appeals(POLICY) as store:
        return read_outcomes(workspace.load_source(), store)


def tick(workspace: Workspace, instance: dg.DagsterInstance, cursor: str | None = None) -> tuple[Any, str | None]:
    """What the sensor returns, and the cursor that it leaves."""
    with dg.build_sensor_context(instance=instance, cursor=cursor, resources={"workspace": workspace}) as context:
        result = appeal_sensor(context)
        left = result.cursor if isinstance(result, dg.SensorResult) else context.cursor
    return result, left


def run_key(result: Any) -> str:
    assert isinstance(result, dg.SensorResult) and result.run_requests is not None
    (request,) = result.run_requests
    assert request.run_key and "adjudicated" in request.tags["xhs/reason"]
    return str(request.run_key)


def test_without_posts_there_is_nothing_to_retrain_on(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    result, _ = tick(Workspace(data_dir=str(tmp_path / "empty"), source="nowhere.yaml"), instance)
    assert isinstance(result, dg.SkipReason) and result.skip_message == "no posts yet: materialise a week first"


def test_too_few_appeals_are_skipped_with_the_numbers(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    appeals(workspace, NEEDED - 3)
    result, cursor = tick(workspace, instance)
    assert isinstance(result, dg.SkipReason) and cursor == str(2 * (AUDITS + NEEDED - 3))
    assert result.skip_message == (
        f"{NEEDED - 3} of {NEEDED} adjudicated, {AUDITS} of {quota(NEEDED - 3)} audit: waiting for 3 more decided appeals"
    )


def test_without_an_audit_of_posts_that_passed_no_number_of_appeals_is_enough(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    appeals(workspace, 3 * NEEDED, audits=3)
    result, _ = tick(workspace, instance)
    assert isinstance(result, dg.SkipReason)
    assert result.skip_message == (
        f"{3 * NEEDED} of {NEEDED} adjudicated, 3 of {quota(3 * NEEDED)} audit: waiting for {quota(3 * NEEDED) - 3} more decided audit cases"
    )


def test_appeals_about_posts_that_are_not_there_are_kept_told_and_not_counted(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    appeals(workspace, NEEDED, first=POSTS - AUDITS - 5)  # the last ones name posts beyond those there are
    result, _ = tick(workspace, instance)
    assert isinstance(result, dg.SkipReason) and str(result.skip_message).startswith(f"5 of {NEEDED} adjudicated")
    assert f"({NEEDED - 5} about posts that are not there not counted: they are kept, and count once" in str(
        result.skip_message
    )
    assert read(workspace).outcomes.num_rows == AUDITS + NEEDED


def test_open_and_withdrawn_appeals_do_not_count(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    first = 2 * (AUDITS + NEEDED) + 1
    appeals(
        workspace, NEEDED,
        event(first, "withdrawn", appeal=f"a-{AUDITS}", post=f"p-{AUDITS}", actor=f"person-{2 * AUDITS + 1}"),
        event(first + 1, appeal="open", post="p-x"),
    )  # fmt: skip
    result, _ = tick(workspace, instance)
    assert isinstance(result, dg.SkipReason) and str(result.skip_message).startswith(f"{NEEDED - 1} of {NEEDED}")


def test_a_missing_appeals_file_turns_the_tick_red(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    file = Path(workspace.source).parent / "appeals.jsonl"
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"appeals\.jsonl.*does not exist"):
        tick(workspace, instance)


def test_enough_appeals_ask_for_a_run_that_is_named_by_the_evidence(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    appeals(workspace, NEEDED)
    result, cursor = tick(workspace, instance)
    assert run_key(result).startswith("appeals-") and cursor == str(2 * (AUDITS + NEEDED))
    again, _ = tick(workspace, instance, cursor)
    assert run_key(again) == run_key(result)  # so Dagster starts it once
    appeals(workspace, NEEDED + 1)
    assert run_key(tick(workspace, instance, cursor)[0]) != run_key(result)


def test_after_a_restart_the_same_evidence_asks_for_the_same_run(workspace: Workspace, tmp_path: Path) -> None:
    appeals(workspace, NEEDED)
    home = str(tmp_path / "home")
    Path(home).mkdir()
    with dg.DagsterInstance.local_temp(home) as before:
        first, cursor = tick(workspace, before)
    # lines that change no label, such as an event written twice, are no new evidence
    appeals(workspace, NEEDED, event(1, "sampled", appeal="a-0", post="p-0"))
    with dg.DagsterInstance.local_temp(home) as after:
        assert run_key(tick(workspace, after, cursor)[0]) == run_key(first)
        assert run_key(tick(workspace, after)[0]) == run_key(first)  # even if the cursor is lost


def test_a_run_that_is_under_way_is_waited_for(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    appeals(workspace, NEEDED)
    run = instance.create_run_for_job(defs.resolve_job_def("weekly_job"), status=dg.DagsterRunStatus.STARTED)
    result, cursor = tick(workspace, instance)
    assert isinstance(result, dg.SkipReason) and "under way" in str(result.skip_message)
    instance.report_run_canceled(run)
    assert run_key(tick(workspace, instance, cursor)[0])


def test_after_a_retraining_the_cool_down_is_waited_for(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    appeals(workspace, NEEDED)
    job = defs.resolve_job_def("appeal_retrain")
    instance.create_run_for_job(job, status=dg.DagsterRunStatus.SUCCESS)
    result, _ = tick(workspace, instance)
    assert isinstance(result, dg.SkipReason) and "enough, cooling down until" in str(result.skip_message)


def test_evidence_whose_retraining_failed_is_not_asked_for_again_and_the_reason_says_what_to_do(
    workspace: Workspace, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = POLICY_FILE.read_text(encoding="utf-8").replace("cooldown_hours: 24", "cooldown_hours: 0")
    (tmp_path / "policy.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("XHS_POLICY", str(tmp_path / "policy.yaml"))
    appeals(workspace, NEEDED)
    key = run_key(tick(workspace, instance)[0])
    tags = {"dagster/run_key": key, "dagster/sensor_name": "appeal_sensor"}
    run = instance.create_run_for_job(
        defs.resolve_job_def("appeal_retrain"), status=dg.DagsterRunStatus.FAILURE, tags=tags
    )
    result, _ = tick(workspace, instance)
    assert isinstance(result, dg.SkipReason)
    assert f"run {run.run_id} with this evidence is FAILURE; re-execute it once its cause is mended" in str(
        result.skip_message
    )
    appeals(workspace, NEEDED + 1)
    assert run_key(tick(workspace, instance)[0]) != key


def test_what_a_model_was_trained_on_is_not_new(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    appeals(workspace, NEEDED)
    found, store = read(workspace), workspace.store
    outcomes = publish(store, "appeal_outcomes", lambda work: write_outcomes(found, work))
    splits = publish(store, "sharegpt_splits", write_train("as posted"), appeal_outcomes=outcomes)
    publish(store, "adapter", sharegpt_splits=splits)
    result, cursor = tick(workspace, instance)
    assert isinstance(result, dg.SkipReason)
    assert str(result.skip_message).startswith(f"0 of {NEEDED} adjudicated, 0 of {quota(0)} audit: waiting for")
    appeals(workspace, 2 * NEEDED, *later_audits())
    assert run_key(tick(workspace, instance, cursor)[0])
    # a newer snapshot that no adapter was trained on yet changes nothing
    table = pq.read_table(store.get("appeal_outcomes", outcomes).file("outcomes.parquet"))
    publish(store, "appeal_outcomes", lambda work: pq.write_table(table, work / "outcomes.parquet") or Built({}), x="2")
    assert run_key(tick(workspace, instance, cursor)[0])


def test_an_adapter_from_elsewhere_has_learnt_nothing_from_the_appeals_that_it_was_stored_beside(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    appeals(workspace, NEEDED)
    found, store = read(workspace), workspace.store
    outcomes = publish(store, "appeal_outcomes", lambda work: write_outcomes(found, work))
    splits = publish(store, "sharegpt_splits", write_train("as posted"), appeal_outcomes=outcomes)
    publish(store, "adapter", lambda work: Built({"trained_elsewhere": "/their/folder"}), sharegpt_splits=splits)
    assert run_key(tick(workspace, instance)[0])


def test_outcomes_that_leave_the_training_records_as_they_are_count_as_trained_on(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    store = workspace.store

    def run(words: str) -> None:
        found = read(workspace)
        outcomes = publish(store, "appeal_outcomes", lambda work: write_outcomes(found, work), n=str(found.outcomes))
        splits = publish(store, "sharegpt_splits", write_train(words), appeal_outcomes=outcomes)
        # the adapter depends on the records alone, so the same records find it built and its lineage as it was
        if words not in trained:
            publish(store, "adapter", sharegpt_splits=splits)
            trained.add(words)

    trained: set[str] = set()
    run("as posted")
    appeals(workspace, NEEDED)
    assert run_key(tick(workspace, instance)[0])
    run("as posted")
    result, cursor = tick(workspace, instance)
    assert isinstance(result, dg.SkipReason), "the same evidence must not ask for ever"
    assert str(result.skip_message).startswith(f"0 of {NEEDED} adjudicated, 0 of {quota(0)} audit: waiting for")


def test_a_line_cut_in_half_is_neither_counted_nor_an_error(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    appeals(workspace, NEEDED - 1, event(1000, appeal="last", post=LAST))
    file = Path(workspace.source).parent / "appeals.jsonl"
    whole = json.dumps(event(1001, "upheld", appeal="last", post=LAST), ensure_ascii=False)
    with file.open("a", encoding="utf-8") as appending:
        appending.write(whole[:50])
    assert isinstance(tick(workspace, instance)[0], dg.SkipReason)
    with file.open("a", encoding="utf-8") as appending:
        appending.write(whole[50:] + "\n")
    assert run_key(tick(workspace, instance)[0])


def test_the_sensor_starts_the_appeal_job() -> None:
    assert appeal_sensor.job_name == appeal_retrain.name == "appeal_retrain"
