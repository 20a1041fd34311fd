"""Weights out of files: what loads, bit by bit, and one error that names all that does not."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import jattn
from jattn.layouts import prefixed
from jattn.models import resnet_cifar, seed_classifier
from jattn.weights import WeightsError, load_weights, save_weights, to_timm
from jattn.weights.naming import give, naming_by
from tests.proof import initial
from tests.weights import small

MODEL = small.model()


@pytest.fixture(scope='module')
def variables():
  return small.draw(MODEL)


@pytest.fixture(scope='module')
def tensors(variables):
  return to_timm(MODEL, variables)


@pytest.fixture
def write(tmp_path, tensors):
  """Writes timm's tensors with changes (None drops one) and returns the file."""

  def write(changes=(), cast=None):
    kept = {k: v for k, v in (tensors | dict(changes)).items() if v is not None}
    kept = {k: np.ascontiguousarray(v if cast is None else v.astype(cast)) for k, v in kept.items()}
    save_file(kept, tmp_path / 'a.safetensors')
    return tmp_path / 'a.safetensors'

  return write


@pytest.mark.parametrize(
  ('model', 'name'),
  [
    (MODEL, 'small'),
    (small.model(width=4), 'small'),
    (seed_classifier(5, image_size=8, widths=(4, 4, 8), hidden=4), 'seed_classifier'),
    (resnet_cifar(3, depth=8, widths=(2, 2, 4), attention='eca'), None),
    (small.model().clone(attention=(jattn.create_attention('simam'),)), 'small'),
  ],
  ids=['timm', 'timm-narrow', 'seed', 'resnet_cifar', 'attached'],
)
def test_every_model_comes_back_bit_by_bit(tmp_path, model, name):
  variables = small.draw(model)
  folder = save_weights(tmp_path / 'm', model, variables, name=name, image_size=8)
  small.assert_same(load_weights(folder, model, image_size=8), variables)
  small.assert_same(load_weights(folder / 'model.safetensors', model, image_size=8), variables)


def test_our_own_names_where_timm_would_do(tmp_path, variables):
  folder = save_weights(tmp_path / 'm', MODEL, variables, library='jattn', image_size=8)
  small.assert_same(load_weights(folder, MODEL, image_size=8), variables)
  at_another_grid = load_weights(folder, MODEL, image_size=16)
  small.assert_same(at_another_grid, variables)


@pytest.mark.parametrize('cast', [np.float16, ml_dtypes.bfloat16, np.float64])
def test_every_float_becomes_float32(write, variables, cast):
  got = load_weights(write(cast=cast), MODEL, image_size=8)
  small.assert_same(got, jax.tree.map(lambda a: jnp.asarray(np.asarray(a, cast), 'float32'), got))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-7), got, variables)


def test_the_type_that_is_asked_for(write, variables):
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16), variables)
  got = load_weights(write(), MODEL, variables=shapes)
  small.assert_same(got, jax.tree.map(lambda a: a.astype(jnp.bfloat16), variables))


def test_one_error_names_everything_that_does_not_fit(write, tensors):
  changes = {
    'stem.conv.weight': np.zeros((6, 3, 5, 5), np.float32),
    'stem.bn.bias': None,
    'stem.more': np.zeros(2, np.float32),
    'pair.bias': np.zeros(11, np.float32),
    'pair.weight': np.zeros((12, 6), np.int8),
    'stem.bn.running_mean': np.full(6, 1e300),
    'stem.bn.num_batches_tracked': np.array(3),
    'pos_embed': np.zeros((1, 16, 7), np.float32),
  }
  file = write(changes)
  with pytest.raises(WeightsError, match='weights do not fit Classifier') as error:
    load_weights(file, MODEL, image_size=8)
  told = str(error.value)
  for part in (
    str(file),
    "'stem.conv.weight' gives (5, 5, 3, 6) where params/backbone/conv/kernel is (3, 3, 3, 6)",
    "missing 'stem.bn.bias' for params/backbone/norm/bias",
    "left over 'stem.more'",
    "'pair.bias' is (11,), which cannot be params/backbone/left/bias (6,)",
    "'pair.weight' holds int8 where params/backbone/right/kernel is float32",
    "'stem.bn.running_mean' holds numbers beyond the range of float32",
    "'pos_embed' gives (4, 4, 7) where params/backbone/positions is (4, 4, 6)",
  ):
    assert part in told
  assert 'num_batches_tracked' not in told
  assert 'reset_head' not in told


def test_infinite_and_undefined_numbers_are_weights_too(write, variables):
  broken = np.array([np.nan, np.inf, -np.inf, 1, 2, 3])
  got = load_weights(write({'stem.bn.bias': broken}), MODEL, image_size=8)
  np.testing.assert_array_equal(got['params']['backbone']['norm']['bias'], broken)


