"""Reports what the TPU compiler predicts for a run's step, without a TPU.

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
        # Only compiles: needs no device of this machine.
        jax.config.update('jax_platforms', 'cpu')
        complete_config, set_keys = config.value, command_line.list_set_keys()
        if 'teacher.pretrained' in set_keys:
            # A checkpoint that the config file names is described there, and need not exist here.
            complete_config = public_teacher.complete_architecture(complete_config, set_keys)
        config_lib.check(complete_config)
        for line in config_lib.describe_without_effect(complete_config, set_keys):
            processes.say(line)
        step = tpu.report(complete_config, name.value)
        print(json.dumps(step, indent=2) if as_json.value else tpu.describe(step))

    command_line.run(command, required=('config', 'topology'))


if __name__ == '__main__':
    main()
