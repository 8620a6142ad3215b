"""Hugging Face Trainer on texts or pairs of them, as its documentation has it.

    python transformers_classify.py classify|regress MODEL TRAIN.jsonl DEV.jsonl

Rows are {"text", "pair", "label"} with numbers for labels; told are the logits of each.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import trainer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding


def main():
    given = trainer.options()
    tokenizer = AutoTokenizer.from_pretrained(given.model)

    def features(rows):
        pairs = None if rows[0]["pair"] is None else [row["pair"] for row in rows]
        texts = [row["text"] for row in rows]
        encoded = tokenizer(texts, pairs, truncation=True, max_length=given.max_length)
        return [
            {name: values[i] for name, values in encoded.items()} | {"labels": row["label"]}
            for i, row in enumerate(rows)
        ]

    def tell(run, dev):
        return run.predict(dev).predictions.tolist()

    rows, held = trainer.read(given.train), trainer.read(given.dev)
    labels = [row["label"] for row in (*rows, *held)]
    model = AutoModelForSequenceClassification.from_pretrained(
        given.model, num_labels=1 if given.kind == "regress" else 1 + max(labels)
    )
    collator = DataCollatorWithPadding(tokenizer)
    trainer.fit(given, model, features(rows), features(held), collator, tell, examples=len(rows))


if __name__ == "__main__":
    main()
