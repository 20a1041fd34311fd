"""A small network that has one of everything that files of weights must carry."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jattn.layers import batch_norm, conv, dense
from jattn.layouts import Conv, Linear, Linen, Norm, Positions
from jattn.models import Classifier, Head
from jattn.ops import resize_positions
from jattn.pooling import Average
from jattn.types import Attended, AttentionMap

IMAGES = (2, 8, 8, 3)


class Small(nn.Module):
  """Two convolutions, batch norm, positions and a gate of two layers that timm packs."""

  width: int = 6
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, images, *, train):
    x = conv(self.width, (3, 3), inputs=3, name='conv', strides=2, use_bias=False)(images)
    x = batch_norm(train=train, name='norm')(x)
    x = conv(self.width, (1, 1), inputs=self.width, name='mix', use_bias=False)(x)
    if self.has_variable('params', 'positions'):
      table = self.get_variable('params', 'positions')
    else:
      table = self.param('positions', nn.initializers.normal(1), (*x.shape[1:3], self.width))
    x = x + resize_positions(table, x.shape[1:3])[None]
    a, b = (dense(self.width, inputs=self.width, name=name)(x) for name in ('left', 'right'))
    gate = nn.sigmoid(a) * nn.sigmoid(b)
    return Attended(x * gate, {'gate': AttentionMap(gate, 'gate', x.shape[1:3])})

  timm_names = {  # noqa: RUF012
    'conv': Conv('stem.conv'),
    'norm': Norm('stem.bn'),
    'mix': Conv('mix'),
    'positions': Positions('pos_embed'),
    'left': Linear('pair', 0, 2),
    'right': Linear('pair', 1, 2),
  }
  timm_head = {'logits': Linear('fc')}  # noqa: RUF012
  big_vision_names = {  # noqa: RUF012
    'conv': Linen('embedding'),
    'norm': Linen('norm'),
    'mix': Linen('Conv_0'),
    'positions': Positions('pos_embedding'),
    'left': Linen('Dense_0'),
    'right': Linen('Dense_1'),
  }
  big_vision_head = {'logits': Linen('head')}  # noqa: RUF012


def model(num_classes=5, **settings) -> Classifier:
  return Classifier(Small(**settings), Average(), Head(num_classes))


def draw(model, images=IMAGES, seed=0):
  """Variables away from where they start; float32, variances positive."""
  x = jax.ShapeDtypeStruct(images, jnp.float32)
  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(0.1 + rng.random(leaf.shape), leaf.dtype), shapes)


def assert_same(got, want) -> None:
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), got, want)
