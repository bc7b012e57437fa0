"""Describes a public checkpoint and the flags that make it a teacher.

python -m td_jax.inspect gs://vit_models/imagenet21k/ViT-B_32.npz
"""

import argparse

from td_jax import command_line
from td_jax.errors import UserError


def main():
    parser = argparse.ArgumentParser(prog='python -m td_jax.inspect', description=__doc__.splitlines()[0])
    parser.add_argument(
        'checkpoint',
        metavar='CHECKPOINT',
        help='an .npz of google-research/vision_transformer or of BiT (a path, gs:// or https://), or a '
        'model of Hugging Face or timm (a folder, or hf://OWNER/NAME)',
    )

    def refuse(message):
        command_line.fail(UserError(f'{message}; {parser.prog} takes one CHECKPOINT.'))

    parser.error = refuse
    location = parser.parse_args().checkpoint

    def command():
        # Imported here: it takes seconds, and invalid arguments are reported without it.
        from td_jax.pretrained import summary

        print(summary.report(location))

    command_line.execute(command)


if __name__ == '__main__':
    main()
