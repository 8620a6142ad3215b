"""The verbs that ask finished models, compare them and give them to other libraries."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from research.command.arguments import Parser, open_or_say
from research.errors import ConfigError

LIBRARIES = {"hf": "transformers", "peft": "peft"}


def evaluate(arguments: list[str]) -> None:
    """Prints a split's scores as JSON."""
    import jax

    from research.config import override
    from research.evaluate import HeldOut
    from research.infer.loaded import load

    parser = Parser("evaluate")
    parser.add_argument("run")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--data", help="a file to score instead of the run's own split")
    options, overrides = parser.parse_known_args(arguments)
    loaded = load(options.run)
    data = override(loaded.config, overrides, "launch.py evaluate RUN").data
    if options.data is not None:
        data = dataclasses.replace(data, **{options.split: options.data})
    model = dataclasses.replace(loaded.model(), data=data)
    with jax.set_mesh(model.mesh):
        scores = HeldOut(split=options.split)(model)
    print(json.dumps({f"{options.split}/{k}": v for k, v in scores.numbers.items()}))


def predict(arguments: list[str]) -> None:
    """Writes one JSON line for every line read, or all their vectors as one array."""
    from research.infer.loaded import load
    from research.infer.predict import predict as predictions
    from research.infer.predict import write_vectors

    parser = Parser("predict")
    parser.add_argument("run")
    parser.add_argument("--input", default="-", help="a file, or - for standard input")
    parser.add_argument("--output", default="-", help="a file, or - for standard output")
    options = parser.parse_args(arguments)
    loaded = load(options.run)
    with ExitStack() as files:
        if options.input == "-":
            lines: Any = sys.stdin.buffer
        else:
            lines = files.enter_context(open_or_say(options.input, "rb"))
        if options.output.endswith(".npy"):
            write_vectors(Path(options.output), predictions(loaded, lines, name=options.input))
            return
        sink = sys.stdout
        if options.output != "-":
            sink = files.enter_context(open_or_say(options.output, "w"))
        for prediction in predictions(loaded, lines, name=options.input):
            print(json.dumps(prediction, ensure_ascii=False), file=sink)


def generate(arguments: list[str]) -> None:
    """Tells a prompt and what follows it as it comes, or one JSON line for every prompt read."""
    from research.infer import generate as continuing
    from research.infer.language import load
    from research.infer.sampling import Sampling

    parser = Parser("generate")
    parser.add_argument("model", help="a run of CausalLM, a Hugging Face directory or a hub id")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt")
    source.add_argument("--input", help="a file with one prompt a line")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, help="0 takes the most probable; usually 1")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--stop", action="append", default=[], help="a string to stop before")
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args(arguments))
    model, prompt, file = (given.pop(name) for name in ("model", "prompt", "input"))
    rest = {name: given.pop(name) for name in ("max_tokens", "beams", "seed")}
    stops = tuple(given.pop("stop"))
    if given["temperature"] is None:
        given["temperature"] = 0.0 if rest["beams"] > 1 else 1.0
    options = continuing.Options(sampling=Sampling(**given), stops=stops, **rest)
    if file is None:
        continuing.tell(load(model), prompt, options, sys.stdout)
        return
    with open_or_say(file, "rb") as lines:
        for row in continuing.from_lines(load(model), lines, file, options):
            print(json.dumps(row, ensure_ascii=False), flush=True)


def report(arguments: list[str]) -> None:
    """Writes the page of one run, or one that compares several."""
    from research.study.report import compare_page, run_page, write_page

    parser = Parser("report")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--to", default=None, help="the folder for a comparison's page")
    options = parser.parse_args(arguments)
    paths = [Path(path) for path in options.runs]
    page = run_page(paths[0]) if len(paths) == 1 else compare_page(paths)
    target = Path(options.to) if options.to else paths[0] if len(paths) == 1 else Path()
    write_page(page, target)
    print(f"{page.text()}\n\npage: {target / 'report.html'}")


def export(arguments: list[str]) -> None:
    """Writes a directory in another library's format."""
    from flax.traverse_util import flatten_dict

    from research import initialize
    from research.infer.loaded import load
    from research.models import pretrained
    from research.models.pretrained import peft
    from research.strategies.merge import merge

    parser = Parser("export")
    parser.add_argument("run")
    parser.add_argument("--to", nargs=2, required=True, metavar=("hf|peft", "DIR"))
    options = parser.parse_args(arguments)
    kind, target = options.to
    if kind not in ("hf", "peft"):
        raise ConfigError(f"export --to {kind}: the formats are hf and peft")
    loaded = load(options.run)
    config, params = loaded.config, loaded.params
    if kind == "hf":
        pretrained.save(target, loaded.task, merge(params), config.data.tokenizer)
    else:
        leaves = flatten_dict(params, sep="/")
        base = config.init_from
        if base is None or initialize.is_run(base) or config.adapt.redrawn(leaves):
            raise ConfigError(
                f"export --to peft: it keeps what was added to a trunk of Hugging Face, but that "
                f"of {options.run} is another; --to hf keeps all"
            )
        peft.save(target, loaded.task, params, config.adapt.rules(leaves), base)
    print(f"{target}: {type(loaded.task).__name__} of {options.run} for {LIBRARIES[kind]}")


def soup(arguments: list[str]) -> None:
    """Averages the models of runs into a directory that evaluate, predict and export read."""
    from research.soup import soup as averaged

    parser = Parser("soup")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--to", required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    print(f"{averaged(options.runs, options.to)}: the mean of {len(options.runs)} models")
