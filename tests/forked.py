"""Processes that have imported what td_jax imports, so that tests wait for runs and not for imports.

`start` and `run` are for a command, a script or a program what subprocess.Popen and subprocess.run are. Each
process that runs tests has one that has imported TensorFlow and has not begun to use JAX; others are forked
off it. They differ from a fresh one in what it says while it imports, and in what Python and TensorFlow read
from the environment as they start; where a test is about these, it starts a fresh one.
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
    'td_jax',  # first: it says what TensorFlow may say
    'tensorflow',
    'clu.metric_writers',
    'sklearn.datasets',
    'td_jax.command_line',
    'td_jax.training.run',
)
# What JAX reads as it is imported -> what it makes of the text.
READ_BY_JAX = {
    'JAX_COMPILATION_CACHE_DIR': str,
    'JAX_COMPILATION_CACHE_MAX_SIZE': int,
    'JAX_ENABLE_X64': lambda text: text == '1',
    'JAX_NUM_CPU_DEVICES': int,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': float,
    'JAX_PLATFORMS': str,
}
HEADER = 8  # bytes of the length of a request


# --- Who asks --------------------------------------------------------------------------------------


def start(arguments, cwd=ROOT, env=None):
    """A Process of `python ARGUMENTS`, where they are -m MODULE, -c PROGRAM or SCRIPT and what these get."""
    return Process([str(argument) for argument in arguments], cwd, dict(os.environ if env is None else env))


def run(arguments, env=None):
    """The subprocess.CompletedProcess of `start`, with what it printed."""
    process = start(arguments, env=env)
    out, err = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


class Process:
    """What tests use of subprocess.Popen, with stdout and stderr as text."""

    def __init__(self, arguments, cwd, env):
        request = json.dumps({'arguments': arguments, 'cwd': str(cwd), 'env': env}).encode()
        (out, out_end), (err, err_end), (self._state, state_end) = os.pipe(), os.pipe(), os.pipe()
        ends = [out_end, err_end, state_end]
        server = _server()
        socket.send_fds(server, [len(request).to_bytes(HEADER, 'big')], ends)
        server.sendall(request)
        for end in ends:
            os.close(end)
        self.stdout, self.stderr = open(out), open(err)
        self._told = b''
        self.returncode = None
        while b'\n' not in self._told:
            self._hear()
        self.pid = int(self._told.split(b'\n')[0])

    def _hear(self):
        heard = os.read(self._state, 100)
        if not heard:
            raise RuntimeError('the process that others are forked off has died')
        self._told += heard

    def poll(self):
        """The exit code, negative for a signal, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        """The exit code."""
        while self.returncode is None:
            if not select.select([self._state], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired('python', timeout)
            self._hear()
            _, code, *more = self._told.split(b'\n')
            if more:
                self.returncode = int(code)
                os.close(self._state)
        return self.returncode

    def communicate(self, timeout=None):
        """(stdout, stderr), what is left of them, of a process that ends by itself in so many seconds."""
        found = {}

        def read(name):
            found[name] = getattr(self, name).read()

        readers = [threading.Thread(target=read, args=(name,), daemon=True) for name in ('stdout', 'stderr')]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join()
        self.stdout.close()
        self.stderr.close()
        return found['stdout'], found['stderr']

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def _server():
    """The socket to the process that others are forked off, which is started now if there is none."""
    if _running.get('pid') != os.getpid():
        ours, theirs = socket.socketpair()
        _running.update(pid=os.getpid(), socket=ours)
        command = [sys.executable, __file__, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=ROOT)
        theirs.close()
        # It ends where there is nobody left to ask.
        atexit.register(lambda: (ours.close(), process.wait()))
    return _running['socket']


_running = {}


# --- Who forks -------------------------------------------------------------------------------------


def serve(asked):
    """Forks a process for each request.

    Args:
      asked: the socket that requests come from; it ends with them.

    Returns:
      the arguments of a request, in a process that was forked for it, or None
    """
    states = {}
    # A signal wakes `select`, and a child that has ended sends one.
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([asked, woken], [], [])
        if woken in ready:
            os.read(woken, 1000)
            _tell_of_the_dead(states)
        if asked in ready:
            header, ends, _, _ = socket.recv_fds(asked, HEADER, 3)
            if not header:
                return None
            out, err, state = ends
            request = json.loads(_exactly(asked, int.from_bytes(header, 'big')))
            with warnings.catch_warnings():
                # Python warns since TensorFlow has threads; they wait for work that never comes here.
                warnings.simplefilter('ignore', DeprecationWarning)
                child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for file in (asked, *states.values(), state, woken, wakes):
                    file.close() if isinstance(file, socket.socket) else os.close(file)
                return _become(request, out, err)
            os.close(out)
            os.close(err)
            states[child] = state
            os.write(state, f'{child}\n'.encode())


def _exactly(asked, count):
    found = b''
    while len(found) < count:
        found += asked.recv(count - len(found))
    return found


def _tell_of_the_dead(states):
    while states:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            return
        state = states.pop(child)
        with contextlib.suppress(BrokenPipeError):
            os.write(state, f'{os.waitstatus_to_exitcode(status)}\n'.encode())
        os.close(state)


def _become(request, out, err):
    """Makes of this process what a request asks for; -> its arguments."""
    import fsspec
    import jax

    # A fresh process hears it unless a shell has started it in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in ((1, out), (2, err)):
        os.dup2(file, number)
        os.close(file)
    # As of a fresh process whose output is no terminal.
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
    """What `python ARGUMENTS` does."""
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
        said = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        for name in IMPORTED:
            importlib.import_module(name)
        os.dup2(said, 2)
        os.close(said)
    sys.path.remove(str(ROOT))
    # A collection would touch, and so copy, all that a child shares with this process: seconds at its end.
    gc.freeze()
    if (found := serve(socket.socket(fileno=int(sys.argv[1])))) is not None:
        execute(found)
