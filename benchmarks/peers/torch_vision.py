"""torchvision, also where its compiled operators do not load: no network needs one of them."""

from types import ModuleType

import torch


def load() -> ModuleType:
    """Imports torchvision, with operators that can be named but not called if need be."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        import torchvision
    return torchvision
