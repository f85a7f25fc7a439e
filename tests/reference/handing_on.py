"""Processes that hand batches on, tick by tick: what a slow, plain simulation of them finds.

Each does what its loop in ``experiments.distributed`` says: take a batch, make room for the one after the next, train,
wait until fewer than two are on their way, send, go on.
"""

from itertools import count


class Process:
    """One process and the link behind it; all times are whole numbers of ticks."""

    def __init__(self, steps, transfer, latency, before):
        self.steps, self.transfer, self.latency, self.before = steps, transfer, latency, before
        self.batch, self.doing, self.until = 0, "waits", 0
        self.arrivals, self.room = {}, {0: 0, 1: 0}  # at the next process: batch → from which tick on
        self.on_the_way, self.leaves_at = [], None
        self.starts, self.ends = [], []

    def act(self, now, is_last):
        """Do what can be done at this moment; whether there was anything."""
        if self.leaves_at is not None and now >= self.leaves_at:
            self.arrivals[self.on_the_way.pop(0)] = now + self.latency
            self.leaves_at = None
            return True
        if self.leaves_at is None and self.on_the_way and self.room.get(self.on_the_way[0], now + 1) <= now:
            self.leaves_at = now + self.transfer
            return True
        if self.doing == "waits" and self.batch < len(self.steps) and self._has_arrived(now):
            self.starts.append(now)
            if self.before:
                self.before.room[self.batch + 2] = now + self.before.latency
            self.doing, self.until = "trains", now + self.steps[self.batch]
            return True
        if self.doing == "trains" and now >= self.until:
            self.doing = "sends"
            return True
        if self.doing == "sends" and len(self.on_the_way) < 2:
            if not is_last:
                self.on_the_way.append(self.batch)
            self.ends.append(now)
            self.doing, self.batch = "waits", self.batch + 1
            return True
        return False

    def _has_arrived(self, now):
        return self.before is None or self.before.arrivals.get(self.batch, now + 1) <= now


def hand_on(steps, transfers, latency):
    """When each process begins each batch, and when it has sent it.

    Args:
        steps: ticks of each process's step with each batch.
        transfers: ticks for which a batch occupies the link behind each process but the last.
        latency: ticks of a link.
    """
    processes = []
    for one, transfer in zip(steps, [*transfers, 0], strict=True):
        processes.append(Process(one, transfer, latency, processes[-1] if processes else None))
    for now in count():
        while any(process.act(now, process is processes[-1]) for process in processes):
            pass
        if len(processes[-1].ends) == len(steps[-1]):
            break
    return [process.starts for process in processes], [process.ends for process in processes]
