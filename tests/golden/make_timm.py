"""Writes what timm computes of random weights: python tests/golden/make_timm.py, where timm and torch are."""

import json
import pathlib

import numpy as np
import timm
import timm_weights
import torch
from timm.models import efficientnet

FOLDER = pathlib.Path(__file__).parent
SMALL = {'img_size': 32, 'patch_size': 8, 'embed_dim': 24, 'depth': 2, 'num_heads': 3, 'num_classes': 5}
# name of a file -> (architecture, arguments that make it small)
VITS = {
    'vit': ('vit_base_patch32_224', SMALL),
    'distilled': ('deit_tiny_distilled_patch16_224', SMALL),
    'deit3': ('deit3_small_patch16_224', SMALL),
    'dinov2_registers': ('vit_small_patch14_reg4_dinov2', {**SMALL, 'num_classes': 0}),
}
# Of a ResNet only the depth can be small.
RESNETS = {'resnet18': (1, 2, 1, 1), 'resnet50': (1, 2, 1, 1), 'wide_resnet50_2': (1, 1, 1, 1)}


def load_weights(model):
    """(a model with the weights that are drawn for its shapes, these shapes)"""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    weights = timm_weights.draw(shapes)
    model.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()})
    return model.eval(), {'shapes': np.array(json.dumps(shapes))}


def compute_efficientnet():
    model, arrays = load_weights(
        efficientnet._gen_efficientnet(
            'efficientnet_b0', channel_multiplier=0.125, depth_multiplier=0.5, num_classes=5
        )
    )
    pixels = np.random.default_rng(1).normal(size=(2, 45, 38, 3)).astype(np.float32)
    arrays['images'] = pixels
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    arrays['logits'] = model(x).numpy()
    x = model.bn1(model.conv_stem(x))
    for i, stage in enumerate(model.blocks):
        x = stage(x)
        arrays[f'stage_{i}'] = x[:1].permute(0, 2, 3, 1).numpy()
    return arrays


def compute_vit(architecture, arguments):
    model, arrays = load_weights(timm.create_model(architecture, **arguments))
    for side in (32, 48):
        pixels = timm_weights.images(side)
        if side == 48:
            model.set_input_size(img_size=48)
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        tokens = model.forward_features(x)
        arrays[f'tokens_{side}'] = tokens.numpy()
        if side == 32:
            arrays['logits'] = model.forward_head(tokens).numpy()
            x = model.norm_pre(model._pos_embed(model.patch_embed(x)))
            arrays['block_0'] = model.blocks[0](x).numpy()
    return arrays


def compute_resnet(architecture, layers):
    model, arrays = load_weights(timm.create_model(architecture, layers=layers, num_classes=5))
    x = torch.from_numpy(timm_weights.images(40)).permute(0, 3, 1, 2)
    arrays['logits'] = model(x).numpy()
    x = model.maxpool(model.act1(model.bn1(model.conv1(x))))
    for i, layer in enumerate((model.layer1, model.layer2, model.layer3, model.layer4)):
        x = layer(x)
        # Every eighth channel of the first image.
        arrays[f'stage_{i}'] = x[:1, ::8].permute(0, 2, 3, 1).numpy()
    return arrays


def main():
    arrays_by_file = {'timm_efficientnet_tiny': compute_efficientnet()}
    arrays_by_file |= {f'timm_{name}_tiny': compute_vit(*arguments) for name, arguments in VITS.items()}
    arrays_by_file |= {f'timm_{name}': compute_resnet(name, layers) for name, layers in RESNETS.items()}
    for name, arrays in arrays_by_file.items():
        np.savez_compressed(FOLDER / f'{name}.expected.npz', **arrays)


if __name__ == '__main__':
    with torch.no_grad():
        main()
