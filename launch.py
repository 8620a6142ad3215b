"""Graft's command line.

    launch.py train FILE [--workdir DIR] [OVERRIDES]          one run of a file in configs/
    launch.py study FILE [--workdir DIR] [KNOBS]              many runs and their comparison
    launch.py show FILE [OVERRIDES]                           the audit, without training
    launch.py evaluate RUN [--split SPLIT] [--data FILE]      scores of a finished run
                       [--data.FIELD VALUE]                   the file's columns, ...
    launch.py predict RUN [--input FILE|-] [--output FILE]    texts in, JSON lines (or .npy) out
    launch.py generate RUN|DIR --prompt TEXT [OPTIONS]        the prompt goes on, as text
                               --input FILE [OPTIONS]         a prompt a line in, JSON lines out
    launch.py report RUN... [--to DIR]                        the page of a run, or of several
    launch.py export RUN --to hf DIR                          a directory transformers loads
    launch.py soup RUN... --to DIR                            the mean of several runs' models
    launch.py export RUN --to peft DIR                        its LoRA, as the peft library keeps it
    launch.py replay RUN                                      the step a run died of (exit 3)
    launch.py tokenizer FILES --kind bpe --size N --to DIR    a tokenizer trained on texts
    launch.py tokenizer --extend DIR --from FILES             a model whose tokenizer knows the N
                        --add N --to DIR                      words that save the most tokens
    launch.py bench WORKLOAD [OPTIONS]                        speed, beside a rival

OVERRIDES are the fields of the config, typed: --optim.learning-rate 3e-5. `launch.py train FILE
--help` lists those of a file. Exit codes: 0 done, 2 config, 3 non-finite, 4 locked, 5 hang, 6
storage, 7 data, 143 told to stop after saving.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import typing
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from research.errors import ConfigError, GraftError, StorageError


def main(arguments: list[str]) -> int:
    """Runs one verb; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    try:
        if arguments[0] not in VERBS:
            raise ConfigError(f"no verb {arguments[0]!r}; there are {', '.join(VERBS)}")
        set_up_jax()
        VERBS[arguments[0]](arguments[1:])
    except GraftError as error:
        print(f"graft: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone: nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return 0


def set_up_jax() -> None:
    """The only place that touches JAX's settings: compiled programs are kept between processes."""
    import jax

    cache = os.environ.get("GRAFT_CACHE", str(Path.home() / ".cache" / "graft"))
    jax.config.update("jax_compilation_cache_dir", str(Path(cache) / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are ConfigErrors, and whose options are never abbreviated."""

    def __init__(self, verb: str, **settings: Any) -> None:
        super().__init__(prog=f"launch.py {verb}", allow_abbrev=False, **settings)

    def error(self, message: str) -> Any:
        raise ConfigError(f"{self.prog}: {message}")


def parse_file(verb: str, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """FILE, --workdir and --name; the rest is for the file's own fields, its --help too."""
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] in ("-h", "--help"):
            print(__doc__.strip())
            raise SystemExit(0)
        raise ConfigError(f"launch.py {verb}: give a FILE first")
    parser = Parser(verb, add_help=False)
    parser.add_argument("file")
    parser.add_argument("--workdir", default="runs")
    return parser.parse_known_args(arguments)


def train(arguments: list[str]) -> None:
    """Audit, run, page, result."""
    from research import initialize, results
    from research.config import load_config
    from research.study.report import audit_page, run_page, write_page
    from research.train import run

    options, overrides = parse_file("train", arguments)
    config = load_config(options.file, overrides, f"launch.py train {options.file}")
    print(audit_page(initialize.examine(config)).text(), flush=True)
    result = run(config, options.workdir, progress=True)
    write_page(run_page(result.path), result.path)
    print(f"\n{result.path}: {results.sentence(result.summary)}\npage: {result.path}/report.html")


def study(arguments: list[str]) -> None:
    """Hands `run` to the file's study, writes its page and prints it."""
    from research.config import load
    from research.study.report import write_page
    from research.study.runner import Runner, knobs

    options, overrides = parse_file("study", arguments)
    function = load(options.file, "study")
    settings = knobs(function, overrides, f"launch.py study {options.file}")
    runner = Runner(Path(options.workdir) / Path(options.file).stem)
    page = function(runner, **settings)
    write_page(page, runner.path)
    print(f"{page.text()}\n\npage: {runner.path}/report.html")


def show(arguments: list[str]) -> None:
    """Prints the audit."""
    from research import initialize
    from research.config import load_config
    from research.study.report import audit_page

    options, overrides = parse_file("show", arguments)
    config = load_config(options.file, overrides, f"launch.py show {options.file}")
    print(audit_page(initialize.examine(config)).text())


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


def open_or_say(path: str, mode: str) -> Any:
    """An open file; raises ConfigError or StorageError with the reason where it cannot be."""
    try:
        return Path(path).open(mode, encoding=None if "b" in mode else "utf-8")
    except OSError as error:
        kind = ConfigError if "r" in mode else StorageError
        raise kind(f"{path}: {error.strerror}") from None


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


def replay(arguments: list[str]) -> None:
    """Takes the step again that a run could not take, and prints its means."""
    from research.replay import replay as replayed

    parser = Parser("replay")
    parser.add_argument("run")
    print(json.dumps(replayed(parser.parse_args(arguments).run)))


def tokenizer(arguments: list[str]) -> None:
    """Trains a tokenizer on documents, or extends that of a Hugging Face directory by words."""
    from research.data import subwords
    from research.data.documents import Reader
    from research.models.pretrained import extend

    parser = Parser("tokenizer")
    parser.add_argument("files", nargs="*", metavar="FILES", help="sources, as data.train may be")
    parser.add_argument("--kind", choices=typing.get_args(subwords.Kind))
    parser.add_argument("--size", type=int, help="tokens in all")
    parser.add_argument("--extend", metavar="DIR", help="a Hugging Face directory")
    parser.add_argument("--from", dest="source", nargs="+", default=[], metavar="FILES")
    parser.add_argument("--add", type=int, metavar="N", help="the most words to add")
    parser.add_argument("--text", default="text", help="the column of files with columns")
    parser.add_argument("--to", required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    reader = Reader(text=options.text)
    if options.extend is not None:
        if options.files or not options.source or options.add is None:
            raise ConfigError("launch.py tokenizer: --extend DIR goes with --from FILES --add N")
        texts = reader.texts(options.source)
        print(extend.by_words(options.extend, texts, options.add, options.to))
        return
    if not options.files or options.kind is None or options.size is None:
        raise ConfigError("launch.py tokenizer: give FILES, --kind and --size, or --extend DIR")
    subwords.train(options.kind, reader.texts(options.files), options.size, options.to)
    print(f"{options.to}: {options.kind} of {subwords.size(options.to)} tokens")


def bench(arguments: list[str]) -> None:
    """Runs a workload of ours and of its rival in turn, and prints ratios."""
    from research.bench import main as run_bench

    run_bench(arguments)


LIBRARIES = {"hf": "transformers", "peft": "peft"}
VERBS = {
    verb.__name__: verb
    for verb in (
        train,
        study,
        show,
        evaluate,
        predict,
        generate,
        report,
        export,
        soup,
        replay,
        tokenizer,
        bench,
    )
}


def with_huge_pages() -> None:
    """Starts this process anew with glibc's malloc on huge pages, unless it is told otherwise.

    XLA on a CPU takes its temporaries anew every step; in pages of 4 KiB, faulting them in is an
    eighth of the step. glibc reads the setting only when a process starts (its manual, Tunables).
    """
    name = "GLIBC_TUNABLES"
    if sys.platform == "linux" and name not in os.environ and sys.orig_argv:
        os.environ[name] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    with_huge_pages()
    sys.exit(main(sys.argv[1:]))
