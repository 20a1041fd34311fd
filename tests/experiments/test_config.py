"""The command line: every flag documented, mistakes answered, files as strict as flags."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

from experiments import config as configuration
from experiments.config import PRESETS, TrainConfig, parse
from experiments.errors import ConfigError

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope='module')
def help_text():
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.train', '--help'],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=True,
    env={'COLUMNS': '90', 'PATH': ''},
  )
  return done.stdout


def fields(cls=TrainConfig, prefix=''):
  for field in dataclasses.fields(cls):
    default = field.default_factory() if callable(field.default_factory) else field.default
    if dataclasses.is_dataclass(default):
      yield from fields(type(default), f'{prefix}{field.name}.')
    else:
      yield f'--{prefix}{field.name}'.replace('_', '-')


@pytest.mark.parametrize('flag', list(fields()))
def test_every_flag_has_a_meaning_and_a_default(help_text, flag):
  lines = help_text.splitlines()
  (index,) = [i for i, line in enumerate(lines) if line.startswith(f'│ {flag} ')]
  entry = lines[index]
  for line in lines[index + 1 :]:
    if line.startswith('│ -') or '──' in line:
      break
    entry += line
  assert '(default:' in entry
  meaning = entry.partition(flag)[2].partition('(default:')[0]
  assert len(meaning.replace('│', ' ').split()) > 4, entry


def test_help_does_not_wait_for_jax():
  code = (
    'import sys\nfrom experiments.config import parse\nfrom experiments import train\n'
    "try: parse(['--help'])\nexcept SystemExit: pass\n"
    "sys.exit(' '.join({'jax', 'jattn', 'numpy', 'matplotlib'} & set(sys.modules)) or 0)"
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
  assert (done.returncode, done.stderr) == (0, '')


def test_no_argument_is_the_seed_on_digits():
  config = parse([])
  assert (config.model, config.data) == ('seed_classifier', 'digits')
  assert config == PRESETS['digits']


def test_presets_of_the_twins_differ_in_the_model_alone():
  for base in ('digits', 'cifar10'):
    for arm in ('no_attention', 'weighted_average'):
      twin = PRESETS[f'{base}_{arm}']
      assert twin.model == f'seed_classifier_{arm}'
      assert dataclasses.replace(twin, model='seed_classifier') == PRESETS[base]


def test_published_recipes_are_as_published():
  """Numbers of the papers, written here once more."""
  residual, squeezed = PRESETS['resnet20_cifar10'], PRESETS['se_resnet20_cifar10']
  assert (residual.model, residual.steps, residual.batch_size) == ('resnet20', 64_000, 128)
  optimizer = residual.optimizer
  assert (optimizer.learning_rate, optimizer.momentum, optimizer.weight_decay) == (0.1, 0.9, 1e-4)
  assert [drop * residual.steps for drop in optimizer.drops] == [32_000, 48_000]
  assert (optimizer.nesterov, optimizer.warmup, optimizer.clip_norm) == (False, 0, None)
  assert dataclasses.replace(squeezed, attention=None) == residual
  compact = PRESETS['cct_2_cifar10']
  assert (compact.model, compact.epochs, compact.batch_size) == ('cct_2_3x2_32', 200, 128)
  assert (compact.optimizer.learning_rate, compact.optimizer.weight_decay) == (5e-4, 3e-2)
  assert compact.optimizer.warmup * compact.epochs == 5
  assert (compact.label_smoothing, compact.augment.auto) == (0.1, 'cifar10')
  for config in PRESETS.values():
    configuration.check(config)


def test_flags_that_scripts_rely_on():
  config = parse(
    '--out r --steps 3 --epochs 2 --batch-size 16 --seed 7 --model m --data npz:x --data-dir d '
    '--checkpoint-every 5 --precision bfloat16'.split()
  )
  assert config == dataclasses.replace(
    PRESETS['digits'],
    out=pathlib.Path('r'),
    steps=3,
    epochs=2,
    batch_size=16,
    seed=7,
    model='m',
    data='npz:x',
    data_dir=pathlib.Path('d'),
    checkpoint_every=5,
    precision='bfloat16',
  )


def test_a_mistyped_flag_gets_a_suggestion(capsys):
  with pytest.raises(SystemExit) as caught:
    parse(['--bach-size', '3'])
  assert caught.value.code == 2
  assert '--batch-size' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['cifar11'], "no preset is called 'cifar11'"),
    (['--batch-size', '0'], '--batch-size 0 must be at least 1'),
    (['--batch-size', '10', '--accumulate', '3'], '--accumulate 3 must divide --batch-size 10'),
    (['--data', 'cifar10'], 'must be digits, tfds:NAME'),
    (['--data', 'tfds:'], 'must be digits, tfds:NAME'),
    (['--optimizer.warmup', '1'], '--optimizer.warmup 1.0 must be in'),
    (['--ema-decay', '1.5'], '--ema-decay 1.5'),
    (['--seed', '-1'], '--seed -1'),
    (['--epochs', 'nan'], '--epochs nan'),
    (['--epochs', 'inf'], '--epochs inf must be a finite number'),
    (['--steps', '99999999999999999999'], '--steps 9+ must be below'),
    (['--augment.mixup', 'inf'], '--augment.mixup inf must be a finite number'),
    (['--optimizer.clip-norm', '-1'], '--optimizer.clip-norm -1.0 must be above 0 or None'),
    (['--optimizer.clip-norm', '0'], '--optimizer.clip-norm 0.0 must be above 0 or None'),
    (['--checkpoint-every', '0'], '--checkpoint-every 0'),
    (['--mimetic', '-1'], '--mimetic -1.0 must be at least 0 or None'),
    (['--drop-path', '1'], '--drop-path 1.0 must be in'),
    (['--crop-ratio', '0'], '--crop-ratio 0.0 must be in'),
    (['--image-size', '0'], '--image-size 0 must be at least 1'),
    (['--freeze', 'stage1'], '--freeze stage1 must be stem, stage_S, stage_S/block_I or backbone'),
    (['--optimizer.layer-decay', '0'], '--optimizer.layer-decay 0.0 must be in'),
    (['--optimizer.drops', '0.5', '0.5'], r'--optimizer.drops \(0.5, 0.5\) must be rising'),
    (['--augment.rand-magnitude', '11'], '--augment.rand-magnitude 11.0 must be in 0..10'),
    (['--augment.mix-switch', '2'], '--augment.mix-switch 2.0 must be in'),
    (['--augment.crop-area', '0.5'], '--augment.crop-padding 3 do not go together'),
    (
      ['photographs', '--augment.auto', 'cifar10'],
      '--augment.auto cifar10 and --augment.rand-layers 2 do not go together',
    ),
    (['--store-size', '40'], '--store-size needs --augment.crop-area and --image-size'),
    (['--config'], 'needs the path'),
    (['--config', 'nowhere.json'], 'cannot read nowhere.json'),
  ],
)
def test_bad_combinations_are_refused_by_name(arguments, message):
  with pytest.raises(ConfigError, match=message):
    parse(arguments)


def test_a_configuration_survives_json(tmp_path):
  config = parse(
    'cifar10 --seed 3 --ema-decay 0.9 --data-dir /d --optimizer.clip-norm None --init-from /w '
    '--in-memory False --attention none --optimizer.drops 0.25 0.5 0.75'.split()
  )
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(configuration.to_json(config)))
  assert configuration.load(path) == config
  again = parse(['--config', str(path), '--seed', '4'])
  assert again == dataclasses.replace(config, seed=4)


@pytest.mark.parametrize(
  'text',
  ['{', '[]', '{"batch_siz": 3}', '{"batch_size": "many"}', '{"precision": "float16"}'],
)
def test_a_bad_file_is_a_configuration_error(tmp_path, text, capsys):
  path = tmp_path / 'config.json'
  path.write_text(text)
  with pytest.raises(ConfigError, match=r'config\.json'):
    configuration.load(path)


def test_the_difference_names_what_counts_and_leaves_out_what_does_not():
  old = configuration.to_json(PRESETS['digits'])
  new = configuration.to_json(
    dataclasses.replace(
      PRESETS['digits'],
      seed=1,
      keep=9,
      log_every=1,
      data_dir=pathlib.Path('/elsewhere'),
      optimizer=dataclasses.replace(PRESETS['digits'].optimizer, learning_rate=0.5),
    )
  )
  assert configuration.difference(old, new) == [
    f'optimizer.learning_rate: {PRESETS["digits"].optimizer.learning_rate} -> 0.5',
    'seed: 0 -> 1',
  ]


def test_the_default_directory_is_a_plain_name():
  config = dataclasses.replace(PRESETS['digits'], data='folder:/a b/../c', seed=2)
  assert str(configuration.default_out(config)) == 'runs/seed_classifier-folder_a_b_.._c-seed2'
