"""A rollback places a hold: what was rolled back from is not published again until the hold is lifted."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from indexing.release.manifest import Release


@dataclass(frozen=True, kw_only=True)
class Hold:
    """What a release that was rolled back from was made from. It is kept here, since that release may be pruned."""

    release: int
    """The number of that release."""
    catalogue_fingerprint: str
    config_fingerprint: str
    encoder: str | None
    """Its digest; None where vectors came precomputed."""

    @property
    def made_from(self) -> tuple[str, str, str | None]:
        return self.catalogue_fingerprint, self.config_fingerprint, self.encoder


def hold_of(release: "Release") -> Hold:
    return Hold(
        release=release.number,
        catalogue_fingerprint=release.catalogue_fingerprint,
        config_fingerprint=release.config_fingerprint,
        encoder=release.encoder.digest if release.encoder else None,
    )


def holds_of_rollback(current: "Release", target: "Release") -> tuple[Hold, ...] | None:
    """The holds once `target` is current again: on `current`, and on what it holds itself, but not on `target`.

    Newest first, one for those made from the same inputs. None where nothing is left to hold.
    """
    found = {hold.made_from: hold for hold in reversed((hold_of(current), *(current.holds or ())))}
    found.pop(hold_of(target).made_from, None)
    return tuple(sorted(found.values(), key=lambda hold: -hold.release)) or None


def find_hold(current: "Release", candidate: Hold) -> Hold | None:
    """The hold of `current` on what was made from the same inputs as `candidate`."""
    return next((hold for hold in current.holds or () if hold.made_from == candidate.made_from), None)
