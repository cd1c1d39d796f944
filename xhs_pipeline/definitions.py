"""The whole system on one page, in the order the data flows."""

import dagster as dg

from xhs_pipeline.assets.judgement import evaluation_report, released_model
from xhs_pipeline.assets.labels import label_issues
from xhs_pipeline.assets.model import adapter, base_model, merged_model
from xhs_pipeline.assets.posts import clean_posts, raw_posts, unique_posts
from xhs_pipeline.assets.splits import appeal_outcomes, golden_set, sharegpt_splits
from xhs_pipeline.automation import (
    appeal_retrain,
    appeal_sensor,
    release_sensor,
    run_retention,
    weekly_job,
    weekly_retrain,
)
from xhs_pipeline.liveness import living_in_process_executor
from xhs_pipeline.resources import Workspace, profile_resource

defs = dg.Definitions(
    assets=[
        raw_posts,
        clean_posts,
        unique_posts,
        label_issues,
        appeal_outcomes,
        golden_set,
        sharegpt_splits,
        base_model,
        adapter,
        merged_model,
        evaluation_report,
        released_model,
    ],
    jobs=[weekly_job, appeal_retrain],
    schedules=[weekly_retrain],
    sensors=[appeal_sensor, release_sensor, run_retention],
    resources={"workspace": Workspace(data_dir="", source=""), "profile": profile_resource()},
    # Steps share one process: starting one costs 2.5 s here, and everything that loads a model or may be killed for memory
    # runs in a child process of its own anyway (xhs_pipeline.worker).
    executor=living_in_process_executor,
)
