"""A map that nobody reads costs nothing: the compiled programs say so."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import SelfAttention, create_attention
from jattn.ops import attend
from tests.proof import initial

# Every size differs, and N = 77 is no other product of these.
B, H, W, C = 2, 7, 11, 24
N = H * W
LINEAR = {
  'linear_attention': {'num_heads': 3},
}


def compiled(function, *args):
  return jax.jit(function).lower(*args).compile()


def train_step(module, variables, *, read):
  """The gradient of a loss of the features, with or without the maps beside it."""
  constants = {k: v for k, v in variables.items() if k != 'params'}

  def step(params, x):
    def loss(params):
      given = {'params': params, **constants}
      attended, _ = module.apply(given, x, train=True, mutable=['batch_stats'])
      return jnp.sum(jnp.square(attended.features)), attended.maps

    gradient, maps = jax.grad(loss, has_aux=True)(params)
    return (gradient, maps) if read else gradient

  return step


@pytest.mark.parametrize('name', LINEAR)
def test_linear_attention_forms_its_map_only_when_it_is_read(name):
  module = create_attention(name, **LINEAR[name])
  x = jnp.asarray(np.random.default_rng(0).normal(size=(B, H, W, C)), jnp.float32)
  variables = initial(module, x)
  square = re.compile(rf'\[[\d,]*{N},{N}\]')
  texts = {
    read: compiled(train_step(module, variables, read=read), variables['params'], x).as_text()
    for read in (False, True)
  }
  assert square.search(texts[True])
  assert not square.search(texts[False])


def test_self_attention_with_an_unread_map_is_attention_without_maps():
  """The same number of operations as the pure function, which has no map to give."""
  module = SelfAttention(num_heads=3)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(B, H, W, C)), jnp.float32)
  variables = initial(module, x)

  def plain(params, x):
    def loss(params):
      tokens = x.reshape(B, N, C)
      q, k, v = (
        (tokens @ params[name]['kernel'] + params[name]['bias'][None, None]).reshape(B, N, 3, 8)
        for name in ('query', 'key', 'value')
      )
      return jnp.sum(jnp.square(attend(q, k, v)))

    return jax.grad(loss)(params)

  ours = compiled(train_step(module, variables, read=False), variables['params'], x)
  bare = compiled(plain, variables['params'], x)
  assert count_products(ours) == count_products(bare) > 0
  assert ours.cost_analysis()['flops'] == pytest.approx(bare.cost_analysis()['flops'], rel=1e-3)
  assert ours.memory_analysis().output_size_in_bytes == bare.memory_analysis().output_size_in_bytes


def count_products(program):
  return len(re.findall(r'= \S+ (?:dot|convolution|custom-call)\(', program.as_text()))
