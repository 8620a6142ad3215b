"""Decoders live beside transformers: numbers, exports, generation, and GPT-2's tokenizer."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers")

from make_decoder_reference import CONFIGS, random_model  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

from research.data.vocabulary import load_tokenizer  # noqa: E402
from research.infer import beam, decode  # noqa: E402
from research.infer.sampling import Sampling  # noqa: E402
from research.models import pretrained  # noqa: E402
from research.tasks.causal import CausalLM  # noqa: E402
from research.tasks.classify import Classify  # noqa: E402

GPT2 = Path(__file__).parents[3] / "shared" / "ckpt" / "tokenizers" / "gpt2"
PROMPTS = [[5, 9, 30, 7, 12, 3, 21], [8, 4], [11, 6, 11, 39]]


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def batch_of(rows: Any) -> dict[str, jax.Array]:
    """Texts of one length, one a row."""
    tokens = jnp.asarray(np.asarray(rows), jnp.int32)
    batch = {"tokens": tokens, "segments": jnp.ones_like(tokens)}
    batch["positions"] = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    batch["ids"] = jnp.arange(len(tokens))[:, None]
    return batch | {
        "starts": jnp.zeros_like(batch["ids"]),
        "lengths": jnp.full_like(batch["ids"], tokens.shape[1]),
    }


def load(directory: Path, task: Any) -> Any:
    abstract = jax.eval_shape(
        lambda key: task.init({"params": key}, batch_of([[1, 2]]), method=whole)["params"],
        jax.random.key(0),
    )
    params, account = pretrained.load(directory, abstract, fresh=lambda paths: {}, allow="$^")
    assert account.unused == ()
    return params


def whole(task: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """What the task's class of transformers calls logits."""
    if isinstance(task, CausalLM):
        return task.backbone.logits(task.backbone(batch))
    return task.logits(batch)[:, 0]


def tokenizer_file(folder: Path) -> Path:
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 39} | {f"w{i}": i for i in range(3, 39)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<pad>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.mark.parametrize("name", CONFIGS)
def test_exports_load_and_say_the_same(tmp_path: Path, name: str) -> None:
    model = random_model(CONFIGS[name])
    model.save_pretrained(tmp_path / "in")
    task = CausalLM(backbone=pretrained.trunk(tmp_path / "in"))
    params = load(tmp_path / "in", task)
    ids = torch.randint(3, 39, (3, 11), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(ids).logits
    found = task.apply({"params": params}, batch_of(ids), method=whole)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    pretrained.save(tmp_path / "out", task, params, tokenizer_file(tmp_path))
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert type(again) is type(model) and not any(report.values()), report
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, expected)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen2", "qwen3"])
def test_classifiers_pool_the_last_token(tmp_path: Path, name: str) -> None:
    labels = ("no", "maybe", "yes")
    kind = transformers.AutoModelForSequenceClassification
    config = type(CONFIGS[name])(**CONFIGS[name].to_dict() | {"num_labels": 3, "pad_token_id": 39})
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    model = random_model(config, kind)
    model.save_pretrained(tmp_path / "in")
    trunk = pretrained.trunk(tmp_path / "in")
    task = Classify(backbone=trunk, labels=labels, pool="last", pooler=False, head_bias=False)
    assert pretrained.fits(tmp_path / "in", task)
    params = load(tmp_path / "in", task)
    ids = torch.randint(3, 39, (3, 8), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(ids).logits
    found = task.apply({"params": params}, batch_of(ids), method=whole)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    settings = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    pretrained.save(tmp_path / "out", task, params, tokenizer_file(tmp_path))
    again, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    padded = torch.cat([ids, torch.full((3, 2), 39)], dim=1)
    mask = (padded != 39).long()
    with torch.no_grad():
        got = again.eval()(padded, attention_mask=mask).logits
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
    assert again.config.id2label == dict(enumerate(labels))


@pytest.mark.parametrize("name", ["gpt2", "mistral", "qwen3"])
def test_generation_is_that_of_transformers(tmp_path: Path, name: str) -> None:
    """Greedy, with a repetition penalty, and by beams."""
    model = random_model(CONFIGS[name])
    model.save_pretrained(tmp_path)
    task = CausalLM(backbone=pretrained.trunk(tmp_path))
    params = load(tmp_path, task)["backbone"]
    keys = jax.random.split(jax.random.key(0), len(PROMPTS))

    def theirs(prompt: list[int], **more: Any) -> list[int]:
        # An id that is never made, so that no text ends early.
        more |= {"eos_token_id": 1000, "pad_token_id": 0, "max_new_tokens": 12, "do_sample": False}
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **more)
        return out[0, len(prompt) :].tolist()

    for penalty in (1.0, 1.4):
        sampling = Sampling(temperature=0.0, repetition_penalty=penalty)
        stream = decode.tokens_after(task.backbone, params, PROMPTS, keys, sampling, 12)
        found = np.stack(list(stream), axis=1).tolist()
        assert found == [theirs(prompt, repetition_penalty=penalty) for prompt in PROMPTS]
    for prompt in PROMPTS:
        best, _ = beam.search(task.backbone, params, prompt, width=3, count=12, eos=())
        assert best == theirs(prompt, num_beams=3)


@pytest.mark.skipif(not GPT2.is_dir(), reason="GPT-2's vocabulary is not at hand")
def test_gpt2_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    ours = load_tokenizer(str(GPT2))
    for old, new in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        (tmp_path / new).write_bytes((GPT2 / old).read_bytes())
    theirs = transformers.GPT2TokenizerFast.from_pretrained(tmp_path)
    for text in (
        "Hello world, it's 1,234.5 o'clock!",
        "naïve 日本語 \U0001f600\n\n  indented\tcode()",
        " a<|endoftext|>b",
        Path(textwrap.__file__).read_text()[:4000],
    ):
        assert ours.encode(text).ids == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text).ids) == theirs.decode(
            theirs(text)["input_ids"], skip_special_tokens=True
        )
    again = load_tokenizer(str(tmp_path))
    assert again.to_str() == ours.to_str()
