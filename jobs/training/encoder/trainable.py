"""The encoder as something that can learn: a sentence-transformers folder in, another one out.

What is loaded, pooled and normalised is what `indexing.encoder` runs, so nothing differs between training and serving.
Dropout stays off: the two passes of gradient caching must see the same network.

Shape letters: B texts of a batch, D output dimension.
"""

import contextlib
import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from indexing.encoder import EncoderSettings
from indexing.encoder.backbone import Backbone, PaddedBackbone
from indexing.encoder.batching import Batch, batches
from indexing.encoder.device import default_batch_tokens, pick_device, pick_dtype
from indexing.encoder.layout import ROUTER_CONFIG, WEIGHTS, Layout, read_layout
from indexing.encoder.load import Parts, load_parts
from indexing.encoder.unpadded import is_bert
from indexing.errors import ConfigError
from jobs.training.encoder.unpadded import PackedBackbone

CPU_BATCH_TOKENS = 2048  # the fastest of 1,024 to 4,096 on two threads (measured)
KINDS = ("query", "document")
SENTENCE_TRANSFORMERS = "sentence_transformers.models"


class TrainableEncoder(nn.Module):
    """Weights are float32; products are in the settings' dtype, bfloat16 where the device is fast at it.

    Siamese, one tower for queries and documents, unless the folder has two or `separate` makes two of one.
    """

    def __init__(self, path: Path, settings: EncoderSettings, *, separate: bool = False) -> None:
        super().__init__()
        self.path, self.layout, self.device = path, read_layout(path), pick_device(settings.device)
        dtype = pick_dtype(settings.dtype, self.device)
        # Gradients would underflow in float16.
        self.autocast_dtype = torch.float32 if dtype == torch.float16 else dtype
        default = CPU_BATCH_TOKENS if self.device.type == "cpu" else default_batch_tokens(self.device)
        self.batch_tokens = settings.batch_tokens or default

        def load(layout: Layout) -> TrainableTower:
            return TrainableTower(load_parts(layout, settings, torch.float32, self.device), on_cpu=self.on_cpu)

        document = load(self.layout)
        query = load(self.layout.query) if self.layout.query else copy.deepcopy(document) if separate else document
        self.towers = nn.ModuleDict({"query": query, "document": document})
        self.dim = document.head.dim

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def trainable(self) -> list[nn.Parameter]:
        return [weight for weight in self.parameters() if weight.requires_grad]

    def batches(self, texts: Sequence[str], kind: str) -> list[Batch]:
        """Sorted by length and filled to the token budget, so that little is padding."""
        tokens = self.tower(kind).tokens
        windows = tokens.windows(texts, self.layout.prompts[kind])
        return list(batches(windows, tokens.pad_id, self.batch_tokens, pin=not self.on_cpu))

    def forward(self, batch: Batch, kind: str) -> torch.Tensor:
        """float32 (B, D), unit norm, in the order of `batch.rows`."""
        tower = self.tower(kind)
        num_skipped = 0 if tower.include_prompt else tower.tokens.count(self.layout.prompts[kind])
        with self._autocast():
            hidden = tower.backbone(batch.input_ids, batch.lengths)
        vectors: torch.Tensor = tower.head(hidden, batch.lengths.to(self.device, non_blocking=True), num_skipped)
        return vectors

    def tower(self, kind: str) -> "TrainableTower":
        tower = self.towers[kind]
        assert isinstance(tower, TrainableTower)
        return tower

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.autocast_dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)

    def save(self, folder: Path) -> None:
        """A sentence-transformers folder: the files it was loaded from, with the weights as they are now.

        Raises ConfigError for two towers made of a folder that does not say what its modules are.
        """
        siamese = self.tower("query") is self.tower("document")
        if siamese or self.layout.query:
            copy_files(self.path, folder, {name: name for name in self.layout.files})
            for kind in KINDS[siamese:]:
                self.tower(kind).save(folder, "")
            return
        write_router(self.layout, folder)
        for kind in KINDS:
            self.tower(kind).save(folder, f"{kind}_")


class TrainableTower(nn.Module):
    def __init__(self, parts: Parts, *, on_cpu: bool) -> None:
        super().__init__()
        self.layout, self.tokens, self.model, self.head = parts.layout, parts.tokens, parts.model, parts.head
        self.include_prompt = parts.layout.include_prompt
        packs = on_cpu and is_bert(self.model.config)
        if on_cpu and not packs:
            self.model.set_attn_implementation("eager")  # torch's own takes twice as long back on a CPU (measured)
        self.backbone: Backbone = PackedBackbone(self.model) if packs else PaddedBackbone(self.model)
        for name, weight in self.model.named_parameters():
            weight.requires_grad = "pooler." not in name  # which no vector depends on

    def save(self, folder: Path, prefix: str) -> None:
        """Weights into the folders of the layout's modules; with a prefix, into those that `write_router` made."""
        places = module_folders(self.layout, prefix) if prefix else {name: name for _, name in self.layout.modules}
        self.model.save_pretrained(folder / places[self.layout.transformer], max_shard_size="100GB")
        dense = [step for step in self.head.steps if isinstance(step, nn.Sequential)]
        layouts = [layout for layout in self.layout.head if layout is not None]
        for step, layout in zip(dense, layouts, strict=True):
            weights = {f"linear.{name}": value.contiguous() for name, value in step[0].state_dict().items()}
            save_file(weights, folder / places[layout.folder] / WEIGHTS)


def module_folders(layout: Layout, prefix: str) -> dict[str, str]:
    """Folder of a module → its folder in a Router, which says kind, position and class."""
    return {folder: f"{prefix}{number}_{name}" for number, (name, folder) in enumerate(layout.modules)}


def write_router(layout: Layout, folder: Path) -> None:
    """Two copies of a tower's files, and the JSON that makes them sentence-transformers' Router."""
    if len(layout.modules) < 2:
        raise ConfigError(f"training.separate: expected a folder with modules.json, got {layout.root} without")
    top = {"modules.json", "config_sentence_transformers.json"}
    types, structure = {}, {}
    for kind in KINDS:
        places = module_folders(layout, f"{kind}_")
        names = {}
        for name in (name for name in layout.files if name not in top):
            parent, _, rest = name.rpartition("/")
            names[name] = f"{places[parent]}/{rest}"
        copy_files(layout.root, folder, names)
        for name, of_module in layout.modules:
            types[places[of_module]] = f"{SENTENCE_TRANSFORMERS}.{name}"
            (folder / places[of_module]).mkdir(exist_ok=True)
        structure[kind] = list(places.values())
    settings = "config_sentence_transformers.json"
    copy_files(layout.root, folder, {settings: settings} if settings in layout.files else {})
    router = {
        "types": types,
        "structure": structure,
        "parameters": {"default_route": "document", "allow_empty_key": True},
    }
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{SENTENCE_TRANSFORMERS}.Router"}]
    for name, content in ((ROUTER_CONFIG, router), ("modules.json", modules)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def copy_files(source: Path, folder: Path, names: dict[str, str]) -> None:
    """All files but weights, which are written separately."""
    for name, target in names.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        if not name.endswith((".safetensors", ".safetensors.index.json")):
            shutil.copyfile(source / name, folder / target)


def blend(encoder: TrainableEncoder, old: dict[str, torch.Tensor], share: float) -> None:
    """Moves the weights back by `share` towards `old`, which keeps what the encoder knew before: robust fine-tuning by
    weight-space ensembles, Wortsman et al. 2022 (arXiv:2109.01903).
    """
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            weight.lerp_(old[name], share)
