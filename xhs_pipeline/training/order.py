"""In what order a run meets its records, and how a record is varied. Pure functions of the seed: a resume needs no state.

An update of the weights takes `batch_size * accumulation` records, however they are padded, packed or shared among processes.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from xhs_pipeline.vlm.batches import Example

WINDOW = 50  # batches among which records of like length are brought together


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


def run_batches(
    records: int, batch: int, epochs: int, seed: int, lengths: Sequence[int] | None = None
) -> list[list[tuple[int, int]]]:
    """Every (epoch, record) of a run, in batches of `batch`, shuffled anew each epoch.

    With `lengths`, records of like length share a batch, within a window of 50 batches: that saves padding, at the price of
    less mixed batches. What is left over when an epoch does not divide into batches comes first in the next one, so only the
    run's last batch can be smaller. The order depends on the arguments only, so that a resumed run needs but its step number.
    """
    batches: list[list[tuple[int, int]]] = []
    left: list[tuple[int, int]] = []
    for epoch in range(epochs):
        rng = random.Random(f"{seed}:{epoch}")
        shuffled = [(epoch, record) for record in range(records)]
        rng.shuffle(shuffled)
        shuffled = left + shuffled
        whole = len(shuffled) - len(shuffled) % batch
        shuffled, left = shuffled[:whole], shuffled[whole:]
        if lengths is None:
            batches += [shuffled[i : i + batch] for i in range(0, whole, batch)]
            continue
        made = []
        for begin in range(0, whole, WINDOW * batch):
            window = sorted(shuffled[begin : begin + WINDOW * batch], key=lambda place: lengths[place[1]])
            made += [window[i : i + batch] for i in range(0, len(window), batch)]
        rng.shuffle(made)
        batches += made
    return batches + ([left] if left else [])
