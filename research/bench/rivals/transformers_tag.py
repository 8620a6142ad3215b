"""Hugging Face Trainer on named entities, as its documentation has it: labels on first sub-words.

    python transformers_tag.py tag MODEL TRAIN.jsonl DEV.jsonl

Rows are {"tokens", "tags"}; told are the tags of each, of the words that fit.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import trainer
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
)


def main():
    given = trainer.options()
    rows, held = trainer.read(given.train), trainer.read(given.dev)
    names = sorted({tag for row in (*rows, *held) for tag in row["tags"]})
    numbers = {tag: i for i, tag in enumerate(names)}
    tokenizer = AutoTokenizer.from_pretrained(given.model)

    def features(rows):
        encoded = tokenizer(
            [row["tokens"] for row in rows],
            is_split_into_words=True,
            truncation=True,
            max_length=given.max_length,
        )
        made = []
        for i, row in enumerate(rows):
            labels, last = [], None
            for word in encoded.word_ids(i):
                first = word is not None and word != last
                labels.append(numbers[row["tags"][word]] if first else -100)
                last = word
            made.append({name: encoded[name][i] for name in encoded} | {"labels": labels})
        return made

    def tell(run, dev):
        guesses = run.predict(dev).predictions.argmax(-1)
        return [
            [names[tag] for tag, label in zip(guess, row["labels"]) if label != -100]
            for guess, row in zip(guesses, dev)
        ]

    model = AutoModelForTokenClassification.from_pretrained(given.model, num_labels=len(names))
    collator = DataCollatorForTokenClassification(tokenizer)
    trainer.fit(given, model, features(rows), features(held), collator, tell, examples=len(rows))


if __name__ == "__main__":
    main()
