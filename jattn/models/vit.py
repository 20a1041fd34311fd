"""Vision transformers."""

import jax.numpy as jnp

from jattn.backbones import ViT
from jattn.layers import Activation
from jattn.models.classifier import Classifier, Head
from jattn.models.parts import Part, make_attention, make_pooling
from jattn.ops import Init

# What timm normalises after pooling instead of before (its ``fc_norm``).
NORM_AFTER = ('average', 'average_max', 'max')


def vit(
  num_classes: int = 1000,
  *,
  patch_size: int = 16,
  width: int = 768,
  depth: int = 12,
  num_heads: int = 12,
  mlp_ratio: float = 4.0,
  attention: Part | None = 'self_attention',
  pool: Part | None = None,
  class_token: bool | None = None,
  norm_after: bool | None = None,
  class_position: bool = True,
  init_values: float | None = None,
  activation: Activation = 'gelu',
  dropout: float = 0.0,
  drop_path: float = 0.0,
  remat: bool = False,
  initialization: Init = 'paper',
  dtype: jnp.dtype | None = None,
) -> Classifier:
  """A vision transformer, Dosovitskiy et al. 2020, arXiv 2010.11929, as timm has it.

  Images of any size that ``patch_size`` divides; parameters made at one size apply at another. At
  224x224 and with 1,000 classes Ti/16, S/16 and B/16 (Touvron et al. 2020, arXiv 2012.12877, for
  the small ones) have 5,717,416, 22,050,664 and 86,567,656 parameters and 1.25, 4.60 and 17.56
  billion multiply-accumulates.

  Without a pooling the class token is classified. A pooling takes the patches, and then there is
  no class token unless ``class_token`` says so: ``pool='average'`` is timm's ``global_pool='avg'``
  with ``class_token=False``; with ``class_token=True`` it is timm's default for that, in which the
  patches look at the token and it is not averaged. As in timm the norm comes after an average or a
  maximum, and before any other pooling, unless ``norm_after`` says so.

  ``gelu`` is exact in timm and of the tanh form in the authors' code and in big_vision: weights of
  theirs want ``activation='gelu_tanh'``, and those of big_vision's ``gap`` besides that
  ``pool='average', norm_after=False``.

  Args:
    num_classes: L.
    patch_size, width, depth, num_heads, mlp_ratio, class_position, init_values, activation,
      drop_path, remat, initialization, dtype: as for ``ViT``.
    attention: 'self_attention' is the transformer's own, of all tokens. Another name of
      ``list_attentions()``, or that and its settings, replaces it on the grid, and None (the
      control arm) leaves the mixing of tokens out: both without a class token only.
    pool: None, a name of ``list_poolings()``, or that and its settings.
    class_token: whether there is one; None is where there is no pooling.
    norm_after: whether the last norm comes after the pooling; None is as in timm.
    dropout: probability of dropping a feature before the linear layer.

  Raises:
    ValueError: there is neither a class token nor a pooling, or a class token and another
      attention than the transformer's own.
  """
  class_token = pool is None if class_token is None else class_token
  if pool is None and not class_token:
    raise ValueError("class_token=False needs a pooling; choose pool='average' or another")
  if class_token and attention != 'self_attention':
    hint = "choose pool='average' or another pooling" if pool is None else 'set class_token=False'
    raise ValueError(f'{attention=} has no place for a class token; {hint}')
  if norm_after is None:
    norm_after = (pool if pool is None or isinstance(pool, str) else pool['name']) in NORM_AFTER
  mixing = 'self' if attention == 'self_attention' else make_attention(attention, dtype=dtype)
  return Classifier(
    backbone=ViT(
      patch_size,
      width,
      depth,
      num_heads,
      mlp_ratio,
      mixing,
      class_token,
      class_position,
      not norm_after,
      init_values,
      activation,
      initialization,
      dtype,
      drop_path,
      remat=remat,
    ),
    pool=None if pool is None else make_pooling(pool, dtype=dtype),
    head=Head(
      num_classes,
      dropout=dropout,
      initialization=initialization,
      dtype=dtype,
      norm=norm_after,
      deviation=0.02 if initialization == 'paper' else None,
    ),
  )
