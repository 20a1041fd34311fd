"""The walls of the house: imports point down only, and the house card is kept."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# Room -> rooms it may import. Never sideways, never up.
GROUND = {'ops', 'types', 'names', 'layers', 'layouts', 'npz_member', 'settings'}
FLOORS = {
  'names': set(),
  'types': set(),
  'settings': set(),
  'layouts': set(),
  'npz_member': set(),
  'cost': set(),
  'ops': {'types', 'names'},
  'layers': {'ops', 'types', 'names'},
  'attention': GROUND,
  'pooling': GROUND,
  'backbones': GROUND,
  'data': GROUND,
  'models': GROUND | {'cost', 'attention', 'pooling', 'backbones'},
  'weights': GROUND | {'attention', 'pooling', 'backbones'},
  'training': GROUND,
  'explain': GROUND | {'attention', 'pooling', 'backbones', 'models'},
}
FILES = sorted((ROOT / 'jattn').rglob('*.py'))


def room_of(path: pathlib.Path) -> str:
  return path.relative_to(ROOT / 'jattn').parts[0].removesuffix('.py')


def imports(path: pathlib.Path):
  """(line, dotted name) of everything that a file imports, inside functions too."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}:{node.lineno} relative import'
      yield from ((node.lineno, f'{node.module}.{alias.name}') for alias in node.names)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
  room = room_of(path)
  for line, name in imports(path):
    assert not name.startswith(('experiments', 'tests', 'tensorflow.')), f'{path}:{line} {name}'
    parts = name.split('.')
    if parts[0] != 'jattn' or room == '__init__':
      continue
    target = parts[1]
    assert target == room or target in FLOORS[room], f'{path}:{line} {room} may not import {name}'


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_house_card(path):
  tree = ast.parse(path.read_text())
  assert path.stem not in ('utils', 'common', 'misc', 'helpers')
  assert ast.get_docstring(tree), f'{path} says not what it is'
  for node in ast.walk(tree):
    assert not isinstance(node, ast.Assert), f'{path}:{node.lineno} bare assert'
    if not isinstance(node, ast.FunctionDef):
      continue
    names = [a.arg for a in node.args.args]
    assert 'rng' not in names, f'{path}:{node.lineno} call it key'
    if 'key' in names and names[0] != 'self':
      assert names[0] == 'key' or node.name.startswith('_') or 'loss' in node.name, (
        f'{path}:{node.lineno} key comes first'
      )


def test_every_room_is_on_the_plan():
  assert {room_of(path) for path in FILES} - {'__init__'} <= set(FLOORS)


def run(code: str) -> str:
  return subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT
  ).stdout.strip()


def test_importing_jattn_brings_no_heavy_package():
  heavy = 'tensorflow tensorflow_datasets orbax grain matplotlib torch PIL'.split()
  heavy += 'tensorboardX safetensors'.split()
  code = f'import sys, jattn; print([m for m in {heavy} if m in sys.modules])'
  assert run(code) == '[]'


def test_every_public_name_is_there_when_it_is_touched_and_not_before():
  rooms = '[m for m in sys.modules if m.startswith("jattn.")]'
  code = f'import sys, jattn; print({rooms}, sorted(set(jattn.__all__) - set(dir(jattn))))'
  assert run(code) == "['jattn.types'] []"
  code = 'import jattn; print(all(getattr(jattn, name) is not None for name in jattn.__all__))'
  assert run(code) == 'True'


def test_importing_everything_brings_no_tensorflow():
  code = (
    'import sys, jattn, jattn.data, jattn.training, jattn.training.checkpoint, experiments.run; '
    'jattn.data.load("digits"); print("tensorflow" in sys.modules, "torch" in sys.modules)'
  )
  assert run(code) == 'False False'


def test_nothing_unpickles_or_evaluates():
  banned = {'pickle', 'cloudpickle', 'dill', 'marshal', 'shelve', 'yaml'}
  for path in [*FILES, *(ROOT / 'experiments').rglob('*.py')]:
    for line, name in imports(path):
      assert name.split('.')[0] not in banned, f'{path}:{line} imports {name}'
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        assert node.func.id not in ('eval', 'exec'), f'{path}:{node.lineno}'
      if isinstance(node, ast.keyword) and node.arg == 'allow_pickle':
        assert isinstance(node.value, ast.Constant), f'{path}:{node.value.lineno}'
        assert node.value.value is False, f'{path}:{node.value.lineno}'
