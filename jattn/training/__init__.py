"""State, step, loop, checkpoints, metrics, mesh; knows neither models nor data.

Fine-tuning a network on images of one's own, by hand: rates that fall towards the images, a stem
and a stage that stay as they are, augmentation inside the step, a moving average.

>>> import functools, jax, jax.numpy as jnp, jattn
>>> from jattn import training
>>> from jattn.data import augment
>>> from jattn.ops import normalize
>>> dataset = jattn.data.load('digits')  # 'folder:PATH', size=256, eval_size=224, crop_ratio=0.875
>>> model = jattn.models.resnet_cifar(10, depth=8, widths=(4, 4, 8), attention='eca')
>>> images = jnp.zeros((1, 32, 32, 3))   # weights of a file: jattn.load_weights(PATH, model, ...)
>>> variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))
>>> optimizer = training.make_optimizer(
...   'adamw', 1e-3, weight_decay=0.05, layer_decay=0.75, freeze='stage_0'
... )
>>> recipe = augment.compose(
...   functools.partial(augment.random_resized_crop, size=24, area=(0.5, 1.0)),
...   augment.of_images(functools.partial(normalize, mean=dataset.mean, std=dataset.std)),
...   functools.partial(augment.mixup_or_cutmix, mixup=1.0, cutmix=1.0),
... )
>>> mesh = training.make_mesh(devices=jax.devices()[:1])
>>> state = training.start_state(variables, optimizer, seed=0, mesh=mesh, ema=True)
>>> step = training.make_train_step(
...   training.freeze(model.apply, 'stage_0'),
...   optimizer, mesh, num_classes=10, augment=recipe, label_smoothing=0.1, ema_decay=0.999,
... )
>>> fitted = training.fit(state, step, dataset.batches(batch_size=8, seed=0), steps=2, mesh=mesh)
>>> still = fitted.state.params['backbone']['conv']['kernel']
>>> bool((still == variables['params']['backbone']['conv']['kernel']).all())
True

With several processes, after ``jax.distributed.initialize()``, each gives ``batches`` its
``process_index`` and ``process_count``; all call ``fit``, ``evaluate`` and ``Checkpoints`` alike.
"""

from jattn.training.depth import Layers, layer_list, layer_scales
from jattn.training.freezing import freeze
from jattn.training.loop import Fitted, evaluate, fit
from jattn.training.mesh import make_mesh, place_batch, replicated, state_sharding
from jattn.training.metrics import Metrics, measure
from jattn.training.optimizer import make_optimizer, make_schedule
from jattn.training.preemption import Preemption
from jattn.training.processes import tell_all, whole
from jattn.training.state import TrainState, create_state, start_state, state_of
from jattn.training.step import StepMetrics, make_eval_step, make_train_step, make_update

__all__ = [
  'Fitted',
  'Layers',
  'Metrics',
  'Preemption',
  'StepMetrics',
  'TrainState',
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
  'state_of',
  'state_sharding',
  'tell_all',
  'whole',
]
