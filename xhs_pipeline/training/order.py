"""In what order a run meets its records, and how a record is varied. Pure functions of the seed: a resume needs no state."""

import random
from collections.abc import Sequence
from dataclasses import replace

from xhs_pipeline.vlm.batches import Example


def augment(example: Example, rng: random.Random, protected: frozenset[int], chance: float) -> Example:
    """With probability `chance`, drop up to 30% of the post's tokens, and rotate (20%) or crop (20%) them.

    Only the tokens between protected ones (special, vision and template tokens) of the last user turn move.
    """
    if rng.random() >= chance:
        return example
    ids = example.prompt
    # the user's text is the longest run without a protected token
    start = end = run = 0
    for position, token in enumerate([*ids, next(iter(protected))]):
        if token in protected:
            # what follows <|im_start|>, a prompt's first token, is the template's
            role = run > 0 and ids[run - 1] == ids[0]
            if position - run > end - start and not role:
                start, end = run, position
            run = position + 1
    text = ids[start:end]
    drop = rng.uniform(0, 0.3)
    text = [token for token in text if rng.random() >= drop] or text
    turn = rng.random()
    if turn < 0.2 and len(text) > 1:
        cut = rng.randrange(1, len(text))
        text = text[cut:] + text[:cut]
    elif turn < 0.4 and len(text) > 4:
        size = rng.randrange(len(text) // 2, len(text))
        cut = rng.randrange(len(text) - size + 1)
        text = text[cut : cut + size]
    return replace(example, prompt=ids[:start] + text + ids[end:])


def run_order(lengths: Sequence[int], batch: int, epochs: int, seed: int) -> list[tuple[int, int]]:
    """Every (epoch, record) of a run in order. Within a window of 50 batches, records of like length share a batch.

    The order depends on the arguments only, so that a resumed run needs nothing but its step number to go on.
    """
    order: list[tuple[int, int]] = []
    for epoch in range(epochs):
        rng = random.Random(f"{seed}:{epoch}")
        records = list(range(len(lengths)))
        rng.shuffle(records)
        windows = [records[i : i + 50 * batch] for i in range(0, len(records), 50 * batch)]
        batches = []
        for window in windows:
            window.sort(key=lambda record: lengths[record])
            batches += [window[i : i + batch] for i in range(0, len(window), batch)]
        rng.shuffle(batches)
        order += [(epoch, record) for records in batches for record in records]
    return order
