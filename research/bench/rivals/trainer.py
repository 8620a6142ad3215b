"""What all rivals share: Hugging Face Trainer with its defaults or at its best, and one JSON line.

`--steelman` is the best of its settings for a CPU: bfloat16, batches of like length, fused AdamW.
"""

import time

STARTED = time.monotonic()

import argparse  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: E402

STEELMAN = {
    "bf16": True,
    "train_sampling_strategy": "group_by_length",
    "optim": "adamw_torch_fused",
}


class InOrder(Trainer):
    """A Trainer that keeps the order of its rows."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class FirstStep(TrainerCallback):
    """When the first step ended."""

    seconds = None

    def on_step_end(self, *_, **__):
        self.seconds = self.seconds or time.monotonic() - STARTED


def options():
    """KIND MODEL TRAIN.jsonl DEV.jsonl, and how to train."""
    parser = argparse.ArgumentParser()
    for name in ("kind", "model", "train", "dev"):
        parser.add_argument(name)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--warmup", type=float, default=0.1)
    parser.add_argument("--stride", type=int, default=128)
    parser.add_argument("--steelman", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    return given


def read(path):
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def fit(given, model, train, dev, collator, tell, *, examples):
    """Trains for one epoch, and prints what was measured and what `tell(trainer, dev)` predicts.

    `train` is a list of features, `examples` the number of rows they are from.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=given.batch_size,
            per_device_eval_batch_size=128,
            learning_rate=given.learning_rate,
            warmup_steps=round(given.warmup * -(-len(train) // given.batch_size)),
            weight_decay=0.01,
            num_train_epochs=1,
            seed=given.seed,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            logging_strategy="no",
            **(STEELMAN if given.steelman else {}),
        )
        first = FirstStep()
        trainer = (Trainer if given.steelman else InOrder)(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=dev,
            data_collator=collator,
            callbacks=[first],
        )
        began = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - began
        tokens = sum(len(row["input_ids"]) for row in train)
        found = {
            "examples_per_second": examples / seconds,
            "tokens_per_second": tokens / seconds,
            "first_step_seconds": first.seconds,
            "outputs": tell(trainer, dev),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print(json.dumps(found))
