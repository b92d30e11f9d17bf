"""The command line of `jaxattn.report`."""

from pathlib import Path

from absl import flags

from jaxattn import cli, report
from jaxattn.errors import invalid

#: The command line takes folders, not only flags.
POSITIONAL = True


def define_flags() -> None:
    """Defines the flags of the command line."""
    flags.DEFINE_multi_string("run", [], "Folder of a run; the same as a folder without the flag.")
    flags.DEFINE_alias("workdir", "run")
    cli.define_plugin_flag()
    cli.define_out_flag()


def main(argv: list[str]) -> None:
    """Writes the report and prints where it is."""
    folders = [*flags.FLAGS.run, *argv[1:]]
    if not folders:
        raise invalid("command line", "the folder of a run, or of several", "none")
    out = Path(flags.FLAGS.out) if flags.FLAGS.out else None
    print(f"report: {report.write(folders, out)}")


if __name__ == "__main__":
    define_flags()
    cli.run_main(main, positional=POSITIONAL)
