"""Kill a training run repeatedly, resume it each time, and compare the result with that of an undisturbed run.

    python scripts/benchmarks/chaos.py [CONFIG.yaml] [--kills 50] [--seed 0] [--folder DIR] [--set key.path=value ...]

Without a configuration, the demo is trained, with an evaluation and a checkpoint every few steps. Half of the kills
(SIGKILL) come at a random moment. The others wait for a rare moment: a partly written checkpoint, snapshot or teacher,
a teacher that is being recorded, an evaluation. A run that ends between two kills is compared, and another run starts,
until the number of kills is reached. The exit status is 0 if

* every resumed run continues without an error,
* the final weights, ``convergence.json`` and all metrics equal those of the uninterrupted run bitwise, and
* the output folder has the same files, without remains of killed runs.

Progress goes to stderr. The last line on stdout is a JSON object with the number of kills by moment.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from safetensors.numpy import load_file

from hf_async_mtl.demo.task_set import write_demo
from hf_async_mtl.training.checkpoint_files import STATE_FILE

DEMO = ("training.max_steps=240", "training.eval_steps=12", "training.logging_steps=12", "convergence.patience=1")
CLOCK = ("runtime", "per_second", "preparation_time", "train_loss")


def main(argv: Sequence[str] | None = None) -> int:
    """Run, kill, resume and compare. Return 0 if nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="default: a temporary folder")
    parser.add_argument("--set", action="append", default=[], metavar="key.path=value")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        config, settings = args.config, args.set
        if config is None:
            config, settings = write_demo(folder / "demo"), [*DEMO, *args.set]
        command = [sys.executable, "-m", "hf_async_mtl.cli.commands", "train", str(config)]
        # The progress bars in the log show what a run is doing.
        for setting in ["training.disable_tqdm=false", *settings]:
            command += ["--set", setting]
        begun = time.monotonic()
        subprocess.run([*command, "--output-dir", str(folder / "undisturbed")], check=True, capture_output=True)
        duration = time.monotonic() - begun
        hits: Counter[str] = Counter()
        dice, differing, runs = random.Random(args.seed), 0, 0
        while sum(hits.values()) < args.kills:
            killed = folder / f"killed-{runs}"
            for words in harass(command, killed, args.kills - sum(hits.values()), dice, duration):
                hits[words] += 1
                print(f"{sum(hits.values())} of {args.kills}: {words}", file=sys.stderr)
            for words in differences(folder / "undisturbed", killed):
                differing += 1
                print(f"{killed}: {words}", file=sys.stderr)
            shutil.rmtree(killed)
            runs += 1
    found = {"kills": sum(hits.values()), "runs": runs, "hits": dict(sorted(hits.items())), "differences": differing}
    print(json.dumps(found))
    return 1 if differing else 0


def harass(command: Sequence[str], out: Path, kills: int, dice: random.Random, duration: float) -> Iterator[str]:
    """Start a run, kill it, and start it again, until it ends.

    Args:
        command: The run, without its output folder.
        out: Its output folder.
        kills: Maximum number of kills.
        dice: Source of moments and aims.
        duration: Seconds of an undisturbed run.

    Yields:
        The moment that each kill hit.
    """
    log = out.with_name("killed.log")
    for kill in range(kills + 1):
        aim = dice.choice(list(AIMS)) if dice.random() < 0.5 else None
        # Some runs live longer, because a run that is killed before its first new checkpoint makes no progress.
        moment = dice.uniform(0.0, 0.6) * duration if kill < kills else math.inf
        since = time.time()
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*command, "--output-dir", str(out), "--resume"], stdout=file, stderr=subprocess.STDOUT
            )
        begun = time.monotonic()
        while process.poll() is None:
            if time.monotonic() - begun > moment and (aim is None or AIMS[aim](out, log, since)):
                process.kill()
                process.wait()
                yield hit(out, log, since)
                break
            time.sleep(0.0005)
        else:
            if process.returncode != 0:
                raise SystemExit(f"A resumed run failed:\n{log.read_text(errors='replace')[-3000:]}")
            return


# -- moments of a run -------------------------------------------------------------------------------------------------


def is_writing_checkpoint(out: Path, _log: Path, since: float) -> bool:
    """Return whether a new checkpoint has no state of ours, which is written last."""
    return any(not (path / STATE_FILE).exists() and is_new(path, since) for path in out.glob("checkpoint-*"))


def is_writing_teacher(out: Path, _log: Path, since: float) -> bool:
    """Return whether a snapshot or recorded logits are being written."""
    return any(is_new(path, since) for path in out.glob("_teachers/*.partial"))


def is_recording(_out: Path, log: Path, _since: float) -> bool:
    """Return whether a teacher runs over the training set of its task."""
    return last_words(log).startswith("Recording")


def is_evaluating(_out: Path, log: Path, _since: float) -> bool:
    """Return whether a task is being evaluated."""
    return last_words(log).startswith("Evaluating")


AIMS: dict[str, Callable[[Path, Path, float], bool]] = {
    "writing a teacher": is_writing_teacher,
    "writing a checkpoint": is_writing_checkpoint,
    "recording": is_recording,
    "evaluating": is_evaluating,
}


def is_new(path: Path, since: float) -> bool:
    """Return whether a file was written after a moment; False if it no longer exists."""
    try:
        return path.stat().st_mtime > since
    except FileNotFoundError:
        return False


def hit(out: Path, log: Path, since: float) -> str:
    """Return the moment at which a run was killed."""
    for name, holds in AIMS.items():
        if holds(out, log, since):
            return name
    return "training" if "it/s" in last_words(log) or "s/it" in last_words(log) else "starting"


def last_words(log: Path) -> str:
    """Return the last output of a progress bar."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        said = file.read().decode(errors="replace").replace("\x1b[A", "")
    return next((part.strip() for part in reversed(said.replace("\n", "\r").split("\r")) if part.strip()), "")


# -- comparison ------------------------------------------------------------------------------------------------------


def differences(undisturbed: Path, killed: Path) -> Iterator[str]:
    """Yield one sentence per difference between the folders of two runs."""
    files = [
        {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} - set(events(out))
        for out in (undisturbed, killed)
    ]
    for name in sorted(files[0] ^ files[1]):
        yield f"{name} is in one of the two folders only."
    left, right = (load_file(out / "model.safetensors") for out in (undisturbed, killed))
    for name in left:
        if left[name].tobytes() != right[name].tobytes():
            yield f"The weights {name} differ."
    for name in ("convergence.json", "all_results.json"):
        one, other = (json.loads((out / name).read_text(encoding="utf-8")) for out in (undisturbed, killed))
        for key in sorted(one.keys() | other.keys()):
            if not key.endswith(CLOCK) and one.get(key) != other.get(key):
                yield f"{name}: {key} is {other.get(key)}, and was {one.get(key)}."


def events(out: Path) -> Iterator[str]:
    """Yield the files of TensorBoard; each start writes one."""
    return (str(path.relative_to(out)) for path in out.rglob("events.out.tfevents.*"))


if __name__ == "__main__":
    sys.exit(main())
