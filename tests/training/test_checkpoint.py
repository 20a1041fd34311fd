"""Faults first: every test breaks something on purpose, or keeps what a change could break."""

import os
import random
import resource
import shutil
import subprocess
import sys
import textwrap
import warnings
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jattn.training import manifest
from jattn.training.checkpoint import CheckpointError, Checkpoints, CheckpointWarning, Restored


class Moments(NamedTuple):
  count: jax.Array
  mu: Any
  nu: Any


@flax.struct.dataclass
class State:
  step: jax.Array
  params: dict
  opt: Any
  ema: Any = None
  stats: dict = flax.struct.field(default_factory=dict)


SHAPE = (8, 6)


def make_state(seed: int = 0, size: tuple[int, ...] = SHAPE) -> State:
  """Every dtype of a run, with the bit patterns that a cast or a comparison would lose."""
  numpy = np.random.default_rng(seed)
  bits = numpy.integers(0, 2**16, size, dtype=np.uint16)  # bfloat16 NaNs with payloads among them
  params = {
    'kernel': jnp.asarray(numpy.normal(size=size).astype(np.float32)),
    'half': jnp.asarray(bits.view(jnp.bfloat16)),
    'special': jnp.asarray([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45], jnp.float32),
  }
  moments = Moments(jnp.int32(-7), {'kernel': params['kernel'] * 2}, {'kernel': params['kernel']})
  words = jnp.asarray(numpy.integers(0, 2**32, (4,), dtype=np.uint32))
  flags = jnp.asarray(numpy.integers(0, 2, (5,)).astype(bool))
  key = jax.random.key(seed)
  return State(step=jnp.int32(seed), params=params, opt=((), moments, [words, flags], key))


