"""Groups of items that recall is reported for: by type, language, popularity."""

from collections.abc import Sequence

import numpy as np

MIN_SLICE = 20
HEAD_SHARE = 0.2


def slice_rows(
    item_types: Sequence[str], languages: Sequence[str | None], popularity: np.ndarray
) -> dict[str, np.ndarray]:
    """Name of a slice → bool (num_items,): each item type and language, and the most popular fifth against the rest.

    popularity: float (num_items,), NaN where it is not known. Slices of fewer than `MIN_SLICE` items are left out.
    """
    traits = {"item_type": np.array(item_types, object), "language": np.array(languages, object)}
    slices = {
        f"{trait} {value}": values == value
        for trait, values in traits.items()
        for value in sorted({value for value in values if value})
    }
    slices |= slice_popularity(popularity)
    return {name: rows for name, rows in slices.items() if rows.sum() >= MIN_SLICE}


def slice_popularity(popularity: np.ndarray) -> dict[str, np.ndarray]:
    """Head and tail as `slice_rows` has them; nothing where no popularity is known."""
    is_known = np.isfinite(popularity)
    if not is_known.any():
        return {}
    is_head = is_known & (popularity >= np.quantile(popularity[is_known], 1 - HEAD_SHARE))
    return {"popularity head": is_head, "popularity tail": is_known & ~is_head}
