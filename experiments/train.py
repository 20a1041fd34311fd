"""Does the tutorial's attention classifier learn, and where does it look?

  python -m experiments.train                    digits, embedded: 8 epochs
  python -m experiments.train cifar10            JPEG CIFAR-10 (TFDS_DATA_DIR or --data-dir)
  python -m experiments.train resnet20_cifar10   a published recipe; cct_2_cifar10 and others
  python -m experiments.train photographs --data folder:PATH --model resnet50 --init-from WEIGHTS
  python -m experiments.train digits --help      every flag
  python -m experiments.train ... --distributed True   one run of several hosts, the same on each

Running the same command again resumes the run or reports it done. Exit codes: 0 done, 2 a bad flag,
3 data, 4 run directory or checkpoint, 5 diverged, 75 stopped by a signal with everything saved.
Measured results stand in the README.
"""

from collections.abc import Sequence

from experiments.config import parse
from experiments.errors import run_main


def main(arguments: Sequence[str]) -> int:
  config = parse(arguments)
  from experiments.run import run  # jax: --help must not wait for it

  return run(config)


if __name__ == '__main__':
  run_main(main)
