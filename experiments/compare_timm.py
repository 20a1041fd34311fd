"""Is a network of jattn, under timm's name, timm's network?

    python -m experiments.compare_timm [NAME ...] [--out FILE]

For every name that both have: the same drawn weights in both, float32, in evaluation and in
training, at the native size and at another; logits, every map and the batch statistics are
compared, each difference relative to the largest number of what it is compared with (or to one,
where that is larger). Needs torch and timm (see ``experiments.timm_reference``); about 20 seconds a
name on two cores. Result lines: ``experiments/results/timm_models.jsonl``, one for each name, with
``ok`` where every difference is at most 1e-4 and the weights come back bit for bit.
"""

import argparse
import datetime
import importlib.metadata
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jattn
from experiments.timm_reference import (
  arrange,
  create,
  drawn_state,
  load,
  resize_state,
  run,
  shapes_of,
  stand_in_for_torchvision,
)
from jattn.weights import from_timm, to_timm

TOLERANCE = 1e-4
# Batch norm over two pooled vectors is nearly a step function and magnifies rounding.
BATCH = 6
# Name -> (native size, another size) of square images.
NAMES: dict[str, tuple[int, int]] = {
  'botnet26t_256': (256, 288),
  'coatnet_nano_rw_224': (224, 256),
  'convnext_atto': (224, 200),
  'convnext_pico': (224, 200),
  'ecaresnet26t': (256, 211),
  'gcresnet33ts': (256, 211),
  'gcresnext26ts': (256, 211),
  'halonet26t': (256, 512),
  'lambda_resnet26t': (256, 224),
  'resnest14d': (224, 190),
  'resnet18': (224, 161),
  'resnet26': (224, 161),
  'resnet26d': (224, 161),
  'resnet26t': (256, 161),
  'resnet34': (224, 161),
  'resnet50': (224, 161),
  'resnet50d': (224, 161),
  'resnext50_32x4d': (224, 161),
  'seresnet33ts': (256, 211),
  'seresnet50': (224, 161),
  'skresnet18': (224, 161),
  'vit_base_patch16_224': (224, 192),
  'vit_small_patch16_224': (224, 192),
  'vit_tiny_patch16_224': (224, 256),
}


def compare(name: str) -> dict[str, Any]:
  """The largest differences of one network, and whether all are small enough."""
  native, other = NAMES[name]
  module = create(name, {})
  state = drawn_state(shapes_of(module))
  parameters = sum(parameter.numel() for parameter in module.parameters())
  model = jattn.create_model(name)
  variables = _variables(model, state, native)
  back = to_timm(model, variables)
  same = back.keys() == state.keys() and all(np.array_equal(back[k], state[k]) for k in state)
  count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  differences = _at_size(module, state, model, variables, native)
  resized = _resized(name, other, module, state)
  if resized is not None:  # timm fits positions to another size; ours are resized as they run
    module, fitted = resized
    differences |= _at_size(module, fitted, model, variables, other)
  else:
    module = create(name, {'img_size': other})
    state = drawn_state(shapes_of(module))
    variables = _variables(model, state, other)
    differences |= _at_size(module, state, model, variables, other)
  largest = max(differences.values())
  return {
    'id': f'timm-{name}',
    'model': name,
    'sizes': [native, other],
    'parameters': count,
    'differences': {key: float(f'{value:.2e}') for key, value in differences.items()},
    'largest': float(f'{largest:.2e}'),
    'round_trip': same,
    'ok': same and count == parameters and largest <= TOLERANCE,
  }


def _resized(
  name: str, size: int, module: Any, state: dict[str, np.ndarray]
) -> tuple[Any, dict[str, np.ndarray]] | None:
  """timm's model for images of another size and the same weights as timm fits them; or None."""
  if not any('pos_embed' in key or 'rel_pos' in key or 'relative' in key for key in state):
    return module, state
  other = create(name, {'img_size': size})
  fitted = resize_state(other, state)
  shapes = shapes_of(other)
  if fitted is None or {key: value.shape for key, value in fitted.items()} != shapes:
    return None
  return other, fitted


def _variables(model: Any, state: dict[str, np.ndarray], size: int) -> dict:
  """Our variables for images of a size, holding timm's numbers."""
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  wanted = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
  return from_timm(model, state, wanted)


def _at_size(
  module: Any, state: dict[str, np.ndarray], model: Any, variables: dict, size: int
) -> dict[str, float]:
  images = np.random.default_rng(0).normal(size=(BATCH, size, size, 3)).astype(np.float32)
  found = {}
  for mode in ('eval', 'train'):
    load(module, state)
    differences = _differences(module, model, variables, images, train=mode == 'train')
    found |= {f'{size}_{mode}_{key}': value for key, value in differences.items()}
  return found


def _differences(
  module: Any, model: Any, variables: dict, images: np.ndarray, *, train: bool
) -> dict[str, float]:
  logits, caught = run(module, images, train=train)
  apply = jax.jit(
    lambda v, x: model.apply(v, x, train=train, mutable=['batch_stats'] if train else [])
  )
  prediction, new = apply(variables, jnp.asarray(images))
  found = {'logits': difference(prediction.logits, logits.detach().numpy())}
  theirs = arrange(caught, prediction.maps)
  if theirs:
    found['maps'] = max(difference(prediction.maps[key].weights, theirs[key]) for key in theirs)
  if train and new:
    state = {key: value.numpy() for key, value in module.named_buffers()}
    found['statistics'] = max(
      difference(value, state[key]) for key, value in to_timm(model, new).items()
    )
  return found


def difference(ours: Any, theirs: np.ndarray) -> float:
  """The largest, relative to the largest of ``theirs`` or to one."""
  ours = np.asarray(ours)
  if ours.shape != theirs.shape:
    raise ValueError(f'shapes {ours.shape} and {theirs.shape} differ')
  return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('names', nargs='*', help='names to compare; all of them if none is given')
  parser.add_argument('--out', type=pathlib.Path, help='file that the lines are appended to')
  arguments = parser.parse_args()
  stand_in_for_torchvision()
  import torch

  torch.set_grad_enabled(False)
  versions = {p: importlib.metadata.version(p) for p in ('jax', 'flax', 'timm', 'torch')}
  bad = 0
  for name in arguments.names or NAMES:
    line = compare(name) | {'versions': versions, 'date': str(datetime.date.today())}
    print(json.dumps(line), flush=True)
    bad += not line['ok']
    if arguments.out:
      with arguments.out.open('a') as file:
        file.write(json.dumps(line) + '\n')
  return 1 if bad else 0


if __name__ == '__main__':
  sys.exit(main())
