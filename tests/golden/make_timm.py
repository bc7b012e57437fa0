"""Writes what timm computes of random weights: python tests/golden/make_timm.py, where timm and torch are."""

import json
import pathlib

import numpy as np
import timm_weights
import torch
from timm.models import efficientnet

FOLDER = pathlib.Path(__file__).parent


def main():
    model = efficientnet._gen_efficientnet(
        'efficientnet_b0', channel_multiplier=0.125, depth_multiplier=0.5, num_classes=5
    ).eval()
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    weights = timm_weights.draw(shapes)
    model.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()})
    pixels = np.random.default_rng(1).normal(size=(2, 45, 38, 3)).astype(np.float32)
    found = {'shapes': np.array(json.dumps(shapes)), 'images': pixels}
    with torch.no_grad():
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        found['logits'] = model(x).numpy()
        x = model.bn1(model.conv_stem(x))
        for i, stage in enumerate(model.blocks):
            x = stage(x)
            found[f'stage_{i}'] = x[:1].permute(0, 2, 3, 1).numpy()
    np.savez_compressed(FOLDER / 'timm_efficientnet_tiny.expected.npz', **found)


if __name__ == '__main__':
    main()
