"""The newest week as a hold-out in time: the model before is judged on its posts, and then they may train the next.

What a model does on next week's posts cannot be read off a test split of its own weeks. The model in use never saw the
newest week, so all of that week's posts tell, those that train its successor too. Before the first release the newest earlier
candidate stands in for it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xhs_pipeline.judgement.frame import WEEK
from xhs_pipeline.judgement.predict import light_table
from xhs_pipeline.splits.grouping import SPLITS, unit_hash
from xhs_pipeline.splits.sharegpt import founders_trained_on

if TYPE_CHECKING:
    import pandas as pd

Headline = dict[str, Any]
# (split file, post ids in it) to the decided frame of those posts.
Ask = Callable[[Path, set[str]], "pd.DataFrame"]


def newest_week_figures(
    splits: Path,
    trained_on: Path | None,
    test: "pd.DataFrame",
    champion_test: "pd.DataFrame | None",
    ask_champion: Ask | None,
    headline: Callable[["pd.DataFrame"], Headline],
    seed: int,
    at_most: int,
    in_use: bool = True,
) -> dict[str, Any]:
    """The newest week's part of a report.

    week; n: posts of it that the model in use (`champion`) was judged on, none of which, nor a duplicate of which, it was trained
    on: all that there are, or `at_most` of them chosen by hash. before: the same model on the test split's older weeks, to see
    what the new week changed. model: the judged model on the n_model posts of that week in its test split. Each is a
    `headline`, or None. `trained_on` are the splits that the model in use was trained on; reason says why it was not judged.
    judged_by: "champion", or "candidate" where not `in_use` and the newest earlier candidate is the one asked; None for neither.
    """
    import pandas as pd

    tables = {name: light_table(splits / f"{name}.parquet") for name in SPLITS}
    weeks = {week for table in tables.values() for week in table["week"].unique().to_pylist() if week}
    newest = max(weeks, default=None)
    ours = test[test[WEEK] == newest]
    part: dict[str, Any] = {
        "week": newest, "reason": None, "n": 0, "champion": None, "before": None, "judged_by": None,
        "model": headline(ours) if len(ours) else None, "n_model": len(ours),
    }  # fmt: skip
    if newest is None or champion_test is None or ask_champion is None:
        return part | {"reason": "no model in use to judge it"}
    part["judged_by"], who = ("champion", "the model in use") if in_use else ("candidate", "the earlier candidate")
    if trained_on is None:
        return part | {"reason": f"it is not known which posts {who} was trained on"}
    if newest in pc.unique(pq.read_table(trained_on / "train.parquet", columns=["week"])["week"]).to_pylist():
        return part | {"reason": f"{who} was trained on this week already"}
    known = founders_trained_on(trained_on)  # a post of an older week may have come back in this one
    unseen = {name: _unseen(table, newest, known) for name, table in tables.items()}
    every = sorted((p for ids in unseen.values() for p in ids), key=lambda p: unit_hash("newest week", seed, p))
    if not every:
        return part | {"reason": f"every post of it repeats one that {who} was trained on"}
    chosen = set(every[:at_most])
    frames = [champion_test[champion_test["post_id"].isin(chosen & unseen["test"])]]
    frames += [
        ask_champion(splits / f"{name}.parquet", chosen & unseen[name])
        for name in SPLITS
        if name != "test" and chosen & unseen[name]
    ]
    judged = pd.concat(frames, ignore_index=True)
    older = champion_test[champion_test[WEEK] < newest].reset_index(drop=True)
    return part | {
        "n": len(judged),
        "champion": headline(judged),
        "before": headline(older) if len(older) else None,
    }


def _unseen(table: pa.Table, week: str, known: set[str]) -> set[str]:
    rows = table.select(["post_id", "week", "founders"]).to_pylist()
    return {row["post_id"] for row in rows if row["week"] == week and known.isdisjoint(row["founders"])}
