"""Describes the inputs and outputs of an exported program in JSON files next to it."""

import json
import pathlib

from td_jax.predicting.program import Program

SIGNATURE, VOCABULARY = 'signature.json', 'vocabulary.json'


def write(folder: pathlib.Path, program: Program, properties: dict):
    """Writes signature.json and, of a program of ids, vocabulary.json: {input: {id: number}}.

    Args:
      folder: of the program.
      program: the exported one.
      properties: further entries, such as the data set.
    """
    content = {
        **properties,
        'inputs': {name: _describe_port(port) for name, port in program.inputs.items()},
        'outputs': {name: _describe_port(port) for name, port in program.outputs.items()},
        'labels': list(program.labels),
    }
    _write_json(folder / SIGNATURE, content)
    if program.vocabularies:
        numbers = {
            name: {text: number for number, text in enumerate(ids)}
            for name, ids in program.vocabularies.items()
        }
        _write_json(folder / VOCABULARY, numbers)


def _describe_port(port):
    """Describes an input or an output; an axis with a name has any size."""
    return {'type': port.dtype, 'shape': list(port.shape), 'meaning': port.meaning}


def _write_json(path, content):
    text = json.dumps(content, indent=2, ensure_ascii=False) + '\n'
    # Of a folder's name, Python reads bytes that it cannot decode as surrogates, which have codes in JSON.
    path.write_text(text, encoding='utf-8', errors='backslashreplace')
