"""Attention that never forms its map is explained as attention that does, or says why not."""

import jax
import numpy as np
import pytest

from jattn.attention import SelfAttention
from jattn.backbones import ConvStack
from jattn.explain import explain
from jattn.models import Classifier, Head
from jattn.pooling import Average


def network(implementation):
  return Classifier(
    backbone=ConvStack((4, 8)),
    attention=(SelfAttention(num_heads=2, implementation=implementation),),
    pool=Average(),
    head=Head(3),
  )


@pytest.fixture(scope='module')
def given():
  images = jax.random.normal(jax.random.key(0), (2, 16, 12, 3))
  return network('dense').init(jax.random.key(1), images, train=False), images


@pytest.mark.parametrize('method', ['attention', 'rollout', 'hires_cam'])
def test_fused_equals_explicit(given, method):
  maps = [explain(method, network(name), *given) for name in ('dense', 'chunked')]
  np.testing.assert_allclose(*maps, atol=1e-6)
  assert np.ptp(maps[0], axis=(1, 2)).min() > 1e-3


def test_gradients_through_a_map_that_the_output_does_not_read_are_refused(given):
  with pytest.raises(ValueError, match='that the logits are computed from'):
    explain('chefer', network('chunked'), *given)
