"""The weights of a file that a run starts from."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax

from experiments.errors import InputError
from experiments.setup import Setup
from jattn.weights import WeightsError, load_weights


def load_start(setup: Setup) -> tuple[Mapping[str, Any], dict[str, Any]]:
  """The variables in ``--init-from``, and what of them is told and remembered, as JSON.

  Where the file is for other classes than the data has, the model's last layer starts anew.

  Returns:
    Variables, and {'init_from': the path, 'new_head': bool, 'shapes': as ``Setup.shapes``}.

  Raises:
    InputError: the file is missing, damaged, or not of this model.
  """
  path = setup.config.init_from
  wanted = dataclasses.replace(setup, shapes={}).variable_shapes()
  new_head = False
  try:
    variables = load_weights(path, setup.model, variables=wanted, image_size=setup.facts.size)
  except WeightsError as error:
    new_head = True
    try:
      variables = load_weights(
        path,
        setup.model,
        variables=wanted,
        image_size=setup.facts.size,
        reset_head=True,
        key=jax.random.key(setup.config.seed),
      )
    except (WeightsError, ValueError):
      raise InputError(f'--init-from {error}') from None  # it begins with the file
  found, own = (flax.traverse_util.flatten_dict(dict(v), sep='/') for v in (variables, wanted))
  shapes = {p: list(leaf.shape) for p, leaf in found.items() if leaf.shape != own[p].shape}
  return variables, {'init_from': str(path), 'new_head': new_head, 'shapes': shapes}
