"""What has passed through a base model so far, by stage."""

from __future__ import annotations

from typing import Any

import torch
from families import family_of

Tensors = dict[str, torch.Tensor]


class Watch:
    """Keeps stages; a copy of each, because HF adds to some in place."""

    def __init__(self, base: Any, batch_size: int) -> None:
        self.base, self.backbone, self.batch_size = base, base.base_model, batch_size
        self.config, self.family = base.config, family_of(base.config)
        self.seen: Tensors = {}
        self.attending: Any = None
        """The attention that runs now."""

    def keep(self, name: str, tensor: torch.Tensor) -> None:
        """Keep a stage, which must be new."""
        assert name not in self.seen, f"{name} was computed twice"
        self.seen[name] = tensor.detach().clone()

    def keep_same(self, name: str, tensor: torch.Tensor) -> None:
        """Keep what several layers get alike."""
        if name not in self.seen:
            self.keep(name, tensor)
        assert torch.equal(self.seen[name], tensor), f"{name} is not the same everywhere"

    def keep_positions(self, name: str, ids: torch.Tensor) -> None:
        """Positions, for each row of the batch."""
        self.keep_same(name, ids.expand(self.batch_size, -1))
