"""Trains one run: flags and process start-up, nothing else.

python -m td_jax.main --config=configs/movielens.py --workdir=runs/drama --config.method=fitnet
"""

from absl import flags

import td_jax
from td_jax import command_line


def main():
    config = command_line.define_config()
    folder = flags.DEFINE_string('workdir', None, 'Folder of the run, made if missing.')
    cluster = flags.DEFINE_bool(
        'distributed', False, 'Join the other processes that the cluster (a TPU pod, Slurm, GKE) started.'
    )
    coordinator = flags.DEFINE_string('coordinator', None, 'Several processes: HOST:PORT of process 0.')
    num_processes = flags.DEFINE_integer('num_processes', None, 'Several processes: how many.', lower_bound=1)
    process_id = flags.DEFINE_integer('process_id', None, 'Several processes: which this is, from 0.')
    outputs = command_line.define_teacher_outputs()

    def command():
        is_launched = cluster.value or coordinator.value is not None
        if is_launched:
            # If a process dies, JAX logs a lot, and processes.end_together prints one line.
            td_jax.silence_cpp()
        # Imported here: it takes seconds, and invalid flags are reported without it.
        from td_jax import config as config_lib
        from td_jax.devices import platform, processes
        from td_jax.files import workdir
        from td_jax.training import public_teacher, restarts, teacher_outputs
        from td_jax.training.run import describe, train

        processes.start(coordinator.value, num_processes.value, process_id.value, cluster.value)
        platform.start()
        processes.handle_signals()
        with processes.end_together():
            set_keys, root = command_line.list_set_keys(), workdir.resolve(folder.value)
            complete_config = processes.check_together(
                lambda: public_teacher.complete(config.value, root, set_keys)
            )
            config_lib.check(complete_config)
            for line in config_lib.describe_without_effect(complete_config, set_keys):
                processes.say(line)
            teacher_outputs.use(*(flag.value for flag in outputs))
            if line := teacher_outputs.describe_unused([complete_config]):
                processes.say(line)
            with restarts.count_start(root, is_launched):
                result = train(complete_config, root)
            if processes.is_main():
                print(describe(result))

    command_line.run(command, required=('config', 'workdir'))


if __name__ == '__main__':
    main()
