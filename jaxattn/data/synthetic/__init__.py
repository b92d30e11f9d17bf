"""The embedded data: synthetic dermoscopic images."""

from jaxattn.data.synthetic.dataset import load as load
