"""Large-kernel attention against the formula, how far it sees, and that it is quadratic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import LargeKernel
from tests.layer_oracles import convolve
from tests.proof import draw, initial, prove, variables_of


def oracle(dilation):
  def compute(p, x, train):
    channels = x.shape[-1]
    y = convolve(x, p['local/kernel'], groups=channels) + p['local/bias']
    y = convolve(y, p['wide/kernel'], dilation=dilation, groups=channels) + p['wide/bias']
    return x * (y @ p['mix/kernel'] + p['mix/bias'])

  return compute


@pytest.mark.parametrize(
  ('settings', 'dilation'), [({}, 3), ({'kernel_size': 5, 'dilation': 2}, 2)], ids=str
)
def test_equals_the_formula(settings, dilation):
  prove(LargeKernel(**settings), oracle(dilation))


@pytest.mark.parametrize(
  ('settings', 'sides'),
  [({}, (5, 7)), ({'kernel_size': 7, 'dilation': 2}, None), ({'kernel_size': 20}, (5, 7))],
  ids=str,
)
def test_sides_of_the_two_kernels(settings, sides):
  module = LargeKernel(**settings)
  if sides is None:
    with pytest.raises(ValueError, match=r'kernel_size=7 over .*dilation=2.* must be odd, not 4'):
      initial(module, draw())
    return
  params = jax.eval_shape(lambda: module.init(jax.random.key(0), draw(), train=False))['params']
  assert (params['local']['kernel'].shape, params['wide']['kernel'].shape) == (
    (sides[0], sides[0], 1, 12),
    (sides[1], sides[1], 1, 12),
  )


def test_sees_eleven_positions_to_each_side():
  module, x = LargeKernel(), draw((1, 1, 30, 2))
  variables = variables_of(module, x)
  first = jax.grad(lambda x: module.apply(variables, x, train=False).features[0, 0, 0].sum())(x)
  reached = np.flatnonzero(np.abs(first).max((0, 1, 3)))
  np.testing.assert_array_equal(reached, np.arange(12))


def test_without_biases_it_is_quadratic_in_the_input():
  module, x = LargeKernel(), draw()
  params = variables_of(module, x)['params']
  params = {name: {**layer, 'bias': jnp.zeros(12)} for name, layer in params.items()}
  once, thrice = (module.apply({'params': params}, k * x, train=False).features for k in (1, -3))
  np.testing.assert_allclose(thrice, 9 * once, rtol=1e-5, atol=1e-6)


def test_what_multiplies_the_input_has_either_sign_so_there_is_no_map():
  module, x = LargeKernel(), draw()
  attended = module.apply(variables_of(module, x), x, train=False)
  assert attended.maps == {}
  signs = np.sign(attended.features / x)
  assert {-1, 1} <= set(signs.ravel())
