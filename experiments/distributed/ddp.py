"""Lightning's DDP, whose processes meet, stop and end together."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from datetime import timedelta
from functools import partial
from typing import Any, ClassVar

import lightning.pytorch as L
import torch.distributed as dist
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.distributed.distributed_c10d import _get_default_store
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from typing_extensions import override

from experiments.distributed.averages import Average
from experiments.distributed.batch_norm import SyncedBatchNorm
from experiments.distributed.heartbeat import Heartbeat
from losses.errors import UsageError
from losses.processes import Sharing, process_count
from models.method import Method
from ranges import PositiveInt

_UNTIL_TOLD = 30
"""Seconds of waiting for the other processes before it is said where."""

_LAST_WORDS = 10
"""Seconds in which a process may end by itself, and say why, once another has ended."""

_GO_ON = "The last checkpoint is whole: go on with --ckpt_path last."

_STARTER = "LOCAL_LEARNING_STARTER"
"""Environment variable: the process that started the others of its machine."""


class DDP(DDPStrategy):
    """Lightning's DDP, whose processes meet, stop and end together; it is what ``--trainer.strategy ddp`` means here.

    A network of one block is wrapped in torch's ``DistributedDataParallel``. Of several blocks each averages its
    gradients once, right after its own backward pass and while the next block goes forward, and steps then.

    Args:
        timeout: seconds after which a process that does not answer, or does not come, counts as lost.
        **options: of torch's ``DistributedDataParallel``.

    Raises:
        UsageError: the processes do not meet, or one is lost.
    """

    steps_by_block: ClassVar[bool] = True
    """Whether several blocks, each with a backward pass of its own, are trained so."""

    _launcher: "Launcher"
    _under_way: Callable[[], None]  # the step that waits for its gradients

    def __init__(self, timeout: PositiveInt = 600, **options: Any) -> None:
        super().__init__(timeout=timedelta(seconds=timeout), **options)
        self._under_way = _nothing

    @override
    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    @override
    def setup_distributed(self) -> None:
        """Meet the other processes; who waits for long says where."""
        _require_new_meetings()
        there = self.cluster_environment
        assert there is not None
        meeting = f"{self.num_processes * self.num_nodes} processes at {there.main_address}:{there.main_port}"
        say = threading.Timer(_UNTIL_TOLD, print, [f"Waiting for all {meeting} (MASTER_ADDR, MASTER_PORT)."])
        say.daemon = True
        say.start()
        try:
            super().setup_distributed()
        except RuntimeError as fault:
            reason = str(fault).splitlines()[0]
            raise UsageError(
                f"No meeting of {meeting} ({reason}). Set MASTER_ADDR to the first machine and "
                "MASTER_PORT to a free port of it."
            ) from fault
        finally:
            say.cancel()
        self._launcher.watch(self.global_rank, self.world_size)

    @override
    def setup(self, trainer: L.Trainer) -> None:
        """Prepare the model; BatchNorm is synchronised on a CPU too."""
        Sharing.group = self.sharing
        self._layer_sync = self._layer_sync and SyncedBatchNorm()
        super().setup(trainer)

    @property
    def sharing(self) -> dist.ProcessGroup | None:
        """The group of those who share a batch with this process; None for all."""
        return None

    # -- several blocks -------------------------------------------------------------------------

    @override
    def configure_ddp(self) -> None:
        """Wrap a network of one block; of several, all processes begin with the first one's weights."""
        assert isinstance(self.model, Method)
        if self.model.schedule.parts == 1:
            super().configure_ddp()
        else:
            _sync_module_states(self.model)

    @override
    def optimizer_step(self, optimizer: Optimizer, *args: Any, **options: Any) -> Any:
        """Begin to average the gradients of a block; it steps when that is done."""
        step = partial(super().optimizer_step, optimizer, *args, **options)
        if isinstance(self.model, DistributedDataParallel) or process_count() == 1:
            return step()
        average = Average([weight for group in optimizer.param_groups for weight in group["params"]])

        def finish() -> None:
            average.hand_over()
            step()
            optimizer.zero_grad()

        self._finish_step()
        self._under_way = finish
        return None

    def _finish_step(self) -> None:
        finish, self._under_way = self._under_way, _nothing
        finish()

    @override
    def pre_backward(self, closure_loss: Tensor) -> None:
        """The block before has averaged its gradients while this one went forward: now it steps."""
        self._finish_step()
        super().pre_backward(closure_loss)

    @override
    def training_step(self, *args: Any, **options: Any) -> Any:
        """One batch, to the last block's step."""
        output = super().training_step(*args, **options)
        self._finish_step()
        return output

    @override
    def on_validation_start(self) -> None:
        """Judge one model: all get the first one's BatchNorm statistics, which are saved."""
        assert self.lightning_module
        for buffer in self.lightning_module.buffers():
            dist.broadcast(buffer, src=0)

    @override
    def on_test_start(self) -> None:
        self.on_validation_start()

    @override
    def teardown(self) -> None:
        Sharing.group = None
        super().teardown()

    # -- the end --------------------------------------------------------------------------------

    @override
    def on_train_start(self) -> None:
        """Have a termination signal, or SLURM's of an end that is near, wait for the end of a batch: all stop at it.

        Lightning 2.6 broadcasts within its signal handlers, or saves, while other exchanges are under way, and hangs.

        Raises:
            UsageError: the processes do not begin at the same step.
        """
        for told in (signal.SIGTERM, getattr(self.cluster_environment, "requeue_signal", signal.SIGTERM)):
            signal.signal(told, self._stop)
        steps = [0] * self.world_size
        assert self.lightning_module
        dist.all_gather_object(steps, self.lightning_module.trainer.global_step)
        if len(set(steps)) > 1:
            raise UsageError(
                f"The processes would go on from steps {', '.join(map(str, steps))}: all need the same run folder, "
                "which several machines must share."
            )

    def _stop(self, *_: Any) -> None:
        if self._launcher.was_started:
            os.kill(os.getppid(), signal.SIGTERM)
            return
        self._launcher.is_told_to_stop = True
        if self.lightning_module is not None:  # what Lightning tells all processes before every batch
            self.lightning_module.trainer._signal_connector.received_sigterm = True


