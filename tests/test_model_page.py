"""MODELS.md says what the code says."""

import pytest

import jattn
from experiments import model_page
from tests.models.test_zoo import PARAMETERS

LINES = model_page.PAGE.read_text().removeprefix(model_page.HEAD).splitlines()


def test_every_name_has_its_line_and_its_count():
  told = {line.split('`')[1]: int(line.split('|')[4].replace(',', '')) for line in LINES}
  assert list(told) == jattn.list_models()
  assert told == PARAMETERS


# Tracing every network would take a minute.
@pytest.mark.parametrize('name', ['seed_classifier', 'resnet18', 'cct_2_3x2_32'])
def test_lines_are_what_the_cards_say(name):
  assert model_page.row(name) in LINES


def test_every_name_of_timms_was_compared_and_found_equal():
  compared = model_page.measured()
  shared = [n for n in jattn.list_models() if jattn.models.FACTS[n].num_classes == 1000]
  assert set(compared) == set(shared)
  assert all(line['ok'] for line in compared.values())
