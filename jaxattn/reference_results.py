"""Published numbers to stand beside ours, as data.

HAM10000 results of Datta et al. 2021, "Soft Attention Improves Skin Cancer Classification
Performance", read from the output cells of the authors' released notebooks
(github.com/skrantidatta/Attention-based-Skin-Cancer-Classification), which print more than the
paper's Tables 1 and 2. The averages agree with Table 1 within .002, but for the weighted precision
of VGG16+SA: .865 in the table, .882 in the notebook and, as a gain of 2 %, in the paper's text.
"""

from typing import Any

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
"""HAM10000's diagnoses, in the order of the rows below."""

_PROTOCOL = "selected on the test set"

# Per model: precision/recall/f1 of the classes, then their one-vs-rest AUC, then the aggregates
# accuracy, weighted precision, weighted AUC, macro precision, macro recall, macro AUC, micro AUC.
_ROWS = {
    "irv2_sa": (
        "1.00/.52/.69 .88/.88/.88 .72/.83/.77 1.00/.17/.29 .67/.65/.66 .97/.98/.98 1/1/1",
        ".9811 .9987 .9821 .9738 .9741 .9841 1.0",
        ".93478 .93796 .98402 .89237 .71933 .98484 .99501",
    ),
    "irv2": (
        ".83/.65/.73 .85/.85/.85 .85/.44/.58 .67/.33/.44 .70/.56/.62 .93/.99/.96 1/1/1",
        ".9932 .9973 .9708 .9830 .9659 .9842 1.0",
        ".91184 .90559 .98319 .83279 .68891 .98490 .99483",
    ),
    "densenet201_sa": (
        ".92/.52/.67 .80/.77/.78 .73/.58/.64 1.00/.50/.67 .53/.71/.61 .95/.97/.96 .83/1/.91",
        ".9680 .9946 .9647 .9215 .9761 .9763 .9998",
        ".90821 .90997 .97561 .82455 .72078 .97157 .99238",
    ),
    "densenet201": (
        "1.00/.26/.41 .83/.92/.87 .69/.64/.66 .50/.33/.40 .54/.44/.48 .95/.99/.97 .90/.90/.90",
        ".9754 .9939 .9603 .8520 .9638 .9760 .9939",
        ".90821 .90409 .97408 .77138 .64018 .95932 .99142",
    ),
    "resnet50_sa": (
        ".67/.43/.53 .88/.85/.86 .67/.70/.68 1.00/.50/.67 .73/.47/.57 .95/.98/.97 1/.90/.95",
        ".9815 .9967 .9649 .9714 .9731 .9792 .9994",
        ".91546 .91063 .97860 .84178 .69027 .98089 .99446",
    ),
    "resnet50": (
        ".74/.74/.74 .91/.77/.83 .67/.50/.57 .80/.67/.73 .52/.50/.51 .95/.98/.96 .90/.90/.90",
        ".9808 .9975 .9489 .9732 .9611 .9742 .9954",
        ".90459 .89812 .97278 .78327 .72199 .97585 .99315",
    ),
    "resnet34_sa": (
        ".50/.39/.44 .88/.58/.70 .52/.41/.46 .33/.17/.22 .54/.59/.56 .93/.97/.95 .82/.90/.86",
        ".9701 .9938 .9168 .9493 .9532 .9589 .9965",
        ".87681 .86598 .95706 .64692 .57215 .96264 .98952",
    ),
    "resnet34": (
        ".67/.43/.53 .66/.81/.72 .51/.42/.46 .40/.33/.36 .42/.47/.44 .93/.95/.94 .91/1/.95",
        ".9693 .9914 .9049 .9254 .9107 .9441 .9999",
        ".86232 .85798 .94234 .64217 .63091 .94938 .98594",
    ),
    "vgg16_sa": (
        ".70/.61/.65 .62/.81/.70 .63/.44/.52 .50/.33/.40 .43/.68/.53 .95/.95/.95 1/.90/.95",
        ".9643 .9843 .9006 .8092 .9562 .9514 .9996",
        ".87681 .88221 .94850 .69010 .67326 .93795 .98669",
    ),
    "vgg16": (
        ".62/.22/.32 .54/.77/.63 .57/.48/.52 .25/.17/.20 .50/.47/.48 .93/.96/.95 1/.90/.95",
        ".9497 .9777 .9309 .8477 .9253 .9544 .9720",
        ".86957 .86219 .95137 .63157 .56707 .93681 .98471",
    ),
    "irv2_sa 80/20": (
        ".75/.50/.60 .88/.86/.87 .79/.65/.71 1.00/.25/.40 .49/.59/.53 .96/.98/.97 .92/.92/.92",
        ".9581 .9920 .9725 .9984 .9530 .9816 .9998",
        ".91568 .91540 .97971 .82770 .67811 .97934 .99286",
    ),
    "irv2_sa 70/30": (
        ".69/.49/.57 .83/.75/.79 .72/.78/.75 .71/.42/.53 .60/.52/.56 .96/.97/.97 .86/.95/.90",
        ".9724 .9952 .9609 .9893 .9469 .9781 .9831",
        ".91480 .91147 .97597 .76687 .69761 .97512 .99226",
    ),
}

