"""State, step, loop, checkpoints, metrics, mesh; knows neither models nor data."""

from jattn.training.depth import Layers, layer_list, layer_scales
from jattn.training.freezing import freeze
from jattn.training.loop import Fitted, evaluate, fit
from jattn.training.mesh import make_mesh, place_batch, replicated, state_sharding
from jattn.training.metrics import Metrics, measure
from jattn.training.optimizer import make_optimizer, make_schedule
from jattn.training.preemption import Preemption
from jattn.training.state import TrainState, begin, create_state, start_state
from jattn.training.step import StepMetrics, make_eval_step, make_train_step, make_update

__all__ = [
  'Fitted',
  'Layers',
  'Metrics',
  'Preemption',
  'StepMetrics',
  'TrainState',
  'begin',
  'create_state',
  'evaluate',
  'fit',
  'freeze',
  'layer_list',
  'layer_scales',
  'make_eval_step',
  'make_mesh',
  'make_optimizer',
  'make_schedule',
  'make_train_step',
  'make_update',
  'measure',
  'place_batch',
  'replicated',
  'start_state',
  'state_sharding',
]
