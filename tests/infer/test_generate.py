"""Text that goes on: a real Llama to the letter, whole characters, stop strings, the CLI."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import workshop
from tiny_decoders import STORIES, write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import launch
from research import train
from research.errors import ConfigError
from research.infer.detokenize import BROKEN, Detokenizer, Stopper
from research.infer.generate import Continuation, Options, from_lines, generate
from research.infer.language import load
from research.infer.sampling import Sampling
from research.models.transformer import Spec, Transformer
from research.tasks.causal import CausalLM

GREEDY = Sampling(temperature=0.0)
stories = pytest.mark.skipif(not STORIES.is_dir(), reason="stories260K is not at hand")
TEXT = "naïve café, 日本語の文章 — 👩‍🔬 e\u0301 \U0001f600! Ünïcödé; 中文，ok\n\ttabs"


def byte_tokenizer() -> Tokenizer:
    """One token a byte, as byte-level BPE without merges has it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TOKENIZERS = [byte_tokenizer()] + (
    [Tokenizer.from_file(str(STORIES / "tokenizer.json"))] if STORIES.is_dir() else []
)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_characters_are_told_whole_and_once(tokenizer):
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    for split in range(0, len(ids), 7):
        whole = tokenizer.decode(ids[:split])
        if whole.endswith(BROKEN):
            continue
        text = Detokenizer(tokenizer, ids[:split])
        pieces = [text.add(token) for token in ids[split:]]
        assert not any(BROKEN in piece for piece in pieces)
        assert whole + "".join(pieces) + text.finish() == TEXT


def test_bytes_that_are_no_character_are_told_at_the_end():
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("a日").ids
    text = Detokenizer(tokenizer, [])
    assert [text.add(token) for token in ids[:-1]] == ["a", "", ""]
    assert text.finish() == BROKEN
    assert text.finish() == ""


def test_stop_strings_end_texts_and_are_not_told():
    generator = random.Random(0)
    for _ in range(300):
        text = "".join(generator.choices("abc", k=generator.randint(0, 14)))
        stops = ["".join(generator.choices("abc", k=generator.randint(2, 4))) for _ in range(2)]
        stopper, told, rest = Stopper(stops), "", text
        ends = [place for place in map(text.find, stops) if place >= 0]
        expected = text[: min(ends)] if ends else text
        while rest:
            size = generator.randint(1, 3)
            told, rest = told + stopper.add(rest[:size]), rest[size:]
            assert expected.startswith(told)
        assert told + stopper.finish() == expected
        assert stopper.stopped == bool(ends)


@stories
def test_a_real_llama_goes_on_as_llama2_c_does():
    expected = json.loads((STORIES / "expected.json").read_text())
    model = load(STORIES)
    options = Options(sampling=GREEDY, max_tokens=256)
    one = Continuation(model, "", options)
    assert one.ids == expected["greedy_ids"][:1]
    pieces = [piece for _, piece in generate(model, [one], options)]
    assert one.tokens == expected["greedy_ids"][1:]
    assert "".join(pieces) == one.text == expected["greedy_text"]
    assert one.finish == "length" and len(pieces) > 100


@stories
def test_lines_are_continued_alike_in_any_company():
    model = load(STORIES)
    lines = [b" One day\n", b" Lily and Tom went\r\n", b" The\n"]
    for sampling in (GREEDY, Sampling(temperature=0.9, top_k=20)):
        options = Options(sampling=sampling, max_tokens=12, seed=3, stops=(".",))
        rows = list(from_lines(model, lines, "x", options, rows=2))
        assert rows == list(from_lines(model, lines, "x", options, rows=3))
        assert [row["prompt"] for row in rows] == [" One day", " Lily and Tom went", " The"]
        for row in rows:
            assert "." not in row["text"]
            assert row["finish"] == "length" or row["tokens"] < 13
    other = Options(sampling=sampling, max_tokens=12, seed=4, stops=(".",))
    assert list(from_lines(model, lines, "x", other)) != rows


@stories
def test_a_pipe_gets_the_prompt_and_what_follows_it_and_nothing_else(capfd):
    expected = json.loads((STORIES / "expected.json").read_text())["greedy_text"]
    prompt = expected[:30]
    arguments = ["generate", str(STORIES), "--prompt", prompt, "--temperature", "0"]
    assert launch.main([*arguments, "--max-tokens", "30", "--stop", " big"]) == 0
    found, _ = capfd.readouterr()
    assert found.startswith(prompt)
    model, options = load(STORIES), Options(sampling=GREEDY, max_tokens=30, stops=(" big",))
    one = Continuation(model, prompt, options)
    for _ in generate(model, [one], options):
        pass
    assert found == prompt + one.text


