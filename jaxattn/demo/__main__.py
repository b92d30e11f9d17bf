"""The command line of `jaxattn.demo`."""

import warnings

from absl import flags
from PIL import Image

from jaxattn import cli
from jaxattn.demo.server import Server
from jaxattn.run import load_run
from jaxattn.runtime import compilation, memory


def define_flags() -> None:
    """Defines the flags of the command line."""
    cli.define_run_flag()
    flags.DEFINE_enum("checkpoint", "best", ("best", "latest"), "The checkpoint to try.")
    flags.DEFINE_string("host", "127.0.0.1", "Where to listen; by default, for this machine alone.")
    flags.DEFINE_integer("port", 8000, "Port; 0 for any free one.", 0, 65535)


def main(argv: list[str]) -> None:
    """Serves the page until Ctrl-C."""
    del argv
    given = flags.FLAGS
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    memory.keep()
    compilation.use_cache()
    run = load_run(given.run, given.checkpoint, explain=True)
    with Server(run, given.host, given.port) as server:
        server.warm_up()
        print(f"{server.url} shows {run.folder}; Ctrl-C ends it", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
