"""Trainings that save all the time, each in a process that is killed at a random moment.

    python -m tests.faults.saving_forever FOLDER NUMBER

Training i runs in FOLDER/i, with the seed i. They are forks of this process, which has loaded
everything and runs no threads.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from tests.checkpoints import Training
from tests.ring_histories import Sizes

SIZES = Sizes(capacity=120, num_groups=2, chunk_bytes=700)
STEPS = 7
LONGEST_S = 0.4


def save_forever(run: Path, seed: int) -> None:
    training = Training(run, SIZES, seed)
    while True:
        training.go_on(STEPS)
        training.writer.begin(training.name, training.policy(), training.state(), training.chunks)
        training.go_on(3)
        training.writer.finish()


def main(folder: Path, number: int) -> None:
    torch.set_num_threads(1)
    rng = random.Random(number)
    for seed in range(number):
        child = os.fork()
        if not child:
            save_forever(folder / str(seed), seed)
        time.sleep(rng.uniform(0.02, LONGEST_S))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
