"""What the TPU compiler says of a run's step, without a TPU.

python -m td_jax.tpu_report --config=configs/vit_imagenet.py --topology=v5e:2x2 --config.td.rounds=2
"""

import json

import jax
from absl import flags

from td_jax import command_line
from td_jax import config as config_lib
from td_jax.analysis import tpu
from td_jax.devices import processes
from td_jax.training import public_teacher


def main():
    config = command_line.define_config()
    name = flags.DEFINE_string('topology', None, f'Chips, as in v5e:2x2: {", ".join(tpu.CHIPS)}.')
    as_json = flags.DEFINE_bool('json', False, 'Print JSON.')

    def command():
        # Only compiles: no device of this machine is of any use.
        jax.config.update('jax_platforms', 'cpu')
        full, typed = config.value, command_line.typed_keys()
        if 'teacher.pretrained' in typed:
            # One that a config names is described there, and need not be on this machine.
            full = public_teacher.complete_architecture(full, typed)
        config_lib.check(full)
        for line in config_lib.describe_without_effect(full, typed):
            processes.say(line)
        found = tpu.report(full, name.value)
        print(json.dumps(found, indent=2) if as_json.value else tpu.describe(found))

    command_line.run(command, required=('config', 'topology'))


if __name__ == '__main__':
    main()
