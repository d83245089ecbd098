"""Gates: what was measured, what was expected, and whether it passes."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One check: what was measured, what was expected, and whether it holds."""

    name: str
    scope: str
    """The collection or shard it speaks of."""
    value: float
    expected: str
    holds: bool


def at_least(name: str, scope: str, value: float, threshold: float) -> Gate:
    return Gate(name=name, scope=scope, value=value, expected=f"≥ {threshold:g}", holds=value >= threshold)


def at_most(name: str, scope: str, value: float, threshold: float) -> Gate:
    return Gate(name=name, scope=scope, value=value, expected=f"≤ {threshold:g}", holds=value <= threshold)


def equal(name: str, scope: str, value: float, expected: float) -> Gate:
    return Gate(name=name, scope=scope, value=value, expected=f"= {expected:g}", holds=value == expected)