StrategyRegistry.register("ddp", DDP, description="Processes that end together", override=True)


class Launcher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine, and ends them when this one fails or another is lost.

    Attributes:
        is_told_to_stop: whether there was a termination signal, after which nobody is missed.
    """

    def __init__(self, *environment: Any) -> None:
        super().__init__(*environment)
        self.is_told_to_stop = False
        self._failed = threading.Event()
        self._heartbeat: Heartbeat | None = None

    @property
    def was_started(self) -> bool:
        """Whether another process has started this one so."""
        return self.cluster_environment.local_rank() > 0 and os.environ.get(_STARTER) == str(os.getppid())

    @override
    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **options: Any) -> Any:
        """Call a function of the Trainer in all processes.

        Raises:
            UsageError: another process has ended or does not answer.
        """
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[_STARTER] = str(os.getpid())
            self._call_children_scripts()
            for process in self.procs:
                self._end_after(process.wait)
        elif self.was_started:
            self._end_after(_orphaned)
        _set_num_threads_if_needed(num_processes=self.num_processes)
        try:
            result = function(*args, **options)
        except BaseException as fault:
            self._failed.set()
            lost = self._lost() if _is_broken_exchange(fault) else None
            self.kill(signal.SIGKILL)
            self._rest(done=False)
            if lost:
                raise lost from fault
            raise
        self._rest(done=True)
        return result

    def watch(self, rank: int, count: int) -> None:
        """See from now on that the other processes, which are met, stay there."""
        if count > 1 and self._heartbeat is None:
            self._heartbeat = Heartbeat(_get_default_store(), rank, count, self._end_without)

    def _rest(self, done: bool) -> None:
        if self._heartbeat:
            self._heartbeat.stop(done)
            self._heartbeat = None

    def _lost(self) -> UsageError | SIGTERMException:
        """What to say of a lost process, when those that are still there have had their say."""
        until = time.monotonic() + _LAST_WORDS
        for process in self.procs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
        if self._heartbeat is None or any(process.returncode for process in self.procs):
            what = self._ended()
        else:
            what = self._heartbeat.missed(lambda: self.is_told_to_stop)
        return SIGTERMException() if self.is_told_to_stop else UsageError(f"{what} {_GO_ON}")

    def _ended(self) -> str:
        """Which processes of this machine have."""
        codes = [f"process {i} with code {one.returncode}" for i, one in enumerate(self.procs, 1) if one.returncode]
        which = f" ({', '.join(codes)})" if codes else ""
        return f"Another process of this run ended{which}; if it said why, that is above."

    def _end_after(self, loss: Callable[[], bool | int]) -> None:
        """End everything once another process is lost and this one hangs, as in a meeting with it.

        Args:
            loss: what waits for the other's end, and says whether it is to be regretted.
        """

        def watch() -> None:
            if loss() and not self._failed.wait(2 * _LAST_WORDS):
                self._end(self._ended())

        threading.Thread(target=watch, daemon=True).start()

    def _end_without(self, lost: Collection[int], what: str) -> None:
        """End this process, whatever it hangs in, and those of this machine that are lost."""
        there = self.cluster_environment
        if self.was_started and there.global_rank() - there.local_rank() in lost:
            os.kill(os.getppid(), signal.SIGKILL)
        if not self._failed.is_set():
            self._end(what)

    def _end(self, what: str) -> None:
        print(f"error: {what} {_GO_ON}", file=sys.stderr, flush=True)
        self.kill(signal.SIGKILL)
        os._exit(2)


def _nothing() -> None:
    """No step waits for its gradients."""


def _require_new_meetings() -> None:
    """See that torchrun starts processes again in a store of their own: old addresses stay (pytorch/pytorch#135712)."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and int(os.environ["TORCHELASTIC_MAX_RESTARTS"]):
        raise UsageError(
            "With --max-restarts torchrun must not keep what lost processes have left in its store: use --rdzv-backend "
            "c10d, and set the environment variable TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1."
        )


def _orphaned() -> bool:
    """Wait until the process that started this one is gone."""
    while os.environ[_STARTER] == str(os.getppid()):
        time.sleep(1)
    return True


def _is_broken_exchange(fault: BaseException) -> bool:
    """Whether an exchange failed for its other end; gloo's own faults are bare ``RuntimeError``."""
    return isinstance(fault, dist.DistError) or (isinstance(fault, RuntimeError) and "gloo/transport" in str(fault))
