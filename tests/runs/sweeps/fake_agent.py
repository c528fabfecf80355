"""A fast script that behaves like those of agents/: it counts, and records its count.

python fake_agent.py [preset] --directory D --total-updates 100 --seconds 0.01 --crash-at 30 --crashes 1
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

STOP = []


def flags() -> argparse.Namespace:
    words = sys.argv[1:]
    if words and not words[0].startswith("-"):
        words = words[1:]
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--exp-name", default="fake")
    for name, default in (("seed", 1), ("threads", 1), ("total-updates", 20), ("every", 5), ("crashes", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--crash-at", type=int, default=-1, help="exit with code 3 here, the first --crashes times")
    parser.add_argument("--seconds", type=float, default=0.0, help="duration of an update")
    parser.add_argument("--loading", type=float, default=0.0, help="seconds until the run is created or resumed")
    parser.add_argument("--unfinished", action="store_true", help="exit with code 0 without finishing")
    return parser.parse_args(words)


def refuse(message: str) -> None:
    print(f"fake_agent.py: {message}", file=sys.stderr)
    raise SystemExit(2)


def write(path: Path, content: object) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def main() -> None:
    args = flags()
    print(f"cores {sorted(os.sched_getaffinity(0))} threads {os.environ.get('OMP_NUM_THREADS')}", flush=True)
    directory = args.resume or args.directory
    time.sleep(args.loading)
    directory.mkdir(parents=True, exist_ok=True)
    lock = (directory / "lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        refuse(f"{directory} is being written by another process")
    step, table = 0, directory / "scalars.csv"
    if args.resume:
        config = json.loads((directory / "config.json").read_text())
        args = argparse.Namespace(**{**config, "directory": directory, "resume": directory})
        saved = json.loads((directory / "checkpoint.pt").read_text())
        step = saved["step"]
        os.truncate(table, saved["table_bytes"])
        record = json.loads((directory / "provenance.json").read_text())
        write(directory / "provenance.json", {**record, "resumed": [*record["resumed"], {"step": step}]})
    else:
        if (directory / "config.json").exists():
            refuse(f"{directory} holds a run")
        write(directory / "provenance.json", {"command": sys.argv, "resumed": []})
        write(directory / "config.json", {**vars(args), "directory": str(directory), "resume": None})
        table.write_text("step,tag,value\n")

    def status(word: str) -> None:
        write(directory / "status.json", {"status": word, "step": step, "message": None})

    def checkpoint() -> None:
        write(directory / "checkpoint.pt", {"step": step, "table_bytes": table.stat().st_size})
        status("running")

    status("running")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: STOP.append(1))
    crash_count = Path(f"{directory}.crashes")
    with table.open("a", buffering=1) as file:
        while step < args.total_updates and not STOP:
            time.sleep(args.seconds)
            step += 1
            print(f"{step},test/accuracy,{(args.seed * 7919 + step * 31) % 101 / 100!r}", file=file)
            if step % args.every == 0:
                checkpoint()
            if step == args.crash_at and (crash_count.stat().st_size if crash_count.exists() else 0) < args.crashes:
                with crash_count.open("a") as crashed:
                    crashed.write("x")
                print("about to crash", flush=True)
                os._exit(3)
    if args.unfinished:
        return
    checkpoint()
    if STOP:
        status("interrupted")
        raise SystemExit(130)
    status("finished")
    print(f"finished {step} updates", flush=True)


if __name__ == "__main__":
    main()
