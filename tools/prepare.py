"""Prepares a public data set for training.

    python tools/prepare.py --dataset=NAME --source=DIR --out=DIR [--size=N] [--skip-bad]
        [--overwrite] [--plugin=MODULE]

NAME is one of ham10000, isic2016, isic2017, derm7pt, or what a plugin registers in
`jaxattn.data.sources.SOURCES`. DIR holds the public files, unpacked; the readers in
`jaxattn.data.sources` say which. Reads every image completely, writes ArrayRecord files that TFDS
and `jaxattn.data.tfds.reader.load` read, and reports what it found, also in OUT/report.json.
"""

from absl import flags

from jaxattn import cli
from jaxattn.data.tfds import prepare

if __name__ == "__main__":
    flags.DEFINE_string("dataset", None, "Which data set.", required=True)
    prepare.define_flags()
    cli.define_plugin_flag()
    cli.run_main(lambda argv: prepare.prepare(flags.FLAGS.dataset))
