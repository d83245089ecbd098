"""How this project runs Ray Data."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.data import DataContext


@contextmanager
def quiet_context(**settings: Any) -> Iterator[None]:
    """Datasets that are made in this block have no progress bars of their own, and raise what their functions raise."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    for name, value in settings.items():
        setattr(context, name, value)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised; the rest would break the bars
    with DataContext.current(context):
        yield
