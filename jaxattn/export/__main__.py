"""The command line of `jaxattn.export`."""

from pathlib import Path

from absl import flags

from jaxattn import cli, export
from jaxattn.run import load_run


def define_flags() -> None:
    """Defines the flags of the command line."""
    cli.define_run_flag()
    flags.DEFINE_string("out", None, "Folder to write; must not exist.", required=True)
    flags.DEFINE_list("format", list(export.DEFAULT), f"Which of {', '.join(export.FORMATS)}.")
    flags.DEFINE_enum("checkpoint", "best", ("best", "latest"), "The checkpoint to export.")
    flags.DEFINE_bool("explain", False, "Add Grad-CAM, also where the run's config has none.")


def main(argv: list[str]) -> None:
    """Exports and says what was written."""
    del argv
    given = flags.FLAGS
    run = load_run(given.run, given.checkpoint, explain=given.explain)
    out = Path(given.out).expanduser()
    export.write(run, out, given.format)
    for path in sorted(out.iterdir()):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
