import base64
import csv
import functools
import html.parser
import io
import json
import operator
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from jaxattn import metrics, report
from jaxattn.data.sources.ham10000 import CLASS_NAMES
from jaxattn.errors import InputError
from jaxattn.report import __main__ as command_line
from tests.browser import console, overflow, show
from tests.unit.report_runs import make_evaluated

VOID = {"meta", "img", "br", "input"}


class Page(html.parser.HTMLParser):
    """Collects text, images and links, and fails on tags that do not pair."""

    def __init__(self, content):
        super().__init__()
        self.text, self.images, self.attributes, self.tags, self.rows = "", [], [], set(), []
        self._open = []
        self.feed(content)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        if tag == "img":
            self.images.append(dict(attributes))
        if tag in ("tr", "dl"):
            self.rows.append([])
        if tag == "dt":
            self.rows.append([""])
        if tag in ("td", "th", "dd"):
            self.rows[-1].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            return
        self.text += data
        if {"td", "th", "dt", "dd"} & set(self._open):
            self.rows[-1][-1] += data

    def row(self, first, table=""):
        """The cells after the first of the first row that starts so, below a table's header."""
        heads = [i for i, row in enumerate(self.rows) if table and row[:1] == [table]]
        return next(row for row in self.rows[heads[0] if heads else 0 :] if row[:1] == [first])[1:]

    def matrix(self):
        """The header of the confusion matrix."""
        (header,) = [row for row in self.rows if row[:1] == ["truth \\ prediction"]]
        return header


def predictions(labels, classes):
    """Rows whose probabilities differ; the last example of each class is taken for the next one."""
    probabilities = np.zeros((len(labels), classes))
    for i, label in enumerate(labels):
        last = i == np.flatnonzero(labels == label)[-1]
        sure = 0.6 + 0.01 * i
        probabilities[i] = (1 - sure) / (classes - 1)
        probabilities[i, (label + last) % classes] = sure
    return probabilities


def make_run(folder, names=CLASS_NAMES, present=7, maps=("soft_attention",), mask=True):
    (folder / "evaluation").mkdir(parents=True)
    config = {
        "model": {"name": "irv2_sa", "dropout": 0.5},
        "dataset": {"name": "prepared", "note": "<b> & 'quotes'"},
        "seed": 17,
    }
    (folder / "config.json").write_text(json.dumps(config))
    log = [
        {"kind": "train", "step": step, "epoch": 0, "loss": 1 / step, "accuracy": 0.5}
        for step in (10, 20, 30)
    ] + [
        {"kind": "validation", "step": 15, "loss": 2.0, "accuracy": 0.5, "balanced_accuracy": 0.41},
        {"kind": "validation", "step": 30, "loss": 1.5, "accuracy": 0.6, "balanced_accuracy": 0.39},
        # A resumed run logs step 15 again: this row counts.
        {"kind": "validation", "step": 15, "loss": 2.1, "accuracy": 0.5, "balanced_accuracy": 0.43},
    ]
    (folder / "split.csv").write_text(
        "image_id,lesion_id,split\n"
        + "a,l,train\n" * 90
        + "b,l,validation\n" * 10
        + "c,l,test\n" * 28
    )
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, log)) + '\n{"kind": "tr')
    labels = np.tile(np.arange(present), 4)
    probabilities = predictions(labels, len(names))
    evaluation = {
        "split": "test",
        "checkpoint": "best",
        "step": 15,
        "dataset": "ham10000",
        "metrics": metrics.classification(labels, probabilities, names),
        "device": "a device",
        "versions": {"jax": "9.8.7"},
    }
    (folder / "evaluation" / "test.json").write_text(json.dumps(evaluation))
    predicted = probabilities.argmax(axis=1)
    with (folder / "evaluation" / "test_predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["image_id", "lesion_id", "label", "prediction", *(f"p_{n}" for n in names)]
        )
        for i, label in enumerate(labels):
            row = [f"I{i}", f"L{i // 2}", names[label], names[predicted[i]]]
            writer.writerow([*row, *probabilities[i]])
    cases = np.array([0, 1, len(labels) - 1])
    rng = np.random.default_rng(0)
    arrays = {
        "image_id": np.array([f"I{i}" for i in cases]),
        "image": rng.integers(0, 255, (3, 24, 32, 3), dtype=np.uint8),
        "label": labels[cases],
        "prediction": predicted[cases],
        "probability": probabilities.max(axis=1)[cases],
    }
    arrays |= {f"map/{name}": rng.random((3, 2, 3, 4), dtype=np.float32) for name in maps}
    if mask:
        arrays["mask"] = np.pad(np.ones((3, 10, 10), np.uint8), ((0, 0), (7, 7), (11, 11)))
    np.savez(folder / "evaluation" / "test_cases.npz", **arrays)
    return folder


