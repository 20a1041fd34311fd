"""Squeeze-and-excitation against the formula, and the widths of its reduced layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import EffectiveSqueezeExcite, SqueezeExcite
from tests.proof import prove


def squeeze_excite(p, x, train):
  del train
  gates = []
  for image in x:
    z = image.reshape(-1, image.shape[-1]).mean(0)
    hidden = np.maximum(z @ p['reduce/kernel'] + p['reduce/bias'], 0)
    gates.append(1 / (1 + np.exp(-(hidden @ p['expand/kernel'] + p['expand/bias']))))
  gates = np.stack(gates)[:, None, None]
  return x * gates, {'gate': gates}


def effective(p, x, train):
  del train
  z = x.reshape(len(x), -1, x.shape[-1]).mean(1) @ p['excite/kernel'] + p['excite/bias']
  gates = (np.clip(z + 3, 0, 6) / 6)[:, None, None]
  return x * gates, {'gate': gates}


@pytest.mark.parametrize('settings', [{'reduction': 4}, {'variant': 'timm'}], ids=str)
def test_equals_the_formula(settings):
  prove(SqueezeExcite(**settings), squeeze_excite)


def test_effective_equals_the_formula():
  prove(EffectiveSqueezeExcite(), effective)


@pytest.mark.parametrize(
  ('variant', 'widths'),
  [('timm', {16: 8, 64: 8, 160: 8, 192: 16, 320: 24}), ('paper', {8: 1, 64: 4, 160: 10, 256: 16})],
)
def test_hidden_widths(variant, widths):
  for channels, hidden in widths.items():
    module = SqueezeExcite(variant=variant)
    x = jnp.zeros((1, 1, 1, channels))
    shapes = jax.eval_shape(lambda m=module, x=x: m.init(jax.random.key(0), x, train=False))
    assert shapes['params']['reduce']['kernel'].shape == (channels, hidden)


def test_another_variant_is_refused():
  with pytest.raises(ValueError, match="variant='official' must be"):
    SqueezeExcite(variant='official').init(jax.random.key(0), jnp.zeros((1, 1, 1, 4)), train=False)
