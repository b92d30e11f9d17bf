"""The command line: ``jaxattn COMMAND`` and ``python -m jaxattn.COMMAND``, flags and errors."""

import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging

from jaxattn import signals
from jaxattn.errors import InputError, invalid, unknown
from jaxattn.files import MACHINE_ERRORS, expanded

#: Modules with ``define_flags()`` and ``main(argv)``, by command; ``POSITIONAL`` if true.
COMMANDS = {
    "train": "jaxattn.train",
    "evaluate": "jaxattn.evaluate",
    "prepare": "jaxattn.prepare",
    "compare": "jaxattn.compare",
    "figures": "jaxattn.figures",
    "cross-validate": "jaxattn.cross_validate",
    "report": "jaxattn.report.__main__",
    "predict": "jaxattn.predict",
    "export": "jaxattn.export.__main__",
    "demo": "jaxattn.demo.__main__",
}
#: Commands that lose nothing when they are stopped at any time.
RESUMABLE = ("train", "evaluate", "cross-validate", "report")


def main() -> None:
    """Runs ``jaxattn COMMAND [FLAGS]``."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command not in COMMANDS:
        if command in ("", "-h", "--help"):
            print(f"usage: jaxattn COMMAND [FLAGS]; commands: {', '.join(COMMANDS)}")
            sys.exit(0 if command else 2)
        print(f"error: {unknown('jaxattn', command, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    if command in RESUMABLE:
        signals.install()  # before the import, which takes seconds
    module = importlib.import_module(COMMANDS[command])
    sys.argv = [f"jaxattn {command}", *sys.argv[2:]]
    module.define_flags()
    run_main(module.main, positional=getattr(module, "POSITIONAL", False))


def define_config_flags(workdir_help: str) -> None:
    """Defines ``--config``, its fields, ``--workdir`` and ``--plugin``."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        None,
        "What to train: a file, or the name of a config that comes with the package.",
        lock_config=False,
        accept_new_attributes=True,  # options of models; jaxattn.config.check_fields knows the rest
    )
    flags.DEFINE_string("workdir", None, workdir_help)
    flags.mark_flag_as_required("config")
    define_plugin_flag()


def define_run_flag() -> None:
    """Defines ``--run``, also called ``--workdir``, and ``--plugin``."""
    flags.DEFINE_string("run", None, "Folder of the run.", required=True)
    flags.DEFINE_alias("workdir", "run")
    define_plugin_flag()


def define_out_flag() -> None:
    """Defines ``--out``."""
    flags.DEFINE_string(
        "out", "", "Folder to write to, if not that of the run, which may be read-only."
    )


def define_evaluation_flags() -> None:
    """Defines ``--evaluation.tta`` and the like, also as ``--config.evaluation.tta``."""
    from ml_collections import config_flags

    from jaxattn import config

    # ml_collections defines a flag for each field that is in sys.argv now.
    sys.argv = [re.sub(r"^--?config\.evaluation\.", "--evaluation.", a) for a in sys.argv]
    config_flags.DEFINE_config_dict(
        "evaluation", config.base().evaluation, "Settings other than those of training."
    )


def define_deterministic_flag() -> None:
    """Defines ``--deterministic``."""
    flags.DEFINE_bool(
        "deterministic", False, "Use only operations that give the same bits each time on a GPU."
    )


def define_plugin_flag() -> None:
    """Defines ``--plugin``."""
    flags.DEFINE_multi_string(
        "plugin", [], "Python module to import first, which registers models, losses and so on."
    )


def given(flag: flags.FlagHolder[str | None]) -> str:
    """The value of a flag that this use of a command needs.

    Raises:
        InputError: It is not given.
    """
    if not flag.value:
        raise invalid(f"--{flag.name}", "a value", "nothing")
    return flag.value


def workdir() -> Path:
    """The folder of ``--workdir``; by default ``runs/``, the config's name and its arguments."""
    from ml_collections import config_flags

    if flags.FLAGS.workdir:
        folder = Path(flags.FLAGS.workdir).expanduser()
        _check_folder(folder)
        return folder
    file, arguments = _split(config_flags.get_config_filename(flags.FLAGS["config"]))
    variant = re.sub(r"[^\w.=-]", "_", arguments.removeprefix(":"))
    smoke = "smoke" if flags.FLAGS.config.smoke else ""
    return Path("runs", "_".join(filter(None, (Path(file).stem, variant, smoke))))


