"""ResNet-18 on images of noise: how long an iteration takes does not depend on what they show."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from simulator.workload.models import resnet18_cifar
from simulator.workload.task import Task

SAMPLES = 256

with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    task = Task(
        resnet18_cifar(), (torch.randn(SAMPLES, 3, 32, 32), torch.arange(SAMPLES) % 10), F.cross_entropy
    )
