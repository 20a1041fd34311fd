"""The folder of a model: what timm and the hub find in it, and that it appears whole or not."""

import json
import os

import numpy as np
import pytest
import yaml
from safetensors import safe_open

from jattn.models import seed_classifier
from jattn.weights import WeightsError, load_weights, safetensors, save_weights
from tests.weights import small

MODEL = small.model()
FILES = ['README.md', 'config.json', 'model.safetensors']


@pytest.fixture(scope='module')
def variables():
  return small.draw(MODEL)


@pytest.fixture
def save(tmp_path, variables):
  def save(folder='m', **settings):
    settings = {'name': 'small', 'image_size': 8, **settings}
    return save_weights(tmp_path / folder, MODEL, variables, **settings)

  return save


def test_tensors_lie_as_timm_reads_them(save, variables):
  with safe_open(save() / 'model.safetensors', 'np') as file:
    assert file.metadata() == {'format': 'pt'}
    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  backbone, head = variables['params']['backbone'], variables['params']['head']
  stats = variables['batch_stats']['backbone']['norm']
  want = {
    'stem.conv.weight': np.transpose(backbone['conv']['kernel'], (3, 2, 0, 1)),
    'stem.bn.weight': backbone['norm']['scale'],
    'stem.bn.bias': backbone['norm']['bias'],
    'stem.bn.running_mean': stats['mean'],
    'stem.bn.running_var': stats['var'],
    'mix.weight': np.transpose(backbone['mix']['kernel'], (3, 2, 0, 1)),
    'pos_embed': np.reshape(backbone['positions'], (1, 16, 6)),
    'pair.weight': np.concatenate([backbone[k]['kernel'].T for k in ('left', 'right')]),
    'pair.bias': np.concatenate([backbone[k]['bias'] for k in ('left', 'right')]),
    'fc.weight': head['logits']['kernel'].T,
    'fc.bias': head['logits']['bias'],
  }
  assert set(tensors) == set(want)
  for name, value in want.items():
    np.testing.assert_array_equal(tensors[name], value, strict=False)
    assert tensors[name].dtype == np.float32


def test_the_configuration_is_what_timm_reads(save):
  folder = save(preprocessing={'mean': [0.5] * 3, 'crop_pct': 0.9}, model_args={'img_size': 8})
  assert json.loads((folder / 'config.json').read_text()) == {
    'architecture': 'small',
    'num_classes': 5,
    'num_features': 6,
    'global_pool': 'avg',
    'model_args': {'img_size': 8},
    'pretrained_cfg': {
      'custom_load': False,
      'input_size': [3, 8, 8],
      'fixed_input_size': True,
      'mean': [0.5, 0.5, 0.5],
      'crop_pct': 0.9,
      'num_classes': 5,
      'first_conv': 'stem.conv',
      'classifier': 'fc',
    },
  }


def test_a_model_that_timm_has_not_says_so(tmp_path):
  model = seed_classifier(5, image_size=8, widths=(2, 2, 8), hidden=4)
  settings = {'image_size': 8, 'hidden': 4}
  folder = save_weights(
    tmp_path / 'm', model, small.draw(model), name='seed_classifier', settings=settings
  )
  assert json.loads((folder / 'config.json').read_text()) == {
    'architecture': 'seed_classifier',
    'library_name': 'jattn',
    'settings': settings,
    'num_classes': 5,
    'num_features': 4,
    'pretrained_cfg': {
      'custom_load': False,
      'input_size': [3, 8, 8],
      'fixed_input_size': False,
      'num_classes': 5,
    },
  }
  with safe_open(folder / 'model.safetensors', 'np') as file:
    assert file.metadata() == {'format': 'jattn'}
    assert 'params/head/logits/kernel' in file.keys()  # noqa: SIM118
  front, body = card(folder)
  assert front['library_name'] == 'jattn'
  assert 'timm' not in body
  line = "jattn.create_model('seed_classifier', num_classes=5, image_size=8, hidden=4)"
  assert line in body


