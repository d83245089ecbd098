"""nightcrate: rebuild, publish, check and search releases. `python -m jobs STAGE -c FILE key=value` is the same."""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn, TypeAlias

from rich.console import Console

from jobs.cli import commands, store_commands

Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"
WRONG_ARGUMENTS = 2
BUG = 70
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; an expected failure is one line on standard error."""
    arguments = make_parser().parse_args(argv)
    set_up_logging(arguments.debug)
    try:
        arguments.act(arguments)
    except KeyboardInterrupt:
        return fail(arguments, "interrupted; run again to go on from the last finished step", INTERRUPTED)
    except BrokenPipeError:
        return 0
    except Exception as error:
        if (exit_code := getattr(error, "exit_code", None)) is not None:
            return fail(arguments, str(error), exit_code)
        reason = str(error).strip().split("\n")[0]
        return fail(arguments, f"a bug, {type(error).__name__}: {reason}; --debug shows where", BUG)
    return 0


def fail(arguments: argparse.Namespace, text: str, exit_code: int) -> int:
    if arguments.debug:
        logging.getLogger(__name__).exception("failed")
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"nightcrate: {' '.join(text.split())}")
    return exit_code


def set_up_logging(is_debug: bool) -> None:
    """The project's own lines always, those of the libraries only with --debug."""
    logging.basicConfig(
        level=logging.DEBUG if is_debug else logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    for name in ("jobs", "cluster", "indexing"):
        logging.getLogger(name).setLevel(logging.DEBUG if is_debug else logging.INFO)
    if is_debug:
        logging.getLogger("botocore").setLevel(logging.INFO)  # its debug lines show the session token


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for every other error; argparse prints the usage before it."""
        sys.exit(fail(argparse.Namespace(debug=False), f"{message}; see {self.prog} --help", WRONG_ARGUMENTS))


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="nightcrate", description=__doc__.split(":")[0] + ": " + DESCRIPTION)
    parser.set_defaults(debug=False)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in STAGES.items():
        add_stage(subparsers, name, text)
    add_train(subparsers)
    add_evaluate(subparsers)
    add_search(subparsers)
    add_releases(subparsers)
    add_verify(subparsers)
    add_diff(subparsers)
    add_rollback(subparsers)
    add_pins(subparsers)
    add_prune(subparsers)
    return parser


DESCRIPTION = "a music and podcast catalogue in, a searchable release in object storage out."

STAGES = {
    "nightly": "the whole rebuild: encode, build, validate, publish; goes on where an earlier run stopped",
    "plan": "what nightly would do: rows to encode, reuse and delete, shards, bytes, time, memory; reads only",
    "encode": "check the catalogue and encode what has no vector yet",
    "build": "build the shards from the vectors that encode made",
    "validate": "measure the built shards against exact search and hold them to the gates",
    "publish": "upload what validate has passed, and commit it as the next release",
}

EXIT_CODES = """exit codes: 0 done, 2 wrong configuration or arguments, 3 bad input data, 4 validation failed,
5 another run has published, 6 storage or cluster out of reach, 70 a bug"""


def add_stage(subparsers: Subparsers, name: str, text: str) -> None:
    parser = add_command(subparsers, name, text, epilog=EXIT_CODES)
    add_config(parser)
    if name == "plan":
        parser.set_defaults(act=commands.plan)
        return
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved configuration and the plan, then stop"
    )
    parser.set_defaults(act=commands.run, stage=name)


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="YAML, such as configs/demo.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="laid over the file: index.M=24 encoder.device=cpu"
    )


def add_train(subparsers: Subparsers) -> None:
    text = "fine-tune the encoder on search logs; accept it where it is better on queries that training has not seen"
    parser = add_command(subparsers, "train", text, epilog=EXIT_CODES)
    add_config(parser)
    parser.set_defaults(act=commands.train)


def add_evaluate(subparsers: Subparsers) -> None:
    text = "measure encoder.model on search logs or a BEIR data set: full retrieval, exact and through HNSW, and BM25"
    parser = add_command(subparsers, "evaluate", text, epilog=EXIT_CODES)
    add_config(parser)
    parser.add_argument("--beir", metavar="FOLDER", help="with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv")
    parser.add_argument("--split", default="test", metavar="SPLIT", help="of the data set (default test)")
    parser.add_argument("--out", metavar="JSON", help="write the report to this file, too")
    parser.set_defaults(act=commands.evaluate)


def add_search(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "search", "search a release, in words or with a file of queries")
    add_store(parser)
    parser.add_argument("query", nargs="?", metavar="QUERY", help="such as 'rainy sunday piano'")
    parser.add_argument("-k", type=int, default=10, help="hits of a query (default 10)")
    parser.add_argument("--collection", action="append", metavar="NAME", help="search only this one; may be repeated")
    parser.add_argument(
        "--queries", metavar="PARQUET", help="search the distinct values of the column `query` of a file"
    )
    parser.add_argument(
        "--out", metavar="PARQUET", help="with --queries: query, rank from 1, item_id, score, collection"
    )
    parser.set_defaults(act=store_commands.search)


def add_releases(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "releases", "list the releases of a store")
    add_store(parser, with_release=False)
    parser.add_argument("--json", action="store_true", help="print a list of objects instead of a table")
    parser.set_defaults(act=store_commands.releases)


def add_verify(subparsers: Subparsers) -> None:
    text = "re-read every byte of a release, check every digest, load every shard"
    parser = add_command(subparsers, "verify", text)
    add_store(parser)
    parser.set_defaults(act=store_commands.verify)


def add_diff(subparsers: Subparsers) -> None:
    text = "what changed between two releases: items, vectors, files, and what queries find"
    parser = add_command(subparsers, "diff", text)
    add_store(parser, with_release=False)
    parser.add_argument("before", type=int, metavar="A", help="the number of the earlier release")
    parser.add_argument("after", type=int, metavar="B", help="the number of the later release")
    parser.add_argument(
        "--queries",
        metavar="PARQUET",
        help="measure overlap@10 on up to 1,000 distinct values of the column `query`: golden queries, or interactions",
    )
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    parser.set_defaults(act=store_commands.diff)


def add_rollback(subparsers: Subparsers) -> None:
    text = "verify an old release in full, then publish its content as the next release"
    parser = add_command(subparsers, "rollback", text)
    add_store(parser, with_release=False)
    parser.add_argument("--to", type=int, required=True, metavar="N", help="the release to go back to")
    parser.add_argument("--signing-key", metavar="PEM", help="sign the new release with this private key")
    parser.set_defaults(act=store_commands.rollback)


def add_pins(subparsers: Subparsers) -> None:
    for name, text, act in (
        ("pin", "keep a release from being pruned", store_commands.pin_release),
        ("unpin", "let a pinned release be pruned again", store_commands.unpin_release),
    ):
        parser = add_command(subparsers, name, text)
        add_store(parser, with_release=False)
        parser.add_argument("number", type=int, metavar="N", help="the number of the release")
        parser.set_defaults(act=act)


def add_prune(subparsers: Subparsers) -> None:
    text = "delete blobs that no kept release lists; shows what would go unless --apply. Release files always stay"
    parser = add_command(subparsers, "prune", text)
    add_store(parser, with_release=False)
    parser.add_argument("-c", "--config", metavar="FILE", help="take retention.keep_last and min_age from this file")
    parser.add_argument("--keep-last", type=int, metavar="K", help="releases that are kept (default 7)")
    parser.add_argument(
        "--min-age", metavar="AGE", help="younger blobs and releases stay (default 24h, at least 1h; s, m, h or d)"
    )
    parser.add_argument("--apply", action="store_true", help="delete")
    parser.set_defaults(act=store_commands.prune)


def add_store(parser: argparse.ArgumentParser, with_release: bool = True) -> None:
    parser.add_argument(
        "store", metavar="STORE", help="file://./folder or s3://bucket/prefix (endpoint: AWS_ENDPOINT_URL_S3)"
    )
    if with_release:
        parser.add_argument("--release", type=int, metavar="N", help="the number of a release (default: the current)")
        parser.add_argument(
            "--trusted-key",
            action="append",
            metavar="PEM",
            help="refuse a release that this Ed25519 public key did not sign; may be repeated",
        )


def add_command(subparsers: Subparsers, name: str, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=text, description=text, epilog=epilog)
    parser.add_argument("--debug", action="store_true", help="show all logs and the traceback of an error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