def read(folder):
    path = report.write(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_numbers_of_the_run_are_in_the_page(tmp_path):
    page = read(make_run(tmp_path / "run"))
    # Each of 7 classes has 4 examples, 3 of them right, and one of the class before it wrong.
    assert "irv2_sa on ham10000, test split" in page.text
    assert "0.750balanced accuracy" in page.text
    assert "0.750accuracy" in page.text
    mel = page.row("mel", "class")
    assert mel[:6] == ["0.750", "0.670", "0.750", "0.650", "0.750", "0.660"]
    assert mel[7:] == ["0.974", "4", "34"]
    assert page.row("weighted average")[:3] == ["0.750", "0.938", "0.750"]
    assert page.row("images") == ["28"]
    assert page.row("lesions") == ["14"]
    assert page.row("checkpoint") == ["best, step 15"]
    assert page.row("train") == ["90 images"]
    assert page.row("mel", "class, images") == ["-", "4"]
    assert page.row("mel", "class, further")[:2] == ["0.958", "0.958"]
    assert ["mel", "0", "0", "0", "0", "375%", "125%", "0"] in page.rows  # the confusion matrix
    assert page.row("dataset.note") == ["<b> & 'quotes'"]
    assert page.row("seed") == ["17"]
    assert page.row("jax") == ["9.8.7"]
    assert page.row("device") == ["a device"]
    assert "Best validation balanced accuracy 0.430 at step 15." in page.text
    assert "another split" in page.text
    assert "selected on the test set" in page.text
    assert "truth akiec, predicted akiec, p = 0.600" in page.text
    assert "truth vasc, predicted akiec, p = 0.870" in page.text


def test_the_page_is_self_contained_and_its_images_decode(tmp_path):
    page = read(make_run(tmp_path / "run", maps=("one", "two")))
    content = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    without_data = re.sub(r"data:image/[^\"]*", "", content)
    assert "//" not in without_data
    assert "url(" not in without_data
    assert "@import" not in without_data
    assert not page.tags & {"script", "link", "iframe", "object", "base"}
    assert not {"srcset", "action", "onclick"} & {name for name, _ in page.attributes}
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    # ROC, precision-recall, reliability and two learning curves, a colour bar; then of 3 cases the
    # image and two views per map, each with the border of the mask.
    borders = [image for image in page.images if image.get("class") == "border"]
    assert len(page.images) == 5 + 1 + 3 * 5 * 2
    assert len(borders) == 15
    kinds = []
    for image in page.images:
        assert image["alt"] or image in borders
        kind, data = re.fullmatch(r"data:image/([a-z+]+);base64,(.*)", image["src"]).groups()
        kinds.append(kind)
        data = base64.b64decode(data, validate=True)
        if kind == "svg+xml":
            root = ElementTree.fromstring(data)
            assert root.tag.endswith("svg")
            references = [v for e in root.iter() for k, v in e.items() if k.endswith("href")]
            assert all(reference.startswith(("#", "data:")) for reference in references)
            assert b"prefers-color-scheme: dark" in data
        else:
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
                assert picture.format.lower() == kind
                assert picture.size == ((256, 12) if "colours" in image["alt"] else (32, 24))
    assert kinds.count("svg+xml") == 5


def test_the_same_run_gives_the_same_bytes(tmp_path):
    folder = make_run(tmp_path / "run")
    assert report.write(folder).read_bytes() == report.write(folder).read_bytes()


def test_a_map_is_shown_block_by_block(tmp_path):
    folder = make_run(tmp_path / "run", mask=False)
    stored = dict(np.load(folder / "evaluation" / "test_cases.npz"))
    stored["map/soft_attention"] = np.zeros((3, 2, 3, 4), np.float32)
    stored["map/soft_attention"][:, :, 1, 2] = 1
    np.savez(folder / "evaluation" / "test_cases.npz", **stored)
    page = read(folder)
    shown = [i["src"] for i in page.images if i["alt"] == "attention map soft_attention"]
    data = base64.b64decode(shown[0].partition(",")[2])
    red = np.asarray(Image.open(io.BytesIO(data)))[..., 0] > 128  # yellow, not dark blue
    expected = np.zeros((24, 32), bool)
    expected[8:16, 16:24] = True  # row 1 of 3, column 2 of 4
    np.testing.assert_array_equal(red, expected)
    assert "3×4, peak 12.0" in page.text


def test_absent_classes_and_long_odd_names(tmp_path):
    names = ("plain", "a_rather_long_name", "$cost", "<tag> & more")
    page = read(make_run(tmp_path / "run", names=names, present=3, mask=False))
    assert page.row("<tag> & more", "class") == ["-", "-", "-", "-", "0"]
    assert "No example of <tag> & more in this split" in page.text
    assert "No curve for <tag> & more" in page.text
    assert "No published numbers are known" in page.text


def test_a_model_without_attention_or_lesion_ids_shows_its_images(tmp_path):
    folder = make_run(tmp_path / "run", maps=())
    path = folder / "evaluation" / "test_predictions.csv"
    path.write_text(path.read_text().replace(",L3,", ",,"))
    page = read(folder)
    assert page.row("lesions") == ["unknown"]  # as not every image names its lesion
    assert "This model has no attention map" in page.text
    assert len(page.images) == 5 + 3 * 2


def test_missing_optional_files_are_named_with_their_commands(tmp_path):
    folder = make_run(tmp_path / "run")
    optional = {
        "log.jsonl": "train --workdir",
        "evaluation/test_predictions.csv": "evaluate --run",
        "evaluation/test_cases.npz": "evaluate --run",
    }
    for file in optional:
        (folder / file).unlink()
    page = read(folder)
    for file, command in optional.items():
        said = f"has no {file}. python -m jaxattn.{command}={folder} writes it."
        assert said in page.text
    assert page.row("lesions") == ["unknown"]
    assert page.images == []
    assert page.matrix()[1:] == list(CLASS_NAMES)


@pytest.mark.parametrize("file", ["config.json", "evaluation/test.json"])
def test_a_missing_required_file_is_an_input_error(tmp_path, file):
    folder = make_run(tmp_path / "run")
    (folder / file).unlink()
    with pytest.raises(InputError, match=rf"{file}: expected the file that python -m jaxattn\."):
        report.write(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", r"config\.json: expected JSON, got a damaged file \(Exp"),
        ("config.json", "[]", r"config\.json: expected a JSON object, got \[\]"),
        ("evaluation/test.json", "{}", r"expected an evaluation with metrics\.per_class"),
        ("log.jsonl", "nonsense\n{}\n", "line 1: expected a JSON object .*, got a damaged file"),
        (
            "evaluation/test_predictions.csv",
            "image_id,label\n",
            "expected columns image_id, .*, got none of lesion_id, p_akiec",
        ),
        ("evaluation/test_cases.npz", "text", "expected an NPZ file"),
    ],
)
def test_a_broken_file_is_an_input_error(tmp_path, file, content, message):
    folder = make_run(tmp_path / "run")
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=message):
        report.write(folder)


