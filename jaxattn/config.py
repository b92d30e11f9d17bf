"""Every config field, its default and its meaning.

A file in ``configs/`` starts from `base` and sets what its experiment changes. The command line
sets single fields: ``--config.optimizer.learning_rate=.001``.
"""

import ast
import difflib
import importlib.util
import inspect
import io
import json
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference

from jaxattn import config_rules
from jaxattn.errors import invalid, unknown
from jaxattn.files import expanded
from jaxattn.models import registry as models

#: Fields that do not change what a run computes; a run may be resumed with other values.
FREE = (
    *("loader.", "cpu_devices", "log_every_steps", "checkpoint_every_steps", "dataset.data_dir"),
    "profile",
    *("skip_nonfinite", "evaluation.batch_size", "evaluation.tta", "evaluation.threshold"),
    *("evaluation.sensitivity", "evaluation.cam", "evaluation.grad_cam", "evaluation.overlay."),
)

#: What ``config.smoke`` sets; `jaxattn.data.load` leaves few images in the parts.
SMOKE = {"epochs": 1, "steps_per_epoch": 2, "log_every_steps": 1, "loader.name": "grain"}


def base() -> ConfigDict:
    """The default of every field: a small attention CNN on the embedded data."""
    config = ConfigDict()
    config.seed = 0  # of parameters, sampler, augmentation and dropout
    config.dataset = ConfigDict(
        dict(
            name="synthetic",  # see jaxattn.data.load.DATASETS
            data_dir="",  # prepared: a folder that python -m jaxattn.prepare wrote
            # Height and width to decode images to, pixels, or a pair (height, width); 0: the
            # model's input size.
            image_size=FieldReference(0, field_type=object),
            centre_crop=0.0,  # prepared: square cut out first, a share of the shorter side; 0: none
            resize="antialias",  # prepared: antialias, nearest, bilinear; see images.decode_image
            classes=(),  # in the model's order: "nv", or "name=a+b" to merge; () for all
            num_images=4000,  # synthetic: how many to generate
            seed=0,  # synthetic
            imbalanced=False,  # synthetic: HAM10000's class frequencies
            options=ConfigDict(),  # of a data set registered elsewhere
        )
    )
    config.split = ConfigDict(  # see jaxattn.data.splits
        dict(
            strategy="lesion",  # lesion, patient, datta, official, folds, file
            duplicates="report",  # one photograph under two ids: report, together, drop
            fold=0,  # folds: which one
            folds=3,  # folds: how many; python -m jaxattn.cross_validate runs all of them
            leak="",  # a published protocol that leaks test data, see jaxattn.data.leaks
            seed=0,
            test=0.15,
            validation=0.1,
            file="",
        )
    )
    config.sampler = ConfigDict(  # see jaxattn.data.samplers
        dict(
            name="none",  # none, oversample, undersample, equal, balanced_batches
            per_class=0,  # equal: images of each class in one pass; 0: the mean count
            factors=ConfigDict(),  # by class name: multiplies the class's count
            drop_last=False,  # drop the last, incomplete batch of a pass
            options=ConfigDict(),  # of a sampler registered elsewhere
        )
    )
    config.augment = ConfigDict(  # see jaxattn.data.augment.Augmentation
        dict(
            rotation=180.0,
            shift=FieldReference(0.1, field_type=object),  # or a pair: (down, across)
            shear=0.0,
            zoom=0.1,
            horizontal_flip=True,
            vertical_flip=True,
            quarter_turns=False,
            brightness=0.0,
            contrast=0.0,
            saturation=0.0,
            hue=0.0,
            gamma=0.0,
            mixup=0.0,  # alpha of mixup; 0: none. See jaxattn.data.mixing
            cutmix=0.0,  # alpha of CutMix; 0: none
        )
    )
    config.crops = ConfigDict(  # see jaxattn.data.crops.Crops
        dict(
            strategy="none",  # none, downsampling, single, random, multi, ordered
            # Of the network's input, or a pair (height, width); 0: the model's input size.
            size=FieldReference(0, field_type=object),
            count=9,
            dropout=0.1,
            vote=False,
            least_area=0.08,
            centre=0.85,
        )
    )
    config.normalisation = ""  # see jaxattn.data.augment.NORMALISATIONS; "": the model's own
    config.model = ConfigDict(dict(name="attention_cnn"))  # and the model's own options
    config.metadata = ConfigDict(  # that the model sees too, see jaxattn.models.metadata.Fusion
        dict(
            fields=(),  # some of age, sex, localization; () for the image alone
            hide=0.1,  # probability that training hides a value
            units=256,  # of each of the two layers that see the metadata
            joint_units=1024,  # of the layer that sees the image's features too
            dropout_rate=0.4,
        )
    )
    # Weights to start from: a folder of tools/convert_*.py, a run, or pretrained:NAME.
    config.init_from = ""
    # Layers up to this endpoint stay as init_from has them, batch statistics too; "": none.
    config.freeze = ""
    config.dtype = "float32"  # of the activations: float32, bfloat16
    config.loss = ConfigDict(  # see jaxattn.losses
        dict(
            name="cross_entropy",
            class_weight_exponent=0.0,  # class weights (N / N_i)^exponent, of mean 1
            class_weights=ConfigDict(),  # further factors by class name
            label_smoothing=0.0,
            reduction="mean",  # mean (Keras), weighted_mean (PyTorch)
            focal_gamma=0.0,  # of the focal loss; 0: cross-entropy
            diagnosis_guided=(),  # classes weighted by how the diagnosis was confirmed
            maps=ConfigDict(  # attention maps against masks, see jaxattn.losses.MapDice
                dict(
                    target="lesion",  # lesion, attributes, background
                    weights=ConfigDict(),  # by the map's name
                )
            ),
            options=ConfigDict(),  # of a loss registered elsewhere
        )
    )
    config.optimizer = ConfigDict(
        dict(
            name="adamw",  # adamw, keras_adam, sgd
            learning_rate=0.001,
            schedule="cosine",  # constant, cosine, step
            step_epochs=10,  # step: epochs between decays
            step_start=0,  # step: epochs before the first decay; 0: step_epochs
            step_factor=0.1,  # step: decay rate
            warmup=0.1,  # share of all steps, linear from 0
            weight_decay=0.05,  # adamw, sgd
            decay="kernels",  # what weight decay acts on: kernels, all
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            momentum=0.9,  # sgd
            clip_norm=0.0,  # largest global norm of the gradients; 0: any
            layer_decay=1.0,  # each layer's rate as a share of the next layer's
            rates=ConfigDict(),  # by layer, or the first part of its name: multiplies its rate
        )
    )
    config.ema_decay = 0.0  # of the exponential moving average of the variables; 0: none
    config.batch_size = 64  # over all devices
    config.accumulate_steps = 1  # parts of a batch, one after the other, to save memory
    config.batch_norm_groups = 1  # parts of a batch, side by side, with batch statistics each
    config.remat = "none"  # blocks: recompute all but blocks' outputs backwards, to save memory
    config.epochs = 20
    config.steps_per_epoch = 0  # 0: passes_per_epoch passes of the sampler
    config.passes_per_epoch = 1
    config.validate_every = 1  # epochs; the first and the last are always validated
    config.skip_nonfinite = 0  # steps with a loss or gradient that is not finite to leave out
    config.target_class = ""  # class to detect: adds its AUC, average precision, sensitivity
    config.best = "balanced_accuracy"  # validation metric that selects the best checkpoint
    config.early_stopping = ConfigDict(
        dict(
            metric="loss",  # validation metric
            patience=0,  # validations without improvement before stopping; 0: never stop
            min_delta=0.0,  # smallest change that counts as an improvement
        )
    )
    config.evaluation = ConfigDict(
        dict(
            batch_size=64,
            tta=1,  # test-time augmentation: 1 none, 8 mean over flips and quarter turns
            logit_adjustment=0.0,  # decide by p / share^this, see jaxattn.metrics.decide
            threshold=0.5,  # on the target class's probability
            # Operating points of each class: thresholds that reach these on the validation part.
            sensitivity=0.9,
            specificity=0.9,
            resamples=10_000,  # of the bootstrap over lesions; 0: no intervals
            cam="",  # layer whose class activation map is drawn, see jaxattn.saliency
            grad_cam="",  # layer for Grad-CAM
            # See jaxattn.overlays.overlay; colormap="jet" for the papers' figures.
            overlay=ConfigDict(dict(alpha=0.5, bilinear=False, colormap="viridis")),
        )
    )
    config.loader = ConfigDict(
        dict(
            name="auto",  # in_memory (images on the device), grain (streamed), auto
            workers=0,  # grain: worker processes; 0: threads
        )
    )
    config.cpu_devices = 1  # without an accelerator: devices to split the cores into
    config.log_every_steps = 20
    config.profile = 0  # steps to trace into the run's profile/, for TensorBoard or Perfetto
    config.checkpoint_every_steps = 1000  # and at the end of each epoch
    config.smoke = False  # try the config out: two small steps, few images in each part
    return config


