"""What the command lines of all studies share."""

import argparse

from experiments.measure.allocator import keep_freed_memory


def study_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the study's docstring.

    Args:
        doc: ``__doc__`` of the study.
    """
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def timing_parser(doc: str | None, repetitions: int) -> argparse.ArgumentParser:
    """The same for studies that measure time: how often, and with which allocator.

    Args:
        doc: ``__doc__`` of the study.
        repetitions: by default.
    """
    parser = study_parser(doc)
    parser.add_argument("--repetitions", type=int, default=repetitions)
    parser.add_argument(
        "--default_allocator", action="store_true", help="let the C library give memory back; no command does so"
    )
    return parser


def set_allocator(options: argparse.Namespace) -> None:
    """Keep freed memory, unless the options say otherwise."""
    if not options.default_allocator:
        keep_freed_memory()
