"""Make every run of the example: `python experiments.py`, about a minute on two idle cores.

Each run becomes a small JSON file in runs/, from which `python -m kdlib report` takes all numbers.
Called again on the same machine, it trains the teacher anew and makes only what is missing. After a
change, or on another machine, delete runs/ first: other runs of one name do not mix.
"""

from functools import partial
from pathlib import Path

from kdlib import data, evidence, models
from kdlib.experiments import compare

RUNS = Path(__file__).resolve().parent / "runs"
TEACHER = partial(models.ConvNet, (16, 32, 64), num_classes=100, dropout=0.1)
STUDENT = partial(models.ConvNet, (8, 16, 32), num_classes=100)
TUNING_SEEDS = [50, 51, 52, 53, 54]  # others than those of the comparison


def main() -> None:
    digits = data.load("mnist-5k")
    own = data.two_digits(digits.train.take(slice(2000, None)), 1280, seed=2)
    foreign = data.two_digits(digits.train.take(slice(0, 2000)), 10_000, seed=1)
    validation = data.two_digits(digits.validation, 2000, seed=3)
    test = data.two_digits(digits.test, 4000, seed=4)

    # The teacher is a run as well: its accuracy is on record.
    taught = compare(
        {"large": {}},
        student=TEACHER,
        train=foreign,
        evaluate_on=test,
        seeds=[0],
        experiment="teacher",
        folder=RUNS,
        keep=True,
        epochs=10,
        batch_size=128,
        lr=6e-3,
    )
    common = dict(
        student=STUDENT,
        teacher=taught.kept("large")[0],
        train=own,
        epochs=10,
        lr=0.05,
        folder=RUNS,
        resume=True,
    )
    kd = {"method": "kd"}
    # Settings are chosen on validation images.
    compare(
        {"alone": {}} | {f"KD, T={t}": kd | {"temperature": float(t)} for t in (1, 2, 4, 8, 16)},
        evaluate_on=validation,
        seeds=TUNING_SEEDS,
        experiment="temperature",
        **common,
    )
    # Test images are read here only, and nothing is chosen on them.
    compare(
        {
            "alone": {},
            "label smoothing": {"label_smoothing": 0.2},
            "KD": kd | {"temperature": 4.0},
            "DKD": {"method": "dkd", "beta": 2.0, "warmup": 3},
            "DKD, published": {"method": "dkd"},
            "AT": {"method": "at", "weight": 3.0},
        },
        evaluate_on=test,
        seeds=evidence.seeds(5),
        experiment="comparison",
        **common,
    )


if __name__ == "__main__":
    main()