def resolved(config: ConfigDict) -> ConfigDict:
    """A copy in which fields left to the model have the model's values.

    ``normalisation``, ``crops.size`` and, unless crops are cut out of a larger image,
    ``dataset.image_size`` come from the model's registry entry where the config says nothing.

    Raises:
        InputError: A field is unknown or its value is wrong, there is no such model, or crops need
            an image size.
    """
    check_fields(config)
    config = config.copy_and_resolve_references()
    model = models.find(config.model.name)
    config.normalisation = config.normalisation or model.normalisation
    config.crops.size = config.crops.size or model.image_size
    if not config.dataset.image_size:
        if config.crops.strategy not in ("none", "downsampling"):
            raise invalid(
                "dataset.image_size", f"a size for crops.strategy={config.crops.strategy!r}", 0
            )
        config.dataset.image_size = model.image_size
    for field in ("dataset.data_dir", "split.file", "init_from"):
        at, name = _parent(config, field)
        at[name] = expanded(at[name])
    if config.smoke:
        config.update_from_flattened_dict(SMOKE)
        config.batch_size = config.evaluation.batch_size = min(8, config.batch_size)
    return config


def describe(config: ConfigDict) -> str:
    """Every field, its value in a config and the comment that `base` has on it, one a line."""
    comments = _comments()
    return "\n".join(
        f"  --config.{name}={value!r}" + (f"  # {comments[name]}" if name in comments else "")
        for name, value in flatten(config.to_dict()).items()
    )


