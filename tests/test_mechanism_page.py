"""MECHANISMS.md says what the code says."""

import pytest

import jattn
from experiments import mechanism_page
from jattn.pooling import POOLINGS


def test_the_page_is_up_to_date(capsys):
  assert mechanism_page.main(['--check']) == 0, capsys.readouterr().out


def test_every_mechanism_has_a_measured_line():
  costs = mechanism_page.measured()
  assert set(costs) == {*jattn.list_attentions(), 'conv3x3'}


@pytest.mark.parametrize('name', jattn.list_attentions())
def test_the_measured_lines_count_what_the_code_counts(name):
  parameters, products, _ = mechanism_page.facts(jattn.create_attention(name))
  line = mechanism_page.measured()[name]
  assert (line['parameters'], line['multiply_accumulates']) == (parameters, products)


@pytest.mark.parametrize('cls', [*jattn.attention.MECHANISMS.values(), *POOLINGS.values()])
def test_every_docstring_has_a_formula(cls):
  formula, _ = mechanism_page._described(cls)
  assert '`' in formula or cls is jattn.pooling.Flatten
