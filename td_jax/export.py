"""Writes the student of a finished run alone, in a format that others read.

    python -m td_jax.export --workdir=RUN --format=npz|safetensors|stablehlo|onnx|saved_model

npz: the names of google-research/vision_transformer, for a ViT without registers that has the activation, the
LayerNorm epsilon and the preprocessing of that code, because the file cannot store others; or those of BiT,
for a ResNet of BiT's depths. A small ResNet (R20x1) can only be written as a program.

safetensors: the folder of a Hugging Face ViTForImageClassification, for a ViT without pre-logits; with
registers, or a head that reads more than the class token, that of a DeiT or DINOv2. Its
preprocessor_config.json describes the preprocessing of images.

stablehlo, onnx, saved_model: a folder with a program for any model, including its parameters. Its inputs are
ids by their numbers in vocabulary.json, or images as uint8 of any size. signature.json describes inputs and
outputs; the modules in td_jax/exporting/ show how to call each format.
"""

from absl import flags

from td_jax import command_line
from td_jax.exporting import formats
from td_jax.files import workdir


def main():
    folder = flags.DEFINE_string('workdir', None, 'Folder of a finished run.')
    name = flags.DEFINE_enum('format', None, list(formats.FORMATS), 'What the student is written as.')
    output = flags.DEFINE_string(
        'output', None, 'File (npz) or folder (all others) that is made; by default one in the workdir.'
    )
    seed_index = flags.DEFINE_integer(
        'seed_index', 0, "Which of the run's seeds, counted from 0.", lower_bound=0
    )

    def command():
        target = workdir.resolve(output.value) if output.value else None
        print(formats.export(workdir.resolve(folder.value), name.value, target, seed_index.value))

    command_line.run(command, required=('workdir', 'format'))


if __name__ == '__main__':
    main()