def test_an_unknown_class_or_a_lost_row_of_predictions_is_an_input_error(tmp_path):
    folder = make_run(tmp_path / "run")
    path = folder / "evaluation" / "test_predictions.csv"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:-1], rows[-1].replace("vasc", "wart")]))
    with pytest.raises(InputError, match=r"label: expected one of akiec, .*, got 'wart'"):
        report.write(folder)
    path.write_text("\n".join(rows[:-1]))
    with pytest.raises(InputError, match=r"expected 28 rows, the images of .*, got 27"):
        report.write(folder)


@pytest.mark.parametrize("flag", ["run", "workdir"])
def test_the_command_line_prints_the_path(tmp_path, command, flag):
    folder = make_run(tmp_path / "run")
    status, out, _ = command(command_line, f"--{flag}={folder}")
    assert (status, out.strip()) == (0, f"report: {folder}/report.html")


def test_the_command_line_shows_bad_input_in_one_sentence(tmp_path, command):
    status, _, err = command(command_line, f"--run={tmp_path}")
    assert status == 2
    assert err.startswith(f"error: {tmp_path}/config.json: expected the file that")


def test_the_target_class_and_the_jaccard_index_are_shown(tmp_path):
    run = make_run(tmp_path)
    path = run / "evaluation" / "test.json"
    evaluation = json.loads(path.read_text())
    before = report.write(run).read_text(encoding="utf-8")
    assert "against all others</h3>" not in before
    assert "Jaccard" not in before
    labels = np.array([True, False, True, False, False])
    found = metrics.detection(labels, np.array([0.875, 0.625, 0.375, 0.25, 0.125]), 0.5, 1.0)
    evaluation["target"] = {"class": "mel<", **found}
    evaluation["jaccard"] = {"images": 41, "mean": {"attention_pool3": 0.5125}}
    path.write_text(json.dumps(evaluation))
    page = report.write(run).read_text(encoding="utf-8")
    assert "mel&lt; against all others" in page
    assert f"average precision {found['average_precision']:.3f}" in page
    assert "<td>0.375</td><td>1.000</td><td>0.667</td><td>0.667</td>" in page
    assert Page(page).row("attention_pool3") == ["0.512"]
    assert "the 41 images with a lesion mask" in page
    # As older versions named them.
    evaluation["positive"] = evaluation.pop("target")
    evaluation["prior_exponent"] = 0.5
    path.write_text(json.dumps(evaluation))
    old = report.write(run).read_text(encoding="utf-8")
    assert "mel&lt; against all others" in old
    assert "largest probability / (share in training)^0.5" in old