def blank(tree):
  """The same structure, shapes, dtypes and shardings; no value."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def bits(tree):
  def one(leaf):
    typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if typed else leaf).tobytes()

  return [(str(x.dtype), x.shape, one(x)) for x in jax.tree.leaves(tree)]


def same(a, b):
  return jax.tree.structure(a) == jax.tree.structure(b) and bits(a) == bits(b)


def fill(directory, *steps, **settings):
  with Checkpoints(directory, **{'keep': 10, **settings}) as checkpoints:
    for step in steps:
      checkpoints.save(step, make_state(step), meta={'step': step})
  return Checkpoints(directory, **{'keep': 10, **settings})


def files(path):
  return sorted(p for p in path.rglob('*') if p.is_file())


def flip(path, bit):
  data = bytearray(path.read_bytes())
  data[bit // 8] ^= 1 << bit % 8
  path.write_bytes(data)


@pytest.fixture(scope='module')
def original(tmp_path_factory):
  """Steps 1, 2, 3 in a directory that no test may touch; see `ckpt`."""
  path = tmp_path_factory.mktemp('original')
  fill(path, 1, 2, 3)
  return path


@pytest.fixture
def ckpt(original, tmp_path):
  return shutil.copytree(original, tmp_path / 'ckpt')


# What is saved comes back.


def test_restored_bits_equal_saved_bits(original):
  restored = Checkpoints(original).restore(blank(make_state()))
  assert isinstance(restored, Restored)
  assert same(restored.state, make_state(3))
  assert (restored.step, restored.meta, restored.passed_over) == (3, {'step': 3}, ())


def test_an_older_step_can_be_asked_for(original):
  assert same(Checkpoints(original).restore(blank(make_state()), step=1).state, make_state(1))


def test_arrays_will_do_as_a_target(original):
  assert same(Checkpoints(original).restore(make_state(9)).state, make_state(3))


def test_meta_comes_back_as_saved(tmp_path):
  meta = {'lr': 0.1, 'big': 2**60, 'names': ['a', 'ü'], 'nested': {'none': None, 'yes': True}}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(0, make_state(), meta=meta)
    assert checkpoints.restore(make_state()).meta == meta


@pytest.mark.parametrize(
  'meta',
  [{'x': float('nan')}, {'x': float('inf')}, {'x': (1, 2)}, {1: 'x'}, {'x': np.float32(1)}, [1]],
)
def test_meta_that_json_would_change_is_refused(tmp_path, meta):
  with pytest.raises(ValueError, match='meta must be'):
    Checkpoints(tmp_path).save(0, make_state(), meta=meta)
  assert not any(tmp_path.iterdir())


def test_saved_arrays_may_be_donated_at_once(tmp_path):
  update = jax.jit(lambda x: x * -3 + 1, donate_argnums=0)
  x = jnp.arange(2**20, dtype=jnp.float32)
  expected = np.array(x)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(0, {'x': x}, meta={})
    for _ in range(20):
      x = update(x)
    x.block_until_ready()
    restored = checkpoints.restore({'x': jax.ShapeDtypeStruct(x.shape, x.dtype)})
  assert np.asarray(restored.state['x']).tobytes() == expected.tobytes()


def spread(count):
  mesh = Mesh(np.asarray(jax.devices()[:count]), ('d',))
  return NamedSharding(mesh, PartitionSpec('d'))


@pytest.mark.parametrize('way', ['8 to 1', '1 to 8', '8 to 8 along another axis', '8 to unsaid'])
def test_arrays_take_the_targets_sharding(tmp_path, way):
  many = max(n for n in (1, 2, 4, 8) if n <= jax.device_count())
  mesh = Mesh(np.asarray(jax.devices()[:many]), ('d',))
  across = NamedSharding(mesh, PartitionSpec(None, 'd'))
  single = SingleDeviceSharding(jax.devices()[0])
  saved, wanted = {
    '8 to 1': (spread(many), single),
    '1 to 8': (single, spread(many)),
    '8 to 8 along another axis': (spread(many), across),
    '8 to unsaid': (spread(many), None),
  }[way]
  x = jax.device_put(np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32), saved)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(0, {'x': x}, meta={})
  target = {'x': jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=wanted)}
  got = Checkpoints(tmp_path).restore(target).state['x']
  assert got.sharding == (single if wanted is None else wanted)
  assert np.asarray(got).tobytes() == np.asarray(x).tobytes()


def test_an_empty_or_absent_directory_holds_no_checkpoint(tmp_path):
  (tmp_path / '5.orbax-checkpoint-tmp').mkdir()
  (tmp_path / '.saving' / '6').mkdir(parents=True)
  for path in (tmp_path, tmp_path / 'absent'):
    with Checkpoints(path, best='accuracy') as checkpoints:
      assert checkpoints.restore(make_state()) is None
      assert checkpoints.steps() == []
      assert checkpoints.best_step() is None
  assert not (tmp_path / 'absent').exists()


@pytest.mark.parametrize('settings', [{'keep': 0}, {'mode': 'best'}])
def test_wrong_settings(tmp_path, settings):
  with pytest.raises(ValueError):
    Checkpoints(tmp_path, **settings)


def test_a_negative_step_is_refused(tmp_path):
  with pytest.raises(ValueError, match='negative'):
    Checkpoints(tmp_path).save(-1, make_state(), meta={})


# What is damaged is noticed.


def test_every_flipped_bit_is_noticed(ckpt):
  checkpoints = Checkpoints(ckpt)
  choose = random.Random(0)
  paths = [p for p in files(ckpt / '3') if p.stat().st_size]
  assert len(paths) >= 10
  for path in paths + choose.choices(paths, k=60):
    bit = choose.randrange(8 * path.stat().st_size)
    flip(path, bit)
    assert not checkpoints.verified(3), f'bit {bit} of {path} flipped unseen'
    flip(path, bit)
  assert checkpoints.verified(3)


def damage_flip(step):
  path = max(files(step / 'state'), key=lambda p: p.stat().st_size)
  flip(path, 4 * path.stat().st_size)


def damage_truncate(step):
  path = max(files(step), key=lambda p: p.stat().st_size)
  os.truncate(path, path.stat().st_size - 1)


def damage_zero_length(step):
  os.truncate(step / 'meta' / 'metadata', 0)


def damage_delete(step):
  (step / 'state' / '_METADATA').unlink()


def damage_extra(step):
  (step / 'state' / 'more').write_bytes(b'')


def damage_no_manifest(step):
  (step / manifest.NAME).unlink()


def damage_empty_directory(step):
  shutil.rmtree(step)
  step.mkdir()


def damage_link(step):
  (step / 'state').rename(step.parent / 'elsewhere')
  (step / 'state').symlink_to(step.parent / 'elsewhere')


def damage_link_as_a_whole(step):
  step.rename(step.parent / 'elsewhere')
  step.symlink_to(step.parent / 'elsewhere')


def damage_path_outside(step):
  with open(step / manifest.NAME, 'a') as file:
    file.write('0' * 64 + '  ../1/meta/metadata\n')


DAMAGES = [
  damage_flip,
  damage_truncate,
  damage_zero_length,
  damage_delete,
  damage_extra,
  damage_no_manifest,
  damage_empty_directory,
  damage_link,
  damage_link_as_a_whole,
  damage_path_outside,
]


@pytest.mark.parametrize('damage', DAMAGES)
def test_the_newest_step_that_verifies_is_used(ckpt, damage):
  damage(ckpt / '3')
  before = files(ckpt / '3')
  checkpoints = Checkpoints(ckpt)
  with pytest.warns(CheckpointWarning, match=r'3: passed over: .*using step 2') as caught:
    restored = checkpoints.restore(blank(make_state()))
  assert len(caught) == 1
  assert '\n' not in str(caught[0].message)
  assert (restored.step, restored.passed_over) == (2, (3,))
  assert same(restored.state, make_state(2))
  assert files(ckpt / '3') == before
  with pytest.raises(CheckpointError, match=r'(?s)3: this checkpoint cannot be used.*Steps in'):
    checkpoints.restore(blank(make_state()), step=3)


def test_each_step_passed_over_is_named(ckpt):
  damage_flip(ckpt / '3')
  damage_empty_directory(ckpt / '2')
  with pytest.warns(CheckpointWarning) as caught:
    assert Checkpoints(ckpt).restore(make_state()).passed_over == (3, 2)
  assert [str(ckpt / name) in str(w.message) for name, w in zip('32', caught, strict=True)]


def test_nothing_that_verifies_is_an_error_and_nothing_is_lost(ckpt):
  for step in '123':
    damage_truncate(ckpt / step)
  with pytest.raises(CheckpointError, match='none of its checkpoints can be used') as caught:
    Checkpoints(ckpt).restore(make_state())
  assert len(str(caught.value).splitlines()) <= 5
  assert all(f'step {n}' in str(caught.value) for n in '123')
  assert sorted(os.listdir(ckpt)) == ['1', '2', '3']


def test_a_step_that_is_not_there(original):
  with pytest.raises(CheckpointError, match=r'(?s)does not exist.*: 1, 2, 3'):
    Checkpoints(original).restore(make_state(), step=7)


# What does not fit is refused.


def fewer(state):
  return state.replace(params={k: v for k, v in state.params.items() if k != 'half'})


def more(state):
  return state.replace(ema={'kernel': state.params['kernel']})


def other(state, **arrays):
  return state.replace(params={**state.params, **arrays})


@pytest.mark.parametrize(
  ('change', 'line'),
  [
    (
      lambda s: other(s, half=s.params['half'].astype(jnp.float32)),
      'params/half: the checkpoint has bfloat16[8, 6], the target float32[8, 6]',
    ),
    (
      lambda s: other(s, kernel=s.params['kernel'].T),
      'params/kernel: the checkpoint has float32[8, 6], the target float32[6, 8]',
    ),
    (
      lambda s: s.replace(step=s.step.astype(jnp.uint32)),
      'step: the checkpoint has int32[], the target uint32[]',
    ),
    (fewer, 'params/half: the checkpoint has bfloat16[8, 6], the target nothing'),
    (more, 'ema/kernel: the checkpoint has nothing, the target float32[8, 6]'),
  ],
)
def test_a_target_that_differs_is_refused_by_name(original, change, line):
  with pytest.raises(CheckpointError) as caught:
    Checkpoints(original).restore(blank(change(make_state())))
  assert line in str(caught.value)
  assert str(original / '3') in str(caught.value)
  assert len(str(caught.value).splitlines()) <= 5


def test_an_entirely_different_target_is_refused_in_five_lines(original):
  with pytest.raises(CheckpointError, match='and 9 more') as caught:
    Checkpoints(original).restore({'x': jnp.zeros(3)})
  assert len(str(caught.value).splitlines()) == 5


@pytest.mark.parametrize(
  ('leaf', 'reason'),
  [
    (jnp.zeros((0, 3)), 'params/kernel has shape'),
    ('text', 'params/kernel is of type str'),
    (object(), 'params/kernel is of type object'),
  ],
)
def test_a_leaf_that_cannot_be_saved_is_refused_by_name(tmp_path, leaf, reason):
  with pytest.raises(ValueError, match=reason):
    Checkpoints(tmp_path).save(0, other(make_state(), kernel=leaf), meta={})


def test_two_leaves_that_would_be_stored_as_one_are_refused(tmp_path):
  tree = {'a.b': jnp.zeros(3), 'a': {'b': jnp.ones(3)}}
  with pytest.raises(ValueError, match=r'a/b and a\.b would be stored as one'):
    Checkpoints(tmp_path).save(0, tree, meta={})


def test_a_scalar_of_numpy_comes_back(tmp_path):
  tree = {'a': jnp.zeros(3), 's': np.float32(2)}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(0, tree, meta={})
  back = Checkpoints(tmp_path).restore(tree).state['s']
  assert (back.dtype, float(back)) == (np.float32, 2)


# What is kept, what is deleted.


def save_scores(directory, scores, **settings):
  with Checkpoints(directory, best='accuracy', **settings) as checkpoints:
    for step, score in enumerate(scores, start=1):
      metrics = None if score is None else {'accuracy': score, 'loss': 1.0}
      checkpoints.save(step, {'x': jnp.int32(step)}, meta={}, metrics=metrics)
  return Checkpoints(directory, best='accuracy', **settings)


def test_the_newest_are_kept(tmp_path):
  assert fill(tmp_path, 1, 2, 3, 4, 5, keep=2).steps() == [4, 5]
  assert sorted(os.listdir(tmp_path)) == ['4', '5']


NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize(
  ('scores', 'mode', 'best', 'steps'),
  [
    ([0.5, NAN, 0.4, 0.3], 'max', 1, [1, 3, 4]),  # where Orbax deletes step 1
    ([0.5, INF, 0.4, NAN], 'max', 1, [1, 3, 4]),
    ([0.5, -INF, 0.6, NAN], 'min', 1, [1, 3, 4]),
    ([0.1, 0.9, 0.4, 0.3], 'max', 2, [2, 3, 4]),
    ([0.1, 0.9, 0.4, 0.3], 'min', 1, [1, 3, 4]),
    ([0.5, None, None, None], 'max', 1, [1, 3, 4]),
    ([NAN, NAN, NAN, NAN], 'max', None, [3, 4]),
    ([0.5, 0.5, 0.1, 0.1], 'max', 2, [2, 3, 4]),
  ],
)
def test_the_best_is_kept_whatever_is_not_finite(tmp_path, scores, mode, best, steps):
  checkpoints = save_scores(tmp_path, scores, keep=2, mode=mode)
  assert checkpoints.steps() == steps
  assert checkpoints.best_step() == best


def test_the_best_is_known_to_the_next_process(tmp_path):
  save_scores(tmp_path, [0.9, 0.1, 0.2], keep=1)
  with Checkpoints(tmp_path, best='accuracy', keep=1) as checkpoints:
    checkpoints.save(4, {'x': jnp.int32(4)}, meta={}, metrics={'accuracy': jnp.float32(0.3)})
  assert checkpoints.steps() == [1, 4]


def test_a_damaged_best_gives_way_to_the_next(tmp_path):
  checkpoints = save_scores(tmp_path, [0.2, 0.9, 0.1], keep=3)
  damage_flip(tmp_path / '2')
  assert checkpoints.best_step() == 1


def test_metrics_without_the_one_that_decides_are_refused(tmp_path):
  with pytest.raises(ValueError, match='accuracy'):
    Checkpoints(tmp_path, best='accuracy').save(0, {}, meta={}, metrics={'acuracy': 1.0})


def test_what_does_not_verify_is_neither_counted_nor_deleted(ckpt):
  damage_flip(ckpt / '3')
  damage_empty_directory(ckpt / '1')
  with Checkpoints(ckpt, keep=1) as checkpoints:
    checkpoints.save(4, make_state(4), meta={})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 3, 4]
    assert [s for s in checkpoints.steps() if checkpoints.verified(s)] == [4]


def test_what_does_not_verify_takes_no_ones_place(ckpt):
  damage_flip(ckpt / '3')
  with Checkpoints(ckpt, keep=2) as checkpoints:
    checkpoints.save(4, make_state(4), meta={})
  assert checkpoints.steps() == [2, 3, 4]


def test_damage_after_saving_is_seen_before_deleting(tmp_path):
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(1, make_state(1), meta={})
    checkpoints.wait()
    damage_flip(tmp_path / '1')
    checkpoints.save(2, make_state(2), meta={})
  assert checkpoints.steps() == [1, 2]


def test_a_step_below_newer_ones_survives_its_own_save(ckpt):
  with Checkpoints(ckpt, keep=2) as checkpoints:
    checkpoints.save(0, make_state(0), meta={})
  assert checkpoints.steps() == [0, 2, 3]
  assert checkpoints.verified(0)


# Saving again.


def test_a_step_that_verifies_is_not_saved_again(ckpt):
  before = {p: p.stat().st_mtime_ns for p in files(ckpt)}
  with Checkpoints(ckpt) as checkpoints:
    checkpoints.save(3, make_state(30), meta={})
  assert {p: p.stat().st_mtime_ns for p in files(ckpt)} == before
  assert same(checkpoints.restore(make_state()).state, make_state(3))


@pytest.mark.parametrize('damage', [damage_flip, damage_empty_directory, damage_link_as_a_whole])
def test_a_damaged_step_is_moved_aside_and_saved_again(ckpt, damage):
  for n in range(2):
    damage(ckpt / '3')
    kept = files(ckpt / '3')
    with Checkpoints(ckpt) as checkpoints:
      checkpoints.save(3, make_state(33 + n), meta={})
    aside = ckpt / f'3.damaged-{n}'
    assert len(files(aside)) == len(kept)
    assert aside.is_dir()
    assert same(checkpoints.restore(make_state()).state, make_state(33 + n))
    shutil.rmtree(ckpt / 'elsewhere', ignore_errors=True)
  assert checkpoints.steps() == [1, 2, 3]


def test_a_step_damaged_within_the_run_is_saved_again(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, make_state(1), meta={})
    checkpoints.wait()
    damage_flip(tmp_path / '1')
    checkpoints.save(1, make_state(10), meta={})
    assert same(checkpoints.restore(make_state()).state, make_state(10))


# Where the directory lies.


def test_a_moved_run_goes_on(ckpt):
  moved = ckpt.parent / 'other' / 'place'
  moved.parent.mkdir()
  ckpt.rename(moved)
  with Checkpoints(moved, keep=2) as checkpoints:
    assert same(checkpoints.restore(blank(make_state())).state, make_state(3))
    checkpoints.save(4, make_state(4), meta={})
  assert checkpoints.steps() == [3, 4]


def test_a_read_only_copy_is_read_and_not_touched(ckpt):
  paths = [ckpt, *ckpt.rglob('*')]
  for path in paths:
    path.chmod(0o555 if path.is_dir() else 0o444)
  # Root may write all the same, so the listing is compared as well.
  before = {p: p.stat().st_mtime_ns for p in paths}
  try:
    with Checkpoints(ckpt) as checkpoints:
      assert same(checkpoints.restore(blank(make_state())).state, make_state(3))
    assert {p: p.stat().st_mtime_ns for p in [ckpt, *ckpt.rglob('*')]} == before
  finally:
    for path in paths:
      path.chmod(0o755)


def test_a_relative_directory_is_made_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  checkpoints = Checkpoints('run/ckpt')
  monkeypatch.chdir('/')
  with checkpoints:
    checkpoints.save(0, make_state(), meta={})
  assert (tmp_path / 'run/ckpt/0').is_dir()


# Failure and death while saving.


# What Orbax logs about a failed save. TensorStore may print a line of its own past all loggers.
CHATTER = ('Handler Commit', 'Save Finalize', 'never retrieved')


def save_and_wait(checkpoints, step, state):
  checkpoints.save(step, state, meta={})
  checkpoints.wait()


def random_state(seed):
  return {'x': jnp.asarray(np.random.default_rng(seed).normal(size=2**17).astype(np.float32))}


def test_a_save_that_finds_no_space_is_an_error_and_costs_nothing(ckpt, capfd):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  with Checkpoints(ckpt, keep=1) as checkpoints:
    # A limit on file size stands in for the full disk: the write itself fails.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
      with pytest.raises(CheckpointError, match='step 4 could not be saved') as caught:
        save_and_wait(checkpoints, 4, random_state(4))
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(str(caught.value).splitlines()) <= 5
    assert sorted(os.listdir(ckpt)) == ['1', '2', '3']
    assert same(checkpoints.restore(make_state()).state, make_state(3))
    checkpoints.wait()  # The error is raised once.
    checkpoints.save(4, random_state(4), meta={})
  assert checkpoints.steps() == [4]
  assert not any(words in capfd.readouterr().err for words in CHATTER)


def test_an_error_in_the_background_surfaces_at_the_next_save(ckpt, monkeypatch):
  def fail(directory):
    raise OSError(28, 'No space left on device')

  checkpoints = Checkpoints(ckpt)
  with monkeypatch.context() as patch:
    patch.setattr(manifest, 'write', fail)
    checkpoints.save(4, make_state(4), meta={})
    with pytest.raises(CheckpointError, match=r'step 4 could not be saved: OSError.*No space left'):
      checkpoints.save(5, make_state(5), meta={})
  assert sorted(os.listdir(ckpt)) == ['1', '2', '3']
  checkpoints.save(5, make_state(5), meta={})
  checkpoints.close()
  assert checkpoints.steps() == [2, 3, 5]


def test_a_failed_deletion_is_told_and_the_new_step_stands(ckpt, monkeypatch):
  def fail(path, **_):
    raise PermissionError(13, 'Permission denied')

  checkpoints = Checkpoints(ckpt, keep=1)
  with monkeypatch.context() as patch:
    patch.setattr(shutil, 'rmtree', fail)
    checkpoints._sweep = lambda: None
    checkpoints.save(4, make_state(4), meta={})
    with pytest.raises(CheckpointError, match=r'step 4 is saved, but .* could not be deleted'):
      checkpoints.wait()
  assert checkpoints.verified(4)
  checkpoints.close()


def test_a_save_that_cannot_start_does_not_stop_the_next(ckpt, monkeypatch):
  def fail(manager, step, **_):
    (manager.directory / f'{step}.orbax-checkpoint-tmp').mkdir()
    raise TimeoutError

  with Checkpoints(ckpt) as checkpoints:
    with monkeypatch.context() as patch:
      patch.setattr(ocp.CheckpointManager, 'save', fail)
      with pytest.raises(CheckpointError, match='step 4 could not be saved: TimeoutError'):
        checkpoints.save(4, make_state(4), meta={})
    assert sorted(os.listdir(ckpt)) == ['1', '2', '3']
    checkpoints.save(4, make_state(4), meta={})
  assert checkpoints.steps() == [2, 3, 4]


def test_a_directory_that_cannot_be_made_is_an_error_at_save(tmp_path):
  (tmp_path / 'file').write_text('')
  with Checkpoints(tmp_path / 'file' / 'ckpt') as checkpoints:
    assert checkpoints.restore(make_state()) is None
    with pytest.raises(CheckpointError, match='step 0 could not be saved'):
      checkpoints.save(0, make_state(), meta={})


def save_and_leave(directory, error=None):
  with Checkpoints(directory) as checkpoints:
    checkpoints.save(4, make_state(4), meta={})
    if error is not None:
      raise error


def test_leaving_the_block_does_not_hide_what_ended_it(ckpt, monkeypatch):
  monkeypatch.setattr(manifest, 'write', lambda directory: 1 / 0)
  with pytest.warns(CheckpointWarning, match='ZeroDivisionError'), pytest.raises(SystemExit):
    save_and_leave(ckpt, SystemExit(75))
  with pytest.raises(CheckpointError, match='ZeroDivisionError'):
    save_and_leave(ckpt)


def test_leftovers_of_killed_saves_and_deletions_go_at_the_next_save(ckpt):
  for name in ('.saving/4.orbax-checkpoint-tmp', '.saving/4', '1.deleted'):
    (ckpt / name).mkdir(parents=True)
    (ckpt / name / 'half').write_bytes(b'half')
  for name in ('notes', 'x.deleted', '9.orbax-checkpoint-tmp'):
    (ckpt / name).mkdir()
  with Checkpoints(ckpt) as checkpoints:
    assert checkpoints.restore(make_state()).step == 3
    assert (ckpt / '.saving/4').exists()  # A reader deletes nothing.
    checkpoints.save(4, make_state(4), meta={})
  assert sorted(os.listdir(ckpt)) == ['2', '3', '4', '9.orbax-checkpoint-tmp', 'notes', 'x.deleted']
  assert checkpoints.verified(4)


KILLS = {
  'while the arrays are written': """
    checkpoints.save(4, state, meta={})
    die()
  """,
  'before the manifest': """
    manifest.write = die
    checkpoints.save(4, state, meta={})
    checkpoints.wait()
  """,
  'before the step gets its name': """
    manifest.sync_directory = die
    checkpoints.save(4, state, meta={})
    checkpoints.wait()
  """,
  'while an old step is deleted': """
    shutil.rmtree = die
    checkpoints._sweep = lambda: None
    checkpoints.save(4, state, meta={})
    checkpoints.wait()
  """,
}


@pytest.mark.parametrize('moment', KILLS)
def test_kill_9_leaves_whole_steps_only(ckpt, moment):
  script = f"""
