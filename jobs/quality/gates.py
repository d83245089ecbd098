"""Gates: what was measured, against a threshold of the configuration."""

from indexing.release.report import Gate


def at_least(name: str, scope: str, value: float, threshold: float) -> Gate:
    return Gate(name=name, scope=scope, value=value, expected=f"≥ {threshold:g}", holds=value >= threshold)


def at_most(name: str, scope: str, value: float, threshold: float) -> Gate:
    return Gate(name=name, scope=scope, value=value, expected=f"≤ {threshold:g}", holds=value <= threshold)


def equal(name: str, scope: str, value: float, expected: float) -> Gate:
    return Gate(name=name, scope=scope, value=value, expected=f"= {expected:g}", holds=value == expected)