def test_a_papers_numbers_stand_only_beside_its_own_data_set(tmp_path):
    run = make_run(tmp_path / "run")
    assert "Datta et al. 2021" in read(run).text
    path = run / "evaluation" / "test.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": "isic2017"}))
    page = read(run)
    assert "Datta" not in page.text
    assert "paper" not in page.text
    assert "No published numbers are known" in page.text


def test_attnmel_stands_beside_table_2(tmp_path):
    run = make_run(tmp_path, names=("rest", "melanoma"), present=2)
    config = json.loads((run / "config.json").read_text())
    config["model"] = {"name": "attnmelcnn"}
    config["split"] = {"strategy": "official"}
    config["loss"] = {"maps": {"target": "lesion", "weights": {"attention_pool3": 0.001}}}
    config["dataset"]["classes"] = ["rest=nevus+seborrheic_keratosis", "melanoma"]
    config["target_class"] = "melanoma"
    (run / "config.json").write_text(json.dumps(config))
    path = run / "evaluation" / "test.json"
    evaluation = json.loads(path.read_text())
    found = metrics.detection(np.array([True, False]), np.array([0.75, 0.25]))
    evaluation |= {
        "dataset": "isic2017",
        "target": {"class": "melanoma", **found},
        "jaccard": {"images": 4, "mean": {"attention_pool3": 0.25}},
    }
    path.write_text(json.dumps(evaluation))
    page = read(run)
    assert "AUC 1.000 (paper 0.883), average precision 1.000 (paper 0.672)." in page.text
    assert page.row("attention_pool3") == ["0.250 (paper 0.553)"]
    assert page.row("class") == ["precision", "recall", "F1", "AUC", "support"]


def test_a_leak_is_announced(tmp_path):
    run = make_run(tmp_path)
    path = run / "evaluation" / "test.json"
    leak = {"leak": "koefler", "measured_leak": {"lesion": 0.95, "image": 0.9}}
    path.write_text(json.dumps(json.loads(path.read_text()) | leak))
    page = read(run)
    assert (
        "These scores do not estimate performance on new patients. split.leak=koefler" in page.text
    )
    assert "95.0%" in page.text


def test_names_from_files_are_escaped(tmp_path):
    name = "<script>alert(1)</script>"
    run = make_run(tmp_path, names=("plain", name), present=2, maps=(name,))
    path = run / "evaluation" / "test.json"
    evaluation = json.loads(path.read_text()) | {"device": name, "dataset": name}
    path.write_text(json.dumps(evaluation))
    page = read(run)
    assert "script" not in page.tags
    # Everywhere that it appears: the title, tables, captions.
    assert page.text.count(name) > 10


def leaves(value, path=()):
    """The paths of all values in a JSON object that are no objects or lists."""
    if not isinstance(value, dict | list):
        return [path]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [each for key, inner in items for each in leaves(inner, (*path, key))]


HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.mark.parametrize("file", ["evaluation/test.json", "config.json"])
def test_no_field_of_a_foreign_run_becomes_html(tmp_path, file):
    """Each field is shown as the text that it is, or refused by its name."""
    run = make_run(tmp_path / "run", mask=False, maps=())
    evaluation = json.loads((run / "evaluation/test.json").read_text())
    evaluation |= {
        "target": {"class": "mel", **metrics.detection(np.array([True, False]), np.eye(2)[0])},
        "jaccard": {"images": 41, "mean": {"attention_pool3": 0.5}},
        "leak": "koefler",
        "measured_leak": {"lesion": 0.95, "image": 0.9},
        "logit_adjustment": 0.5,
        "lesions": 14,
    }
    (run / "evaluation/test.json").write_text(json.dumps(evaluation))
    (run / "evaluation/test_cases.npz").unlink()
    (run / "evaluation/test_predictions.csv").unlink()
    (run / "log.jsonl").unlink()
    read(run)  # it is whole
    whole = (run / file).read_text()
    refused, shown = [], 0
    for *parents, last in leaves(json.loads(whole)):
        content = json.loads(whole)
        at = functools.reduce(operator.getitem, parents, content)
        at[last] = HOSTILE
        (run / file).write_text(json.dumps(content))
        try:
            page = read(run)
        except InputError as error:
            refused.append(str(error))
        else:
            assert not {"script", "img"} & page.tags
            shown += 1
    for message in refused:
        assert re.search(rf"{file}, \S+: expected .*, got .*</td>", message), message
    assert shown >= 3
    if file != "config.json":
        assert len(refused) >= 100  # all its numbers


def test_dark_mode_print_and_keyboard(tmp_path):
    content = report.write(make_run(tmp_path)).read_text(encoding="utf-8")
    assert "color-scheme: light dark" in content
    assert "@media screen and (prefers-color-scheme: dark)" in content
    assert "@media print" in content
    page = Page(content)
    targets = [value[1:] for name, value in page.attributes if name == "href"]
    ids = [value for name, value in page.attributes if name == "id"]
    assert set(targets) == set(ids) - {"borders"}
    assert len(ids) == len(set(ids))
    # Boxes that scroll can be reached and are named.
    boxes = content.count('class="scroll"')
    assert content.count('class="scroll" role="region" tabindex="0" aria-label="') == boxes > 2


def test_a_flat_map_is_shown_as_flat(tmp_path):
    folder = make_run(tmp_path / "run", mask=False)
    stored = dict(np.load(folder / "evaluation" / "test_cases.npz"))
    flat = 1 + 0.02 * np.random.default_rng(0).random((3, 2, 3, 4), dtype=np.float32)
    stored["map/soft_attention"] = flat
    np.savez(folder / "evaluation" / "test_cases.npz", **stored)
    page = read(folder)
    assert page.text.count("soft_attention: flat, no position stands out") == 3
    (shown, *_) = [i["src"] for i in page.images if i["alt"] == "attention map soft_attention"]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2]))))
    assert (pixels == 128).all()


def test_what_differs_from_a_papers_protocol_is_said(tmp_path):
    run = make_run(tmp_path / "run")
    config = json.loads((run / "config.json").read_text()) | {"dtype": "bfloat16"}
    (run / "config.json").write_text(json.dumps(config))
    text = read(run).text
    assert "not comparable with the paper" in text
    for difference in (
        "published: the model was selected on the test images",
        "the images are split otherwise",
        "this run computes in bfloat16 (--config.dtype=float32)",
        "(--config.dataset.resize=nearest)",
    ):
        assert difference in text


