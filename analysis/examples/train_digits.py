"""Train a small network on handwritten digits under any algorithm, then simulate it on 64 workers.

    torchrun --nproc-per-node 2 train_digits.py --algorithm cocod-sgd
    python train_digits.py                                   # one worker

The lines that make it a Paceline script are the import, `Trainer(…)`, `resume`, `fit` and `simulate_like`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from paceline import Trainer, simulate_like


def network() -> nn.Module:
    """Return a small convolutional network with batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(16 * 4 * 4, 10),
    )


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean loss of a batch; the network computes in bfloat16 where that is exact enough."""
    images, labels = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = model(images)
    return F.cross_entropy(scores.float(), labels)


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return the samples to train on and those to test on."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target)
    return TensorDataset(images[:1500], labels[:1500]), TensorDataset(images[1500:], labels[1500:])


def main() -> None:
    """Train, resume where something is kept, and predict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algorithm", default="cocod-sgd")
    parser.add_argument("--iterations", type=int, default=80)
    parser.add_argument("--until", type=int, default=None, help="stop here; a later start goes on")
    parser.add_argument("--out", type=Path, default=Path("runs/train-digits"))
    arguments = parser.parse_args()

    torch.manual_seed(1)
    training, testing = digits()
    model = network()

    def accuracy(averaged: nn.Module) -> dict[str, float]:
        images, labels = testing.tensors
        return {"accuracy": float((averaged(images).argmax(1) == labels).float().mean())}

    trainer = Trainer(
        model,
        loss,
        DataLoader(training, batch_size=16, shuffle=True, num_workers=2),
        algorithm=arguments.algorithm,
        step_size=0.05,
        update={"rule": "momentum", "schedule": {"kind": "cosine", "warm-up": 4}},
        iterations=arguments.iterations,
        accumulate=2,
        evaluate=accuracy,
        evaluate_every=10,
        folder=arguments.out / "states",
        save_every=10,
        name="train-digits",
    )
    begun = trainer.resume()
    run = trainer.fit(arguments.until)
    if trainer.reached == arguments.iterations:
        torch.save(model.state_dict(), arguments.out / f"model-{trainer.rank}.pt")
    if run is None:
        return

    print(f"from iteration {begun}: loss {run.samples.loss[0]:.3f} -> {run.samples.loss[-1]:.3f}")
    print(run.profile())
    run.save(arguments.out / "run")
    cluster = {"builder": "two-level", "hosts": 8, "gpus-per-host": 8}
    predicted = simulate_like(run, workers=64, topology=cluster, transport="gloo")
    print(predicted)
    print(
        json.dumps(
            {
                "begun": begun,
                "loss": run.samples.loss,
                "evaluated": run.observed("accuracy")["max"],
                "predicted_s": predicted.time_per_iteration,
            }
        )
    )


if __name__ == "__main__":
    main()
