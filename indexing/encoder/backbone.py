"""The transformer: token ids to token vectors, by transformers' own code for every architecture it knows."""

from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Backbone(Protocol):
    device: torch.device
    dtype: torch.dtype

    def __call__(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Token vectors (B, T, H) of int64 input_ids (B, T), padded on the right, and int64 lengths (B,), descending.

        Values at padding are undefined.
        """


class PaddedBackbone:
    """Any model of transformers. Padding on the right suits decoders too: no token attends to its right."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self.device, self.dtype = model.device, model.dtype
        self._model = model

    def __call__(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """See `Backbone`."""
        on_device = lengths.to(self.device, non_blocking=True)
        mask = None  # texts of one length need none, and attention is faster without
        if int(lengths[-1]) < input_ids.shape[1]:
            mask = (torch.arange(input_ids.shape[1], device=self.device) < on_device[:, None]).long()
        hidden: torch.Tensor = self._model(
            input_ids=input_ids.to(self.device, non_blocking=True), attention_mask=mask
        ).last_hidden_state
        return hidden
