"""Hugging Face Trainer on a text classification, as its documentation has it; prints one JSON line.

    python transformers_classify.py MODEL TRAIN.jsonl DEV.jsonl --seed 0 [--steelman]

Rows are {"text", "label"} with integer labels, trained on in their order for one epoch.
`--steelman` is the best of its settings for a CPU: bfloat16, batches of like length, fused AdamW.
"""

import time

STARTED = time.monotonic()

import argparse  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Rows(torch.utils.data.Dataset):
    """Tokenised rows of a JSON-lines file."""

    def __init__(self, path, tokenizer):
        rows = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
        encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=128)
        self.rows = [
            {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": row["label"]}
            for ids, row in zip(encoded["input_ids"], rows)
        ]
        self.tokens = sum(len(row["input_ids"]) for row in self.rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class InOrder(Trainer):
    """A Trainer that keeps the order of its rows."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class FirstStep(TrainerCallback):
    """When the first step ended."""

    seconds = None

    def on_step_end(self, *_, **__):
        self.seconds = self.seconds or time.monotonic() - STARTED


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("train")
    parser.add_argument("dev")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steelman", action="store_true")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    train, dev = Rows(options.train, tokenizer), Rows(options.dev, tokenizer)
    torch.manual_seed(options.seed)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2)
    best = (
        {"bf16": True, "train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"}
        if options.steelman
        else {}
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=128,
            learning_rate=5e-5,
            num_train_epochs=1,
            seed=options.seed,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            logging_strategy="no",
            **best,
        )
        first = FirstStep()
        trainer = (Trainer if options.steelman else InOrder)(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=dev,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda p: {"accuracy": float((np.argmax(p[0], -1) == p[1]).mean())},
            callbacks=[first],
        )
        began = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - began
        accuracy = trainer.evaluate()["eval_accuracy"]
    print(
        json.dumps(
            {
                "examples_per_second": len(train) / seconds,
                "tokens_per_second": train.tokens / seconds,
                "first_step_seconds": first.seconds,
                "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "accuracy": accuracy,
            }
        )
    )


if __name__ == "__main__":
    main()
