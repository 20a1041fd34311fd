"""MODELS.md says what the code says."""

import jattn
from experiments import model_page


def test_the_page_lists_every_name_once():
  """That each line is what the model's card says is shown beside the card's numbers."""
  text = model_page.PAGE.read_text()
  assert text.startswith(model_page.HEAD)
  lines = text.removeprefix(model_page.HEAD).splitlines()
  assert [line.split('`')[1] for line in lines] == jattn.list_models()


def test_every_name_of_timms_was_compared_and_found_equal():
  compared = model_page.measured()
  shared = [n for n in jattn.list_models() if jattn.models.FACTS[n].num_classes == 1000]
  assert set(compared) == set(shared)
  assert all(line['ok'] for line in compared.values())
