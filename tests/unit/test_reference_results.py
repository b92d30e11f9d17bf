"""The papers' numbers: as printed, consistent, and found from the config that reproduces them."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from jaxattn import config as configs
from jaxattn import metrics, reference_results

CONFIGS = Path(__file__).parents[2] / "configs"
DATTA = reference_results.table("datta2021", "1") + reference_results.table("datta2021", "2")
GESSERT = ("II", "III", "IV", "V", "VI")


def named(entry):
    return f"{entry['row']} {entry['split']}"


def load(name, argument):
    """The config of a paper as a run saves it and a report reads it."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return configs.read(module.get_config(argument).to_json())


# Rows of each table; tables 3 and 4 of Datta et al. also list other papers.
@pytest.mark.parametrize(
    ("paper", "table", "rows"),
    [
        ("datta2021", "1", 10),
        ("datta2021", "2", 2),
        ("datta2021", "3", 5),
        ("datta2021", "4", 6),
        ("koefler2023", "4", 2),
        ("koefler2023", "5", 2),
        ("gessert2019", "II", 21),
        ("gessert2019", "III", 18),
        ("gessert2019", "IV", 9),
        ("gessert2019", "V", 15),
        ("gessert2019", "VI", 15),
        ("yan2019", "1", 7),
        ("yan2019", "2", 12),
    ],
)
def test_every_row_of_every_table_is_there(paper, table, rows):
    entries = reference_results.table(paper, table)
    assert len(entries) == rows
    for entry in entries:
        assert entry["source"]
        assert entry["protocol"]
        assert entry["trust"] in reference_results.TRUST
        assert entry["caveat"] or entry["trust"] == "sound"
        found = reference_results.find(entry["dataset"], entry["split"], entry["row"])
        # Tables of Gessert et al. repeat rows: with the same numbers.
        assert {**found, "table": table, "source": ""} == {**entry, "source": ""}


def test_the_wrong_data_set_or_split_has_no_result():
    assert reference_results.find("ham10000", "datta 85/15", "irv2_sa")
    assert reference_results.find("isic2017", "datta 85/15", "irv2_sa") is None
    assert reference_results.find("ham10000", "official", "irv2_sa") is None
    config = load("datta2021", "irv2_sa")
    assert reference_results.for_run(config, "ham10000")["row"] == "irv2_sa"
    assert reference_results.for_run(config, "isic2017") is None
    assert reference_results.for_run(config, "synthetic") is None
    config.split.test = 0.25
    assert reference_results.for_run(config, "ham10000") is None
    config.split.test = 0.15
    config.dataset.classes = ("mel", "nv")
    assert reference_results.for_run(config, "ham10000") is None


def test_other_models_and_balancings_have_no_result():
    assert reference_results.for_run(configs.read("{}"), "ham10000") is None
    for name, argument, dataset in (
        ("datta2021", "irv2_sa,paper", "ham10000"),
        ("datta2021_isic", "baseline", "isic2017"),
        ("gessert2019", "diagnosis_nevi", "ham10000"),
        ("gessert2019", "crops4", "ham10000"),
        ("gessert2019_small", "dual", "ham10000"),
        ("yan2019", "keratosis", "isic2017"),
        ("yan2019", "ham10000", "ham10000"),
    ):
        assert reference_results.for_run(load(name, argument), dataset) is None, argument


@pytest.mark.parametrize("entry", DATTA, ids=named)
def test_configs_of_datta_find_their_rows(entry):
    share = entry["split"].rpartition("/")[2]
    argument = f"{entry['row']},test={int(share) / 100:g}"
    for leaky in ("", ",leaky"):
        config = load("datta2021", argument + leaky)
        assert reference_results.for_run(config, "ham10000") == entry
    config.split.strategy = "lesion"  # another split, as the protocol says
    assert reference_results.for_run(config, "ham10000") == entry
    assert entry["protocol"].startswith("another split")


@pytest.mark.parametrize("table", GESSERT)
def test_configs_of_gessert_find_their_rows(table):
    for entry in reference_results.table("gessert2019", table):
        argument = entry["row"] + (",spc" if table == "IV" else "")
        found = reference_results.for_run(load("gessert2019", argument), entry["dataset"])
        assert found is not None, argument
        assert found["row"] == entry["row"]


def test_configs_of_the_other_papers_find_their_rows():
    for row in ("cnn", "cnn_sa"):
        for leaky in ("", ",leaky"):
            found = reference_results.for_run(load("koefler2023", row + leaky), "ham10000")
            assert (found["row"], found["table"]) == (row, "4")
    for row in ("5x5,nevus", "12x12,nevus", "5x5,rest", "12x12,rest"):
        assert reference_results.for_run(load("datta2021_isic", row), "isic2017")["row"] == row
    for table, dataset in (("1", "isic2016"), ("2", "isic2017")):
        for entry in reference_results.table("yan2019", table):
            if entry["split"] != "quoted":
                config = load("yan2019", f"{entry['row']},{dataset}")
                assert reference_results.for_run(config, dataset) == entry


