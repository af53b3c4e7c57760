"""SageMaker Debugger's hook (smdebug): losses, gradients and weights of the training, saved as its rules read them.

`job`: what to save stands in debughookconfig.json beside this file, and the tensors leave with the job's output data.
`managed`: the service left its own debughookconfig.json in the job's configuration, and collects the tensors.
"""

import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import nn

from heads import NoObserver, Observer

HERE = Path(__file__).resolve().parent
WHEELS = HERE / "vendor"  # smdebug's dependency pins would take the container back years; the wheel alone does not
CONFIG = "debughookconfig.json"
MODES = ("job", "managed", "off")


class Debugger:
    """An observer of the training that saves tensors."""

    def __init__(self, hook: Any, modes: Any) -> None:
        self._hook, self._modes = hook, modes

    def watch(self, network: nn.Module, criterion: nn.Module) -> None:
        """Save from this network and this loss from now on; frozen parameters have no gradients to save."""
        self._hook.register_module(network)
        self._hook.register_loss(criterion)

    def training(self) -> None:
        """Steps that follow are training steps."""
        self._hook.set_mode(self._modes.TRAIN)

    def evaluating(self) -> None:
        """Forward passes that follow are validation."""
        self._hook.set_mode(self._modes.EVAL)

    def close(self) -> None:
        """Write what is pending and mark the end of the job."""
        self._hook.close()


def create(mode: str, save_interval: int, output_data_dir: Path, config_dir: Path) -> Observer:
    """The debugger for this job; nobody, with one warning, where smdebug or its configuration cannot be had.

    Args:
        mode: `job`, `managed` or `off`.
        save_interval: steps between two savings, for `job`; but every validation loss is saved.
        output_data_dir: tensors of `job` go to `debug/` below it.
        config_dir: where `managed` finds the service's debughookconfig.json.
    """
    if mode == "off":
        return NoObserver()
    config = config_dir / CONFIG
    if mode == "managed" and not config.is_file():
        print(f"WARNING: debugger=managed, but the service left no {config}: training goes on without it", flush=True)
        return NoObserver()
    try:
        smdebug = _import_smdebug()
    except ImportError as error:
        print(f"WARNING: smdebug cannot be imported ({error}): training goes on without the debugger", flush=True)
        return NoObserver()
    if mode == "job":
        settings = json.loads((HERE / CONFIG).read_text())
        settings["LocalPath"] = str(output_data_dir / "debug")
        settings["HookParameters"]["save_interval"] = str(save_interval)
        output_data_dir.mkdir(parents=True, exist_ok=True)
        config = output_data_dir / CONFIG
        config.write_text(json.dumps(settings, indent=1))
    print(f"debugger: saving tensors as {config} says", flush=True)
    return Debugger(smdebug.Hook.create_from_json_file(str(config)), smdebug.modes)


def _import_smdebug() -> ModuleType:
    """smdebug.pytorch, made to run on Python 3.12, NumPy 2.3 and protobuf 6, which are all younger than it is."""
    os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
    os.environ.setdefault("SMDEBUG_LOG_LEVEL", "warning")
    try:
        importlib.import_module("smdebug")
    except ImportError:
        sys.path[:0] = [str(wheel) for wheel in sorted(WHEELS.glob("smdebug-*.whl"))]
    _stand_in("pyinstrument", Profiler=None)
    _stand_in("pyinstrument.renderers", JSONRenderer=None)
    _stand_in("distutils", __path__=[])
    _stand_in("distutils.util", strtobool=_strtobool)
    smdebug = importlib.import_module("smdebug.pytorch")
    if not hasattr(np.ndarray, "tostring"):
        _restore_tostring()
    return smdebug


def _stand_in(name: str, **attributes: Any) -> None:
    """What smdebug imports but never calls as it is configured here, or what Python dropped; only where missing."""
    try:
        importlib.import_module(name)
    except ImportError:
        module = ModuleType(name)
        vars(module).update(attributes)
        sys.modules[name] = module


def _strtobool(text: str) -> bool:
    return text.strip().lower() in ("1", "true", "yes", "on", "y", "t")


def _restore_tostring() -> None:
    """NumPy 2.3 removed ndarray.tostring, which smdebug's writer calls; give it arrays that still have it."""
    util = importlib.import_module("smdebug.core.tfevent.util")
    writer = importlib.import_module("smdebug.core.writer")
    original = util.make_tensor_proto

    class Array(np.ndarray[Any, Any]):
        def tostring(self, order: Any = "C") -> bytes:
            return self.tobytes(order)

    def make_tensor_proto(nparray_data: Any, tag: str) -> Any:
        return original(np.asarray(nparray_data).view(Array), tag)

    for module in (util, writer):
        vars(module)["make_tensor_proto"] = make_tensor_proto
