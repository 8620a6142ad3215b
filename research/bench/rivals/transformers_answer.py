"""Hugging Face Trainer on reading comprehension, as its documentation has it: windows with stride.

    python transformers_answer.py answer MODEL TRAIN.jsonl DEV.jsonl --stride 128

Rows are {"id", "question", "context", "answers"}; told is the answer of each, "" for none.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import trainer
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, DataCollatorWithPadding

NBEST, LONGEST = 20, 30


def main():
    given = trainer.options()
    tokenizer = AutoTokenizer.from_pretrained(given.model)

    def windows(rows):
        return tokenizer(
            [row["question"] for row in rows],
            [row["context"] for row in rows],
            truncation="only_second",
            max_length=given.max_length,
            stride=given.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def features(rows, encoded):
        made = []
        for i, row in enumerate(encoded["overflow_to_sample_mapping"]):
            inside = context(encoded, i)
            start, end = place(rows[row]["answers"], encoded["offset_mapping"][i], inside)
            feature = {name: encoded[name][i] for name in tokenizer.model_input_names}
            made.append(feature | {"start_positions": start, "end_positions": end})
        return made

    rows, held = trainer.read(given.train), trainer.read(given.dev)
    encoded = windows(held)

    def tell(run, dev):
        starts, ends = run.predict(dev).predictions[:2]
        best = [("", -np.inf)] * len(held)
        null = [np.inf] * len(held)
        for i, row in enumerate(encoded["overflow_to_sample_mapping"]):
            null[row] = min(null[row], starts[i][0] + ends[i][0])
            offsets, inside = encoded["offset_mapping"][i], set(context(encoded, i))
            for a in np.argsort(-starts[i])[:NBEST]:
                for b in np.argsort(-ends[i])[:NBEST]:
                    score = starts[i][a] + ends[i][b]
                    fits = a in inside and b in inside and a <= b < a + LONGEST
                    if fits and score > best[row][1]:
                        text = held[row]["context"][offsets[a][0] : offsets[b][1]]
                        best[row] = (text, score)
        return [text if score > none else "" for (text, score), none in zip(best, null)]

    model = AutoModelForQuestionAnswering.from_pretrained(given.model)
    collator = DataCollatorWithPadding(tokenizer)
    train, dev = features(rows, windows(rows)), features(held, encoded)
    trainer.fit(given, model, train, dev, collator, tell, examples=len(rows))


def context(encoded, i):
    """The places of a window's context tokens."""
    return [place for place, part in enumerate(encoded.sequence_ids(i)) if part == 1]


def place(answers, offsets, inside):
    """First and last token of the first answer, (0, 0) where the window has not all of it."""
    if not answers["text"]:
        return 0, 0
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    if offsets[inside[0]][0] > start or offsets[inside[-1]][1] < end:
        return 0, 0
    first = max(i for i in inside if offsets[i][0] <= start)
    last = min(i for i in inside if offsets[i][1] >= end)
    return first, last


if __name__ == "__main__":
    main()
