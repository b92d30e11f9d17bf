"""Converts PyTorch weights to ours, unchanged to the last bit.

    python tools/convert_torch.py --model=NAME --weights=FILE --out=DIR [--num_classes=N]

FILE is a .safetensors file, or a state dict that torch.save wrote; PyTorch is not needed. NAME is
one of our models: torch_inception_v3, torch_densenet121, torch_resnet34, torch_resnet50 and
torch_vgg16_bn for those of torchvision, torch_se_resnext50 for timm's seresnext50_32x4d,
torch_se_resnext50_cadene for that of pretrainedmodels, which timm calls legacy,
torch_efficientnet_lite0 to 4 for TensorFlow's weights in PyTorch packages and timm. A file without
a classifier gives a backbone alone. DIR is what --config.init_from starts training from.
"""

import hashlib
from pathlib import Path

import jax
from absl import flags

from jaxattn import pretrained, run_dir
from jaxattn.cli import given, run_main
from jaxattn.convert import torch

_MODEL = flags.DEFINE_string("model", None, "Name of the model; list: the names.", required=True)
_WEIGHTS = flags.DEFINE_string("weights", None, "What to convert.")
_OUT = flags.DEFINE_string("out", None, "Folder to write.")
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", None, "Classes of the model; default: as many as the file has."
)


def main(argv: list[str]) -> None:
    """Converts and says what was written."""
    del argv
    if _MODEL.value == "list":
        print("\n".join(torch.names()))
        return
    source, out = Path(given(_WEIGHTS)), Path(given(_OUT))
    variables = torch.load(source, _MODEL.value, _NUM_CLASSES.value)
    notes = {
        "model": {"name": _MODEL.value},
        "source": source.name,
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "versions": run_dir.versions(),
    }
    pretrained.save(out, variables, notes)
    arrays = jax.tree.leaves(variables)
    print(f"{len(arrays)} arrays, {sum(array.size for array in arrays):,} numbers: {out}")


if __name__ == "__main__":
    run_main(main)
