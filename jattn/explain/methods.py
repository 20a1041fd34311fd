"""The methods by name, and one way to call them all."""

import functools
import inspect
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jattn.explain import controls
from jattn.explain.attention_gradients import (
  attention_grad_cam,
  chefer,
  gradient_attention,
  legrad,
)
from jattn.explain.attention_maps import attention, rollout
from jattn.explain.class_activation import grad_cam, grad_cam_plus_plus, hires_cam, layer_cam
from jattn.explain.input_gradients import (
  input_x_gradient,
  integrated_gradients,
  saliency,
  smooth_grad,
)
from jattn.explain.perturbation import occlusion, rise
from jattn.explain.resizing import upsample
from jattn.explain.subject import Subject
from jattn.names import look_up
from jattn.ops.reshape import placed_by_xla

# Subject -> [B, h, w]; what else a method takes is keyword-only.
METHODS: dict[str, Callable[..., jax.Array]] = {
  'attention': attention,
  'attention_grad_cam': attention_grad_cam,
  'centre': controls.centre,
  'chefer': chefer,
  'constant': controls.constant,
  'edges': controls.edges,
  'grad_cam': grad_cam,
  'grad_cam_plus_plus': grad_cam_plus_plus,
  'gradient_attention': gradient_attention,
  'hires_cam': hires_cam,
  'input_x_gradient': input_x_gradient,
  'integrated_gradients': integrated_gradients,
  'layer_cam': layer_cam,
  'legrad': legrad,
  'occlusion': occlusion,
  'random': controls.random,
  'rise': rise,
  'rollout': rollout,
  'saliency': saliency,
  'smooth_grad': smooth_grad,
}
CONTROLS = ('random', 'centre', 'edges', 'constant')


def list_methods() -> list[str]:
  """Returns the names that ``explain`` takes, sorted.

  >>> len(list_methods()), [name for name in list_methods() if 'grad_cam' in name]
  (20, ['attention_grad_cam', 'grad_cam', 'grad_cam_plus_plus'])
  """
  return sorted(METHODS)


def explain(
  method: str,
  model: nn.Module,
  variables: Mapping,
  images: jax.Array,
  targets: jax.Array | None = None,
  *,
  key: jax.Array | None = None,
  **settings,
) -> jax.Array:
  """Which pixels count for the logit of a class, as ``method`` sees it.

  Compiled once for each method, model, settings and shape. The model is called in evaluation mode
  and not changed; no layer is named and no grid given. Maps smaller than the image are enlarged as
  ``jattn.explain.upsample`` says. An image's map does not depend on the others (``random`` aside).

  Args:
    method: a name of ``list_methods()``; each documents its formula and range under its own name in
      ``jattn.explain.METHODS``.
    model: a ``Classifier``; methods that look at nothing inside take any module called
      ``apply(variables, images, train=False)`` that returns something with ``logits`` [B, L].
    variables: its variables.
    images: [B, H, W, C] floating; on a mesh with explicit axes the maps lie as they do.
    targets: int [B], the class that is asked about; None is the predicted one.
    key: of methods that draw at random (``random``, ``rise``, ``smooth_grad``).
    **settings: of the method. Numbers and strings are part of what is compiled, arrays are not.

  Returns:
    [B, H, W] float32, raw: never normalised, neither by image nor by batch.

  Raises:
    ValueError: no method has this name or no such setting, the model has not what the method needs
      (a map of positions), or a key is missing.

  >>> from jattn.models import seed_classifier
  >>> model, images = seed_classifier(10, widths=(2, 4, 8), hidden=4), jnp.ones((2, 32, 32, 3))
  >>> variables = model.init(jax.random.key(0), images, train=False)
  >>> maps = explain('attention', model, variables, images)
  >>> maps.shape, bool((maps > 0).all()), degenerate(0 * maps).tolist()
  ((2, 32, 32), True, [True, True])
  """
  function = look_up(method, METHODS, noun='method')
  takes = list(inspect.signature(function).parameters)[1:]
  for name in settings:
    if name not in takes:
      raise ValueError(f'method {method!r} takes no setting {name!r}; there are {takes}')
  _check(images, targets)
  arrays = {n: value for n, value in settings.items() if isinstance(value, np.ndarray | jax.Array)}
  fixed = tuple(sorted((name, value) for name, value in settings.items() if name not in arrays))
  run = placed_by_xla(functools.partial(_explain, method, model, fixed), images)
  return run(variables, images, targets, key, arrays)


def degenerate(maps: jax.Array) -> jax.Array:
  """Whether a map says nothing: it is constant, or not finite somewhere.

  Args:
    maps: [B, H, W].

  Returns:
    bool [B].

  >>> degenerate(jnp.array([[[0.0, 1.0]], [[2.0, 2.0]], [[jnp.nan, 1.0]]])).tolist()
  [False, True, True]
  """
  axes = (1, 2)
  return (maps.max(axes) == maps.min(axes)) | ~jnp.isfinite(maps).all(axes)


def predicted(logits: jax.Array) -> jax.Array:
  """[B, L] -> int32 [B]: the largest, the first of equals."""
  return jnp.argmax(logits, axis=-1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _explain(
  method: str,
  model: nn.Module,
  settings: tuple,
  variables: Mapping,
  images: jax.Array,
  targets: jax.Array | None,
  key: jax.Array | None,
  arrays: Mapping[str, jax.Array],
) -> jax.Array:
  if targets is None and method not in CONTROLS:
    targets = predicted(model.apply(variables, images, train=False).logits)
  subject = Subject(model, variables, images, targets, key)
  maps = METHODS[method](subject, **dict(settings), **arrays)
  return upsample(maps.astype(jnp.float32), images.shape[1:3])


def _check(images: jax.Array, targets: jax.Array | None) -> None:
  if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(f'images must be floating [B, H, W, C], got {images.dtype} {images.shape}')
  if targets is None:
    return
  if targets.shape != images.shape[:1] or not jnp.issubdtype(targets.dtype, jnp.integer):
    raise ValueError(
      f'targets must be integers [{len(images)}], got {targets.dtype} {targets.shape}'
    )
