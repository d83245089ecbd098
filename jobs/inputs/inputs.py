"""All that comes from outside a run, read once, before Ray starts and before anything is written."""

from dataclasses import dataclass, replace

from indexing.release.manifest import Release
from jobs.inputs.catalogue import Source, scan_source
from jobs.inputs.encoder import EncoderInput, read_encoder
from jobs.inputs.parent import Current, current_release
from jobs.inputs.queries import query_texts
from jobs.inputs.rows import RowRules, row_rules
from jobs.run import Run


@dataclass(frozen=True)
class Inputs:
    source: Source
    rules: RowRules
    encoder: EncoderInput | None
    """None where vectors come precomputed."""
    current: int | None
    """The number of the release that this run follows; None in a store that has none."""
    parent: Release | None
    """That release; None where there is none, or nothing of it may be carried over."""
    queries: list[str] | None
    """Of `validation.queries`; None where there are none."""

    @property
    def encoder_fingerprint(self) -> str | None:
        return self.encoder.fingerprint if self.encoder else None

    def following(self, parent: Release | None) -> "Inputs":
        return replace(self, parent=parent)

    def on_top_of(self, current: Current) -> "Inputs":
        return replace(self, current=current.number, parent=current.release)


def read_inputs(run: Run) -> Inputs:
    """Raises ConfigError, DataError or StoreUnavailable for what is missing or wrong."""
    current, encoder = current_release(run.store, run.config.publish), read_encoder(run.config)
    source = scan_source(run.config)
    rules, queries = row_rules(run.config, source), query_texts(run.config)
    return Inputs(source, rules, encoder, current.number, current.release, queries)
