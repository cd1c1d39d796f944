"""The code location: it loads fast and light, and shows the whole graph with owners, groups and descriptions."""

import ast
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
import yaml

from xhs_pipeline.assets.posts import WEEKS
from xhs_pipeline.definitions import defs
from xhs_pipeline.profile import Profile

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "sklearn",
    "cleanlab",
    "matplotlib",
    "numba",
    "pandas",
)
ORDER = [
    "raw_posts", "clean_posts", "unique_posts", "label_issues", "appeal_outcomes", "golden_set", "sharegpt_splits",
    "base_model", "adapter", "merged_model", "evaluation_report", "released_model",
]  # fmt: skip
PARENTS = {
    "raw_posts": set(),
    "clean_posts": {"raw_posts"},
    "unique_posts": {"clean_posts"},
    "appeal_outcomes": set(),
    "label_issues": {"unique_posts"},
    "golden_set": {"unique_posts", "label_issues"},
    "sharegpt_splits": {"unique_posts", "label_issues", "appeal_outcomes", "golden_set"},
    "base_model": {"sharegpt_splits"},
    "adapter": {"sharegpt_splits", "base_model"},
    "merged_model": {"sharegpt_splits", "base_model", "adapter"},
    "evaluation_report": {"sharegpt_splits", "merged_model"},
    "released_model": {"merged_model", "evaluation_report"},
}


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_definitions_load_where_torch_cannot_be_imported_and_pull_in_nothing_heavy() -> None:
    code = f"""
import json, sys
blocked = ("torch", "transformers", "peft", "bitsandbytes")
sys.modules.update(dict.fromkeys(blocked))  # import torch is an ImportError now
import xhs_pipeline.definitions
xhs_pipeline.definitions.defs.resolve_asset_graph()
print(json.dumps([name for name in {HEAVY!r} if sys.modules.get(name) is not None]))
"""
    assert json.loads(run_python(code)) == []


def test_domain_modules_know_no_dagster() -> None:
    package = ROOT / "xhs_pipeline"
    skin = {"liveness.py", "definitions.py", "automation.py", "resources.py"}
    for file in package.rglob("*.py"):
        if file.parent == package / "assets" or (file.parent == package and file.name in skin):
            continue
        imported = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        }
        assert not imported & {"dagster", "pickle"}, file


def test_the_assets_stand_in_the_order_the_data_flows() -> None:
    assert [
        asset.key.to_user_string() for asset in defs.assets or [] if isinstance(asset, dg.AssetsDefinition)
    ] == ORDER


def test_every_asset_depends_on_what_it_reads() -> None:
    graph = defs.resolve_asset_graph()
    found = {
        k.to_user_string(): {p.to_user_string() for p in graph.get(k).parent_keys} for k in graph.get_all_asset_keys()
    }
    assert found == PARENTS


def test_every_asset_says_what_it_is_whose_it_is_and_what_it_is_made_with() -> None:
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description and len(node.description) > 60, key
        assert node.owners and node.kinds and node.group_name != "default" and node.code_version, key
    assert {graph.get(dg.AssetKey(key)).group_name for key in ORDER} == {
        "posts", "labels_and_splits", "model", "judgement",
    }  # fmt: skip


def test_what_loads_a_model_waits_for_the_gpu_pool_and_nothing_else_does() -> None:
    graph = defs.resolve_asset_graph()
    pools = {key: graph.get(dg.AssetKey(key)).pools for key in ORDER}
    gpu = {"base_model", "adapter", "merged_model", "evaluation_report"}
    assert pools == {key: {"gpu"} if key in gpu else set() for key in ORDER}


def test_only_what_follows_time_is_partitioned_and_weeks_start_on_mondays() -> None:
    graph = defs.resolve_asset_graph()
    assert [key for key in ORDER if graph.get(dg.AssetKey(key)).partitions_def] == ["raw_posts", "clean_posts"]
    keys = WEEKS.get_partition_keys(current_time=datetime(2026, 3, 5, tzinfo=UTC))
    assert {"2026-02-16", "2026-02-23"} <= set(keys)
    assert all(datetime.fromisoformat(key).weekday() == 0 for key in keys)
    # Monday 2 March 00:00 in Shanghai is Sunday 16:00 UTC: from then on the week before is complete
    assert "2026-02-23" in WEEKS.get_partition_keys(current_time=datetime(2026, 3, 1, 16, 0, 1, tzinfo=UTC))
    assert "2026-02-23" not in WEEKS.get_partition_keys(current_time=datetime(2026, 3, 1, 15, 59, tzinfo=UTC))


def test_blocking_checks_guard_the_data_and_warnings_do_not_block() -> None:
    graph = defs.resolve_asset_graph()
    blocking = {
        (key.asset_key.to_user_string(), key.name): graph.get_check_spec(key).blocking for key in graph.asset_check_keys
    }
    assert {check for check, blocks in blocking.items() if blocks} >= {
        ("raw_posts", "rows_accounted"), ("clean_posts", "rows_accounted"), ("clean_posts", "images_decode"),
        ("unique_posts", "rows_accounted"), ("sharegpt_splits", "no_group_across_splits"), ("sharegpt_splits", "labels_in_policy"),
        ("sharegpt_splits", "placeholders_match_images"), ("sharegpt_splits", "golden_never_trained"),
        ("golden_set", "nothing_changed"), ("golden_set", "rows_accounted"), ("merged_model", "merged_equals_adapter"),
    }  # fmt: skip
    assert not blocking["sharegpt_splits", "rationales_differ"]


def test_every_setting_of_the_profile_can_be_given_in_a_runs_config() -> None:
    fields = defs.resolve_implicit_global_asset_job_def().resource_defs["profile"].config_schema.config_type.fields
    assert set(Profile.model_fields) <= set(fields)


def test_everything_can_be_loaded_as_one_repository() -> None:
    dg.Definitions.validate_loadable(defs)


def test_the_committed_instance_settings_are_valid_and_limit_the_gpu(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".dagster_home" / "dagster.yaml", tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert not instance.telemetry_enabled and not instance.nux_enabled
        assert instance.get_concurrency_config().pool_config.default_pool_limit == 1
        assert instance.run_retries_enabled and instance.run_retries_max_retries == 0
        assert instance.get_settings("retention")["sensor"]["purge_after_days"]["skipped"] <= 7
        instance.event_log_storage.initialize_concurrency_limit_to_default("gpu")
        assert instance.event_log_storage.get_concurrency_info("gpu").slot_count == 1


def test_the_workspace_and_the_project_file_name_the_code_location() -> None:
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text(encoding="utf-8"))
    assert workspace == {"load_from": [{"python_module": "xhs_pipeline.definitions"}]}


@pytest.mark.parametrize("name", ["qwen2-vl-2b", "qwen2-vl-7b"])
def test_moving_to_a_gpu_profile_is_one_setting(name: str) -> None:
    code = f"""
import os
os.environ["XHS_PROFILE"] = {name!r}
from xhs_pipeline.definitions import defs
print(defs.resources["profile"].resolve().base_model)
"""
    assert run_python(code).strip().startswith("Qwen/Qwen2-VL")