# Copied from the papers by hand: data set, split, row, path of the measure, value.
@pytest.mark.parametrize(
    ("dataset", "split", "row", "path", "value"),
    [
        ("ham10000", "koefler 67/33", "cnn", "per_class/df/precision", 0.56),
        ("ham10000", "koefler 67/33", "cnn", "accuracy", 0.88),
        ("ham10000", "koefler 67/33", "cnn_sa", "per_class/mel/support", 2204),
        ("ham10000", "koefler 67/33", "cnn_sa", "weighted/f1", 0.91),
        ("isic2019", "sample of 491", "cnn", "per_class/bcc/f1", 0.31),
        ("isic2019", "sample of 491", "cnn_sa", "accuracy", 0.72),
        ("ham10000", "3 folds", "densenet121,dual", "balanced_accuracy", 0.757),
        ("ham10000", "3 folds", "densenet121,dual", "deviation/balanced_accuracy", 0.013),
        ("ham10000", "3 folds", "inception_v3,end", "weighted/f1", 0.853),
        ("ham10000", "3 folds", "se_resnext50,gru", "balanced_accuracy", 0.716),
        ("ham10000", "3 folds", "densenet121,initial,crops16", "weighted/f1", 0.78),
        ("ham10000", "3 folds", "inception_v3,multi,balanced", "deviation/weighted/f1", 0.004),
        ("ham10000", "3 folds", "se_resnext50,multi,diagnosis", "balanced_accuracy", 0.724),
        ("ham10000", "3 folds", "densenet121,multi,k1.25", "specificity", 0.959),
        ("derm7pt", "official", "densenet121,initial", "balanced_accuracy", 0.678),
        ("isic2016", "official", "mel", "target/auc", 0.844),
        ("isic2016", "quoted", "yu2018", "target/average_precision", 0.685),
        ("isic2017", "official", "attnmel_lesion", "target/average_precision", 0.672),
        ("isic2017", "official", "attnmel_dermo", "jaccard/mean/attention_pool4", 0.4767),
        ("isic2017", "official", "vgg16_gap", "jaccard/mean/cam", 0.2825),
        ("isic2017", "official", "5x5,nevus", "target/auc", 0.959),
        ("isic2017", "official", "5x5,nevus", "printed/sensitivity", 0.916),
        ("isic2017", "official", "12x12,nevus", "printed/specificity", 0.711),
        ("isic2017", "quoted", "arl_cnn50", "target/at_threshold/recall", 0.878),
        ("ham10000", "quoted", "various_deep_cnn", "weighted/precision", 0.89),
    ],
)
def test_numbers_are_the_papers(dataset, split, row, path, value):
    found = reference_results.find(dataset, split, row)
    for key in path.split("/"):
        found = found[key]
    assert found == pytest.approx(value, abs=0.0011)


# Table 1 of the paper: macro and weighted precision, macro and weighted AUC.
AVERAGES = {
    "irv2 datta 85/15": (0.832, 0.905, 0.983, 0.982),
    "irv2_sa datta 85/15": (0.892, 0.937, 0.984, 0.984),
    "densenet201 datta 85/15": (0.771, 0.904, 0.959, 0.974),
    "densenet201_sa datta 85/15": (0.824, 0.909, 0.971, 0.975),
    "vgg16 datta 85/15": (0.631, 0.862, 0.936, 0.951),
    "vgg16_sa datta 85/15": (0.690, 0.882, 0.937, 0.948),
    "resnet50 datta 85/15": (0.783, 0.898, 0.975, 0.972),
    "resnet50_sa datta 85/15": (0.841, 0.910, 0.980, 0.978),
    "resnet34 datta 85/15": (0.642, 0.857, 0.949, 0.942),
    "resnet34_sa datta 85/15": (0.646, 0.865, 0.962, 0.957),
    "irv2_sa datta 80/20": (0.827, 0.915, 0.9793, 0.9797),
    "irv2_sa datta 70/30": (0.766, 0.911, 0.975, 0.976),
}


@pytest.mark.parametrize("entry", DATTA, ids=named)
def test_averages_of_datta_are_the_papers(entry):
    ours = [
        entry[mean][measure] for measure in ("precision", "auc") for mean in ("macro", "weighted")
    ]
    assert ours == pytest.approx(AVERAGES[named(entry)], abs=0.0021)