import os, shutil, signal, sys
import numpy as np
from jattn.training import manifest
from jattn.training.checkpoint import Checkpoints

def die(*_, **__):
  os.kill(os.getpid(), signal.SIGKILL)

state = {{'x': np.random.default_rng(0).normal(size=2**21)}}
checkpoints = Checkpoints(sys.argv[1], keep=3)
{textwrap.dedent(KILLS[moment])}
"""
  done = subprocess.run(
    [sys.executable, '-c', script, str(ckpt)],
    capture_output=True,
    text=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    timeout=60,
  )
  assert done.returncode == -9, done.stderr
  deleting = 'deleted' in moment
  with Checkpoints(ckpt, keep=3) as checkpoints, warnings.catch_warnings():
    warnings.simplefilter('error')  # Nothing may have to be passed over.
    assert all(checkpoints.verified(step) for step in checkpoints.steps())
    assert checkpoints.steps() == ([2, 3, 4] if deleting else [1, 2, 3])
    checkpoints.save(5 if deleting else 4, make_state(4), meta={})
    assert same(checkpoints.restore(make_state()).state, make_state(4))
  assert sorted(os.listdir(ckpt)) == (['3', '4', '5'] if deleting else ['2', '3', '4'])


# Quiet.


def run_quietly(script, directory):
  done = subprocess.run(
    [sys.executable, '-W', 'error', '-c', script, str(directory)],
    capture_output=True,
    text=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    timeout=60,
  )
  return done.returncode, done.stdout, done.stderr


def test_saving_and_restoring_print_nothing(tmp_path):
  script = """
