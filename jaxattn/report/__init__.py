"""The report of one or several runs, one HTML file: ``python -m jaxattn.report RUN [RUN...]``.

`loading` reads run folders, `charts` draws, `sections` and `cases` turn runs into the data of each
section, and ``template.html.j2`` lays them out. To add a section, add a function to `sections.page`
and a part to the template. The page needs neither a network nor scripts.
"""

from collections.abc import Sequence
from pathlib import Path

from jaxattn import files


def write(run_dirs: str | Path | Sequence[str | Path], out: Path | None = None) -> Path:
    """Writes the report of one run, or of several side by side.

    Args:
        run_dirs: Folders with ``config.json`` and ``evaluation/test.json``. ``log.jsonl``,
            ``split.csv``, ``evaluation/test_predictions.csv`` and ``evaluation/test_cases.npz`` are
            optional; a section whose file is missing says how to make it.
        out: Where the report goes, and of one run where ``evaluation/`` lies, if not in the run's
            folder. Of several runs, by default the folder of the first one's folder.

    Returns:
        The path of the report, which embeds its pictures and loads nothing else.

    Raises:
        InputError: A required file is missing, or a file is damaged.
    """
    import jinja2

    from jaxattn.report import loading, sections

    given = [run_dirs] if isinstance(run_dirs, str | Path) else run_dirs
    elsewhere = out if len(given) == 1 else None
    runs = [loading.load(Path(folder).expanduser(), elsewhere) for folder in given]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxattn.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("template.html.j2").render(sections.page(runs))
    folder = runs[0].folder if len(runs) == 1 else runs[0].folder.resolve().parent
    path = (out or folder) / "report.html"
    files.write_text(path, page + "\n")
    return path
