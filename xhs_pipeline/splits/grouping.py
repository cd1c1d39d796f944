"""Which split a duplicate group belongs to. A pure function of its founders: weeks that only arrive take nothing out of test.

Another seed, other shares, and a week that is cleaned anew, filled in or deleted may; what holds then too is golden.py's matter.
"""

import hashlib
from collections.abc import Sequence

from xhs_pipeline.profile import Profile

# From the weakest claim on a group to the strongest.
SPLITS = ("train", "validation", "calibration", "test")


def unit_hash(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts only: the first 64 bits of their SHA-256."""
    name = ":".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8]) / 2**64


def split_of(founders: Sequence[str], profile: Profile) -> str:
    """The split of a whole group: the strongest among those of its founders, test > calibration > validation > train.

    A founder alone falls into test, calibration or validation by their shares, the rest is train. A group's founders are never
    taken away, so what a later post does to it can move it towards test and never from it.
    """
    return max((_split_of_one(founder, profile) for founder in founders), key=SPLITS.index)


def _split_of_one(founder: str, profile: Profile) -> str:
    place = unit_hash("split", profile.seed, founder)
    for name, share in (
        ("test", profile.test_share),
        ("calibration", profile.calibration_share),
        ("validation", profile.validation_share),
    ):
        if place < share:
            return name
        place -= share
    return "train"