def _check_folder(folder: Path) -> None:
    """Raises InputError for a folder that is a file, or that cannot be made or written to."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        given = f"{folder}, below the file {there}" if there != folder else f"the file {folder}"
        raise invalid("--workdir", "a folder", given)
    if not os.access(there, os.W_OK | os.X_OK) or str(there.resolve()).startswith("/proc"):
        raise invalid("--workdir", "a folder to write to", f"{folder}, which cannot be written")


def run_main(main: Callable[[list[str]], int | None], positional: bool = False) -> None:
    """Runs a command line: parses absl flags, calls ``main(argv)`` and exits with its status.

    Arguments that are no flags are an error, unless the command takes them: ``argv[1:]``.

    An `InputError` prints as ``error: ...`` on stderr with exit status 2, and so does what the
    machine refuses: a full disk, a read-only folder. Ctrl-C exits with 130, or where
    `jaxattn.signals` is installed with `signals.STOPPED`.
    """

    def guarded(argv: list[str]) -> int:
        try:
            if argv[1:] and not positional:
                raise invalid("command line", "only flags", repr(" ".join(argv[1:])))
            return main(argv) or 0
        except InputError as error:
            return _failed(str(error))
        except OSError as error:
            if error.errno not in MACHINE_ERRORS:
                raise
            return _failed(f"{error.filename or 'a file'}: {error.strerror}")
        except signals.Stopped:
            print("stopped; the same command goes on")
            return signals.STOPPED
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    logging.set_verbosity(logging.WARNING)
    app.run(guarded, flags_parser=_parse)


def _failed(error: str) -> int:
    """Prints an error; returns the exit status, or ends the program at once.

    Threads of libraries may wait for minutes for a save that failed. What is on the disk is whole.
    """
    print(f"error: {error}", file=sys.stderr)
    if signals.installed():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2)
    return 2


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; a wrong one, or a config that fails, is one sentence and no traceback."""
    try:
        # ml_collections reads overrides from sys.argv.
        argv = sys.argv = [_home(_found(argument)) for argument in argv]
        _import_plugins(argv)
        if {"--help", "-h", "-help"} & set(argv):
            _print_help(argv)
            sys.exit(0)
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            _check_config(flags.FLAGS["config"].value)
        return rest
    except Exception as error:
        print("error:", " ".join(_sentence(error, argv).split()), file=sys.stderr)
        sys.exit(2)


def _check_config(config: object) -> None:
    from ml_collections import ConfigDict

    if not isinstance(config, ConfigDict):
        raise invalid("--config", "a file whose get_config() returns a ConfigDict", type(config))


def _sentence(error: Exception, argv: list[str]) -> str:
    """What to say of an exception while flags are parsed."""
    text = str(error)
    if "InputError: " in text or isinstance(error, InputError):
        # ml_collections wraps what a config file raised, traceback and all, into a flags.Error.
        return text.rpartition("InputError: ")[2].strip().split("\n\n")[0]
    file = next((a.removeprefix("--config=") for a in argv if a.startswith("--config=")), "")
    file = _split(file)[0]
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file
    ]
    if isinstance(error, SyntaxError):
        return str(invalid(file, "Python", f"{error.msg} in line {error.lineno}"))
    if lines or "Traceback (most recent" in text:
        last = [line for line in text.splitlines() if line.strip() and line[:1].strip()][-1:]
        why = f"{type(error).__name__}: {text}" if lines else "".join(last)
        where = f", line {lines[-1]}" if lines else ""
        return str(invalid(f"{file}{where}", "a config", why))
    if "has no attribute 'get_config'" in text:
        return str(invalid(file, "a function get_config", "none"))
    if isinstance(error, AttributeError | KeyError):
        text = text.strip("\"'").replace("\\'", "'").replace("\\n", "; ")
        return f"config has no field {text}"
    if isinstance(error, flags.Error | OSError | TypeError | ValueError):
        return text
    raise error


def _import_plugins(argv: list[str]) -> None:
    """Imports ``--plugin=MODULE``, before a config is read that names what it registers."""
    for argument in argv:
        if argument.startswith("--plugin="):
            name = argument.removeprefix("--plugin=")
            _trust_working_directory()
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise invalid("--plugin", "a module that can be imported", error) from error


def _trust_working_directory() -> None:
    """Lets a plugin or a config of the user's own import what lies beside it."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def _print_help(argv: list[str]) -> None:
    """Prints what a command does, its flags, and the fields of its config."""
    print(sys.modules["__main__"].__doc__ or "")
    for name in sorted(flags.FLAGS):
        flag, module = flags.FLAGS[name], flags.FLAGS.find_module_defining_flag(name) or ""
        if module.startswith(("absl", "chex", "grain", "jax.", "orbax", "tensorflow")):
            continue
        default = f" (default: {flag.default})" if flag.default and name != "evaluation" else ""
        print(f"  --{name}: {' '.join((flag.help or '').split())}{default}")
    if "config" in flags.FLAGS:
        from jaxattn import config

        given = [a.removeprefix("--config=") for a in argv if a.startswith("--config=")]
        print("\nFields of the config, with their values" + (f" in {given[0]}:" if given else ":"))
        print(config.describe(config.load(given[0]) if given else config.base()))


def _home(argument: str) -> str:
    """An argument with the user's home for a ``~`` after its ``=``, which shells leave alone."""
    name, equals, value = argument.partition("=")
    return name + equals + expanded(value)


def _found(argument: str) -> str:
    """``--config=NAME:ARGUMENTS`` with the file of the config for its name."""
    if not argument.startswith("--config=") or "config" not in flags.FLAGS:
        return argument
    from jaxattn.config import find_file

    name, arguments = _split(argument.removeprefix("--config="))
    file = find_file(name)
    if file == Path(name).expanduser():
        _trust_working_directory()
    return f"--config={file}{arguments}"


def _split(config: str) -> tuple[str, str]:
    """The file or name of a config, and its arguments with their colon."""
    name, colon, arguments = config.partition(":")
    return name, colon + arguments
