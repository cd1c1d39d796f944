"""Who answers for the model in use: python -m xhs_pipeline.release {status, sign-off, rollback}

    status                                              the model in use and the last lines of its history
    sign-off MODEL_VERSION --name NAME --reason WHY     answer for what the gate could not measure; then materialise released_model
    rollback --name NAME --reason WHY                   put the model before it back in use, at once

Both leave name and reason in released_model/history.jsonl under XHS_DATA_DIR. Exit status: 0, or 2 when it cannot be done.
"""

import argparse
import sys
from pathlib import Path

from xhs_pipeline.artifacts import Artifact, ArtifactStore
from xhs_pipeline.judgement.champion import (
    Candidate,
    read_champion,
    read_history,
    rollback,
    sign_off,
    verdict_of,
)
from xhs_pipeline.policy import load_policy
from xhs_pipeline.resources import Workspace

SHOWN_LINES = 10


def _report_of(store: ArtifactStore, version: str) -> Artifact:
    """The newest evaluation report, which must be about this model."""
    judged = store.latest("evaluation_report")
    if judged is None:
        raise ValueError(f"no evaluation_report under {store.root}; materialise it first")
    about = judged.manifest["lineage"]["merged_model"]
    if about != version:
        raise ValueError(
            f"{judged.path}: the newest report is about {about}, not {version}; materialise evaluation_report"
        )
    return judged


def _status(folder: Path) -> None:
    champion = read_champion(folder)
    print(f"in use: {champion.version} since {champion.released_at}" if champion else "no model is in use")
    for row in read_history(folder)[-SHOWN_LINES:]:
        version = row.get("version") or row.get("from_version") or (row.get("candidate") or row["champion"])["version"]
        by = f" by {row['name']}" if "name" in row else ""
        print(f"{row['at']}  {row['action']}  {version}{by}: {row['reason']}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m xhs_pipeline.release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status", help="the model in use and its history")
    for name, what in (
        ("sign-off", "answer for missing evidence"),
        ("rollback", "put the model before it back in use"),
    ):
        command = commands.add_parser(name, help=what)
        if name == "sign-off":
            command.add_argument("version", help="version of the merged model, as its folder is called")
        command.add_argument("--name", required=True, help="who answers for it")
        command.add_argument("--reason", required=True, help="why, in one line")
    options = parser.parse_args(arguments)
    store = Workspace(data_dir="", source="").store
    folder = store.folder("released_model")
    try:
        if options.command == "status":
            _status(folder)
        elif options.command == "rollback":
            print(rollback(folder, options.name, options.reason).reason)
        else:
            judged = _report_of(store, options.version)
            verdict, report = verdict_of(judged, load_policy())
            candidate = Candidate(
                options.version, f"merged_model/{options.version}", judged.version, report["policy_version"]
            )
            print(sign_off(folder, candidate, verdict, options.name, options.reason))
            print("materialise released_model to release it")
    except (ValueError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
