"""weekly_retrain and the sensors: thin skins. What makes a retrain worth it is decided in plain functions (appeals.decision)."""

import os
from datetime import UTC, datetime, timedelta

import dagster as dg

from xhs_pipeline.assets.posts import clean_posts, raw_posts, unique_posts
from xhs_pipeline.assets.splits import appeal_outcomes, golden_set
from xhs_pipeline.liveness import end_dead_runs
from xhs_pipeline.policy import load_policy
from xhs_pipeline.posts.fields import TIME_ZONE
from xhs_pipeline.resources import ProfileSettings, Workspace, profile_resource

# A run that was killed is started again; stages that are done are found done, and training goes on from its checkpoint. A run
# whose step failed is not: what trying again can mend, the step itself has tried again.
RETRIES = {"dagster/max_retries": "2", "dagster/retry_on_asset_or_op_failure": "false"}
RUN_RETENTION = timedelta(days=365)

weekly_job = dg.define_asset_job(
    "weekly_job",
    selection=dg.AssetSelection.assets(raw_posts, clean_posts, unique_posts, appeal_outcomes).downstream(),
    tags=RETRIES,
    description="One week's posts, and everything after them up to the release decision.",
)
appeal_retrain = dg.define_asset_job(
    "appeal_retrain",
    selection=dg.AssetSelection.assets(golden_set, appeal_outcomes).downstream(),
    tags=RETRIES,
    description="Retrain on the posts that are there, with labels corrected by appeals, up to the release decision.",
)


@dg.schedule(
    job=weekly_job,
    cron_schedule="0 3 * * 1",
    execution_timezone="Asia/Shanghai",
    description="Monday 03:00: last week's posts, and everything after them. Skipped where posts, policy, profile and code are those that "
    "the newest release decision was made from; appeals alone are appeal_sensor's.",
)
def weekly_retrain(
    context: dg.ScheduleEvaluationContext, workspace: Workspace, profile: dg.ResourceParam[ProfileSettings]
) -> dg.RunRequest | dg.SkipReason:
    from xhs_pipeline.posts.sources import SourceMissing
    from xhs_pipeline.privacy import key_fingerprint, load_hmac_key
    from xhs_pipeline.staleness import Now, changes

    # in Shanghai, where weeks begin: in UTC this tick is still on Sunday
    last_week = context.scheduled_execution_time.astimezone(TIME_ZONE).date() - timedelta(days=7)
    week = (last_week - timedelta(days=last_week.weekday())).isoformat()
    # Nothing else is caught: a source that cannot be read turns the tick red instead of looking like "nothing new".
    assets = context.repository_def.asset_graph
    now = Now(
        workspace.load_source(),
        load_policy(),
        profile.resolve(),
        key_fingerprint(load_hmac_key(workspace.root)),
        {key.to_user_string(): assets.get(key).code_version for key in assets.get_all_asset_keys()},
    )
    try:
        changed = changes(workspace.store, week, now)
    except SourceMissing as missing:  # the run will fail with these words, which nobody overlooks
        changed = [str(missing)]
    if not changed:
        return dg.SkipReason(
            f"nothing new in week {week}: posts, policy, profile and code are those of the newest release decision"
        )
    return dg.RunRequest(run_key=f"week-{week}", partition_key=week, tags={"xhs/reason": "; ".join(changed)[:200]})


@dg.sensor(
    job=appeal_retrain,
    minimum_interval_seconds=60,
    description="Retrains from appeal_outcomes down once enough adjudicated appeals are there that no model was trained on.",
)
def appeal_sensor(context: dg.SensorEvaluationContext, workspace: Workspace) -> dg.SensorResult | dg.SkipReason:
    from xhs_pipeline.appeals.decision import decide_retrain
    from xhs_pipeline.appeals.evidence import evidence
    from xhs_pipeline.appeals.stages import read_outcomes, trained_event_ids

    # Nothing is caught here: a store that cannot be read turns the tick red instead of looking like "no appeals".
    policy, store = load_policy(), workspace.store
    unique = store.latest("unique_posts")
    if unique is None:
        return dg.SkipReason("no posts yet: materialise a week first")
    with workspace.open_appeals(policy) as appeals:
        found = read_outcomes(workspace.load_source(), appeals)
    end_dead_runs(context.instance)  # or a killed run would look under way for ever
    under_way = context.instance.get_runs_count(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
    )
    asked = context.instance.get_run_records(dg.RunsFilter(job_name=appeal_retrain.name), limit=1)
    decision = decide_retrain(
        evidence(found.outcomes, unique.path, profile_resource().resolve().max_images),
        trained_event_ids(store),
        policy,
        running=under_way > 0,
        largest_event_id=found.largest_event_id,
        cursor=int(context.cursor or 0),
        last_asked=asked[0].create_timestamp if asked else None,
        now=datetime.now(UTC),
    )
    if not decision.run:
        context.update_cursor(str(decision.cursor))
        return dg.SkipReason(decision.reason)
    same = {"dagster/run_key": str(decision.run_key), "dagster/sensor_name": "appeal_sensor"}
    for run in context.instance.get_runs(
        dg.RunsFilter(tags=same), limit=1
    ):  # Dagster starts no second one, and says nothing
        context.update_cursor(str(decision.cursor))
        return dg.SkipReason(
            f"{decision.reason}: run {run.run_id} with this evidence is {run.status.value}; "
            "re-execute it once its cause is mended, or wait for new evidence"
        )
    request = dg.RunRequest(run_key=decision.run_key, tags={"xhs/reason": decision.reason[:200]})
    return dg.SensorResult(run_requests=[request], cursor=str(decision.cursor))


@dg.sensor(
    minimum_interval_seconds=60,
    description="Tells XHS_RELEASE_WEBHOOK, where it is set, of every model that was released, held or rolled back, in order and "
    "signed. What could not be told is told by a later tick.",
)
def release_sensor(context: dg.SensorEvaluationContext, workspace: Workspace) -> dg.SkipReason:
    from xhs_pipeline.judgement.champion import read_history
    from xhs_pipeline.judgement.notice import URL, tell, webhook

    hook = webhook(os.environ)
    if hook is None:
        return dg.SkipReason(f"{URL} is not set: nobody is told")
    history = read_history(workspace.store.folder("released_model"))
    before = len(history) if context.cursor is None else min(int(context.cursor), len(history))
    told = tell(hook, history, before)
    if told.problem and told.lines == before:  # the tick turns red; its cursor stays, and a later one goes on from here
        waiting = f"{len(history) - before} of {len(history)}"
        raise RuntimeError(f"{waiting} lines of the history are not told: {told.problem}")
    context.update_cursor(str(told.lines))
    waiting = f"; {len(history) - told.lines} wait: {told.problem}" if told.problem else ""
    return dg.SkipReason(f"{told.lines - before} told{waiting}")


@dg.sensor(
    minimum_interval_seconds=24 * 3600,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=f"Forgets finished runs older than {RUN_RETENTION.days} days; ticks are bounded in dagster.yaml, which knows no such "
    "setting for runs. Artefacts are not touched.",
)
def run_retention(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    finished = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    before = datetime.now(UTC) - RUN_RETENTION
    old = context.instance.get_run_records(dg.RunsFilter(statuses=finished, created_before=before), limit=500)
    for record in old:
        context.instance.delete_run(record.dagster_run.run_id)
    return dg.SkipReason(f"{len(old)} runs forgotten that began before {before:%Y-%m-%d}")
