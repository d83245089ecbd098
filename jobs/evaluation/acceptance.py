"""Whether a new encoder is better than the one in use. Pure: a report of `evaluate` in, reasons out."""

from jobs.config.training import EvaluationConfig
from jobs.evaluation.report import EvaluationReport

WHOLE = ("exact", "hnsw")


def why_not_accepted(report: EvaluationReport, incumbent: str, settings: EvaluationConfig) -> list[str]:
    """Empty where the new encoder is better in `metric` beyond the interval, exactly and through HNSW, and on no slice
    worse by more than `max_loss`. `incumbent` is its name in the report.
    """
    metric, parts = settings.metric, report.differences[incumbent]
    reasons = []
    for part in WHOLE:
        found = parts[part][metric]
        if found.low is None or found.low <= 0:
            reasons.append(f"{metric} ({part}) differs by {found}, expected an interval above 0")
    for part in sorted(parts.keys() - set(WHOLE)):
        found = parts[part][metric]
        if found.mean is None or found.mean < -settings.max_loss:
            reasons.append(f"{metric} on {part} differs by {found}, expected at least -{settings.max_loss:g}")
    return reasons
