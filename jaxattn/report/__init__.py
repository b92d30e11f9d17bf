"""The report of a run, one HTML file: ``python -m jaxattn.report --run=RUN``.

`loading` reads the run folder, `charts` draws, `sections` turns a run into the data of each section
and ``template.html.j2`` lays them out. To add a section, add a function to `sections.page` and a
part to the template. The page needs neither a network nor scripts.
"""

from pathlib import Path

from jaxattn import files


def write(run_dir: str | Path, out: Path | None = None) -> Path:
    """Writes ``report.html`` into a run folder, or another one.

    Args:
        run_dir: A folder with ``config.json`` and ``evaluation/test.json``. ``log.jsonl``,
            ``split.csv``, ``evaluation/test_predictions.csv`` and ``evaluation/test_cases.npz`` are
            optional; a section whose file is missing says how to make it.
        out: Where ``evaluation/`` lies and the report goes, if not in the run's folder.

    Returns:
        The path of the report, which embeds its pictures and loads nothing else.

    Raises:
        InputError: A required file is missing, or a file is damaged.
    """
    import jinja2

    from jaxattn.report import loading, sections

    run = loading.load(Path(run_dir).expanduser(), out)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxattn.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("template.html.j2").render(sections.page(run))
    path = (out or run.folder) / "report.html"
    files.write_text(path, page + "\n")
    return path
