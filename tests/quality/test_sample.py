"""The sample that recall is measured on: distinct vectors, enough of every slice, the same however they are cut."""

from functools import reduce

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_release import unit_vectors

from jobs.quality.sample import (
    MAX_LANGUAGES,
    SLICE_SAMPLES,
    TRAITS,
    Drawn,
    Sample,
    draw,
    make_sample,
    merge_drawn,
    read_traits,
    vector_keys,
)

NUM_SAMPLES = 100
VECTORS = unit_vectors(1000, dim=4)


def traits_of(kinds: list[str], languages: list[str | None] | None = None) -> pa.Table:
    popularity = np.arange(len(kinds), dtype=float)
    return pa.table([kinds, languages or [None] * len(kinds), popularity], schema=TRAITS)


def sample_of(vectors: np.ndarray, traits: pa.Table) -> Sample:
    return make_sample(draw(vectors, traits, NUM_SAMPLES), NUM_SAMPLES)


def test_equal_vectors_are_drawn_once() -> None:
    vectors = np.concatenate([np.repeat(VECTORS[:1], 500, axis=0), VECTORS[1:40]])
    sample = sample_of(vectors, traits_of(["track"] * len(vectors)))
    assert len(sample.vectors) == sample.num_random == 40
    assert {row.tobytes() for row in sample.vectors} == {row.tobytes() for row in VECTORS[:40]}


def test_a_small_type_and_a_small_language_have_their_samples_after_the_random_ones() -> None:
    kinds = ["album" if row < 60 else "track" for row in range(1000)]
    languages = ["is" if 900 <= row < 960 else "en" for row in range(1000)]
    sample = sample_of(VECTORS, traits_of(kinds, languages))
    assert sample.num_random == NUM_SAMPLES
    assert len(sample.vectors) <= NUM_SAMPLES + 2 * SLICE_SAMPLES
    for name in ("item_type album", "language is"):
        assert sample.slices[name].sum() >= SLICE_SAMPLES
        assert sample.slices[name][:NUM_SAMPLES].sum() < 20
    is_random = np.arange(len(sample.vectors)) < NUM_SAMPLES
    assert not (sample.slices["popularity head"] & ~is_random).any()


def test_a_text_of_two_types_is_of_both_slices_and_one_sample() -> None:
    kinds = ["album"] * 60 + ["episode"] * 60
    sample = sample_of(np.concatenate([VECTORS[:60]] * 2), traits_of(kinds))
    assert len(sample.vectors) == 60
    assert sample.slices["item_type album"].all() and sample.slices["item_type episode"].all()


def test_a_slice_of_few_distinct_vectors_is_none() -> None:
    kinds = ["album"] * 300 + ["track"] * 60
    vectors = np.concatenate([np.repeat(VECTORS[:3], 100, axis=0), VECTORS[100:160]])
    assert "item_type album" not in sample_of(vectors, traits_of(kinds)).slices


@given(st.randoms(use_true_random=False), st.integers(1, 6))
@settings(max_examples=20, derandomize=True)
def test_the_sample_is_the_same_however_the_items_are_cut(random: object, num_parts: int) -> None:
    shuffle = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    rows = np.concatenate([np.arange(400), shuffle.integers(0, 400, 300)])
    kinds = [f"kind {row % 2}" if row < 360 else "rare" for row in rows]
    whole = draw(VECTORS[rows], traits_of(kinds), NUM_SAMPLES)
    order = shuffle.permutation(len(rows))
    traits = traits_of(kinds)
    parts = [draw(VECTORS[rows[part]], traits.take(part), NUM_SAMPLES) for part in np.array_split(order, num_parts)]
    merged = reduce(lambda one, other: merge_drawn(one, other, NUM_SAMPLES), parts)
    assert rows_of(merged) == rows_of(whole)
    one, other = make_sample(merged, NUM_SAMPLES), make_sample(whole, NUM_SAMPLES)
    assert one.vectors.tobytes() == other.vectors.tobytes()
    assert {name: part.tolist() for name, part in one.slices.items()} == {
        name: part.tolist() for name, part in other.slices.items()
    }


def rows_of(drawn: Drawn) -> set[tuple[object, ...]]:
    return {(*row.values(), key) for row, key in zip(drawn.traits.to_pylist(), drawn.keys.tolist(), strict=True)}


def test_keys_are_of_vectors_and_minus_zero_is_zero() -> None:
    vectors = np.array([[0, 1], [-0.0, 1], [1, 0]], np.float32)
    one, same, other = vector_keys(vectors).tolist()
    assert one == same != other
    assert one == 832030401714192384, "the sample changes, and with it every report"


def test_only_the_languages_of_most_items_count() -> None:
    languages = [f"l{number:03}" for number in range(100) for _ in range(1 + (number >= 90))]
    metadata = traits_of(["track"] * len(languages), [*languages]).append_column("more", pa.nulls(len(languages)))
    found = set(read_traits(metadata)["language"].drop_null().to_pylist())
    assert found == {f"l{number:03}" for number in (*range(MAX_LANGUAGES - 10), *range(90, 100))}
