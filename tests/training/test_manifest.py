"""What would turn these red: a file left out of the manifest, a comparison that is not exact."""

import os
import random
import shutil
import subprocess

import pytest

from jattn.training import manifest


@pytest.fixture
def directory(tmp_path):
  root = tmp_path / 'step'
  (root / 'a' / 'b').mkdir(parents=True)
  (root / 'a' / 'b' / 'data').write_bytes(random.Random(0).randbytes(5000))
  (root / 'a' / 'empty').write_bytes(b'')
  (root / 'meta.json').write_text('{"x": 1}')
  manifest.write(root)
  return root


def test_an_untouched_directory_has_no_fault(directory):
  assert manifest.fault(directory) is None
  assert sorted(os.listdir(directory)) == ['a', 'manifest.sha256', 'meta.json']


def test_sha256sum_agrees(directory):
  if not shutil.which('sha256sum'):
    pytest.skip('no sha256sum on this machine')
  check = ['sha256sum', '--check', '--strict', manifest.NAME]
  assert subprocess.run(check, cwd=directory, capture_output=True).returncode == 0


def test_no_bit_of_the_manifest_itself_flips_unseen(directory):
  path = directory / manifest.NAME
  good = path.read_bytes()
  for bit in range(0, 8 * len(good), 3):  # All eight places in a byte, in turn.
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bad)
    assert manifest.fault(directory), f'bit {bit} of the manifest can flip unseen'
  path.write_bytes(good)
  assert manifest.fault(directory) is None


@pytest.mark.parametrize('size', [0, 1, 65, 90])
def test_a_truncated_manifest_is_a_fault(directory, size):
  path = directory / manifest.NAME
  path.write_bytes(path.read_bytes()[:size])
  assert manifest.NAME in manifest.fault(directory) or 'not in' in manifest.fault(directory)


def test_a_manifest_cut_between_lines_leaves_files_unvouched(directory):
  path = directory / manifest.NAME
  path.write_text(''.join(path.read_text().splitlines(keepends=True)[:-1]))
  assert manifest.fault(directory) == 'meta.json is not in manifest.sha256'


@pytest.mark.parametrize('line', ['0' * 64 + '  meta.json\n', 'x', '\n', '0' * 64 + '  ?\r\n'])
def test_a_manifest_with_something_added_is_a_fault(directory, line):
  with open(directory / manifest.NAME, 'a', newline='') as file:
    file.write(line)
  assert manifest.fault(directory)


def test_a_manifest_that_names_a_file_twice_is_a_fault(directory):
  path = directory / manifest.NAME
  path.write_text(path.read_text() + path.read_text().splitlines(keepends=True)[-1])
  assert 'damaged at line 4' in manifest.fault(directory)


def change_truncate(root):
  os.truncate(root / 'a/b/data', 4999)


def change_empty(root):
  os.truncate(root / 'a/b/data', 0)


def change_delete(root):
  (root / 'a/empty').unlink()


def change_add(root):
  (root / 'a/more').write_bytes(b'')


def change_rename(root):
  (root / 'meta.json').rename(root / 'meta2.json')


def change_directory_for_file(root):
  (root / 'a/empty').unlink()
  (root / 'a/empty').mkdir()


def change_no_manifest(root):
  (root / manifest.NAME).unlink()


def change_link_to_the_same_bytes(root):
  (root / 'meta.json').rename(root.parent / 'elsewhere')
  (root / 'meta.json').symlink_to(root.parent / 'elsewhere')


def change_link_to_a_directory(root):
  (root / 'a').rename(root.parent / 'elsewhere')
  (root / 'a').symlink_to(root.parent / 'elsewhere')


def change_linked_manifest(root):
  (root / manifest.NAME).rename(root.parent / 'elsewhere')
  (root / manifest.NAME).symlink_to(root.parent / 'elsewhere')


def change_link_as_a_whole(root):
  root.rename(root.parent / 'elsewhere')
  root.symlink_to(root.parent / 'elsewhere')


def change_pipe(root):
  os.mkfifo(root / 'pipe')


def change_removed(root):
  shutil.rmtree(root)


@pytest.mark.parametrize(
  ('change', 'reason'),
  [
    (change_truncate, 'a/b/data is not the file that was saved'),
    (change_empty, 'a/b/data is not the file that was saved'),
    (change_delete, 'a/empty is missing'),
    (change_add, 'a/more is not in manifest.sha256'),
    (change_rename, 'meta.json is missing'),
    (change_directory_for_file, 'a/empty is missing'),
    (change_no_manifest, 'it has no manifest.sha256'),
    (change_link_to_the_same_bytes, "'meta.json' is a symbolic link"),
    (change_link_to_a_directory, "'a' is a symbolic link"),
    (change_linked_manifest, "'manifest.sha256' is a symbolic link"),
    (change_link_as_a_whole, 'it is a symbolic link'),
    (change_pipe, "'pipe' is neither a file nor a directory"),
    (change_removed, 'it does not exist'),
  ],
)
def test_a_changed_directory_has_its_fault_named(directory, change, reason):
  change(directory)
  assert reason in manifest.fault(directory)
  assert '\n' not in manifest.fault(directory)


@pytest.mark.parametrize('name', ['../outside', '/etc/hostname', 'a/../../outside'])
def test_a_manifest_path_that_leads_out_is_refused(directory, name):
  (directory.parent / 'outside').write_bytes(b'')
  with open(directory / manifest.NAME, 'a') as file:
    file.write('0' * 64 + f'  {name}\n')
  assert 'outside of the directory' in manifest.fault(directory)


def test_a_manifest_is_not_written_over_a_link(directory):
  (directory / 'link').symlink_to('meta.json')
  with pytest.raises(manifest.ManifestError, match='link'):
    manifest.write(directory)
