"""The loss curve of a training, as CSV and as a picture."""

import csv
import io
from collections.abc import Sequence

import numpy as np

Curve = Sequence[tuple[int, float, float, float]]
"""(step from 0, loss, in-batch accuracy, unix seconds) of each step."""
SMOOTH_STEPS = 20


def write_curve(curve: Curve, batch_pairs: int) -> bytes:
    """CSV; pairs/s are those since the previous step, also where a run resumed after a pause."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "loss", "accuracy", "pairs_per_s"])
    before: float | None = None
    for step, loss, accuracy, at in curve:
        rate = "" if before is None else f"{batch_pairs / max(at - before, 1e-9):.1f}"
        writer.writerow([step, f"{loss:.6f}", f"{accuracy:.4f}", rate])
        before = at
    return text.getvalue().encode()


def draw_curve(curve: Curve) -> bytes:
    """SVG: loss and accuracy of each step, and their means over `SMOOTH_STEPS`."""
    from matplotlib.figure import Figure  # takes a second to import, which only this function needs

    steps = np.array([step for step, *_ in curve])
    width = min(SMOOTH_STEPS, len(steps))
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, name, place in zip(figure.subplots(1, 2), ("loss", "accuracy in the batch"), (1, 2), strict=True):
        values = np.array([row[place] for row in curve])
        axes.plot(steps, values, color="0.8", linewidth=0.8, label="of a step")
        smooth = np.convolve(values, np.full(width, 1 / width), mode="valid")
        axes.plot(steps[width - 1 :], smooth, color="C0", label=f"mean of {width} steps")
        axes.set_xlabel("step")
        axes.set_title(name, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    return picture.getvalue()
