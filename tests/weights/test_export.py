"""Exported programs: the model's numbers for any batch, and nothing of a damaged file is run."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn.weights import WeightsError, export, export_model, load_exported
from tests import laws
from tests.weights import small

# A map of every part, one of them with its keys.
MODEL = small.model().clone(attention=(jattn.create_attention('criss_cross', reduction=2),))


reference = jax.jit(lambda variables, images: MODEL.apply(variables, images, train=False))


def close(got, want):
  assert got.dtype == want.dtype
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope='module')
def variables():
  return small.draw(MODEL)


@pytest.fixture(scope='module')
def file(tmp_path_factory, variables):
  path = tmp_path_factory.mktemp('export') / 'new' / 'small.jax'
  return export_model(path, MODEL, variables, image_size=8, maps=True)


@pytest.fixture(scope='module')
def images():
  return jnp.asarray(np.random.default_rng(3).random((4, 8, 8, 3)), jnp.float32)


def test_a_program_gives_what_the_model_gives(file, variables, images):
  program = load_exported(file)
  got, want = program(images), reference(variables, images)
  assert jax.tree.structure(got) == jax.tree.structure(want)
  assert want.maps['attention_0/weights'].keys is not None
  jax.tree.map(close, got, want)
  assert program.image_size == (8, 8)
  assert (program.channels, program.num_classes) == (3, 5)
  assert program.platforms == ('cpu', 'cuda', 'tpu')
  assert program.jax_version == jax.__version__


def test_jax_alone_runs_it(file, variables, images):
  call = jax.export.deserialize(bytearray(file.read_bytes())).call
  got, want = call(images), reference(variables, images)
  close(got['logits'], want.logits)
  assert set(got['maps']) == set(want.maps)


def test_a_program_without_maps_for_oblong_images(tmp_path, images):
  model = small.model()
  variables = small.draw(model)
  file = export_model(tmp_path / 'a', model, variables, image_size=(4, 8), platforms=['cpu'])
  got = load_exported(file)(images[:3, :4])
  assert got.maps == {}
  assert len(jax.export.deserialize(bytearray(file.read_bytes())).out_avals) == 1
  apply = jax.jit(lambda images: model.apply(variables, images, train=False).logits)
  close(got.logits, apply(images[:3, :4]))


@pytest.mark.parametrize('name', ['halo', 'window', 'split_attention'])
def test_the_batch_may_be_a_symbol(name):
  row = next(row for row in laws.MECHANISM_ROWS if row.name == name)
  module, (batch,) = row.make(dtype=jnp.float32), jax.export.symbolic_shape('batch')
  one = jnp.zeros((1, laws.H, laws.W, laws.C))
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), one, train=False))

  def program(variables, x):
    attended = module.apply(variables, x, train=False)
    return attended.features, {path: looked.dense() for path, looked in attended.maps.items()}

  x = jax.ShapeDtypeStruct((batch, *one.shape[1:]), jnp.float32)
  features, *maps = jax.export.export(jax.jit(program))(shapes, x).out_avals
  assert {aval.shape[0] for aval in (features, *maps)} == {batch}


@pytest.mark.parametrize(
  'images',
  [jnp.zeros((2, 8, 9, 3)), jnp.zeros((8, 8, 3)), jnp.zeros((2, 8, 8, 3), jnp.uint8)],
)
def test_other_images_are_refused(file, images):
  with pytest.raises(ValueError, match=r'images must be float32 \[B, 8, 8, 3\]'):
    load_exported(file)(images)


def test_a_platform_that_is_not_here(tmp_path, variables):
  with pytest.raises(ValueError, match="must hold this machine, 'cpu'"):
    export_model(tmp_path / 'a', MODEL, variables, image_size=8, platforms=['tpu'])
  assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays_unless_it_may_go(tmp_path, variables):
  (tmp_path / 'a').write_text('mine')
  with pytest.raises(WeightsError, match='a: is there already; overwrite=True'):
    export_model(tmp_path / 'a', MODEL, variables, image_size=8)
  assert (tmp_path / 'a').read_text() == 'mine'


@pytest.mark.parametrize(('batch', 'name'), [(1, 'logits'), (3, 'maps')])
def test_a_program_that_is_not_the_model_is_not_kept(
  tmp_path, monkeypatch, file, variables, batch, name
):
  read = load_exported(file)

  def wrong(images):
    got = read(images)
    if len(images) != batch:
      return got
    if name == 'logits':
      return got.replace(logits=got.logits * 1.001)
    gate = got.maps['backbone/gate']
    return got.replace(maps=got.maps | {'backbone/gate': gate.replace(weights=gate.weights + 0.01)})

  monkeypatch.setattr(export, 'load_exported', lambda path: wrong)
  monkeypatch.setattr(export, '_packed', lambda program, facts: b'')
  told = f'new.jax: .* of {batch} images differ by .* from the model'
  with pytest.raises(WeightsError, match=told):
    export_model(tmp_path / 'new.jax', MODEL, variables, image_size=8, maps=True)
  assert list(tmp_path.iterdir()) == []


def test_damage_anywhere_is_found(file, tmp_path, rng):
  whole, path = file.read_bytes(), tmp_path / 'a'
  length = len(whole)
  cuts = [0, 1, 30, length // 2, length - 60, length - 1]
  damaged = [whole[:cut] for cut in cuts] + [whole + b'\0', whole[1:], b'\0' + whole]
  for at in [*rng.integers(length, size=20), *range(length - 52, length)]:
    mutant = bytearray(whole)
    mutant[at] ^= 1 << int(rng.integers(8))
    damaged.append(bytes(mutant))
  for content in damaged:
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=str(path)):
      load_exported(path)


@pytest.mark.parametrize(
  ('program', 'facts'),
  [(b'\0' * 64, '{}'), (b'\xff' * 64, '{"image_size": 3}'), (b'', ''), (None, '[]'), (None, '{}')],
)
def test_a_checksum_does_not_make_it_a_program(file, tmp_path, program, facts):
  content = (file.read_bytes() if program is None else program) + facts.encode()
  tail = export._TAIL.pack(hashlib.sha256(content).digest(), len(facts), export._MARK)
  (tmp_path / 'a').write_bytes(content + tail)
  with pytest.raises(WeightsError, match=f'a: cannot be read by jax {jax.__version__}'):
    load_exported(tmp_path / 'a')


def test_a_foreign_file_is_no_program(tmp_path):
  (tmp_path / 'a').write_bytes(b'\x80\x04' + json.dumps({'a': 1}).encode() * 30)
  with pytest.raises(WeightsError, match='a: is no model exported by jattn'):
    load_exported(tmp_path / 'a')
  with pytest.raises(WeightsError, match='b: there is no such file'):
    load_exported(tmp_path / 'b')
