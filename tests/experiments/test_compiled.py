"""Where compiled programs are kept, and where not."""

import os

import pytest

from experiments.compiled import keep_compiled


def test_a_private_directory_of_the_user(tmp_path):
  environment = {'XDG_CACHE_HOME': str(tmp_path)}
  keep_compiled(environment)
  (directory,) = (tmp_path / 'jattn' / 'compiled').iterdir()
  assert environment['JAX_COMPILATION_CACHE_DIR'] == str(directory)
  assert directory.stat().st_mode & 0o777 == 0o700


def test_what_the_user_told_jax_stands(tmp_path):
  environment = {'XDG_CACHE_HOME': str(tmp_path), 'JAX_COMPILATION_CACHE_DIR': 'mine'}
  keep_compiled(environment)
  assert environment['JAX_COMPILATION_CACHE_DIR'] == 'mine'
  assert not list(tmp_path.iterdir())


def test_a_directory_that_others_can_write_is_not_used(tmp_path):
  environment = {'XDG_CACHE_HOME': str(tmp_path)}
  keep_compiled(dict(environment))
  (directory,) = (tmp_path / 'jattn' / 'compiled').iterdir()
  os.chmod(directory, 0o777)
  keep_compiled(environment)
  assert 'JAX_COMPILATION_CACHE_DIR' not in environment


def test_nowhere_to_write_is_no_error(tmp_path):
  (tmp_path / 'file').write_text('')
  environment = {'XDG_CACHE_HOME': str(tmp_path / 'file')}
  keep_compiled(environment)
  assert 'JAX_COMPILATION_CACHE_DIR' not in environment


@pytest.mark.parametrize('chosen', ['', '5'])
def test_short_programs_are_kept_unless_told_otherwise(tmp_path, chosen):
  name = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'
  environment = {'XDG_CACHE_HOME': str(tmp_path)} | ({name: chosen} if chosen else {})
  keep_compiled(environment)
  assert environment[name] == (chosen or '0.1')
