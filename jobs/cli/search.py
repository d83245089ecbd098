"""The command that searches a release. It needs no Ray."""

import math
from typing import TYPE_CHECKING, Annotated

import typer

from indexing.errors import ConfigError
from jobs.cli.options import AsJson, ReleaseNumber, Store, TrustedKeys, paths_of, whole_number
from jobs.cli.output import output_of, print_json
from jobs.report.terminal import print_table

if TYPE_CHECKING:
    from indexing.search.results import Hit

Query = Annotated[str | None, typer.Argument(metavar="QUERY", help="Such as 'rainy sunday piano'.")]
HitsOfQuery = Annotated[int, typer.Option("-k", metavar="N", parser=whole_number, help="Hits per query.")]
Collections = Annotated[
    list[str] | None, typer.Option("--collection", metavar="NAME", help="Search only this collection; may be repeated.")
]
Queries = Annotated[
    str | None,
    typer.Option("--queries", metavar="PARQUET", help="Search the distinct values of the column `query` of a file."),
]
Out = Annotated[
    str | None,
    typer.Option("--out", metavar="PARQUET", help="With --queries: query, rank from 1, item_id, score, collection."),
]


def search(
    context: typer.Context,
    store: Store,
    query: Query = None,
    k: HitsOfQuery = 10,
    collection: Collections = None,
    release: ReleaseNumber = None,
    trusted_key: TrustedKeys = None,
    queries: Queries = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Search a release for a text, or for each query of a file."""
    from indexing import open_release

    if (query is None) == (queries is None) or (queries is None) != (out is None):
        raise ConfigError("expected either QUERY, or --queries FILE and --out FILE")
    keys = paths_of(trusted_key)
    opened = open_release(store, number=release, collections=collection, trusted_keys=keys)
    if queries and out:
        from jobs.cli.search_file import search_file

        num_queries = search_file(opened, queries, out, k, output_of(context).progress())
        if as_json:
            print_json({"num_queries": num_queries, "k": k, "out": out})
        return
    assert query is not None
    hits = opened.search(query, k=k)
    if as_json:
        print_json({"release": opened.release.number, "query": query, "hits": hit_records(hits)})
    else:
        print_hits(hits)


def hit_records(hits: "list[Hit]") -> list[dict[str, object]]:
    """Best first."""
    return [
        {
            "rank": rank,
            "score": round(hit.score, 6),
            "collection": hit.collection,
            "item_id": hit.item_id,
            "metadata": json_value(hit.metadata),
        }
        for rank, hit in enumerate(hits, start=1)
    ]


def json_value(value: object) -> object:
    """NaN and infinities as null, for lack of another value in JSON; anything else it has no type for becomes text."""
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | bool | int) else str(value)


def display_text(value: object) -> str:
    """A text, or several, in one line; nulls are left out."""
    values = value if isinstance(value, list) else [value]
    return ", ".join(str(item) for item in values if item is not None)


def print_hits(hits: "list[Hit]") -> None:
    rows = [
        (
            str(rank),
            f"{hit.score:.3f}",
            hit.collection,
            display_text(hit.metadata.get("title")),
            display_text(hit.metadata.get("creators")),
            hit.item_id,
        )
        for rank, hit in enumerate(hits, start=1)
    ]
    print_table(("rank", "score", "collection", "title", "by", "item"), rows, shortened=("title", "by"))
