"""The writer of TensorBoard's events, without the seconds that PyTorch takes to import.

``tensorboardX`` imports PyTorch where it is installed, to name its tensors in a type; nothing here
gives it one.
"""

import sys

_HIDDEN = 'torch' not in sys.modules
if _HIDDEN:
  sys.modules['torch'] = None  # the import system's way to say that there is none
try:
  from tensorboardX import SummaryWriter
finally:
  if _HIDDEN:
    del sys.modules['torch']

__all__ = ['SummaryWriter']
