"""Parameters that no layer holds (tables, tokens, temperatures) start as their docstrings say.

Law 11 is about the layers; this is its other half.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import attention, pooling

# (module, parameter) -> mean and standard deviation at C = 256 on a grid of 20 x 24.
STARTS = {
  (attention.BottleneckAttention(num_heads=2), 'rows'): (0, 128**-0.5),
  (attention.BottleneckAttention(num_heads=2), 'columns'): (0, 128**-0.5),
  (attention.CrossCovarianceAttention(num_heads=4), 'temperature'): (1, 0),
  (attention.DifferentialAttention(num_heads=1), 'lambda_q1'): (0, 0.1),
  (attention.DifferentialAttention(num_heads=1), 'lambda_k2'): (0, 0.1),
  (attention.GatherExcite(extra_params=True, initialization='paper'), 'gather'): (
    0,
    (2 / (20 * 24 * 256)) ** 0.5,
  ),
  (attention.HaloAttention(num_heads=2), 'rows'): (0, 128**-0.5),
  (attention.NonLocal('concatenation', initialization='torch'), 'score'): (0, (3 * 256) ** -0.5),
  (attention.Residual(attention.SimAM()), 'gamma'): (0, 0),
  (attention.SelfAttention(relative_bias=True), 'relative_bias'): (0, 0.02),
  (attention.WindowAttention(num_heads=4, window_size=9), 'relative_bias'): (0, 0.02),
  (attention.WindowAttention(num_heads=4, window_size=9, variant='tf'), 'relative_bias_tf'): (
    0,
    0.02,
  ),
  (pooling.AttentionPool2d(), 'table'): (0, 256**-0.5),
  (pooling.ClassAttention(), 'token'): (0, 0.02),
  (pooling.GeneralisedMean(per_channel=True), 'p'): (3, 0),
}


@pytest.mark.parametrize(
  ('module', 'name'),
  STARTS,
  ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_its_mean_and_spread(module, name):
  x = jnp.zeros((1, 20, 24, 256))
  leaf = jax.jit(lambda: module.init(jax.random.key(0), x, train=False)['params'][name])()
  mean, deviation = STARTS[module, name]
  np.testing.assert_allclose(np.std(leaf), deviation, rtol=0.15)
  np.testing.assert_allclose(np.mean(leaf), mean, atol=4 * deviation / leaf.size**0.5)
