"""Graft's command line.

    launch.py train FILE [--workdir DIR] [OVERRIDES]          one run of a file in configs/
              [--seeds 0,1,2] [--sweep FIELD=VALUE,VALUE] several as one program, a run each
              [--coordinator HOST:PORT --processes N --process I] one of N processes of a run
    launch.py study FILE [--workdir DIR] [KNOBS]              many runs and their comparison
                    [--dry-run]                               its arms and their cost, untrained
    launch.py reproduce REPORT ROW                            one run of a study, made again
    launch.py show FILE [OVERRIDES]                           the audit, without training
    launch.py plan FILE --topology v5e-256 [--to FILE]        the step on chips that are not here:
                   [OVERRIDES]                                memory, collectives, time predicted
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
              growth [OPTIONS]                                time and memory as things grow

OVERRIDES are the fields of the config, typed: --optim.learning-rate 3e-5. `launch.py train FILE
--help` lists those of a file. Exit codes: 0 done, 2 config, 3 non-finite, 4 locked, 5 hang, 6
storage, 7 data, 143 told to stop after saving.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from research.command import models, runs, scale, tokenizers
from research.errors import ConfigError, GraftError

VERBS = {
    verb.__name__: verb
    for verb in (
        runs.train,
        runs.study,
        runs.reproduce,
        runs.show,
        scale.plan,
        models.evaluate,
        models.predict,
        models.generate,
        models.report,
        models.export,
        models.soup,
        runs.replay,
        tokenizers.tokenizer,
        runs.bench,
    )
}
HELP: tuple[list[str], ...] = ([], ["-h"], ["--help"])
# Their other options are those of a file.
FILES = (["train"], ["study"], ["show"], ["plan"])


def main(arguments: list[str]) -> int:
    """Runs one verb; returns the exit code."""
    try:
        if arguments in HELP or (arguments[:1] in FILES and arguments[1:] in HELP[1:]):
            print(__doc__.strip())
            return 0
        if arguments[0] not in VERBS:
            raise ConfigError(f"no verb {arguments[0]!r}; there are {', '.join(VERBS)}")
        set_up_jax()
        if arguments[0] == "plan":
            stay_on_cpu(scale.simulated(arguments[1:]))
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
    # It would take SIGTERM, which runs answer themselves.
    jax.config.update("jax_enable_preemption_service", False)


def stay_on_cpu(devices: int | None) -> None:
    """Has JAX start on the CPU, whatever accelerator there is, as so many devices of it."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    # Where it has started already, it says so: its devices are what there is.
    with contextlib.suppress(RuntimeError):
        if devices is not None:
            jax.config.update("jax_num_cpu_devices", devices)


def with_kept_memory() -> None:
    """Starts this process anew with a malloc that keeps what it was given, unless told otherwise.

    XLA on a CPU takes its temporaries anew every step. Mapped afresh, faulting them in is a good
    part of a short step; so they come from the heap, in huge pages, and nothing is given back in
    between, up to the size from which `programs.map_large_blocks` has them mapped after all. glibc
    reads this only when a process starts (its manual, Tunables). Beside an accelerator, temporaries
    are not the host's.
    """
    name, ours = "GLIBC_TUNABLES", "GRAFT_KEPT_MEMORY"
    if os.environ.pop(ours, None):
        # In force by now, and not for what this process starts: a rival of a bench, say.
        os.environ.pop(name, None)
        return
    accelerators = [
        at for kind in ("nvidia[0-9]*", "accel*", "kfd") for at in Path("/dev").glob(kind)
    ]
    if sys.platform == "linux" and not accelerators and name not in os.environ and sys.orig_argv:
        tunables = ("hugetlb=1", "mmap_max=0", f"trim_threshold={2**40}", "arena_max=1")
        os.environ[name] = ":".join(f"glibc.malloc.{tunable}" for tunable in tunables)
        os.environ[ours] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    with_kept_memory()
    sys.exit(main(sys.argv[1:]))
