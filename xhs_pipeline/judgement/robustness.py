"""How well a model holds out against disguise: what it still finds in disguised posts, and what it makes of harmless ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from xhs_pipeline.judgement.judge import Post
from xhs_pipeline.policy import Policy
from xhs_pipeline.profile import Profile

if TYPE_CHECKING:
    import pandas as pd

# The posts, and as many rows about them (post_id, group_id, week, title, body, verdict, category, label_source), both in one
# order with ids of their own; back comes the frame that `decisions.decided` makes of the answers, in that order.
Ask = Callable[[list[Post], pa.Table], "pd.DataFrame"]


def measure(
    test: Path | pa.Table,
    predictions: pd.DataFrame,
    ask: Ask,
    policy: Policy,
    profile: Profile,
    seed: int,
    posts_at_most: int = 300,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The figures of `evasion` in report.json."""
    raise NotImplementedError
