"""Processes in which td_jax's dependencies are already imported, so that tests do not wait for imports.

`start` and `run` correspond to subprocess.Popen and subprocess.run, for a module, a script or a program. Each
process that runs tests has a server that has imported TensorFlow and not yet used JAX; processes are forked
off it. They differ from a fresh one in the output of imports and in what Python and TensorFlow read
from the environment at their start; tests of these start a fresh process.
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import pathlib
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import warnings

ROOT = pathlib.Path(__file__).parents[1]
IMPORTED = (
    'td_jax',  # first: it sets what TensorFlow may print
    'tensorflow',
    'clu.metric_writers',
    'sklearn.datasets',
    'td_jax.command_line',
    'td_jax.training.run',
)
# {variable that JAX reads at its import: function that converts its text}.
READ_BY_JAX = {
    'JAX_COMPILATION_CACHE_DIR': str,
    'JAX_COMPILATION_CACHE_MAX_SIZE': int,
    'JAX_ENABLE_X64': lambda text: text == '1',
    'JAX_NUM_CPU_DEVICES': int,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': float,
    'JAX_PLATFORMS': str,
}
HEADER = 8  # bytes that hold the length of a request


# --- The client ------------------------------------------------------------------------------------


def start(arguments, cwd=ROOT, env=None):
    """Starts `python ARGUMENTS` as a Process; ARGUMENTS begin with -m MODULE, -c PROGRAM or SCRIPT."""
    return Process([str(argument) for argument in arguments], cwd, dict(os.environ if env is None else env))


def run(arguments, env=None):
    """Runs `start` to its end; returns a subprocess.CompletedProcess with the output."""
    process = start(arguments, env=env)
    out, err = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


class Process:
    """The part of subprocess.Popen that tests use, with stdout and stderr as text."""

    def __init__(self, arguments, cwd, env):
        request = json.dumps({'arguments': arguments, 'cwd': str(cwd), 'env': env}).encode()
        (out, out_end), (err, err_end), (self._state, state_end) = os.pipe(), os.pipe(), os.pipe()
        ends = [out_end, err_end, state_end]
        server = _connect()
        socket.send_fds(server, [len(request).to_bytes(HEADER, 'big')], ends)
        server.sendall(request)
        for end in ends:
            os.close(end)
        self.stdout, self.stderr = open(out), open(err)
        self._status_text = b''
        self.returncode = None
        while b'\n' not in self._status_text:
            self._read_status()
        self.pid = int(self._status_text.split(b'\n')[0])

    def _read_status(self):
        message = os.read(self._state, 100)
        if not message:
            raise RuntimeError('the process that others are forked off has died')
        self._status_text += message

    def poll(self):
        """The exit code, negative for a signal, or None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        """Waits for the process to end; returns its exit code."""
        while self.returncode is None:
            if not select.select([self._state], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired('python', timeout)
            self._read_status()
            _, code, *more = self._status_text.split(b'\n')
            if more:
                self.returncode = int(code)
                os.close(self._state)
        return self.returncode

    def communicate(self, timeout=None):
        """The rest of (stdout, stderr) of a process that ends by itself within `timeout` seconds."""
        texts = {}

        def read(name):
            texts[name] = getattr(self, name).read()

        readers = [threading.Thread(target=read, args=(name,), daemon=True) for name in ('stdout', 'stderr')]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        self.stdout.close()
        self.stderr.close()
        return texts['stdout'], texts['stderr']

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def _connect():
    """The socket of the server, which is started if there is none."""
    if _running.get('pid') != os.getpid():
        ours, theirs = socket.socketpair()
        _running.update(pid=os.getpid(), socket=ours)
        command = [sys.executable, __file__, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT)
        theirs.close()
        # The server ends when the socket is closed.
        atexit.register(lambda: (ours.close(), process.wait()))
    return _running['socket']


_running = {}


# --- The server ------------------------------------------------------------------------------------


def serve(requests):
    """Forks a process for each request.

    Args:
      requests: the socket that requests come from; the server ends when it is closed.

    Returns:
      the arguments of a request in a process that was forked for it; None in the server
    """
    states = {}
    # A signal wakes `select`, and a child that has ended sends one.
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([requests, woken], [], [])
        if woken in ready:
            os.read(woken, 1000)
            _report_ended(states)
        if requests in ready:
            header, ends, _, _ = socket.recv_fds(requests, HEADER, 3)
            if not header:
                return None
            out, err, state = ends
            request = json.loads(_receive(requests, int.from_bytes(header, 'big')))
            with warnings.catch_warnings():
                # Python warns because TensorFlow has threads; they are idle here.
                warnings.simplefilter('ignore', DeprecationWarning)
                child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for file in (requests, *states.values(), state, woken, wakes):
                    file.close() if isinstance(file, socket.socket) else os.close(file)
                return _set_up_child(request, out, err)
            os.close(out)
            os.close(err)
            states[child] = state
            os.write(state, f'{child}\n'.encode())


def _receive(requests, count):
    content = b''
    while len(content) < count:
        content += requests.recv(count - len(content))
    return content


def _report_ended(states):
    while states:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            return
        state = states.pop(child)
        with contextlib.suppress(BrokenPipeError):
            os.write(state, f'{os.waitstatus_to_exitcode(status)}\n'.encode())
        os.close(state)


def _set_up_child(request, out, err):
    """Sets this process up as a request asks; returns its arguments."""
    import fsspec
    import jax

    # A fresh process handles SIGINT unless a shell has started it in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in ((1, out), (2, err)):
        os.dup2(file, number)
        os.close(file)
    # As in a fresh process whose output is no terminal.
    sys.stdout = io.TextIOWrapper(open(1, 'wb', closefd=False))
    sys.stderr = io.TextIOWrapper(
        open(2, 'wb', closefd=False), errors='backslashreplace', line_buffering=True
    )
    environment = request['env']
    for name in {name for name in {*environment, *os.environ} if name.startswith('JAX_')}:
        if environment.get(name) != os.environ.get(name):
            value = environment.get(name)
            jax.config.update(name.lower(), None if value is None else READ_BY_JAX[name](value))
    os.environ.clear()
    os.environ.update(environment)
    fsspec.config.set_conf_env(fsspec.config.conf)
    os.chdir(request['cwd'])
    sys.path[:0] = [path for path in environment.get('PYTHONPATH', '').split(os.pathsep) if path]
    return request['arguments']


def execute(arguments):
    """Does what `python ARGUMENTS` does."""
    what, *others = arguments
    if what == '-m':
        sys.path.insert(0, os.getcwd())
        sys.argv = others
        runpy.run_module(others[0], run_name='__main__', alter_sys=True)
    elif what == '-c':
        sys.path.insert(0, '')
        sys.argv = ['-c', *others[1:]]
        exec(compile(others[0], '<string>', 'exec'), {'__name__': '__main__'})
    else:
        sys.path.insert(0, str(pathlib.Path(what).parent.absolute()))
        sys.argv = arguments
        runpy.run_path(what, run_name='__main__')


if __name__ == '__main__':
    sys.path[0] = str(ROOT)
    with open(os.devnull, 'w') as nowhere:
        stderr_copy = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        for name in IMPORTED:
            importlib.import_module(name)
        os.dup2(stderr_copy, 2)
        os.close(stderr_copy)
    sys.path.remove(str(ROOT))
    # A collection would touch, and so copy, all that a child shares with this process: seconds at its end.
    gc.freeze()
    # As in tests/conftest.py; a child has it from here.
    gc.set_threshold(50_000, 20, 20)
    if (arguments := serve(socket.socket(fileno=int(sys.argv[1])))) is not None:
        execute(arguments)
