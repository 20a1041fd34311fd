"""Weights under timm's names: what is refused, and that one error names everything."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import AxialAttention, CoordinateAttention, SqueezeExcite
from jattn.layouts import Positions
from jattn.weights import from_timm, to_timm
from jattn.weights.naming import own_naming, take
from tests.proof import draw, variables_of

MODULE = SqueezeExcite(reduction=4)


@pytest.fixture
def variables():
  return variables_of(MODULE, draw())


def test_shapes_alone_say_what_is_wanted_and_in_which_type(variables):
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), variables)
  got = from_timm(MODULE, to_timm(MODULE, variables), shapes)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16), strict=True),
    got,
    variables,
  )


def test_one_error_names_everything_that_does_not_fit(variables):
  tensors = to_timm(MODULE, variables)
  tensors['fc1.weight'] = np.zeros((5, 12, 1, 1), np.float32)
  del tensors['fc2.bias']
  tensors['fc3.weight'] = np.zeros(1, np.float32)
  with pytest.raises(ValueError, match='weights do not fit SqueezeExcite') as error:
    from_timm(MODULE, tensors, variables)
  told = str(error.value)
  assert "'fc1.weight' gives (12, 5) where params/reduce/kernel is (12, 3)" in told
  assert "missing 'fc2.bias' for params/expand/bias" in told
  assert "left over 'fc3.weight'" in told


@pytest.mark.parametrize('name', ['bn.num_batches_tracked', 'relative_position_index'])
def test_what_timm_only_counts_or_derives_is_no_weight(variables, name):
  tensors = to_timm(MODULE, variables) | {name: np.zeros(3, np.int64)}
  jax.tree.map(np.testing.assert_array_equal, from_timm(MODULE, tensors, variables), variables)


def test_a_module_that_timm_has_not():
  module, x = AxialAttention(num_heads=3), draw()
  with pytest.raises(ValueError, match='timm has no AxialAttention'):
    to_timm(module, variables_of(module, x))


def test_a_layer_that_timm_has_not():
  module, x = CoordinateAttention(), draw((1, 2, 2, 16))
  variables = variables_of(module, x)
  variables['params']['more'] = {'kernel': jnp.zeros((1, 1))}
  with pytest.raises(ValueError, match='CoordinateAttention.timm_names says nothing of .more.'):
    to_timm(module, variables)


@pytest.mark.parametrize(
  ('shape', 'wanted'),
  [((7,), (6,)), ((2, 2, 7), (2, 2, 6)), ((0, 2, 6), (2, 2, 6)), ((4, 6), (2, 2, 6))],
)
def test_positions_differ_in_their_number_alone(shape, wanted):
  module = types.SimpleNamespace(timm_names={'table': Positions('pos_embed')})
  leaf = jax.ShapeDtypeStruct(wanted, jnp.float32)
  tensors = {'params/table': np.zeros(shape, np.float32)}
  taken, faults = take(own_naming(module), tensors, {'params/table': leaf}, names=tensors)
  assert taken == {}
  assert faults == [f"'params/table' gives {shape} where params/table is {wanted}"]
