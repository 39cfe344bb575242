"""Running texts of mixed lengths: like with like, each distinct one once.

A batch costs as much as its longest text times their number, so one long text among short ones would
make all of them long. Where a model takes sequences at their real length, texts are put into groups of
like length, padded to a multiple of ``STEP``: few lengths, so that runtimes meet few shapes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.runtimes import Session
from models.tokenizer import Tokenizer

STEP = 8


def encode_tokens(
    session: Session, tokenizer: Tokenizer, tokens: Sequence[NDArray[np.int64]]
) -> NDArray[np.float32]:
    """N token sequences, int64 (length,) each → features float32 (N, D), in the order given."""
    places: dict[bytes, list[int]] = defaultdict(list)
    for place, ids in enumerate(tokens):
        places[ids.tobytes()].append(place)
    groups: dict[int, list[list[int]]] = defaultdict(list)
    for same in places.values():
        groups[-(-len(tokens[same[0]]) // STEP)].append(same)
    features: NDArray[np.float32] | None = None
    for group in groups.values():
        rows = session.run(tokenizer.pad([tokens[same[0]] for same in group], multiple_of=STEP))
        if features is None:
            features = np.empty((len(tokens), rows.shape[1]), np.float32)
        for same, row in zip(group, rows, strict=True):
            features[same] = row
    if features is None:
        raise ValueError("tokens: there are none")
    return features
