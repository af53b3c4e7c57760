"""The service's process: `python -m pipelines.local --state DIR [--port N] [--slots N] [--stop-grace SECONDS]`."""

import argparse
import fcntl
import json
import logging
import os
import socket
import sys
import time
from pathlib import Path

from pipelines.local import service

_TRIES = 20


def main() -> int:
    """Serve until SIGTERM; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.local", description="SageMaker on this machine.")
    parser.add_argument("--state", type=Path, required=True, help="directory that holds everything it keeps")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; any free one if not given")
    parser.add_argument("--slots", type=int, default=os.cpu_count() or 1, help="jobs that run at the same time")
    parser.add_argument("--stop-grace", type=float, default=120.0, help="seconds between SIGTERM and SIGKILL for a job")
    options = parser.parse_args()
    if options.slots < 1 or options.stop_grace < 0:
        parser.error("--slots must be at least 1 and --stop-grace not negative")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.umask(0o077)  # what users run here is theirs alone
    state = options.state.resolve()
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not take(state):
        print(f"error: another service runs on {state}; stop it, or give another --state", file=sys.stderr)
        return 2
    (state / service.ADDRESS).unlink(missing_ok=True)  # of a predecessor that died
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", options.port))
        except OSError as error:
            print(f"error: port {options.port} on 127.0.0.1 can not be had: {error}", file=sys.stderr)
            return 2
        listener.listen(512)
        serve(state, listener, options.slots, options.stop_grace)
    return 0


def take(state: Path) -> bool:
    """Lock the state directory for as long as this process lives; False if another service holds it.

    Those who ask whether a service runs hold the lock for an instant, so it is tried for a second.
    """
    lock = os.open(state / service.LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(1 / _TRIES)
        else:
            return True
    os.close(lock)
    return False


def serve(state: Path, listener: socket.socket, slots: int, stop_grace: float) -> None:
    """Open the state directory, clear up after a predecessor that died, and answer until told to end."""
    import uvicorn

    from pipelines.local import app, container, engine, names
    from pipelines.local.machine import Machine, Options

    port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    machine = Machine(state, url, Options(slots, stop_grace))
    cleared = container.clear(machine.store)
    if cleared:
        logging.warning("ended %d processes of a service that died", cleared)
    engine.mark_interrupted(machine)
    machine.objects.create_bucket(names.DEFAULT_BUCKET)
    address = state / service.ADDRESS

    def announce() -> None:
        part = address.with_suffix(".part")
        part.write_text(json.dumps({"url": url, "port": port, "pid": os.getpid()}))
        part.replace(address)
        logging.info("SageMaker on this machine answers at %s, state in %s", url, state)

    config = uvicorn.Config(
        app.build(machine, announce, lambda: address.unlink(missing_ok=True)),
        http="h11",
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    sys.exit(main())
