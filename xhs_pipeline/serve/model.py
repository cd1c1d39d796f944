"""The champion of a data folder, loaded; replaced by the next one when the pointer moves, while requests go on."""

import asyncio
import gc
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xhs_pipeline.curation import ocr
from xhs_pipeline.judgement.calibration import Calibration
from xhs_pipeline.judgement.champion import POINTER, Champion, model_folder, read_champion
from xhs_pipeline.judgement.in_use import RELEASES, released_calibration
from xhs_pipeline.judgement.judge import Judge, Post
from xhs_pipeline.policy import load_policy
from xhs_pipeline.vlm.batches import Unfit
from xhs_pipeline.vlm.card import read_card

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # between two looks at the pointer
FOLDERS = re.compile(r"(?<![\w./-])/(?:[^\s/'\":;,]+/)*(?=[^\s/])", re.ASCII)  # an absolute path up to its last part
RETRY_SECONDS = 30.0  # after a model that could not be loaded


@dataclass(frozen=True, eq=False)
class InUse:
    """One release, loaded: every post of a request is judged and decided with one and the same of these."""

    champion: Champion
    judge: Judge
    calibration: Calibration

    @property
    def version(self) -> str:
        return self.champion.version

    @property
    def policy_version(self) -> str:
        return self.judge.policy.version


def load(data: Path, champion: Champion) -> InUse:
    """Load a release and let it answer once, which a model that is put in use must be able to.

    Raises ValueError naming the folder when it is gone, is not what merged_model wrote, or gives no usable answer.
    """
    folder = model_folder(data / RELEASES, champion)
    policy = load_policy()
    if read_card(folder, policy).profile.ocr:
        ocr.require()
    judge = Judge(folder, policy)
    [answer] = judge.judge([Post("warm-up", "标题", "正文")])
    if isinstance(answer, Unfit) or not answer.valid:
        raise ValueError(
            f"{folder}: gives no usable answer; roll back (python -m xhs_pipeline.release) or merge it again"
        )
    calibration = released_calibration(data, champion) or Calibration(min_confidence=judge.profile.min_confidence)
    return InUse(champion, judge, calibration)


class ModelInUse:
    """`current` is the champion, None before there is one; `problem` says why the newest pointer is not served, to anyone who
    asks: it names files within the data folder, and the log says where that is.

    A pointer that cannot be read or a model that cannot be loaded leaves what is in use in use.
    """

    def __init__(self, data: Path, moved: Callable[[InUse], None]):
        self.data, self._moved = data, moved
        self.current: InUse | None = None
        self.problem: str | None = "the model is being loaded; ask again in a moment"

    async def watch(self) -> None:
        """Look at the pointer until cancelled; models are loaded beside the one that answers."""
        while True:
            # gathered, since a model's folder can hold anything and what is in use must survive all of it
            [error] = await asyncio.gather(asyncio.to_thread(self._look), return_exceptions=True)
            if error is not None:
                said = f"{type(error).__name__}: {error}"
                self.problem = self._shown(said)
                log.error("the pointer moved, but its model cannot be served: %s", said)
            await asyncio.sleep(LOOK_SECONDS if error is None else RETRY_SECONDS)

    def _look(self) -> None:
        champion = read_champion(self.data / RELEASES)
        if champion is None:
            said = (
                f"{self.data / RELEASES / POINTER}: missing, so no model is in use; materialise released_model (whose reason says "
                "why a model is held), or name the data folder in XHS_DATA_DIR"
            )
            if self.problem != (shown := self._shown(said)):
                log.warning("%s", said)
            self.problem = shown
        elif self.current is None or champion != self.current.champion:
            before = self.current.version if self.current else "none"
            self.current = load(self.data, champion)
            self.problem = None
            log.info("in use: model %s (before: %s)", champion.version, before)
            self._moved(self.current)
            gc.collect()
        else:
            self.problem = None

    def _shown(self, said: str) -> str:
        """Without the data folder, and of other files the names alone: whoever may not log in learns nothing of the machine."""
        return FOLDERS.sub("", said.replace(f"{self.data}/", ""))
