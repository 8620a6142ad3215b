"""What all rivals share: Hugging Face Trainer with its defaults or at its best, and one JSON line.

`--steelman` is the best of its settings: bfloat16 where the processor multiplies in it, batches of
like length, fused AdamW, larger batches to evaluate, on a GPU attention by cuDNN; `--compiled` adds
torch.compile. `--evaluate-every` asks for what is told of dev after so many steps, and when.
"""

import time

STARTED = time.monotonic()

import argparse  # noqa: E402
import contextlib  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
import transformers  # noqa: E402
from processor import native_bfloat16  # noqa: E402
from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: E402

STEELMAN = {
    "train_sampling_strategy": "group_by_length",
    "optim": "adamw_torch_fused",
}


class Asked(Trainer):
    """A Trainer whose predictions come in the order of the rows, also where it groups by length."""

    def _get_eval_sampler(self, dataset):
        return torch.utils.data.SequentialSampler(dataset)


class InOrder(Asked):
    """One that trains in the order of the rows, too."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Steps(TrainerCallback):
    """When the first step ended, and what was told of dev on the way."""

    def __init__(self, every):
        self.every, self.tell = every, None
        self.seconds, self.spent, self.evaluations = None, 0.0, []

    def on_step_end(self, _, state, *__, **___):
        now = time.monotonic()
        self.seconds = self.seconds or now - STARTED
        if self.every and state.global_step % self.every == 0:
            told = self.tell()
            self.evaluations.append((time.monotonic() - STARTED, told))
            self.spent += time.monotonic() - now


class Counted:
    """A collator that counts cells and tokens of training."""

    def __init__(self, collator):
        self.collator, self.cells, self.tokens, self.training = collator, 0, 0, True

    def __call__(self, rows):
        batch = self.collator(rows)
        if self.training:
            self.cells += batch["input_ids"].numel()
            self.tokens += int(batch["attention_mask"].sum())
        return batch


def attention(steelman):
    """cuDNN's attention on a GPU, where it is the fastest; else what PyTorch takes."""
    if not (steelman and torch.cuda.is_available()):
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(
        [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    )


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
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--evaluate-every", type=int, default=0)
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
    low = given.steelman and native_bfloat16()
    with tempfile.TemporaryDirectory() as folder, attention(given.steelman):
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=given.batch_size,
            per_device_eval_batch_size=512 if given.steelman else 128,
            learning_rate=given.learning_rate,
            warmup_steps=round(given.warmup * -(-len(train) // given.batch_size)),
            weight_decay=0.01,
            num_train_epochs=1,
            seed=given.seed,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            logging_strategy="no",
            bf16=low,
            torch_compile=given.compiled,
            **(STEELMAN if given.steelman else {}),
        )
        steps, collator = Steps(given.evaluate_every), Counted(collator)
        trainer = (Asked if given.steelman else InOrder)(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=dev,
            data_collator=collator,
            callbacks=[steps],
        )

        def told():
            collator.training = False
            found = tell(trainer, dev)
            collator.training = True
            return found

        steps.tell = told
        began = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - began - steps.spent
        padding, graphs = 1 - collator.tokens / collator.cells, 0
        if given.compiled:
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        tokens = sum(len(row["input_ids"]) for row in train)
        found = {
            "examples_per_second": examples / seconds,
            "tokens_per_second": tokens / seconds,
            "first_step_seconds": steps.seconds,
            "padding": padding,
            "compiled": graphs,
            "outputs": told(),
            "evaluations": steps.evaluations,
            "dtype": "bfloat16" if low else "float32",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print(json.dumps(found))
