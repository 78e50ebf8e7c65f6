"""Windows of held-out text for claims that look at a model many times."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def spread(split: Any, windows: int, length: int) -> Tensor:
    """Windows [windows, length] int64, as far apart as the split allows, the same at every call."""
    places = np.linspace(0, split.token_count - length, windows).astype(int).tolist()
    return torch.from_numpy(np.stack([split.read(place, place + length) for place in places]))
