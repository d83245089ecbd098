"""The release file: what goes in comes out, and nothing else is accepted."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_release import make_release

from indexing.dense.params import IndexParams
from indexing.errors import DamagedError
from indexing.release.encoder_entry import EncoderEntry, EncoderFile
from indexing.release.manifest import (
    Collection,
    Release,
    Shard,
    parse_release,
    release_key,
    release_number,
    release_to_bytes,
)
from indexing.store.blobs import Blob, blob_key

counts = st.integers(1, 2**40)
texts = st.text(max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def blobs(draw: st.DrawFn) -> Blob:
    """The size follows from the digest, as equal digests must have equal sizes."""
    seed = draw(st.binary(max_size=4))
    return Blob(sha256=hashlib.sha256(seed).hexdigest(), size_bytes=int.from_bytes(seed))


@st.composite
def collections(draw: st.DrawFn, name: str) -> Collection:
    sizes = draw(st.lists(counts, min_size=1, max_size=3))
    shards = tuple(
        Shard(number=i, num_items=size, index=draw(blobs()), items=draw(blobs()), metadata=draw(blobs()))
        for i, size in enumerate(sizes)
    )
    types = tuple(draw(st.lists(texts, max_size=2)))
    return Collection(name=name, item_types=types, num_items=sum(sizes), ef_search=draw(counts), shards=shards)


@st.composite
def encoders(draw: st.DrawFn, dim: int) -> EncoderEntry:
    paths = draw(
        st.lists(st.from_regex(r"([a-z0-9_]{1,3}/){0,2}[a-z0-9_]{1,3}\.json", fullmatch=True), min_size=1, unique=True)
    )
    return EncoderEntry(
        digest=draw(blobs()).sha256,
        dim=dim,
        max_tokens=draw(counts),
        dtype=draw(texts),
        prompts=draw(st.dictionaries(texts, texts, max_size=2)),
        files=tuple(EncoderFile(path=path, blob=draw(blobs())) for path in paths),
    )


@st.composite
def releases(draw: st.DrawFn) -> Release:
    names = draw(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=2, unique=True))
    dim = draw(st.integers(1, 4096))
    return make_release(
        draw(counts),
        *[draw(collections(name)) for name in names],
        kind=draw(st.sampled_from(["build", "rollback"])),
        writer_id=draw(st.text(min_size=1, max_size=8)),
        name=draw(texts),
        dim=dim,
        encoder=draw(st.none() | encoders(dim)),
        text_templates=draw(st.dictionaries(texts, texts, max_size=2)),
        index=IndexParams(
            M=draw(st.integers(2, 100)),
            ef_construction=draw(counts),
            seed=draw(st.integers(0, 99)),
            builder=draw(st.sampled_from([None, "faiss"])),
        ),
        validation=draw(st.dictionaries(texts, json_values, max_size=3)),
        report=draw(st.none() | blobs()),
        tools=draw(st.dictionaries(texts, texts, max_size=2)),
    )


def sample_release() -> Release:
    one, two, three = (Blob(sha256=digit * 64, size_bytes=10) for digit in "123")
    shard = Shard(number=0, num_items=5, index=one, items=two, metadata=three)
    collection = Collection(name="tracks", item_types=("track",), num_items=5, ef_search=50, shards=(shard,))
    files = (EncoderFile(path="a/config.json", blob=one), EncoderFile(path="model.safetensors", blob=two))
    encoder = EncoderEntry(digest="d" * 64, dim=16, max_tokens=64, dtype="float32", prompts={"query": ""}, files=files)
    return make_release(3, collection, encoder=encoder, report=one)


SAMPLE = json.loads(release_to_bytes(sample_release()))


def dump(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")


@given(releases())
def test_any_release_survives_the_round_trip_in_one_canonical_form(release: Release) -> None:
    data = release_to_bytes(release)
    assert parse_release(data) == release
    assert data == dump(json.loads(data))


SHARD = ("collections", 0, "shards", 0)


@pytest.mark.case(12, 13)
@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("number",), 0, "number"),
        (("number",), "3", "number"),
        (("number",), 3.0, "number"),
        (("number",), True, "number"),
        (("number",), 10**30, "number"),
        (("parent",), 1, "parent"),
        (("parent",), None, "parent"),
        (("format_version",), 3, "format_version"),
        (("format_version",), True, "format_version"),
        (("kind",), "copy", "kind"),
        (("metric",), "l2", "metric"),
        (("created_at",), "yesterday", "created_at"),
        (("created_at",), "2026-01-31T02:00:00+01:00", "created_at"),
        (("created_at",), "2026-01-31T02:00:00", "created_at"),
        (("writer_id",), "", "writer_id"),
        (("dim",), 0, "dim"),
        (("dim",), 2**40, "dim"),
        (("name",), None, "name"),
        (("name",), "\udc80", "utf-8"),
        (("text_templates",), {"default": 1}, "text_templates['default']"),
        (("validation",), [], "validation"),
        (("validation",), {"recall": 1e999}, "validation['recall']"),
        (("collections",), {}, "collections"),
        (("collections",), [], "collections"),
        (("collections",), SAMPLE["collections"] * 2, "collections: expected distinct"),
        (("collections", 0, "name"), "", "collections[0].name"),
        (("collections", 0, "num_items"), 6, "collections[0].num_items: expected 5"),
        (("collections", 0, "ef_search"), 0, "collections[0].ef_search"),
        (("collections", 0, "shards"), [], "collections[0].shards"),
        ((*SHARD, "number"), 1, "collections[0].shards[0].number"),
        ((*SHARD, "num_items"), 0, "collections[0].shards[0].num_items"),
        ((*SHARD, "num_items"), -5, "collections[0].shards[0].num_items"),
        ((*SHARD, "index", "sha256"), "1" * 63, "collections[0].shards[0].index.sha256"),
        ((*SHARD, "index", "sha256"), "A" * 64, "collections[0].shards[0].index.sha256"),
        ((*SHARD, "index", "sha256"), "../" * 21 + "x", "collections[0].shards[0].index.sha256"),
        ((*SHARD, "index", "size_bytes"), -1, "collections[0].shards[0].index.size_bytes"),
        ((*SHARD, "index", "size_bytes"), 11, "size_bytes: expected"),
        (("report", "sha256"), "1" * 64 + "\n", "report.sha256"),
        (("index", "M"), 1, "index: expected"),
        (("index", "ef_construction"), 0, "index: expected"),
        (("encoder", "digest"), "d", "encoder.digest"),
        (("encoder", "dim"), 17, "encoder.dim"),
        (("encoder", "max_tokens"), 0, "encoder.max_tokens"),
        (("encoder", "files"), [], "encoder.files"),
        (("encoder", "files", 1, "path"), "a/config.json", "encoder.files: expected distinct"),
        (("encoder", "files", 1, "path"), "a", "encoder.files: expected files"),
        *(
            (("encoder", "files", 0, "path"), path, "encoder.files[0].path")
            for path in ("/etc/passwd", "../x", "a/../b", "a\\b", "", ".", "a//b", "a/", "c:x", "a\nb", "a\0b")
        ),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(path: tuple[Any, ...], value: Any, named: str) -> None:
    document = json.loads(dump(SAMPLE))
    parent = document
    for step in path[:-1]:
        parent = parent[step]
    assert path[-1] in parent or isinstance(path[-1], int)
    parent[path[-1]] = value
    with pytest.raises(DamagedError) as caught:
        parse_release(dump(document))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def objects_of(value: Any) -> list[dict[str, Any]]:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [
        *([value] if isinstance(value, dict) else []),
        *(found for child in children for found in objects_of(child)),
    ]


FREE_FORM = ({"default": "{title}"}, {"recall_at_10": 0.97}, {"hnswlib": "0.8.0"}, {"query": ""})


@pytest.mark.case(12)
def test_a_missing_or_unknown_field_anywhere_is_refused_by_name() -> None:
    num_tried = 0
    for position, fixed in enumerate(objects_of(SAMPLE)):
        if fixed in FREE_FORM:
            continue
        for name in fixed:
            document = json.loads(dump(SAMPLE))
            del objects_of(document)[position][name]
            with pytest.raises(DamagedError, match=f"missing field '{name}'"):
                parse_release(dump(document))
            num_tried += 1
        document = json.loads(dump(SAMPLE))
        objects_of(document)[position]["zzz"] = 1
        with pytest.raises(DamagedError, match="unknown field 'zzz'"):
            parse_release(dump(document))
    assert num_tried > 50


@pytest.mark.case(12)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"3",
        b"\xff\xfe",
        b"\xef\xbb\xbf" + dump(SAMPLE),
        dump(SAMPLE)[:-1],
        dump(SAMPLE) + b"\n",
        dump(SAMPLE).replace(b'"dim":16,', b'"dim":16, '),
        dump(SAMPLE).replace(b'"dim":16,', b'"dim":16,"dim":16,'),
        dump(SAMPLE).replace(b"0.97", b"0.970"),
        dump(SAMPLE).replace(b"0.97", b"NaN"),
        dump(SAMPLE).replace(b"0.97", b"Infinity"),
        dump(SAMPLE).replace(b"0.97", b"9" * 5000),
        dump(SAMPLE).replace(b"0.97", b'"\\ud800"'),
        dump(SAMPLE).replace(b"0.97", b"[" * 400 + b"]" * 400),
        dump(SAMPLE).replace(b"0.97", b"[" * 100_000 + b"]" * 100_000),
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_is_not_canonical_json_of_a_release_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(DamagedError) as caught:
        parse_release(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@given(st.data())
@settings(max_examples=300)
def test_changed_bytes_never_give_anything_but_a_release_or_a_clear_error(data: st.DataObject) -> None:
    original = dump(SAMPLE)
    start = data.draw(st.integers(0, len(original)))
    end = data.draw(
        st.integers(start, min(len(original), start + data.draw(st.sampled_from([0, 1, 4, len(original)]))))
    )
    changed = original[:start] + data.draw(st.binary(max_size=4)) + original[end:]
    try:
        release = parse_release(changed)
    except DamagedError as error:
        assert "\n" not in str(error)
    else:
        assert release_to_bytes(release) == changed


@pytest.mark.parametrize(
    "change",
    [
        lambda release: dataclasses.replace(release, dim=0),
        lambda release: dataclasses.replace(release, validation={"recall": float("nan")}),
        lambda release: dataclasses.replace(release, parent=None),
    ],
)
def test_a_writer_cannot_write_what_a_reader_refuses(change: Callable[[Release], Release]) -> None:
    with pytest.raises(DamagedError):
        release_to_bytes(change(sample_release()))


@pytest.mark.case(13)
def test_keys_come_from_digests_and_numbers_alone() -> None:
    assert blob_key("ab" * 32) == "blobs/sha256/ab/" + "ab" * 32
    assert release_key(42) == "releases/00000000000000000042.json"
    assert release_number(release_key(42)) == 42
    for key in (
        "releases/42.json",
        "releases/0000000000000000042a.json",
        "releases/" + "9" * 20 + ".json",
        "releases/" + "0" * 20 + ".json",
        "releases/" + "٣" * 20 + ".json",
        release_key(42) + ".tmp",
    ):
        assert release_number(key) is None


def test_blobs_are_listed_once_each_and_sized_by_that() -> None:
    release = sample_release()
    assert sorted(release.blobs()) == ["1" * 64, "2" * 64, "3" * 64]
    assert (release.size_bytes, release.num_items) == (30, 5)
