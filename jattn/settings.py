"""What a user may set, checked before anything is computed."""

import dataclasses

import flax.linen as nn

_FROM_ZERO = ('depth', 'halo')
_WITH_A_RULE_OF_THEIR_OWN = ('extent', 'shift')
_RATIOS = ('reduction', 'mlp_ratio')


def check_counts(module: nn.Module) -> None:
  """Checks that every field of a module that counts something counts at least one.

  A count is a field annotated ``int`` or ``int | None``; ``depth`` and ``halo`` may be zero,
  and the ratios ``reduction`` and ``mlp_ratio`` anything above zero. ``extent`` and ``shift`` are
  left to their mechanisms.

  Raises:
    ValueError: a count is too small; the message names it.
  """
  for field in dataclasses.fields(module):
    value = getattr(module, field.name, None)
    if value is None or field.name in _WITH_A_RULE_OF_THEIR_OWN:
      continue
    if field.name in _RATIOS:
      if not value > 0:
        raise ValueError(f'self.{field.name}={value!r} must be above zero')
    elif field.type in (int, int | None):
      least = 0 if field.name in _FROM_ZERO else 1
      if value < least:
        raise ValueError(f'self.{field.name}={value!r} must be at least {least}')
