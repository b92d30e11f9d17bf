"""Run folders for tests of the report, made without training: real images, made-up predictions."""

import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxattn import config as configs
from jaxattn import evaluate, run_dir
from jaxattn.data import leaks, load
from jaxattn.data.crops import Crops
from jaxattn.evaluation import gallery, map_agreement, predictions


def make_evaluated(folder: Path, strength: float = 2.0, seed: int = 0, images: int = 210) -> Path:
    """A run of the synthetic data whose predictions are right as often as its strength says."""
    config = configs.base()
    config.dataset.update(num_images=images, image_size=64, imbalanced=True)
    config.split.update(test=0.4, validation=0.2)
    config.model = ConfigDict({"name": "attention_cnn"})
    config.loss.update(class_weight_exponent=0.5, label_smoothing=0.05)
    config.evaluation.resamples = 300
    config.seed = seed
    config = configs.resolved(config)
    folder.mkdir(parents=True)
    run_dir.write_json(folder / run_dir.CONFIG, json.loads(config.to_json()))
    dataset, split = load.load_split(config)
    run_dir.record_split(folder, split, dataset)
    rng = np.random.default_rng(seed)

    def predicted(rows: np.ndarray) -> predictions.Predictions:
        logits = rng.normal(size=(len(rows), 7)) + strength * np.eye(7)[dataset.labels[rows]]
        scores = np.exp(1.5 * logits)
        scores = (scores / scores.sum(1, keepdims=True)).astype(np.float32)
        return predictions.of_dataset(dataset, rows, scores, scores.argmax(1))

    rows = split["test"]
    found, chosen_on = predicted(rows), predicted(split["validation"])
    heat = rng.random((len(rows), 2, 8, 8), dtype=np.float32) ** 6
    maps = {"soft_attention": heat, "grad_cam": np.ones((len(rows), 1, 4, 4), np.float32)}
    maps["grad_cam"] += 0.01 * rng.random((len(rows), 1, 4, 4), dtype=np.float32)
    evaluation = {
        "split": "test", "checkpoint": "best", "step": 40, "dataset": "synthetic",
        "images": len(rows), "parameters": 1_234_567, "date": "2026-01-02T03:04:05+00:00",
        "commit": "0123abc", "leak": "", "logit_adjustment": 0.0, "device": "a device",
        "parts": {n: {"images": len(r), "lesions": len(r)} for n, r in split.items()},
        "measured_leak": leaks.measure(dataset, split), "versions": run_dir.versions(),
        **evaluate.measure(config, found, chosen_on),
        "map_agreement": map_agreement.measure(
            dataset, Crops(**config.crops), rows, maps, config.evaluation.resamples
        ),
    }  # fmt: skip
    place = folder / evaluate.FOLDER
    place.mkdir()
    predictions.write(place / "test_predictions.csv", found)
    gallery.write(place / "test_cases.npz", config, dataset, rows, found, maps)
    run_dir.write_json(place / "test.json", evaluation)
    log = [
        {"kind": "train", "step": s, "loss": 4 / s, "accuracy": 1 - 1 / s, "images_per_second": 9.0}
        for s in range(10, 60, 10)
    ] + [
        {"kind": "validation", "step": s, "loss": 2 / s, "accuracy": 0.7, "balanced_accuracy": 0.6}
        for s in (20, 40)
    ]
    (folder / run_dir.LOG).write_text("".join(json.dumps(row) + "\n" for row in log))
    return folder