def _comments() -> dict[str, str]:
    """The comments in the source of `base` by field: on its line, or alone on the lines above."""
    source = inspect.getsource(base)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    on_line = {t.start[0]: t.string[1:].strip() for t in tokens if t.type == tokenize.COMMENT}
    alone = {i for i in on_line if source.splitlines()[i - 1].lstrip().startswith("#")}
    found: dict[str, str] = {}

    def note(name: str, node: Any) -> None:
        first = node.lineno
        while first - 1 in alone:
            first -= 1
        above = [on_line[i] for i in range(first, node.lineno)]
        found[name] = " ".join([*above, *filter(None, [on_line.get(node.end_lineno)])])
        for call in [node.value] if isinstance(node.value, ast.Call) else []:
            for keyword in [
                k for arg in call.args if isinstance(arg, ast.Call) for k in arg.keywords
            ]:
                note(f"{name}.{keyword.arg}", keyword)

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            note(node.targets[0].attr, node)
    return {name: comment for name, comment in found.items() if comment}


def check_fields(config: ConfigDict) -> None:
    """Raises InputError for a field that does not exist, or that has a value it cannot have."""
    known, values = flatten(base().to_dict()), flatten(config.to_dict())
    for field in values:
        if field not in known and not field.startswith(tuple(config_rules.OPEN)):
            near = difflib.get_close_matches(field, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise invalid("config", f"a field of jaxattn.config.base{hint}", repr(field))
    config_rules.check(values)


def find_file(name: str) -> Path:
    """The file of a config: a path, or the name of one that comes with the package.

    Args:
        name: ``configs/ham_irv2.py``, or ``ham_irv2``.

    Raises:
        InputError: There is no such config.
    """
    given = Path(name).expanduser()
    if given.is_file():
        if given.suffix != ".py":
            raise invalid("--config", "a Python file, or the name of a config", name)
        return given
    package = Path(__file__).parent  # in a wheel; in a checkout configs/ lies beside the package
    shipped = {
        path.stem: path
        for folder in (package / "configs", package.parent / "configs")
        for path in folder.glob("*.py")
        if path.stem != "__init__"
    }
    if given.stem in shipped and given.parent in (Path(), Path("configs")):
        return shipped[given.stem]
    raise unknown("--config", name, shipped)


def load(name: str) -> ConfigDict:
    """The config that a file makes, for a config that builds on another one.

    Args:
        name: A file or name, see `find_file`, with arguments: ``datta2021:irv2_sa``.
    """
    name, _, given = name.partition(":")
    path = find_file(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*filter(None, [given]))


def arguments(given: str, *choices: Sequence[str]) -> tuple[str, ...]:
    """Reads what follows the colon of ``--config=configs/x.py:a,b``.

    Args:
        given: Arguments, joined by commas.
        *choices: Groups of alternatives. The first of each group is its default; a group that may
            be left out has the default ``""``.

    Returns:
        The chosen argument of each group.

    Raises:
        InputError: An argument is unknown, or two of one group are given.
    """
    chosen: dict[int, str] = {}
    for argument in filter(None, given.split(",")):
        groups = [i for i, choice in enumerate(choices) if argument in choice]
        if not groups:
            known = [name for choice in choices for name in choice if name]
            raise unknown("config argument", argument, known)
        before = chosen.setdefault(groups[0], argument)
        if before != argument:
            raise invalid("config arguments", "one of a group", f"{before!r} and {argument!r}")
    return tuple(chosen.get(i, choice[0]) for i, choice in enumerate(choices))


def read(text: str) -> ConfigDict:
    """The config that a run saved as JSON, whichever version wrote it.

    Fields that did not exist yet get their defaults; fields under older names are renamed.

    Raises:
        InputError: A field has a value that it cannot have.
        ValueError: The text is not JSON, or not an object.
    """
    given = json.loads(text)
    if not isinstance(given, dict):
        raise ValueError(f"expected a JSON object, got {type(given).__name__}")
    defaults = base().to_dict()
    config_rules.check_sections(given, {**defaults, "plan": defaults["sampler"]})
    config = _completed(_renamed(given), defaults)
    config_rules.check(flatten(config))
    return ConfigDict(config)


#: Fields by the name they had in older versions, and their names today.
_OLD_FIELDS = {
    "plan": "sampler",
    "sampler.strategy": "sampler.name",
    "average_decay": "ema_decay",
    "positive": "target_class",
    "evaluation.views": "evaluation.tta",
    "evaluation.prior_exponent": "evaluation.logit_adjustment",
    "model.semantics": "model.variant",
    "model.join": "model.concat",
}
#: Values that were called otherwise.
_OLD_VALUES = {
    ("loader.name", "resident"): "in_memory",
    ("loss.maps.target", "dermo"): "attributes",
}
#: Options of Soft-Attention that a backbone's classifier had itself.
_OLD_ATTENTION = ("heads", "pool", "dropout_rate")


def _renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    config = json.loads(json.dumps(given))
    for old, new in _OLD_FIELDS.items():
        (at, old_name), (_, new_name) = (_parent(config, field) for field in (old, new))
        if old_name in at and new_name not in at:
            at[new_name] = at.pop(old_name)
    for (field, old_value), new_value in _OLD_VALUES.items():
        at, name = _parent(config, field)
        if at.get(name) == old_value:
            at[name] = new_value
    model = config.get("model", {})
    if "attention_at" in model and "attention" not in model:
        name = "soft" if model.pop("variant", "released") == "released" else "soft_paper"
        model["attention"] = f"{name}_block" if model.pop("concat", True) else name
        options = {name: model.pop(name) for name in _OLD_ATTENTION if name in model}
        model["attention_options"] = options
    return config


def _parent(config: Any, field: str) -> tuple[Any, str]:
    """The dict that holds a field, {} where it is missing, and the field's last name."""
    *parents, name = field.split(".")
    for parent in parents:
        config = config.get(parent) or {}
    return config, name


def _completed(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **defaults,
        **{
            name: _completed(value, defaults.get(name) or {})
            if isinstance(value, dict)
            else _immutable(value)
            for name, value in given.items()
        },
    }


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All fields by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = _immutable(value)
    return flat


def _immutable(value: Any) -> Any:
    """A tuple for a list: JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Fields that change what is computed between two configs, as ``name: old -> new``."""
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {json.dumps(before.get(name))} -> {json.dumps(after.get(name))}"
        for name in sorted(before | after)
        if not name.startswith(FREE) and before.get(name) != after.get(name)
    ]
