"""Times airbench94 of Keller Jordan as it is, on given bytes.

  python -m experiments.speed.sprint_peer airbench94_muon.py --data arrays.npz --runs 30

The file is that of github.com/KellerJordan/cifar10-airbench, which is not part of jattn. It wants
a GPU and reads cifar10/train.pt and test.pt where it runs: those are made in a folder that is
deleted afterwards. The seconds are what it prints itself, its first run compiles and is not
counted. The last line is the result.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from experiments.errors import ConfigError, InputError, run_main


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Times airbench94."""

  file: Annotated[pathlib.Path, tyro.conf.Positional]
  """airbench94_muon.py."""
  data: pathlib.Path
  """.npz with x_train, y_train, x_test, y_test."""
  runs: int = 30
  """After the one that compiles."""


def main(arguments: Sequence[str]) -> int:
  chosen = tyro.cli(Arguments, args=arguments, prog='python -m experiments.speed.sprint_peer')
  if not chosen.file.is_file():
    raise InputError(f'{chosen.file}: there is no such file')
  try:
    import torch
  except ImportError:
    raise ConfigError("airbench94 needs PyTorch: pip install 'jattn[torch]'") from None
  file = chosen.file.resolve()
  data = chosen.data.resolve()
  with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    _write(data, pathlib.Path('cifar10'), torch)
    peer = _load(file)
    model = peer.CifarNet().cuda().to(memory_format=torch.channels_last)
    model.compile(mode='max-autotune')
    found = time_runs(peer, model, chosen.runs)
    os.chdir(file.parent)
  print(json.dumps(found | {'versions': {'torch': torch.__version__}}))
  return 0


def time_runs(peer: Any, model: Any, runs: int) -> dict[str, Any]:
  """Accuracy and seconds of each run of ``peer.main(run, model)``, by its own clock.

  The clock is a local variable that it hands to what prints it.
  """
  seconds: list[float] = []

  def catch(variables: dict[str, Any], is_final_entry: bool) -> None:
    if is_final_entry:
      seconds.append(variables['time_seconds'])

  peer.print_training_details = catch
  peer.main('warmup', model)
  seconds.clear()
  accuracies = [peer.main(run, model) for run in range(runs)]
  return {
    'accuracy': statistics.fmean(accuracies),
    'accuracies': accuracies,
    'seconds': statistics.fmean(seconds),
    'all_seconds': seconds,
  }


def _load(file: pathlib.Path) -> Any:
  sys.argv = [str(file)]  # it reads its own source by this name
  spec = importlib.util.spec_from_file_location('airbench94', file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _write(data: pathlib.Path, folder: pathlib.Path, torch: Any) -> None:
  """The files that it would make of a download."""
  import numpy as np

  folder.mkdir()
  with np.load(data) as arrays:
    for split in ('train', 'test'):
      images, labels = (torch.from_numpy(np.array(arrays[f'{name}_{split}'])) for name in 'xy')
      classes = [str(index) for index in range(10)]
      content = {'images': images, 'labels': labels.long(), 'classes': classes}
      torch.save(content, folder / f'{split}.pt')


if __name__ == '__main__':
  run_main(main)
