"""All that comes from outside a run, read once, before Ray starts and before anything is written."""

from dataclasses import dataclass, replace

from indexing.release.manifest import Release
from jobs.inputs.catalogue import Source, scan_source
from jobs.inputs.encoder import EncoderInput, read_encoder
from jobs.inputs.parent import current_release
from jobs.inputs.queries import query_texts
from jobs.inputs.rows import RowRules, row_rules
from jobs.run import Run


@dataclass(frozen=True)
class Inputs:
    source: Source
    rules: RowRules
    encoder: EncoderInput | None
    """None where vectors come precomputed."""
    parent: Release | None
    """The release that this run follows; None in a store that has none."""
    queries: list[str] | None
    """Of `validation.queries`; None where there are none."""

    @property
    def encoder_fingerprint(self) -> str | None:
        return self.encoder.fingerprint if self.encoder else None

    def following(self, parent: Release | None) -> "Inputs":
        return replace(self, parent=parent)


def read_inputs(run: Run) -> Inputs:
    """Raises ConfigError, DataError or StoreUnavailable for what is missing or wrong."""
    parent, encoder, source = current_release(run.store), read_encoder(run.config), scan_source(run.config)
    return Inputs(source, row_rules(run.config, source), encoder, parent, query_texts(run.config))
