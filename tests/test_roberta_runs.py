"""RoBERTa from the command line: a directory fine-tuned, evaluated, asked and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import workshop
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import launch
from research import initialize, runs
from research.infer.loaded import load
from research.models import pretrained
from research.models.transformer import Spec, Transformer
from research.tasks.lm import MaskedLM

ROOT = Path(__file__).parents[1]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ASKED = ["the apple and pear of plum and grape", "iron zinc of the tin copper silver"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, and a tiny RoBERTa with random weights as a Hugging Face directory."""
    folder = tmp_path_factory.mktemp("roberta")
    workshop.write_rows(folder)
    words = [word for group in workshop.WORDS.values() for word in group.split()]
    ids = {word: i for i, word in enumerate([*SPECIAL, *words, "the", "of", "and"])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    spec = Spec(
        vocab_size=len(ids),
        width=16,
        depth=1,
        heads=2,
        hidden=32,
        max_positions=30,
        position_offset=2,
        token_types=1,
    )
    task = MaskedLM(backbone=Transformer(spec), vocab_size=len(ids), mask_id=4)
    row = np.ones((1, 8), np.int32)
    batch: dict[str, Any] = {"tokens": row, "segments": row, "types": row * 0, "ids": row[:, :1]}
    batch |= {"positions": np.arange(8, dtype=np.int32)[None], "lengths": row[:, :1] * 8}
    params = initialize.initialize(task, batch, jax.random.key(0))
    assert pretrained.save(folder / "tiny", task, params, folder / "tokenizer.json") == ()
    assert json.loads((folder / "tiny" / "config.json").read_text())["model_type"] == "roberta"
    return folder


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    """SST-2's config on the rows, from the tiny RoBERTa."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert launch.main([*train(home), "--epochs", "8", "--optim.learning-rate", "1e-2"]) == 0
    return home / "sst2"


def train(home: Path) -> list[str]:
    return [
        "train", "configs/sst2.py", "--workdir", str(home), "--init-from", str(home / "tiny"),
        "--data.train", str(home / "train.tsv"), "--data.dev", str(home / "dev.tsv"),
        "--data.shapes", "1", "--data.max-length", "16", "--batch-size", "8",
        "--data.cache", str(home / "cache"),
    ]  # fmt: skip


def ask(run: Path) -> list[dict[str, Any]]:
    (run / "in.txt").write_text("".join(f"{text}\n" for text in ASKED))
    files = ["--input", str(run / "in.txt"), "--output", str(run / "out.jsonl")]
    assert launch.main(["predict", str(run), *files]) == 0
    return [json.loads(line) for line in (run / "out.jsonl").read_text().splitlines()]


def test_it_is_trained_evaluated_and_asked(
    run: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = runs.read_result(run)
    assert result is not None and result["metrics"]["dev/accuracy"] > 0.8
    capsys.readouterr()
    assert launch.main(["evaluate", str(run), "--data", str(home / "dev.tsv")]) == 0
    scores = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(scores["dev/loss"], result["metrics"]["dev/loss"], rtol=1e-5)
    assert [row["label"] for row in ask(run)] == ["fruit", "metal"]


@pytest.fixture(scope="module")
def exported(run: Path, home: Path) -> Path:
    assert launch.main(["export", str(run), "--to", "hf", str(home / "out")]) == 0
    return home / "out"


def test_it_is_exported_and_fits_again(
    run: Path, home: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["RobertaForSequenceClassification"]
    # Trained from the export for a step at rate 0, it is the model that was exported.
    more = ["--init-from", str(exported), "--name", "again", "--steps", "1", "--epochs", "None"]
    assert launch.main([*train(home), *more, "--optim.learning-rate", "0"]) == 0
    old, new = load(run).params, load(home / "again").params
    jax.tree.map(np.testing.assert_array_equal, old, new)


@pytest.mark.parity
def test_transformers_says_the_same_of_a_text(run: Path, exported: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(exported).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    for row, text in zip(ask(run), ASKED):
        with torch.no_grad():
            found = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        expected = [row["probabilities"][model.config.id2label[i]] for i in range(2)]
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_ids_that_a_table_lacks_are_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer with more types than the trunk has, and texts with more positions."""
    monkeypatch.chdir(ROOT)
    tokenizer = Tokenizer.from_file(str(home / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s>:0 $A:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    capsys.readouterr()
    road = ["--name", "refused", "--workdir", str(tmp_path)]
    assert launch.main([*train(home), *road, "--data.tokenizer", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "gives its tokens 2 types, but the trunk's table has 1" in said
    long = tmp_path / "long.tsv"
    long.write_text("sentence\tlabel\n" + "apple " * 40 + "\tfruit\niron\tmetal\n")
    more = ["--data.train", str(long), "--data.max-length", "32", "--name", "long"]
    assert launch.main([*train(home), *road, *more]) == 2
    said = capsys.readouterr().err
    assert "an example has 32 tokens, but the trunk has 30 positions" in said
    assert said.count("\n") == 1