def test_other_classes_are_told_how_to_start_anew(write, variables):
  other = small.model(7)
  told = 'for 5 classes and the model for 7: reset_head=True with a key'
  with pytest.raises(WeightsError, match=told):
    load_weights(write(), other, image_size=8)
  with pytest.raises(WeightsError, match="missing 'fc.weight'.* The file has no last layer"):
    load_weights(write({'fc.weight': None, 'fc.bias': None}), MODEL, image_size=8)
  with pytest.raises(ValueError, match='reset_head=True needs a key'):
    load_weights(write(), other, image_size=8, reset_head=True)


@pytest.mark.parametrize('changes', [{}, {'fc.weight': None, 'fc.bias': None}])
def test_the_last_layer_starts_as_the_model_starts_it(write, variables, changes):
  other, key = small.model(7), jax.random.key(4)
  got = load_weights(write(changes), other, image_size=8, reset_head=True, key=key)
  started = jax.jit(lambda key: other.init(key, jnp.zeros(small.IMAGES), train=False))(key)
  small.assert_same(got['params']['head'], started['params']['head'])
  small.assert_same(got['params']['backbone'], variables['params']['backbone'])
  small.assert_same(got['batch_stats'], variables['batch_stats'])


def test_a_module_without_a_last_layer_has_none_to_reset(write, variables):
  with pytest.raises(ValueError, match='Small has no layer'):
    load_weights(write(), small.Small(), image_size=8, reset_head=True, key=jax.random.key(0))


def test_positions_stay_as_they_were_trained_and_are_resized_when_applied(write, variables):
  trained = small.draw(MODEL, (1, 12, 12, 3))
  got = load_weights(write(to_timm(MODEL, trained)), MODEL, image_size=8)
  small.assert_same(got, trained)
  logits = MODEL.apply(got, jnp.ones(small.IMAGES), train=False).logits
  np.testing.assert_array_equal(
    logits, MODEL.apply(trained, jnp.ones(small.IMAGES), train=False).logits
  )


def test_positions_of_an_oblong_grid_need_its_size(write):
  trained = small.draw(MODEL, (1, 4, 12, 3))
  file = write(to_timm(MODEL, trained))
  with pytest.raises(WeightsError, match=r"'pos_embed' gives \(12, 6\)"):
    load_weights(file, MODEL, image_size=8)
  small.assert_same(load_weights(file, MODEL, image_size=(4, 12)), trained)


# big_vision and AugReg


@pytest.mark.parametrize('prefix', ['', 'params/', 'opt/target/', 'params/img/'])
def test_an_npz_of_big_vision(tmp_path, variables, prefix):
  file = tmp_path / 'a.npz'
  np.savez(file, **_npz(variables, prefix), **({'opt/step': np.array(3)} if prefix else {}))
  small.assert_same(load_weights(file, MODEL, image_size=8), variables)


def test_bfloat16_in_an_npz(tmp_path, variables):
  arrays = {k: v.astype(ml_dtypes.bfloat16).view('V2') for k, v in _npz(variables, '').items()}
  np.savez_compressed(tmp_path / 'a.npz', **arrays)
  got = load_weights(tmp_path / 'a.npz', MODEL, image_size=8)
  small.assert_same(got, jax.tree.map(lambda a: a.astype('bfloat16').astype('float32'), variables))


def test_an_npz_that_does_not_fit_is_told_tensor_by_tensor(tmp_path, variables):
  arrays = _npz(variables, '') | {'more': np.zeros(1)}
  del arrays['norm/bias']
  np.savez(tmp_path / 'a.npz', **arrays)
  with pytest.raises(WeightsError, match=r"missing 'norm/bias'.*left over 'more'"):
    load_weights(tmp_path / 'a.npz', MODEL, image_size=8)


def test_an_npz_for_a_model_that_big_vision_has_not(tmp_path, variables):
  np.savez(tmp_path / 'a.npz', **_npz(variables, ''))
  model = seed_classifier(5, image_size=8, widths=(2, 2, 8), hidden=2)
  with pytest.raises(WeightsError, match=r'a\.npz: big_vision has no such ConvStack'):
    load_weights(tmp_path / 'a.npz', model)


def _npz(variables, prefix):
  leaves = {
    '/'.join(key.key for key in path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
  }
  return give(naming_by(prefixed(MODEL.names('big_vision'), name=prefix), 'test'), leaves)


def test_positions_under_our_names_may_be_of_another_grid(tmp_path):
  model = jattn.create_model('cct_2_3x2_32', num_classes=3, depth=1, width=8, stem=(8,))
  small, large = (jnp.ones((1, side, side, 3)) for side in (32, 48))
  variables = initial(model, small)
  jattn.save_weights(tmp_path / 'x', model, variables)
  again = jattn.load_weights(tmp_path / 'x', model, image_size=48)
  table = again['params']['backbone']['positions']
  np.testing.assert_array_equal(table, variables['params']['backbone']['positions'])
  prediction = jax.eval_shape(lambda: model.apply(again, large, train=False))
  assert table.shape[0] < prediction.maps['pool/weights'].grid[0]
