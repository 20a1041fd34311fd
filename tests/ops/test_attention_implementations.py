"""Every implementation of attention against the oracle's loops and against dense in float64."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from jattn import ops
from jattn.attention import SelfAttention
from jattn.ops import attention_choice, cudnn_attention
from jattn.ops.cudnn_attention import cudnn_attend
from jattn.ops.pallas_attention import pallas_attend
from tests import oracles
from tests.proof import draw, variables_of

# heads and key heads, queries, keys, leading sizes, shape of the bias, of the mask, block
CASES = {
  'one_block': ((1, 1), 5, 7, (), None, None, None),
  'odd_blocks': ((2, 2), 13, 11, (2,), (2, 13, 11), (2, 13, 11), (4, 8)),
  'grouped': ((4, 2), 9, 17, (2,), (2, 1, 1, 17), (1, 9, 1), (9, 5)),
  'single_key_head': ((8, 1), 6, 5, (1, 2), (8, 6, 1), (1, 2, 1, 6, 5), (4, 4)),
  'functions': ((3, 3), 12, 12, (2,), 'function', 'function', (5, 7)),
}
WIDTH, VALUE_WIDTH = 3, 4


def operands(case, dtype=np.float64):
  (heads, key_heads), queries, keys, leading, bias, mask, _ = CASES[case]
  rng = np.random.default_rng(0)
  shapes = [(queries, heads, WIDTH), (keys, key_heads, WIDTH), (keys, key_heads, VALUE_WIDTH)]
  arrays = [rng.normal(size=(*leading, *shape)) for shape in shapes]
  probe = rng.normal(size=(*leading, queries, heads, VALUE_WIDTH))
  # A table of relative positions where the bias is a function of a grid's positions.
  size = (5, 7, heads) if bias == 'function' else bias
  bias = None if size is None else rng.normal(size=size)
  allowed = None
  if isinstance(mask, tuple):
    allowed = rng.random(mask) < 0.6
    allowed[..., 0, :] = False  # a query that may look nowhere, unless all queries share the row
    if mask[-1] == 1:
      allowed[..., 1, :] = True
  # The reference sees the same rounded numbers.
  arrays, bias = jax.tree.map(lambda x: x.astype(dtype).astype(np.float64), (arrays, bias))
  return arrays, probe, bias, allowed


def settings(case, bias, allowed):
  if CASES[case][5] == 'function':
    bias = ops.relative_bias(bias, (3, 4), sign='query-key')
    # Query 0 looks nowhere.
    return {'bias': bias, 'mask': lambda i, j: (j[None, :] < i[:, None])[None]}
  return {'bias': bias, 'mask': allowed}


def slope(case, attend):
  """Value and gradients by q, k, v, bias and scale of the probed output."""
  _, probe, _, allowed = operands(case)

  def loss(q, k, v, bias, scale):
    out = attend(q, k, v, scale=scale, **settings(case, bias, allowed))
    return (out.astype(jnp.float64 if q.dtype == jnp.float64 else jnp.float32) * probe).sum(), out

  grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True))

  def run(arrays, bias, dtype):
    bias = None if bias is None else jnp.asarray(bias, dtype)
    gradients, out = grad(*(jnp.asarray(x, dtype) for x in arrays), bias, jnp.asarray(0.7, dtype))
    return [out, *jax.tree.leaves(gradients)]

  return run


def hold(case, attend, dtype, tolerance):
  arrays, _, bias, _ = operands(case, dtype)
  got = slope(case, attend)(arrays, bias, dtype)
  with jax.enable_x64(True):
    want = slope(case, dense)(arrays, bias, jnp.float64)
  assert len(got) == len(want) == (5 if bias is None else 6)
  for ours, theirs in zip(got, want, strict=True):
    assert ours.shape == theirs.shape
    ours = np.asarray(ours, np.float64)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(1, np.abs(theirs).max()))


def dense(q, k, v, **settings):
  return ops.attend(q, k, v, **settings, implementation='dense')


def chunked(case):
  return lambda *x, **given: ops.chunked_attend(*x, **given, block_size=CASES[case][6])[0]


@pytest.mark.parametrize('case', CASES)
def test_dense_equals_the_loops(case):
  """The reference itself; its gradients are held by finite differences in test_attention."""
  arrays, _, bias, allowed = operands(case)
  queries, heads, keys = arrays[0].shape[-3], arrays[0].shape[-2], arrays[1].shape[-3]
  full = (*CASES[case][3], heads, queries, keys)
  i, j = np.indices((queries, keys))
  if CASES[case][4] == 'function':
    allowed = j < i
    down, right = i // 4 - j // 4 + 2, i % 4 - j % 4 + 3
    pairs = np.moveaxis(bias[down, right], -1, 0)
  else:
    pairs = np.zeros(1) if bias is None else bias
    allowed = np.ones(1, bool) if allowed is None else allowed
  with jax.enable_x64(True):
    given = settings(case, None if bias is None else jnp.asarray(bias), operands(case)[3])
    got = dense(*map(jnp.asarray, arrays), scale=0.7, **given)
  pairs, allowed = np.broadcast_to(pairs, full), np.broadcast_to(allowed, full)
  for index in np.ndindex(CASES[case][3]):
    want = oracles.attend(
      *(x[index] for x in arrays), bias=pairs[index], mask=allowed[index], scale=0.7
    )
    np.testing.assert_allclose(got[index], want, atol=1e-12, rtol=0)


@pytest.mark.parametrize('case', CASES)
def test_chunked_equals_dense(case):
  hold(case, chunked(case), jnp.float32, 1e-5)


def test_chunked_in_bfloat16():
  hold('functions', chunked('functions'), jnp.bfloat16, 2e-2)


def test_chunked_in_float64_equals_dense_to_twelve_digits():
  with jax.enable_x64(True):
    hold('grouped', chunked('grouped'), jnp.float64, 1e-12)


@pytest.mark.parametrize(
  ('heads', 'dtype', 'tolerance'), [((4, 2), jnp.float32, 1e-5), ((1, 1), jnp.bfloat16, 2e-2)]
)
def test_the_kernel_equals_dense(monkeypatch, heads, dtype, tolerance):
  monkeypatch.setitem(CASES, 'kernel', (heads, 21, 37, (2,), None, None, (16, 16)))

  def attend(q, k, v, *, bias, mask, scale):
    del bias, mask
    return pallas_attend(q, k, v, scale=scale, block_size=(16, 16), interpret=True)[0]

  hold('kernel', attend, dtype, tolerance)


# From jax 0.12 on, which means to leave this backend out some day; None never chooses the kernel.
@pytest.mark.filterwarnings('ignore:The Pallas Triton backend is deprecated:DeprecationWarning')
def test_the_kernel_lowers_for_cuda():
  q, v = (jax.ShapeDtypeStruct((2, 50, 2, width), jnp.bfloat16) for width in (8, 64))
  step = jax.grad(lambda *x: pallas_attend(*x)[0].astype(jnp.float32).sum(), argnums=(0, 1, 2))
  card = AbstractDevice('NVIDIA H100 80GB HBM3', 132, 'gpu')  # jax 0.12 asks which
  with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=card)):
    text = jax.jit(step).trace(q, q, v).lower(lowering_platforms=('cuda',)).as_text()
  assert text.count('@__gpu$xla.gpu.triton') == 3


@pytest.mark.parametrize('case', ['odd_blocks', 'grouped'])
def test_the_operands_of_cudnn_give_the_same_mathematics(monkeypatch, case):
  """Padded widths and masks, through the implementation of ``jax.nn`` that runs here."""
  monkeypatch.setattr(cudnn_attention, '_IMPLEMENTATION', 'xla')
  arrays, _, bias, allowed = operands(case, jnp.float32)
  arrays = [jnp.asarray(x, jnp.float32) for x in arrays]
  bias = None if bias is None else jnp.asarray(bias, jnp.float32).at[..., -1].set(-jnp.inf)
  given = {'bias': bias, 'mask': allowed, 'scale': 0.7}

  def slopes(attend):
    def loss(q, k, v):
      return jnp.square(attend(q, k, v, **given)).sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*arrays)

  with jax.numpy_rank_promotion('allow'):  # jax.nn's own code broadcasts
    got = slopes(cudnn_attend)
  want = slopes(dense)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


@pytest.mark.parametrize('case', ['odd_blocks', 'functions'])
def test_rows_are_rows_of_the_map(case):
  arrays, _, bias, allowed = operands(case)
  q, k, v = (jnp.asarray(x, jnp.float32) for x in arrays)
  given = settings(case, jnp.asarray(bias, jnp.float32), allowed) | {'scale': 0.7}
  rows = jnp.array([7, 0, 7])

  @jax.jit
  def run(q, k, v):
    lse = ops.chunked_attend(q, k, v, **given, block_size=(4, 4))[1]
    return ops.attention_rows(q, k, lse, rows, **given), ops.attention_weights(q, k, **given)

  got, whole = run(q, k, v)
  want = whole[..., rows, :]
  assert got.shape == want.shape
  np.testing.assert_allclose(got, want, atol=1e-6)
  assert np.all(np.asarray(got[..., 1, :]) == 0)  # query 0 may look nowhere


def test_the_log_sum_exp_and_its_gradient(rng):
  q, k, v = (jnp.asarray(rng.normal(size=(n, 1, 2)), jnp.float32) for n in (5, 7, 7))
  probe = jnp.asarray(rng.normal(size=(1, 5)), jnp.float32)

  def ours(q, k):
    return (ops.chunked_attend(q, k, v, block_size=(2, 3))[1] * probe).sum()

  def theirs(q, k):
    scores = jnp.einsum('qmd,kmd->mqk', q, k) / np.sqrt(2)
    return (jax.nn.logsumexp(scores, axis=-1) * probe).sum()

  got, want = (jax.jit(jax.value_and_grad(f, (0, 1)))(q, k) for f in (ours, theirs))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_what_a_function_closes_over_may_be_mapped_and_differentiated(rng):
  q = jnp.asarray(rng.normal(size=(2, 5, 1, 3)), jnp.float32)
  tables, lengths = jnp.asarray(rng.normal(size=(2, 9)), jnp.float32), jnp.array([3, 5])

  def loss(table, length, q, implementation):
    given = {
      'bias': lambda i, j: table[i[:, None] - j[None, :] + 4][None],
      'mask': lambda i, j: jnp.broadcast_to((j < length)[None, None], (1, len(i), len(j))),
    }
    if implementation == 'dense':
      return jnp.square(ops.attend(q, q, q, **given, implementation='dense')).sum()
    return jnp.square(ops.chunked_attend(q, q, q, **given, block_size=(2, 4))[0]).sum()

  def mapped(f, how):
    return jax.jit(jax.vmap(lambda *x: f(*x, how)))

  want = mapped(jax.grad(loss), 'dense')(tables, lengths, q)
  inside = mapped(jax.grad(loss), 'chunked')(tables, lengths, q)
  outside = jax.jit(jax.grad(lambda t: mapped(loss, 'chunked')(t, lengths, q).sum()))(tables)
  np.testing.assert_allclose(inside, want, atol=1e-5)
  np.testing.assert_allclose(outside, want, atol=1e-5)


def test_what_a_function_closes_over_is_not_kept():
  """In what JAX remembers of the call it would live for ever."""

  def total(table, q):
    def bias(i, j):
      return table[i[:, None] - j[None, :] + 4][None]

    return ops.chunked_attend(q, q, q, bias=bias, block_size=(2, 4))[0].sum()

  with jax.checking_leaks():
    jax.eval_shape(total, jnp.zeros(9), jnp.zeros((5, 1, 3)))


def test_a_row_of_one_key_has_the_whole_gradient(rng):
  """Its weight is one; a bound on rounding there must not halve the slope."""
  q, k = (jnp.asarray(rng.normal(size=(1, 1, WIDTH)), jnp.float32) for _ in range(2))
  rows = jnp.array([0])
  lse = jax.scipy.special.logsumexp(jnp.einsum('qmd,kmd->mqk', q, k) / WIDTH**0.5, axis=-1)
  weight, slope = jax.value_and_grad(lambda q: ops.attention_rows(q, k, lse, rows).sum())(q)
  np.testing.assert_allclose(weight, 1, rtol=1e-6)
  np.testing.assert_allclose(slope, k / WIDTH**0.5, rtol=1e-6)


def test_large_scores_stay_finite():
  arrays, _, bias, _ = operands('odd_blocks')
  arrays = [jnp.asarray(1e3 * x, jnp.bfloat16) for x in arrays]
  run = slope('odd_blocks', chunked('odd_blocks'))
  assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in run(arrays, bias, jnp.bfloat16))


def test_a_large_bias_of_padded_queries_has_no_part_in_gradients(rng):
  """A constant leaves softmax as it is, also where exp of it would be infinite."""
  q = jnp.asarray(rng.normal(size=(5, 1, 3)), jnp.float32)

  def slope(number):
    bias = lambda i, j: jnp.full((1, len(i), len(j)), number)  # noqa: E731
    attend = functools.partial(ops.chunked_attend, bias=bias, block_size=(4, 4))
    return jax.grad(lambda k: jnp.square(attend(q, k, q)[0]).sum())(q)

  slope = jax.jit(slope)
  np.testing.assert_allclose(slope(200.0), slope(0.0), atol=1e-4)


def test_only_dense_has_forward_mode():
  def forward(q, implementation):
    return jax.jvp(lambda q: ops.attend(q, q, q, implementation=implementation), (q,), (q,))

  lower = jax.jit(forward, static_argnums=1).lower
  lower(jnp.ones((3, 1, 2)), 'dense')
  with pytest.raises(TypeError, match='custom_vjp'):
    lower(jnp.ones((3, 1, 2)), 'chunked')


def temporary(attend, size, width=32, value_width=256):
  """Bytes of a train step beside its operands and results; nothing is run."""
  q, v = (jax.ShapeDtypeStruct((1, size, 1, w), jnp.float32) for w in (width, value_width))
  step = jax.value_and_grad(lambda *x: jnp.square(attend(*x)).sum(), argnums=(0, 1, 2))
  return jax.jit(step).lower(q, q, v).compile().memory_analysis().temp_size_in_bytes


def test_memory_of_a_train_step_is_linear_and_a_twentieth_of_dense():
  chunked = functools.partial(ops.attend, implementation='chunked')
  sizes = [temporary(chunked, n) for n in (2048, 4096, 8192, 16384)]
  assert all(big <= 2.05 * small for small, big in itertools.pairwise(sizes))
  assert sizes[-1] <= temporary(dense, 16384) / 20


def test_none_chooses_by_size(monkeypatch):
  def choose(n, dtype=jnp.float32):
    return ops.choose_implementation(*3 * [jax.ShapeDtypeStruct((1, n, 1, 8), dtype)])

  monkeypatch.setattr(attention_choice, 'TABLE', {('cpu', 32): ((0, 'dense'), (64, 'chunked'))})
  assert [choose(n) for n in (7, 8)] == ['dense', 'chunked']
  # No row for this type, so it is dense until the map is large.
  assert [choose(n, jnp.bfloat16) for n in (64, 2**13, 2**14)] == ['dense', 'dense', 'chunked']
  # What the table names but cannot run here is chunked instead.
  monkeypatch.setattr(attention_choice, 'TABLE', {('cpu', 32): ((0, 'pallas'),)})
  assert choose(7) == 'chunked'


def test_small_attention_is_dense_as_ever():
  assert not re.search(
    'while|custom_vjp', str(jax.make_jaxpr(ops.attend)(*3 * [jnp.ones((14, 1, 8))]))
  )


@pytest.mark.parametrize(
  ('implementation', 'dtype', 'message'),
  [
    ('cudnn', 'float32', "implementation='cudnn' cannot.*16-bit.*use 'chunked'"),
    ('cudnn', 'bfloat16', "implementation='cudnn' cannot.*not on cpu; use 'chunked'"),
    ('pallas', 'float32', "implementation='pallas' cannot.*not on cpu; use 'chunked'"),
    ('flash', 'float32', "implementation='flash' must be one of"),
  ],
)
def test_what_cannot_run_says_so(implementation, dtype, message):
  with pytest.raises(ValueError, match=message):
    ops.attend(*3 * [jnp.ones((3, 1, 8), dtype)], implementation=implementation)


def test_a_failing_cudnn_is_tried_once(monkeypatch):
  calls = []

  def attempt(*_):
    calls.append(1)
    raise RuntimeError('no execution plans\nand a long story')

  monkeypatch.setattr(cudnn_attention, 'cudnn_attend', attempt)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  cudnn_attention._probe.cache_clear()
  q = jnp.ones((3, 1, 8), jnp.bfloat16)
  want = "cuDNN failed (RuntimeError: no execution plans); use 'chunked'"
  assert cudnn_attention.cudnn_refusal(q, q, q) == cudnn_attention.cudnn_refusal(q, q, q) == want
  assert len(calls) == 1
  cudnn_attention._probe.cache_clear()


def test_functions_of_another_shape_are_refused():
  q = jnp.ones((4, 2, 3))
  with pytest.raises(ValueError, match='must return'):
    ops.chunked_attend(q, q, q, bias=lambda i, j: jnp.zeros((3, len(i), len(j))))
  with pytest.raises(ValueError, match='must broadcast'):
    ops.chunked_attend(q, q, q, bias=jnp.zeros((3, 4, 4)))
  with pytest.raises(ValueError, match='must be at least'):
    ops.chunked_attend(q, q, q, block_size=(0, 4))


@pytest.mark.parametrize('relative', [False, True])
def test_self_attention_is_the_same_by_blocks(relative):
  x = draw((2, 3, 5, 12))
  fields = {'num_heads': 3, 'num_key_heads': 1, 'relative_bias': relative}
  modules = [SelfAttention(**fields, implementation=i) for i in ('dense', 'chunked')]
  variables = variables_of(modules[0], x)

  def loss(variables, module):
    attended = module.apply(variables, x, train=False)
    return jnp.square(attended.features).sum(), attended.maps['weights'].weights

  grad = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
  (want, map_want), (got, map_got) = (grad(variables, m) for m in modules)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), want, got)
  np.testing.assert_array_equal(map_want, map_got)


def test_an_unread_map_of_a_large_grid_is_never_formed():
  module = SelfAttention(relative_bias=True, qk_features=4, implementation=None)
  x = jax.ShapeDtypeStruct((1, 64, 64, 8), jnp.float32)
  variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)

  def step(read):
    def loss(variables, x):
      attended = module.apply(variables, x, train=True)
      return jnp.square(attended.features).sum(), attended.maps if read else ()

    return jax.jit(jax.grad(loss, has_aux=True)).lower(variables, x).compile()

  square = 4 * 4096**2
  assert not re.search(r'\[[\d,]*4096,4096\]', step(False).as_text())
  assert step(False).memory_analysis().temp_size_in_bytes < square / 4
  assert step(True).memory_analysis().output_size_in_bytes >= square


def test_bfloat16_with_several_images_and_heads_runs():
  """XLA's CPU refuses products of bfloat16 into float32 over two axes of batches."""
  q = jnp.ones((2, 7, 2, 8), jnp.bfloat16)

  def loss(q, k, v):
    return ops.attend(q, k, v, implementation='chunked').sum(dtype=jnp.float32)

  gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, q, q)
  np.testing.assert_allclose(np.asarray(gradients[2], np.float32), 1, atol=0.02)
