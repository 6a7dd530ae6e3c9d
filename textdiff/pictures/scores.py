"""How good the samples of an image model are, beside real images: are they recognised, are they as varied?

A logistic regression that learned the real training images names the class of every sample. The Frechet distance

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))

is between samples and the test split in the first 32 principal components of the training images (Heusel et al.,
arXiv:1706.08500, with these components in place of a network's). It grows as samples get fewer, so real images of the
training split, as many, are measured as well; so is the distance to the nearest training image, which is small for copies.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from textdiff.evaluation import finite
from textdiff.pictures.checkpoint import GAUSSIAN, PictureCheckpoint, PictureConfig, load_checkpoint
from textdiff.pictures.data import Pictures, PicturesConfig, load_pictures
from textdiff.pictures.samples import MEASURED, check_count, in_turn, paint, turns
from textdiff.rulebook import rule_of
from textdiff.validation import check_integer

MOST = 10_000  # training images that the judge learns from
COMPONENTS = 32
HOT = (("sde:1", 250), ("sde:1", 100), ("posterior", 50), ("posterior", 10))
COLD = (("fresh", 50), ("posterior", 50), ("fresh", 20), ("posterior", 20))
COLUMNS = {
    "model": "model",
    "rule": "rule",
    "steps": "steps",
    "recognised": "recognised",
    "frechet": "Fréchet distance",
    "nearest": "to the nearest training image",
    "seconds": "seconds",
}


class Judge(NamedTuple):
    """What samples are measured by: all of it learned from real images alone."""

    classifier: Any
    components: Any
    train: Tensor
    test: Tensor
    test_label: Tensor

    def figures(self, flat: Tensor, label: Tensor) -> dict[str, float]:
        """Share recognised as their label, Frechet distance to the test split, mean distance to a training image."""
        named = torch.from_numpy(self.classifier.predict(flat.numpy()))
        features = [torch.from_numpy(self.components.transform(part.numpy())).double() for part in (flat, self.test)]
        nearest = torch.cdist(flat, self.train).amin(1) / flat.shape[1] ** 0.5
        return {
            "recognised": float((named == label).double().mean()),
            "frechet": frechet(*features),
            "nearest": float(nearest.mean()),
        }


def learn(train: Pictures, test: Pictures) -> Judge:
    """The judge of a data set. ValueError where it has no classes, or too few images."""
    try:
        from sklearn.decomposition import PCA
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ValueError("samples are measured with scikit-learn; pip install 'textdiff[image]'") from error
    if not train.names or min(len(train), len(test)) <= COMPONENTS:
        raise ValueError(f"{len(train.names)} classes, {len(test)} images: classes and more than 32 images are needed")
    some = slice(0, None, -(-len(train) // MOST))
    flat, label = _flat(train, some), train.label[some]
    classifier = LogisticRegression(max_iter=2000).fit(flat.numpy(), label.numpy())
    components = PCA(min(COMPONENTS, flat.shape[1]), random_state=0).fit(flat.numpy())
    return Judge(classifier, components, flat, _flat(test), test.label)


def _flat(pictures: Pictures, rows: slice = slice(None)) -> Tensor:
    return pictures.batch(rows).pixels.flatten(1)


def frechet(one: Tensor, other: Tensor) -> float:
    """The Frechet distance of two normal distributions fit to features (N, D) and (M, D), float64."""
    first, second = one.T.cov(), other.T.cov()
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    between = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()  # tr (C1 C2)^(1/2)
    return float((one.mean(0) - other.mean(0)).square().sum() + first.trace() + second.trace() - 2 * between)


def score(
    models: Sequence[str],
    data: PicturesConfig,
    runs: Sequence[tuple[str, int]] = (),
    *,
    count: int = 500,
    seed: int = 0,
    progress: Callable[[int], Any],
) -> list[dict[str, Any]]:
    """A row of real images, then one per model, rule and number of steps; `runs` in place of those of its process.

    progress: makes a bar of so many steps, with `update()` and `close()`. ValueError for a model of other images.
    """
    if check_integer("samples", count, least=1) <= COMPONENTS:
        raise ValueError(f"samples {count} are too few to compare with real images; give more than {COMPONENTS}")
    train, test = load_pictures(data, data.split), load_pictures(data, data.validation_split)
    judge = learn(train, test)
    checkpoints = [load_checkpoint(model) for model in models]
    wanted = [runs or (HOT if found.config.diffusion.process in GAUSSIAN else COLD) for found in checkpoints]
    for model, checkpoint, pairs in zip(models, checkpoints, wanted, strict=True):
        _fits(model, checkpoint.config, train)
        check_count("samples", count, checkpoint.config, MEASURED)
        for rule, _ in pairs:
            checkpoint.config.diffusion.check_rule(rule)
    rows = [_real(judge, train, count)]
    bar = progress(sum(turns(count, steps) for pairs in wanted for _, steps in pairs))
    try:
        for model, checkpoint, pairs in zip(models, checkpoints, wanted, strict=True):
            rows += [
                {"model": model, "rule": rule, "steps": steps}
                | _drawn(judge, checkpoint, rule, steps, count, seed, bar.update)
                for rule, steps in pairs
            ]
    finally:
        bar.close()
    return [finite(row) for row in rows]


def _fits(model: str, config: PictureConfig, train: Pictures) -> None:
    if list(train.names) != config.names or train.values.shape[1:] != (config.channels, config.height, config.width):
        raise ValueError(
            f"{model} was trained on {config.channels} x {config.height} x {config.width} images in {len(config.names)} "
            "classes, the data set has others; name its data set by --dataset"
        )


def _real(judge: Judge, train: Pictures, count: int) -> dict[str, Any]:
    """Two parts of the real data: the test split recognised, and training images, as many as samples, beside it."""
    whole = judge.figures(judge.test, judge.test_label)
    some = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:count].tolist()
    part = replace(train, values=train.values[some], label=train.label[some])
    between = judge.figures(_flat(part), part.label)["frechet"]
    return {"model": "real images", **whole, "frechet": between}


def _drawn(
    judge: Judge,
    checkpoint: PictureCheckpoint,
    rule: str,
    steps: int,
    count: int,
    seed: int,
    tick: Callable[[], object],
) -> dict[str, float]:
    config, began = checkpoint.config, time.perf_counter()
    denoiser, labels = config.build_denoiser(checkpoint.model).eval(), in_turn(count, len(config.names))
    painted = paint(config, denoiser, labels, steps=steps, rule=rule_of(rule), seed=seed, tick=tick)
    seconds = time.perf_counter() - began
    return {**judge.figures(painted.pixels.clamp(-1, 1).flatten(1), labels), "seconds": seconds}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    forms = {"recognised": "{:.1%}", "frechet": "{:.2f}", "nearest": "{:.3f}", "seconds": "{:.0f}"}
    lines = [
        [forms.get(name, "{}").format(row[name]) if row.get(name) is not None else "" for name in COLUMNS]
        for row in rows
    ]
    head = [list(COLUMNS.values()), ["---"] * len(COLUMNS)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [*head, *lines])
