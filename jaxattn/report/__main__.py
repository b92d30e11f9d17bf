"""The command line of `jaxattn.report`."""

from pathlib import Path

from absl import flags

from jaxattn import cli, report


def define_flags() -> None:
    """Defines the flags of the command line."""
    cli.define_run_flag()
    cli.define_out_flag()


def main(argv: list[str]) -> None:
    """Writes the report and prints where it is."""
    del argv
    out = Path(flags.FLAGS.out) if flags.FLAGS.out else None
    print(f"report: {report.write(Path(flags.FLAGS.run), out)}")


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
