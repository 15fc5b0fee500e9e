"""Parameters, multiplications and images a second of activation models at 112 px, 7 x 7 cells: `python docs/backbones.py [ARCH ...]`."""

import sys
import time

import torch

from hsal_cli.evaluation.flops import flops_of
from hsal_cli.vision.backbone import ActivationModel, fused

ARCHS = ("resnet34", "resnet18", "timm:tf_efficientnet_lite0", "timm:regnetx_004")
BATCH, SECONDS = 32, 5.0

for arch in sys.argv[1:] or ARCHS:
    model = fused(ActivationModel(arch, 10, 112, 7, dilate=False))
    images = torch.randn(BATCH, 3, 112, 112)
    work = flops_of(lambda model=model, images=images: model(images[:1]))
    with torch.inference_mode():
        model(images)
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            model(images)
            done += BATCH
    rate = done / (time.perf_counter() - start)
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    print(f"| `{arch}` | {millions:.1f} | {work / 2e9:.2f} | {rate:.0f} |")
