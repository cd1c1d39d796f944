"""Which split a duplicate group belongs to. A pure function of the group's name, so weeks that arrive later move nothing."""

import hashlib

from xhs_pipeline.profile import Profile

SPLITS = ("train", "validation", "calibration", "test")


def unit_hash(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts only: the first 64 bits of their SHA-256."""
    name = ":".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8]) / 2**64


def split_of(group_id: str, profile: Profile) -> str:
    """The split of a whole group: test, calibration and validation take their shares, the rest is train."""
    place = unit_hash("split", profile.seed, group_id)
    for name, share in (
        ("test", profile.test_share),
        ("calibration", profile.calibration_share),
        ("validation", profile.validation_share),
    ):
        if place < share:
            return name
        place -= share
    return "train"
