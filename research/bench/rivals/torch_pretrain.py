"""A plain loop of PyTorch that pre-trains a class of transformers, drawn anew, with AdamW.

    python torch_pretrain.py masked|causal|permutation|replaced FOLDER --seed N

FOLDER holds train<N>.jsonl, one {"tokens": [[id, ...], ...]} a step, tokenizer.json, config.json
and, for replaced tokens, generator.json. Inputs are made by the collators of transformers.
`--steelman` is fused AdamW, in bfloat16 where the processor multiplies in it; `--compiled` adds
torch.compile; `--lora-rank` leaves the class as it is and trains what peft adds to queries and
values. A GPU is taken where there is one.
"""

import time

STARTED = time.monotonic()

import argparse  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import resource  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
import transformers  # noqa: E402
from processor import native_bfloat16  # noqa: E402

NAMES = {
    "pad_token": ("[PAD]", "<pad>"),
    "mask_token": ("[MASK]", "<mask>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "unk_token": ("[UNK]", "<unk>"),
}
DETECTION_WEIGHT = 50.0


def options():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("masked", "causal", "permutation", "replaced"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--warmup", type=float, default=0.1)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--lora-alpha", type=float, default=16.0)
    parser.add_argument("--steelman", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    return given


def build(path, name=None):
    """A model of a config.json, of the class that it names."""
    kind = getattr(transformers, name or json.loads(path.read_text())["architectures"][0])
    return kind(kind.config_class.from_json_file(path))


def adapted(model, rank, alpha):
    """The model frozen, beside what peft's LoRA adds to it."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=["q_proj", "v_proj"])
    )


def tokenizer_of(folder):
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    known = tokenizer.get_vocab()
    found = {role: [n for n in names if n in known] for role, names in NAMES.items()}
    tokenizer.add_special_tokens({role: names[0] for role, names in found.items() if names})
    return tokenizer


class Replaced(torch.nn.Module):
    """ELECTRA: a generator with the discriminator's table of tokens, and both losses."""

    def __init__(self, folder):
        super().__init__()
        self.discriminator = build(folder / "config.json")
        self.generator = build(folder / "generator.json", "ElectraForMaskedLM")
        ours, theirs = self.discriminator.electra.embeddings, self.generator.electra.embeddings
        theirs.word_embeddings = ours.word_embeddings
        theirs.position_embeddings = ours.position_embeddings
        theirs.token_type_embeddings = ours.token_type_embeddings
        self.generator.generator_lm_head.weight = ours.word_embeddings.weight

    def forward(self, input_ids, attention_mask, labels):
        told = self.generator(input_ids, attention_mask, labels=labels)
        chosen = labels != -100
        drawn = torch.distributions.Categorical(logits=told.logits[chosen].detach()).sample()
        original = torch.where(chosen, labels, input_ids)
        shown = original.masked_scatter(chosen, drawn)
        found = self.discriminator(shown, attention_mask, labels=(shown != original).long())
        return told.loss + DETECTION_WEIGHT * found.loss


def inputs_of(kind, tokenizer):
    """Lists of ids to the arguments of a model, with labels."""
    collators = {
        "masked": {"mlm": True, "mlm_probability": 0.15},
        # All hidden tokens of ELECTRA's generator are shown as the mask.
        "replaced": {
            "mlm": True,
            "mlm_probability": 0.15,
            "mask_replace_prob": 1.0,
            "random_replace_prob": 0.0,
        },
        "causal": {"mlm": False},
    }
    if kind != "permutation":
        collate = transformers.DataCollatorForLanguageModeling(tokenizer, **collators[kind])
        return lambda rows: dict(
            collate([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])
        )
    permute = transformers.DataCollatorForPermutationLanguageModeling(tokenizer)

    def even(rows):
        longest = max(map(len, rows))
        pad = [tokenizer.pad_token_id] * (longest % 2)
        return permute([torch.tensor(row + pad * (len(row) == longest)) for row in rows])

    return even


def main():
    given = options()
    tokenizer = tokenizer_of(given.folder)
    lines = (given.folder / f"train{given.seed}.jsonl").read_text().splitlines()
    steps = [json.loads(line)["tokens"] for line in lines]
    replaced = given.kind == "replaced"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        model = Replaced(given.folder) if replaced else build(given.folder / "config.json")
    if given.lora_rank:
        model = adapted(model, given.lora_rank, given.lora_alpha)
    make = inputs_of(given.kind, tokenizer)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        learning,
        given.learning_rate,
        weight_decay=given.weight_decay,
        fused=given.steelman,
    )
    warmup = max(1, round(given.warmup * len(steps)))
    first, losses, cells, began = None, [], 0, time.monotonic()
    low = given.steelman and native_bfloat16()
    model.train()
    run = torch.compile(model) if given.compiled else model
    for step, rows in enumerate(steps):
        left = (len(steps) - step) / max(1, len(steps) - warmup)
        for group in optimizer.param_groups:
            group["lr"] = given.learning_rate * min(1.0, (step + 1) / warmup, left)
        inputs = {name: value.to(device) for name, value in make(rows).items()}
        cells += inputs["input_ids"].numel()
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            found = run(**inputs)
        loss = found if replaced else found.loss
        optimizer.zero_grad()
        loss.backward()
        if given.clip:
            torch.nn.utils.clip_grad_norm_(learning, given.clip)
        optimizer.step()
        losses.append(loss.detach())
        if first is None:
            losses[0].item()
            first = time.monotonic() - STARTED
    losses = torch.stack(losses).tolist()
    seconds = time.monotonic() - began
    tokens = sum(len(row) for rows in steps for row in rows)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] if given.compiled else 0
    found = {
        "examples_per_second": sum(map(len, steps)) / seconds,
        "tokens_per_second": tokens / seconds,
        "padding": 1 - tokens / cells,
        "compiled": graphs,
        "first_step_seconds": first,
        "dtype": "bfloat16" if low else "float32",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "outputs": math.fsum(losses) / len(losses),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
