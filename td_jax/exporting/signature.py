"""What an exported program takes and gives, in files next to it that any language reads."""

import json
import pathlib

from td_jax.predicting.program import Program

SIGNATURE, VOCABULARY = 'signature.json', 'vocabulary.json'


def write(folder: pathlib.Path, program: Program, facts: dict):
    """Writes signature.json and, of a program of ids, vocabulary.json: {input: {id: number}}.

    Args:
      folder: that of the program.
      program: what was written.
      facts: what else a person has to know, such as the format and the data set.
    """
    content = {
        **facts,
        'inputs': {name: _described(port) for name, port in program.inputs.items()},
        'outputs': {name: _described(port) for name, port in program.outputs.items()},
        'labels': list(program.labels),
    }
    _write_json(folder / SIGNATURE, content)
    if program.vocabularies:
        numbers = {
            name: {text: number for number, text in enumerate(ids)}
            for name, ids in program.vocabularies.items()
        }
        _write_json(folder / VOCABULARY, numbers)


def _described(port):
    """Of an axis that is a name, any size is taken."""
    return {'type': port.dtype, 'shape': list(port.shape), 'meaning': port.meaning}


def _write_json(path, content):
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
