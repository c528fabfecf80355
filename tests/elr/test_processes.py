"""Several processes that train one network: a detector in each must not restart its schedule alone."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from elr.attachment import attach
from elr.changepoint import Cusum
from elr.schedules import LinearDecay
from elr.triggers import OnCusum


def train(rank, folder, as_float):
    """300 updates in DistributedDataParallel; the loss of process 1 alone rises after 150."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 16, bias=False), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 2))
    network = nn.parallel.DistributedDataParallel(plain)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    trigger = OnCusum(Cusum(block=2, burn_in=10, refractory=10))
    handle = attach(network, optimizer, schedule=LinearDecay(1e-2, 1e-4, 100), trigger=trigger, meter=100)
    generator = torch.Generator().manual_seed(rank)
    for update in range(300):
        x = torch.randn(16, 6, generator=generator)
        y = torch.randn(16, 2, generator=generator) * (10 if rank == 1 and update >= 150 else 1)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(x), y)
        loss.backward()
        handle.signal(float(loss.detach()) if as_float else loss)
        optimizer.step()
    weights = torch.cat([p.detach().flatten() for p in plain.parameters()])
    norm = float(plain[0].weight.detach().norm())
    torch.save([handle.rewarming.events, handle.projection.norms["0"], norm, weights], f"{folder}/{rank}.pt")
    dist.barrier()
    # Without the interpreter's shutdown: a thread of Gloo that still runs then aborts the process now and again, after
    # everything that this test is about.
    os._exit(0)


def test_all_processes_restart_together(tmp_path):
    for as_float in (False, True):
        folder = tmp_path / str(as_float)
        folder.mkdir()
        mp.start_processes(train, args=(str(folder), as_float), nprocs=2, start_method="spawn")
        first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
        assert first[0] == second[0] and len(first[0]) == 1 and 150 < first[0][0] < 160
        assert torch.equal(first[3], second[3])
        assert abs(first[1] / first[2] - 1) < 1e-6