@pytest.mark.parametrize(
    "entry",
    [
        *DATTA,
        *reference_results.table("datta2021", ""),
        *reference_results.table("koefler2023", "4"),
    ],
    ids=named,
)
def test_numbers_agree_among_themselves(entry):
    rows = entry["per_class"].values()
    support = np.array([row["support"] for row in rows])
    assert support.sum() == entry["n"]

    def column(measure):
        return np.array([row[measure] for row in rows])

    precision, recall = column("precision"), column("recall")
    f1 = 2 * precision * recall / (precision + recall)
    np.testing.assert_allclose(column("f1"), f1, atol=0.011)
    assert entry["macro"]["precision"] == pytest.approx(precision.mean(), abs=0.006)
    assert entry["macro"]["recall"] == pytest.approx(recall.mean(), abs=0.006)
    assert entry["balanced_accuracy"] == entry["macro"]["recall"]
    assert entry["accuracy"] == pytest.approx(recall @ support / support.sum(), abs=0.006)
    weighted = precision @ support / support.sum()
    assert entry["weighted"]["precision"] == pytest.approx(weighted, abs=0.006)
    if entry["paper"] == "datta2021":
        auc = column("auc")
        assert entry["macro"]["auc"] == pytest.approx(auc.mean(), abs=1e-4)
        assert entry["weighted"]["auc"] == pytest.approx(auc @ support / support.sum(), abs=1e-4)


def test_koeflers_table_5_contradicts_itself():
    entries = reference_results.table("koefler2023", "5")
    assert {entry["trust"] for entry in entries} == {"inconsistent"}
    rows = entries[0]["per_class"]
    recall = sum(row["recall"] * row["support"] for row in rows.values()) / entries[0]["n"]
    assert recall == pytest.approx(0.734, abs=0.001)
    assert entries[0]["accuracy"] == 0.70


def test_koefler_copied_datta_as_we_did():
    """Table 4 (c) of Köfler 2023: precision, recall and F1 of VGG16+SA."""
    copied = {
        "nv": (0.95, 0.95, 0.95, 663),
        "mel": (0.43, 0.68, 0.53, 34),
        "bkl": (0.63, 0.44, 0.52, 66),
        "bcc": (0.62, 0.81, 0.70, 26),
        "akiec": (0.70, 0.61, 0.65, 23),
        "vasc": (1.00, 0.90, 0.95, 10),
        "df": (0.50, 0.33, 0.40, 6),
    }
    ours = reference_results.find("ham10000", "datta 85/15", "vgg16_sa")["per_class"]
    fields = ("precision", "recall", "f1", "support")
    assert {name: tuple(row[f] for f in fields) for name, row in ours.items()} == copied


def test_measures_are_named_as_ours():
    ours = metrics.classification(np.arange(7) % 7, np.eye(7), list("abcdefg"))
    target = metrics.detection(np.array([True, False]), np.array([0.75, 0.25]))
    described = {"paper", "table", "row", "source", "dataset", "split", "classes", "protocol"}
    described |= {"trust", "caveat", "deviation", "target", "jaccard", "printed"}
    for paper in ("datta2021", "koefler2023", "gessert2019", "yan2019"):
        for number in ("", "1", "2", "3", "4", "5", *GESSERT):
            for entry in reference_results.table(paper, number):
                assert set(entry) - described <= set(ours)
                for average in ("macro", "weighted"):
                    assert set(entry.get(average, ())) <= set(ours[average])
                for row in entry.get("per_class", {}).values():
                    assert set(row) <= set(ours["per_class"]["a"])
                assert set(entry.get("target", ())) <= {"class", *target}
                assert json.loads(json.dumps(entry)) == entry


def test_the_page_of_published_numbers_is_up_to_date_and_has_every_number():
    spec = importlib.util.spec_from_file_location(
        "published_numbers", CONFIGS.parent / "tools" / "published_numbers.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.page()
    assert page == (CONFIGS.parent / "docs" / "published.md").read_text(encoding="utf-8")
    for number in ("0.757 ± 0.013", "0.71933", "0.656", "0.916", "0.31"):
        assert number in page


def test_every_config_that_an_entry_names_finds_it():
    for paper in ("datta2021", "koefler2023", "gessert2019", "yan2019"):
        for number in ("", "1", "2", "4", "5", *GESSERT):
            for entry in reference_results.table(paper, number):
                name, _, argument = reference_results.config_of(entry).partition(":")
                if name:
                    found = reference_results.for_run(load(name, argument), entry["dataset"])
                    assert (found["row"], found["split"]) == (entry["row"], entry["split"])


def test_what_differs_from_a_protocol():
    config = load("gessert2019", "densenet121,dual")
    entry = reference_results.for_run(config, "ham10000")
    assert not reference_results.comparable(config, entry)
    assert "the images are split otherwise" in reference_results.differences(config, entry)
    config.split.file = "gessert2019_ham_split.npz"
    config.dtype = "float32"
    assert reference_results.comparable(config, entry)
    assert reference_results.differences(config, entry) == [
        "published: the mean over three folds' models",
        "published: the last checkpoint (jaxattn evaluate --checkpoint=latest)",
    ]
    config = load("datta2021", "irv2_sa,leaky")
    entry = reference_results.for_run(config, "ham10000")
    assert not reference_results.comparable(config, entry)
    assert not any("resized" in each for each in reference_results.differences(config, entry))
    config.dataset.resize = "antialias"
    assert any("resize=nearest" in each for each in reference_results.differences(config, entry))
    config.metadata.fields = ("age",)
    assert any("metadata" in each for each in reference_results.differences(config, entry))