def test_the_metric_of_config_best_is_named_and_the_weighted_loss(tmp_path):
    run = make_run(tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config |= {"best": "loss", "loss": {"class_weight_exponent": 1.0}}
    (run / "config.json").write_text(json.dumps(config))
    text = read(run).text
    assert "Best validation loss 1.500 at step 30." in text
    assert "The training loss holds class weights" in text


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Three runs, evaluated in full on the same images."""
    folder = tmp_path_factory.mktemp("runs")
    strengths = {"weak": 1.0, "strong": 2.5, "again": 2.5}
    return [
        make_evaluated(folder / name, strength, seed=i)
        for i, (name, strength) in enumerate(strengths.items())
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_the_page_in_a_browser(browser, evaluated, tmp_path, count):
    """No error, nothing wider than the window, tables and pictures there, dark where asked for."""
    path = report.write(evaluated[:count], tmp_path if count > 1 else None)
    for width, dark in ((390, False), (1200, True)):
        show(browser, width=width, dark=dark)
        browser.get(path.as_uri())
        assert console(browser) == []
        assert overflow(browser) == []
        seen = browser.execute_script(
            """
            const pictures = [...document.images];
            return {
              tables: document.querySelectorAll("table").length,
              pictures: pictures.length,
              broken: pictures.filter((p) => !p.complete || !p.naturalWidth).length,
              background: getComputedStyle(document.body).backgroundColor,
              borders: [...document.querySelectorAll("img.border")].filter(
                (p) => getComputedStyle(p).display !== "none").length,
            };
            """
        )
        assert seen["tables"] >= 8 * count
        assert seen["pictures"] > 50 * count
        assert seen["broken"] == seen["borders"] == 0
        assert seen["background"] == ("rgb(18, 23, 29)" if dark else "rgb(255, 255, 255)")
    browser.execute_script("document.querySelector('#borders').click()")
    assert browser.execute_script(
        "return getComputedStyle(document.querySelector('img.border')).display === 'block'"
    )


@pytest.mark.parametrize("count", [1, 3])
def test_the_page_on_paper(browser, evaluated, tmp_path, count):
    """Black on white, no table is cut, and what is folded on the screen is open."""
    path = report.write(evaluated[:count], tmp_path if count > 1 else None)
    show(browser, width=688, dark=True, media="print")
    browser.get(path.as_uri())
    assert overflow(browser) == []
    cut, folded, background = browser.execute_script(
        """
        const cut = [...document.querySelectorAll(".scroll")]
          .filter((box) => box.scrollWidth > box.clientWidth + 1)
          .map((box) => box.getAttribute("aria-label"));
        const folded = [...document.querySelectorAll("details > *")]
          .filter((each) => !each.offsetHeight).length;
        return [cut, folded, getComputedStyle(document.body).backgroundColor];
        """
    )
    assert cut == []
    assert folded == 0
    assert background == "rgb(255, 255, 255)"
    assert browser.execute_script("return document.querySelectorAll('details').length") >= count - 1


def test_several_runs_stand_side_by_side(evaluated, tmp_path):
    page = Page(report.write(evaluated, tmp_path).read_text(encoding="utf-8"))
    assert "3 runs side by side" in page.text
    for name in ("weak", "strong", "again"):
        assert len(page.row(name)) == 8
    assert "strong minus weak" in page.text
    difference = page.row("accuracy", "measure")
    values = [
        json.loads((folder / "evaluation" / "test.json").read_text())["metrics"]["accuracy"]
        for folder in evaluated
    ]
    assert difference[0].startswith(f"{values[1] - values[0]:+.3f}")
    assert page.row("seed", "field") == ["0", "1", "2"]
    path = evaluated[0] / "evaluation" / "test_predictions.csv"
    kept = path.read_text()
    try:
        path.write_text("".join(kept.replace("SYN_", "OTHER_")))
        text = Page(report.write(evaluated, tmp_path).read_text("utf-8")).text
    finally:
        path.write_text(kept)
    assert "The runs cannot be compared image by image: strong, images: expected the" in text


def test_provenance_intervals_and_subgroups_of_an_evaluated_run(evaluated):
    page = Page(report.write(evaluated[1]).read_text(encoding="utf-8"))
    assert page.row("parameters") == ["1,234,567"]
    assert page.row("commit") == ["0123abc"]
    assert "300 bootstrap resamples" in page.text
    assert re.fullmatch(r"0\.\d{3}0\.\d{3}–\d\.\d{3}", page.row("nv", "class")[1])
    assert "No lesion and no image of the test part is in training." in page.text
    assert "n < 30" in page.text
    assert "nv, 90% sensitivity" in [cell for row in page.rows for cell in row[:1]]
    assert "grad_cam: flat, no position stands out" in page.text
    assert re.search(r"\d+ years, (fe)?male, ", page.text)
    assert re.search(r"Temperature \d\.\d{3}, fitted on the \d+ images", page.text)
    with Image.open(io.BytesIO(base64.b64decode(page.images[6]["src"].partition(",")[2]))) as first:
        assert first.size == (256, 256)  # not the network's 64
