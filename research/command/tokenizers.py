"""The verb that makes tokenizers, and extends those of models."""

from __future__ import annotations

import typing

from research.command.arguments import Parser
from research.errors import ConfigError


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