# Test images per class of the three random splits, none of which had a seed.
_SUPPORT = {
    "85/15": (23, 26, 66, 6, 34, 663, 10),
    "80/20": (30, 35, 88, 8, 46, 883, 13),
    "70/30": (45, 53, 132, 12, 69, 1325, 19),
}


def _entry(key: str) -> dict[str, Any]:
    split = key.partition(" ")[2] or "85/15"
    measures, aucs, aggregates = (row.split() for row in _ROWS[key])
    per_class = {}
    for name, triple, auc, support in zip(CLASSES, measures, aucs, _SUPPORT[split], strict=True):
        precision, recall, f1 = map(float, triple.split("/"))
        per_class[name] = {
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "auc": float(auc),
            "support": support,
        }
    accuracy, weighted_precision, weighted_auc, *macro, micro_auc = map(float, aggregates)
    return {
        "n": sum(_SUPPORT[split]),
        "per_class": per_class,
        "macro": dict(zip(("precision", "recall", "auc"), macro, strict=True)),
        "weighted": {"precision": weighted_precision, "recall": accuracy, "auc": weighted_auc},
        "micro_auc": micro_auc,
        "accuracy": accuracy,
        "balanced_accuracy": macro[1],
        "source": "Datta et al. 2021, released notebooks (classes printed to two decimals)",
        "split": f"random {split} split without a seed",
        "protocol": f"another split (random {split}, no seed); {_PROTOCOL}",
    }


DATTA2021: dict[str, dict[str, Any]] = {key: _entry(key) for key in _ROWS}
"""Model name -> results, laid out as `jaxattn.metrics.classification` lays out ours.

Keys without a split are the 85/15 results of the paper's Table 1; ``'irv2_sa 80/20'`` and
``'irv2_sa 70/30'`` are those of Table 2. F1 averages were not printed. Besides the measures, an
entry says where it is from (``source``), its ``split`` and its ``protocol``: the test images were
lesions with a single photograph, and every model's epoch was chosen by its accuracy on these same
test images, so that the numbers are optimistic. The ``resnet34_sa`` run was a warm restart.
"""


def for_run(config: Any, dataset: str) -> dict[str, Any] | None:
    """The published result to show beside a run's."""
    return DATTA2021.get(config.model.name) if dataset == "ham10000" else None


YAN2019: dict[str, dict[str, dict[str, float]]] = {
    "isic2016": {
        "vgg16": {"average_precision": 0.602, "auc": 0.806},
        "vgg16_gap": {"average_precision": 0.635, "auc": 0.815},
        "mel": {"average_precision": 0.664, "auc": 0.844},
        "attnmel": {"average_precision": 0.693, "auc": 0.852},
    },
    "isic2017": {
        "vgg16": {"average_precision": 0.600, "auc": 0.824},
        "vgg16_gap": {"average_precision": 0.627, "auc": 0.834, "cam": 0.2825},
        "mel": {"average_precision": 0.653, "auc": 0.854},
        "attnmel": {
            "average_precision": 0.655,
            "auc": 0.872,
            "attention_pool3": 0.3105,
            "attention_pool4": 0.3186,
        },
        "attnmel_dermo": {
            "average_precision": 0.665,
            "auc": 0.864,
            "attention_pool3": 0.3621,
            "attention_pool4": 0.4767,
        },
        "attnmel_lesion": {
            "average_precision": 0.672,
            "auc": 0.883,
            "attention_pool3": 0.5533,
            "attention_pool4": 0.6560,
        },
        "attnmel_bkg": {"average_precision": 0.647, "auc": 0.849},
    },
}
"""Data set -> row of tables 1 to 3 of Yan et al. 2019 -> numbers of the official test part.

Rows are called as configs/yan2019.py calls them. Beside average precision and AUC of melanoma
stands, by its name, the Jaccard index of each map with the lesion masks. VGG-16 with ImageNet's
weights; each epoch was chosen by the AUC on the validation part.
"""
