"""How many bytes of UTF-8 the text of an example has, windows and truncated texts included."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer

from research.data.tokenize import Encoded, Template


def byte_counts(texts: Sequence[str], encoded: Encoded, tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of each example of single texts, int32 [examples].

    The examples of a text share its bytes between them, each up to where the next begins; what was
    cut off a text counts for none. Only texts in several pieces, or cut, are tokenised again.
    """
    special = Template.of(tokenizer, 1).size
    lengths, row_of = encoded.lengths - special, encoded.row_of
    found = np.array([len(texts[row].encode()) for row in row_of.tolist()], np.int32)
    edges = np.flatnonzero(np.append(np.diff(row_of, prepend=-1) != 0, True))
    # An example that is not as long as it could be is a whole text or the last piece of one.
    full = encoded.lengths == encoded.lengths.max()
    for first, after in zip(edges[:-1].tolist(), edges[1:].tolist()):
        if after - first == 1 and not full[first]:
            continue
        text = texts[int(row_of[first])]
        offsets = tokenizer.encode(text, add_special_tokens=False).offsets
        ends = np.cumsum(lengths[first:after]).tolist()
        marks = [0, *(offsets[end][0] if end < len(offsets) else len(text) for end in ends)]
        for i, (start, end) in enumerate(pairwise(marks)):
            found[first + i] = len(text[start:end].encode())
    return found
