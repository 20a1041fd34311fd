"""The command that times everything, with stand-ins for what takes minutes."""

import json

import jax
import pytest

from experiments.errors import ConfigError, RunError
from experiments.speed import __main__ as speed
from experiments.speed import clock, links, page


def test_turns_are_taken_in_order_and_warming_up_is_not_counted():
  seen = []
  steps = {'a': lambda: seen.append('a'), 'b': lambda: seen.append('b')}
  times = clock.take_turns(steps, 3, warm=1)
  assert seen == ['a', 'b'] * 4
  assert [len(spent) for spent in times.values()] == [3, 3]


def test_no_further_round_begins_when_the_time_is_up():
  times = clock.take_turns({'a': lambda: None}, 100, warm=1, seconds=0)
  assert len(times['a']) == 3


def test_the_best_of_the_others_is_what_counts():
  times = {'jattn': [2.0, 4.0, 3.0], 'slow': [9.0, 9.0, 9.0], 'fast': [1.0, 6.0, 7.0]}
  found = clock.against(times, 'jattn')
  assert found['ratio'] == pytest.approx(6 / 3)
  assert found['ratio_of_fastest'] == pytest.approx(1 / 2)
  assert found['median_ms']['slow'] == pytest.approx(9000)
  assert found['rounds'] == 3


def test_rows_are_written_as_they_come_and_what_is_missing_is_said(monkeypatch, tmp_path, capsys):
  def missing(_):
    raise ConfigError('this row needs PyTorch')

  rows = {
    'C1': speed.Row('one', '>= 1', lambda f: f['ratio'] >= 1, lambda n: {'id': 'C1', 'ratio': n}),
    'C2': speed.Row('two', '>= 1', lambda f: f['ratio'] >= 1, missing),
    'C3': speed.Row('three', '>= 9', lambda f: f['ratio'] >= 9, lambda n: {'id': 'C3', 'ratio': n}),
  }
  monkeypatch.setattr(speed, 'rows', lambda: rows)
  apart = []

  def measured_apart(name, rounds):
    apart.append(name)
    return rows[name].measure(rounds)

  monkeypatch.setattr(speed, '_apart', measured_apart)
  file = tmp_path / 'new' / 'lines.jsonl'
  assert speed.main(['--rounds', '4', '--out', str(file)]) == 0
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  assert [(line['id'], line['ratio']) for line in lines] == [('C1', 4), ('C3', 4)]
  assert {'device', 'versions', 'load', 'date', 'git'} <= lines[0].keys()
  out = capsys.readouterr()
  assert 'needs PyTorch' in out.err
  table = [line.split()[-1] for line in out.out.splitlines()[-3:]]
  assert table == ['yes', 'measured', 'no']
  assert speed.main(['--rounds', '4', '--only', 'C1']) == 0
  assert apart == ['C1', 'C2', 'C3']


def test_a_row_is_measured_in_a_process_of_its_own(capfd):
  assert speed._apart('memory', 1)['id'] == 'memory'
  with pytest.raises(RunError, match='see above'):
    speed._apart('C77', 1)
  assert 'there is no such row' in capfd.readouterr().err


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--only', 'C77'], '--only C77: there is no such row; there are C1, C2'),
    (['--rounds', '0'], '--rounds 0'),
  ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
  with pytest.raises(ConfigError, match=message):
    speed.main(arguments)


def test_the_page_has_the_median_line_of_the_newest_commit_of_every_row(tmp_path):
  facts = {'device': 'cpu', 'processor': 'P', 'cores': 2, 'versions': {'jax': '1', 'torch': '2'}}
  facts |= {'date': '2026-01-01', 'git': 'a' * 40, 'load': [0.1, 0.2], 'rounds': 20}
  lines = [{'id': 'C1', 'ratio': 0.5, **facts, 'git': 'b' * 40}]
  lines += [{'id': 'C1', 'ratio': ratio, **facts} for ratio in (1.5, 0.75, 1.25)]
  file = tmp_path / 'speed.jsonl'
  file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  text = page.render(file)
  (row,) = (line for line in text.splitlines() if line.startswith('| C1 |'))
  assert '| 1.25 (of 0.75, 1.25, 1.5) |' in row
  assert '| yes |' in row
  (row,) = (line for line in text.splitlines() if line.startswith('| C2 |'))
  assert 'not measured' in row


def test_the_page_has_the_cost_of_a_step_and_what_links_take(tmp_path):
  facts = {'device': 'G', 'processor': 'P', 'cores': 2, 'versions': {'jax': '1'}}
  facts |= {'date': '2026-01-01', 'load': [0.1, 0.2]}
  step = {'batch': 4, 'multiply_accumulates': 3_000_000_000, 'temporary_bytes': 2**21}
  card = {'matrix_tflops': 8.0, 'step_tflops': 4.0, 'model': 'm', 'step_ms': 10.0, **step}
  step |= {'ratio': 2.0, 'median_ms': {'jattn': 20.0, 'torch': 40.0}}
  model = {'size': 32, 'parameter_bytes': 2e6, 'bytes': {'all-reduce': 3e6}}
  model['ring_ms'] = {'wire': 0.5}
  lines = [
    {'id': 'C5', 'ratio': 2.0, 'networks': {'plain': step}},
    {'id': 'G4', 'ratio': 0.5, **card},
    {'id': 'links', 'ratio': 1.5, 'devices': 8, 'models': {'net': model}},
  ]
  file = tmp_path / 'speed.jsonl'
  file.write_text(''.join(json.dumps(facts | line) + '\n' for line in lines))
  text = page.render(file)
  assert '| C5 | resnet20 | 4 | 3 G | 150 G | 2 MiB |' in text
  assert '| G4 | m | 4 | 3 G | 300 G | 2 MiB |' in text
  assert 'Measured on: G, P, 2 cores' in text
  assert '| network | image side | parameters | reduced | wire |' in text
  assert '| net | 32 | 2 MB | 3 MB | 0.5 ms |' in text
  assert '4 of 8 TFLOP/s, m' in text


def test_collectives_are_read_from_a_program():
  text = """
  %a = (f32[2,3]{1,0}, bf16[]) all-reduce-start(%x, %y), channel_id=1
  %b = (f32[2,3]{1,0}, bf16[]) all-reduce-done(%a)
  ROOT %c = f32[4]{0} all-gather(f32[2]{0} %z), dimensions={0}
  %d = f32[100]{0} add(%all-reduce, %z)
  """
  assert links.collective_bytes(text) == {'all-reduce': 26, 'all-gather': 16}


def test_a_step_on_many_devices_reduces_its_gradients():
  found = links.measure('resnet20', 8, batch=8 * jax.device_count())
  assert found['parameter_bytes'] == 4 * 269_722
  assert 1 <= found['bytes']['all-reduce'] / found['parameter_bytes'] < 1.1


def test_the_page_is_what_the_lines_say():
  assert (page.HERE / 'README.md').read_text() == page.render(page.RESULTS)
