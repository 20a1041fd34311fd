"""What is said when a checkpoint cannot be saved or used."""

from pathlib import Path


class CheckpointError(RuntimeError):
  """A checkpoint could not be saved or restored: path, reason, what to do; at most 5 lines."""


class CheckpointWarning(UserWarning):
  """A checkpoint was passed over, and why."""


def one_line(error: Exception) -> str:
  """Its type and the first line of what it says, at most 300 letters."""
  lines = str(error).strip().splitlines()
  text = f'{type(error).__name__}: {lines[0].strip()}' if lines else type(error).__name__
  return text if len(text) <= 300 else f'{text[:297]}...'


def not_saved(directory: Path, step: int, error: Exception) -> CheckpointError:
  """The error of a save that did not come to its end."""
  result = CheckpointError(
    f'{directory}: step {step} could not be saved: {one_line(error)}\n'
    'Older checkpoints are untouched. Check the free space and the permissions, then save again.'
  )
  result.__cause__ = error
  return result


def unreadable(path: Path, error: Exception) -> CheckpointError:
  """The error of a checkpoint that is whole, but not one that Orbax can read."""
  return CheckpointError(
    f'{path}: this checkpoint verifies but cannot be read: {one_line(error)}\n'
    'It may need the version of orbax-checkpoint that wrote it.'
  )


def none_verifies(directory: Path, faults: dict[int, str]) -> str:
  """What is said of steps none of which verifies, by the reason of each."""
  shown = [f'  step {step}: {reason}' for step, reason in faults.items()]
  if len(shown) > 3:
    shown = [*shown[:2], f'  and {len(shown) - 2} more']
  return '\n'.join(
    [
      f'{directory}: none of its checkpoints can be used:',
      *shown,
      'Put a good copy back, or choose a new directory to start from the beginning.',
    ]
  )
