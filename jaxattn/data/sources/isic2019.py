"""ISIC 2019: training images, and test images whose labels are there.

Tschandl et al. 2018 (HAM10000), Codella et al., arXiv:1710.05006 (MSK) and Combalia et al.,
arXiv:1908.02288 (BCN20000). For training and testing, as far as they were downloaded:

* ``ISIC_2019_{Training,Test}_Input/``: the images; some names end in ``_downsampled``;
* ``ISIC_2019_{Training,Test}_GroundTruth.csv``: one column for each class and for unknown ones,
  ``MEL NV BCC AK BKL DF VASC SCC UNK``; that of the test part was published later;
* ``ISIC_2019_{Training,Test}_Metadata.csv``: age, part of the body and sex; for training also the
  lesion, which is blank for some.
"""

import collections
from pathlib import Path

from jaxattn.data.sources.source_index import (
    Findings,
    SourceImage,
    SourceIndex,
    age,
    build,
    find_csv,
    find_images,
    one_hot,
    optional_text,
    sex,
    unique,
)
from jaxattn.data.tables import CsvRow, read_table
from jaxattn.errors import invalid

CLASS_NAMES = ("ak", "bcc", "bkl", "df", "mel", "nv", "scc", "vasc", "unk")
CITATION = (
    "Tschandl, P., Rosendahl, C., Kittler, H.: The HAM10000 dataset. Sci. Data 5, 180161 (2018); "
    "Codella, N., et al.: Skin lesion analysis toward melanoma detection. arXiv:1710.05006; "
    "Combalia, M., et al.: BCN20000: dermoscopic lesions in the wild. arXiv:1908.02288"
)

_PARTS = {"train": "training", "test": "test"}
_ONE_HOT = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")


def read(source: Path) -> SourceIndex:
    """Finds the images, labels and metadata of each part that has labels.

    Args:
        source: Folder that holds the files above, at any depth; upper and lower case do not matter.

    Returns:
        The images that have both a file and a row, ordered by image_id; the class ``unk`` only if
        an image has it. Problems and notes as in `ham10000.read`, and the notes ``missing_part``
        and ``without_lesion``: images that count as a lesion of their own.

    Raises:
        InputError: There is no table of labels, training has no table of lesions, or a table is
            malformed.
    """
    if not source.is_dir():
        raise invalid("source", "a folder that holds ISIC 2019", source)
    problems: Findings = collections.defaultdict(dict)
    notes: Findings = collections.defaultdict(dict)
    labelled: dict[str, SourceImage] = {}
    found = []
    for part, called in _PARTS.items():
        table = find_csv(source, f"isic_2019_{called}_groundtruth")
        if table is None:
            notes["missing_part"][part] = f"ISIC_2019_{called.title()}_GroundTruth.csv is missing"
            continue
        found.append(called)
        metadata = _metadata(source, called, problems, notes)
        for image_id, row in unique(read_table(table, ("image", *_ONE_HOT[:-1])), "image",
                                    problems, notes).items():  # fmt: skip
            if image_id in labelled:
                problems["conflicting_rows"][image_id] = "is in the train and the test part"
            labelled[image_id] = _image(row, metadata.get(image_id), part)
            if part == "train" and labelled[image_id].lesion_id == image_id:
                notes["without_lesion"][image_id] = "counts as a lesion of its own"
    if not labelled:
        example = "ISIC_2019_Training_GroundTruth.csv or ISIC_2019_Test_GroundTruth.csv"
        raise invalid(str(source), example, "neither (python -m jaxattn.predict needs no labels)")
    kept = {k: v for k, v in labelled.items() if k not in problems["conflicting_rows"]}
    images = find_images(source, rf"isic_2019_({'|'.join(found)})_input")
    unknown = any(image.dx == "unk" for image in kept.values())
    return build(
        source,
        kept,
        images,
        problems,
        notes,
        name="isic2019",
        layout="isic2019",
        class_names=CLASS_NAMES if unknown else CLASS_NAMES[:-1],
        citation=CITATION,
    )


def _metadata(source: Path, called: str, problems: Findings, notes: Findings) -> dict[str, CsvRow]:
    table = find_csv(source, f"isic_2019_{called}_metadata")
    if table is None:
        if called == "training":
            # Images of one lesion must stay together: without this table every split leaks.
            what = "ISIC_2019_Training_Metadata.csv, which says which images show the same lesion"
            raise invalid(str(source), what, "none")
        return {}
    columns = ("image", "lesion_id") if called == "training" else ("image",)
    return unique(read_table(table, columns), "image", problems, notes)


def _image(row: CsvRow, metadata: CsvRow | None, part: str) -> SourceImage:
    image_id = row["image"]
    dx = one_hot(row, [name for name in _ONE_HOT if name in row.fields])
    if metadata is None:
        return SourceImage(image_id=image_id, lesion_id=image_id, dx=dx, part=part)
    return SourceImage(
        image_id=image_id,
        lesion_id=optional_text(metadata, "lesion_id") or image_id,
        dx=dx,
        age=age(metadata, "age_approx"),
        sex=sex(metadata),
        localization=optional_text(metadata, "anatom_site_general"),
        part=part,
    )