def test_the_card_tells_what_it_is_and_how_to_load_it(save):
  folder = save(description='Trained on nothing.', license='apache-2.0')
  front, body = card(folder)
  assert front == {
    'tags': ['image-classification', 'jattn', 'timm'],
    'pipeline_tag': 'image-classification',
    'library_name': 'timm',
    'license': 'apache-2.0',
  }
  # 3*3*3*6 + 2*6 + 6*6 + 4*4*6 + 2*(6*6 + 6) + 6*5 + 5: running statistics are not learned.
  assert '| parameters | 425 |' in body
  assert 'Trained on nothing.' in body
  assert "model = jattn.create_model('small', num_classes=5)" in body
  assert "timm.create_model('local-dir:FOLDER', pretrained=True)" in body


def card(folder):
  _, front, body = (folder / 'README.md').read_text().split('---\n', 2)
  return yaml.safe_load(front), body


@pytest.mark.parametrize(
  ('settings', 'told'),
  [
    ({'name': None}, "name=None must be timm's architecture"),
    ({'name': '../up'}, "name='../up' must be letters"),
    ({'license': 'a\ntags: b'}, 'license='),
    ({'library': 'keras'}, "library='keras' must be"),
    ({'preprocessing': {'average': 0}}, "preprocessing has 'average'"),
    ({'settings': {'a': {1, 2}}, 'library': 'jattn'}, 'must be JSON'),
    ({'preprocessing': {'mean': [float('nan')]}}, 'must be JSON'),
  ],
)
def test_a_wrong_setting_is_named_and_nothing_is_written(save, tmp_path, settings, told):
  with pytest.raises(ValueError, match=told):
    save(**settings)
  assert list(tmp_path.iterdir()) == []


def test_timm_names_for_a_layer_that_timm_has_not(tmp_path):
  model = seed_classifier(5, image_size=8, widths=(2, 2, 8), hidden=4)
  with pytest.raises(WeightsError, match='timm_names says nothing of'):
    save_weights(tmp_path / 'm', model, small.draw(model), name='a', library='timm')


# Whole or not at all


@pytest.mark.parametrize('there', FILES)
def test_what_is_there_stays_unless_it_may_go(save, tmp_path, there):
  (tmp_path / 'm').mkdir()
  (tmp_path / 'm' / there).write_text('mine')
  with pytest.raises(WeightsError, match=f'{there}: is there already; overwrite=True'):
    save()
  assert [path.name for path in (tmp_path / 'm').iterdir()] == [there]
  assert (tmp_path / 'm' / there).read_text() == 'mine'
  save(overwrite=True)
  small.assert_same(load_weights(tmp_path / 'm', MODEL, image_size=8), small.draw(MODEL))


def test_a_write_that_fails_leaves_what_was_there(save, tmp_path, monkeypatch):
  before = {path.name: path.read_bytes() for path in save().iterdir()}

  def full(file, tensors, metadata):
    file.write_bytes(b'half')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(safetensors, 'write', full)
  with pytest.raises(WeightsError, match='m: cannot be written: .*No space left'):
    save(overwrite=True, description='new')
  assert {path.name: path.read_bytes() for path in (tmp_path / 'm').iterdir()} == before
  with pytest.raises(WeightsError, match='cannot be written'):
    save('new/deeper')
  assert not (tmp_path / 'new').exists()


def test_files_have_the_permissions_of_any_new_file(save, tmp_path):
  (tmp_path / 'other').touch()
  modes = {path.stat().st_mode for path in [*save().iterdir(), tmp_path / 'other']}
  assert len(modes) == 1


def test_a_link_is_replaced_and_not_written_through(save, tmp_path):
  (tmp_path / 'm').mkdir()
  (tmp_path / 'elsewhere').write_text('mine')
  (tmp_path / 'm' / 'model.safetensors').symlink_to(tmp_path / 'elsewhere')
  with pytest.raises(WeightsError, match='is there already'):
    save()
  folder = save(overwrite=True)
  assert (tmp_path / 'elsewhere').read_text() == 'mine'
  assert not (folder / 'model.safetensors').is_symlink()


def test_what_is_no_folder_or_no_file_is_refused(save, tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(WeightsError, match='file: is a file; weights are written into a folder'):
    save('file')
  os.makedirs(tmp_path / 'm' / 'model.safetensors')
  with pytest.raises(WeightsError, match=r'model\.safetensors: is a folder'):
    save(overwrite=True)
  assert sorted(path.name for path in (tmp_path / 'm').iterdir()) == ['model.safetensors']
