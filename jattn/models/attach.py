"""Attention put into a network that is trained already."""

import functools
from collections.abc import Mapping

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from jattn.attention import Residual, create_attention
from jattn.models.classifier import Classifier
from jattn.models.parts import Part


def attach_attention(
  model: Classifier,
  variables: Mapping,
  mechanism: Part | nn.Module,
  where: str,
  *,
  key: jax.Array | None = None,
  image_size: int | None = None,
) -> tuple[Classifier, dict]:
  """Puts ``x + gamma * mechanism(x)`` into a trained network; logits stay as they are.

  ``gamma`` [C] starts at zero (``jattn.attention.Residual``), so the new block is the identity
  until it is trained, and its own parameters start as the mechanism's do.

  Args:
    model: a classifier; it is not changed.
    variables: its variables, not changed either.
    mechanism: a name of ``list_attentions()``, that and its settings, or a module that keeps the
      shape of its input.
    where: 'features' puts it between backbone and pooling; 'stage_S' after a stage of the backbone
      and 'stage_S/block_I' after a block.
    key: decides where the new parameters start; None is ``jax.random.key(0)``.
    image_size: side of the images whose grid new tables of positions have; None is the model's own,
      or 224. Other sizes can be used all the same: tables are interpolated.

  Returns:
    The new model, and its variables: all of ``variables``, and those of the new block.

  Raises:
    ValueError: nothing is called ``where`` in this model, it is taken, nothing would pass through
      it, the mechanism changes the shape, or ``variables`` are not those of ``model``.

  >>> from jattn.models import seed_classifier
  >>> model, images = seed_classifier(10, widths=(2, 4, 8), hidden=4), jnp.ones((1, 32, 32, 3))
  >>> variables = model.init(jax.random.key(0), images, train=False)
  >>> wider, more = attach_attention(model, variables, 'eca', 'features')
  >>> before = model.apply(variables, images, train=False).logits
  >>> bool((wider.apply(more, images, train=False).logits == before).all())
  True
  """
  if not isinstance(mechanism, nn.Module):
    settings = {'name': mechanism} if isinstance(mechanism, str) else dict(mechanism)
    mechanism = create_attention(settings.pop('name'), **settings)
  block = Residual(mechanism)
  if where == 'features' and model.pool is None:
    name = type(model.backbone).__name__
    raise ValueError(f'{where=}: the vector of {name} is made before them; choose a stage or block')
  if where == 'features':
    new = model.clone(attention=(*model.attention, block))
  elif not hasattr(model.backbone, 'inserts'):
    name = type(model.backbone).__name__
    raise ValueError(f"{name} takes no inserted blocks; {where=} can only be 'features'")
  else:
    make = functools.partial(block.clone, parent=None)
    inserts = (*model.backbone.inserts, (where, make))
    new = model.clone(backbone=model.backbone.clone(inserts=inserts))
  size = image_size or model.image_size or 224
  key = jax.random.key(0) if key is None else key
  return new, _grown(new, variables, key, (1, size, size, model.channels))


def _grown(model: nn.Module, variables: Mapping, key: jax.Array, shape: tuple[int, ...]) -> dict:
  """``variables`` and what ``model`` has besides, started by ``key``."""
  known = flax.traverse_util.flatten_dict(dict(variables))

  def start(key: jax.Array) -> dict:
    made = flax.traverse_util.flatten_dict(model.init(key, jnp.zeros(shape), train=False))
    left_over = [path for path in known if path not in made]
    if left_over:
      raise ValueError(f'variables are not of this model: it has no {"/".join(left_over[0])}')
    return {path: leaf for path, leaf in made.items() if path not in known}

  # Compiled, what is not returned is not computed: only the new block is started.
  return flax.traverse_util.unflatten_dict(known | jax.jit(start)(key))