import sys
import jax.numpy as jnp
from jattn.training.checkpoint import Checkpoints

with Checkpoints(sys.argv[1], keep=1, best='accuracy') as checkpoints:
  for step in range(3):
    checkpoints.save(step, {'x': jnp.ones(3)}, meta={}, metrics={'accuracy': 0.5})
  assert checkpoints.restore({'x': jnp.zeros(3)}).step == 2
"""
  assert run_quietly(script, tmp_path) == (0, '', '')


def test_a_failed_save_is_told_by_us_alone_and_the_process_ends(tmp_path):
  script = """
import resource, sys
import jax.numpy as jnp
from jattn.training import checkpoint

with checkpoint.Checkpoints(sys.argv[1]) as checkpoints:
  checkpoints.save(1, {'x': jnp.ones(3)}, meta={})
  checkpoints.wait()
  failures = []
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
  try:
    checkpoints.save(2, {'x': jnp.ones(3)}, meta={})
    checkpoints.wait()
  except checkpoint.CheckpointError as error:
    failures.append(error)
  resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  # Past our own check: Orbax fails half-way into its start, which once left threads that never end.
  checkpoint.describe = lambda tree: {}
  try:
    checkpoints.save(3, {'x': object()}, meta={})
  except checkpoint.CheckpointError as error:
    failures.append(error)
sys.exit(len(failures))
"""
  code, out, err = run_quietly(script, tmp_path)
  assert (code, out) == (2, '')
  assert not any(words in err for words in CHATTER), err