def test_ends_are_those_that_the_directory_names(tmp_path):
    directory = write(tmp_path / "a", "llama")
    model = load(directory)
    assert (model.eos, model.before, model.always_before) == ((2,), (1,), False)
    options = Options(sampling=GREEDY, max_tokens=9)
    one = Continuation(model, "w5 w9 w30", options)
    told = "".join(piece for _, piece in generate(model, [one], options))
    assert one.finish == "length" and len(one.tokens) == 9
    assert told == "".join(f" w{i}" for i in one.tokens if i > 2)
    last = one.tokens[4]
    first = one.tokens.index(last)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, last]}))
    again = Continuation(load(directory), "w5 w9 w30", options)
    for _ in generate(load(directory), [again], options):
        pass
    assert (again.finish, again.tokens) == ("eos", one.tokens[: first + 1])
    assert f"w{last}" not in again.text.split()


def test_texts_end_where_positions_do(tmp_path):
    model = load(write(tmp_path, "gpt2"))
    options = Options(sampling=GREEDY, max_tokens=50)
    long, short = (Continuation(model, " ".join(["w7"] * n), options) for n in (30, 3))
    for _ in generate(model, [long, short], options):
        pass
    assert (len(long.tokens), long.finish) == (2, "length")
    assert len(short.tokens) == 29 or short.finish == "eos"
    with pytest.raises(ConfigError, match=r"the prompt has 32 tokens, but .* has 32 positions"):
        Continuation(model, " ".join(["w7"] * 32), options)


def test_a_run_of_causal_lm_goes_on(tmp_path, capfd):
    workshop.write_rows(tmp_path)
    spec = Spec(
        vocab_size=80,
        width=32,
        depth=1,
        heads=2,
        hidden=32,
        max_positions=32,
        causal=True,
        positions="rotary",
        norm_first=True,
    )
    task = CausalLM(backbone=Transformer(spec))
    config = workshop.config(tmp_path, task=task, evals=(), track=None, save_every=12)
    result = train.run(config, tmp_path / "runs")
    capfd.readouterr()
    arguments = ["generate", str(result.path), "--max-tokens", "6"]
    assert launch.main([*arguments, "--prompt", "apple pear", "--temperature", "0"]) == 0
    found, _ = capfd.readouterr()
    assert found.startswith("apple pear") and "\n" not in found
    model = load(result.path)
    words = model.tokenizer.get_vocab()
    # The tokenizer begins texts with [CLS] and ends them with [SEP]; a prompt has no end yet.
    ids = [words["[CLS]"], words["apple"], words["pear"]]
    assert (model.encode("apple pear"), model.eos) == (ids, (words["[SEP]"],))
    (tmp_path / "prompts.txt").write_text("apple pear\niron\n")
    assert launch.main([*arguments, "--input", str(tmp_path / "prompts.txt"), "--beams", "2"]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == ["apple pear", "iron"]
    assert all(set(row) == {"prompt", "text", "tokens", "finish"} for row in rows)
    assert launch.main(["generate", str(tmp_path), "--prompt", "x"]) == 2


BERT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
REFUSED = [
    (["--temperature", "-1"], "temperature is -1.0, expected a number from 0 up"),
    (["--temperature", "warm"], "argument --temperature: invalid float value: 'warm'"),
    (["--temperature", "0", "--top-p", "0.5"], "top_k, top_p and min_p would do nothing"),
    (["--beams", "3", "--temperature", "1"], "which leaves nothing for temperature"),
    (["--beams", "0"], "beams is 0, expected a positive integer"),
    (["--max-tokens", "0"], "max_tokens is 0, expected a positive integer"),
    (["--stop", ""], "a stop string is empty"),
    (["--input", "x"], "argument --input: not allowed with argument --prompt"),
]


@pytest.mark.parametrize("flags, words", REFUSED)
def test_bad_options_are_one_sentence(tmp_path, capfd, flags, words):
    arguments = ["generate", str(write(tmp_path, "llama")), "--prompt", "w3", *flags]
    assert launch.main(arguments) == 2
    told = capfd.readouterr()
    assert words in told.err and told.err.count("\n") == 1 and told.out == ""


def test_models_that_cannot_go_on_are_named(tmp_path, capfd):
    encoder = write(tmp_path / "bert", "llama", **BERT, model_type="bert", hidden_act="gelu")
    unknown = write(tmp_path / "other", "llama", model_type="rwkv")
    for directory, words in (
        (encoder, "bert: is an encoder, and generate needs a causal language model"),
        (unknown, "config.json: model_type is 'rwkv', supported: 'bert', "),
        (Path("no such"), "no such directory"),
    ):
        assert launch.main(["generate", str(directory), "--prompt", "w3"]) == 2
        told = capfd.readouterr().err
        assert words in told and told.count("\n") == 1
    lines = tmp_path / "prompts.txt"
    for raw, words in (
        (b"w3\n\n", "prompts.txt:2: the line is empty"),
        (b"w3\n\xff\n", "prompts.txt:2: not UTF-8 at byte 0"),
        (b" ".join([b"w3"] * 40), "prompts.txt:1: the prompt has 40 tokens, but"),
    ):
        lines.write_bytes(raw)
        directory = write(tmp_path / "llama", "llama")
        assert launch.main(["generate", str(directory), "--input", str(lines)]) == 7
        assert words in capfd.readouterr().err
