#!/usr/bin/env python3
"""Kills one process of a training run with SIGKILL and measures when the others end.

  kill_process.py --processes 4 --run FOLDER --steps 20 --victim 3 -- COMMAND...

Starts COMMAND, `stablemask pretrain ... --set train.out=FOLDER`, as that many processes, one per
GPU, with the environment that torchrun gives them but without its agent, which would end the others
itself. Once --steps more steps are in FOLDER's metrics.jsonl the victim is killed. Prints one JSON
object: the seconds from the kill to the end of each other process, the exit codes by process (-9:
killed) and the last line of a survivor. Without --victim it waits for the end of all.
"""
import argparse
import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

POLL_SECONDS = 0.02


def free_port():
    """Below those that the system gives to connections that go out."""
    for port in random.sample(range(10000, 32000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise SystemExit("kill_process.py: no free port")


def start(command, processes, logs):
    """The processes, in the order of their ranks."""
    port, started = str(free_port()), []
    for rank in range(processes):
        environment = dict(
            os.environ, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes),
            LOCAL_WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        with open(logs / f"process-{rank}.log", "w", encoding="utf-8") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    return started


def last_step(run):
    """Of metrics.jsonl; 0 when there is none."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return max((json.loads(line)["step"] for line in lines), default=0)
    except (OSError, ValueError, KeyError):
        return 0  # not there yet, or its last line is being written


def wait_for_step(run, step, started, deadline):
    while last_step(run) < step:
        if any(process.poll() is not None for process in started):
            sys.exit("kill_process.py: a process ended before the kill")
        if time.monotonic() > deadline:
            sys.exit(f"kill_process.py: step {step} was not reached; last: {last_step(run)}")
        time.sleep(10 * POLL_SECONDS)


def wait_for_end(started, deadline):
    """When each process ended; None for those that had to be killed at the deadline."""
    ended = [None] * len(started)
    while None in ended and time.monotonic() < deadline:
        for rank, process in enumerate(started):
            if ended[rank] is None and process.poll() is not None:
                ended[rank] = time.monotonic()
        time.sleep(POLL_SECONDS)
    return ended


def end_all(started):
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def last_line(path):
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")


def experiment(arguments):
    logs = arguments.logs or arguments.run.parent
    logs.mkdir(parents=True, exist_ok=True)
    before = last_step(arguments.run)
    began = time.monotonic()
    started = start(arguments.command, arguments.processes, logs)
    try:
        killed = None
        if arguments.victim is not None:
            wait_for_step(arguments.run, before + arguments.steps, started,
                          began + arguments.timeout)
            killed = time.monotonic()
            started[arguments.victim].kill()
        ended = wait_for_end(started, (killed or began) + arguments.timeout)
    finally:
        end_all(started)
    others = [rank for rank in range(arguments.processes) if rank != arguments.victim]
    return {
        "processes": arguments.processes,
        "victim": arguments.victim,
        "first_step": before,
        "last_step": last_step(arguments.run),
        "seconds": [round(ended[rank] - (killed or began), 2) if ended[rank] else None
                    for rank in others],
        "exit_codes": [process.returncode for process in started],
        "message": last_line(logs / f"process-{others[0]}.log"),
    }


def parse_arguments(words=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--run", type=Path, required=True, help="train.out of the command")
    parser.add_argument("--logs", type=Path, help="folder for the outputs; default: --run's parent")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--victim", type=int, help="rank of the process to kill")
    parser.add_argument("--timeout", type=float, default=90, help="seconds")
    parser.add_argument("command", nargs="+")
    return parser.parse_args(words)


if __name__ == "__main__":
    print(json.dumps(experiment(parse_arguments())))
