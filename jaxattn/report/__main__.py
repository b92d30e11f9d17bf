"""The command line of `jaxattn.report`."""

from pathlib import Path

from absl import flags

from jaxattn import cli, report


def define_flags() -> None:
    """Defines the flags of the command line."""
    cli.define_run_flag()


def main(argv: list[str]) -> None:
    """Writes the report and prints where it is."""
    del argv
    print(f"report: {report.write(Path(flags.FLAGS.run))}")


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
