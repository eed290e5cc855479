"""One step of a fine-tuning run, gradients written down.

With RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set it is one process of several, as torchrun
starts them.
"""

import json
from pathlib import Path

import torch

from retrieval_engine.progress import Silent
from retrieval_engine.train.finetune.config import Task, configure
from retrieval_engine.train.finetune.trainer import FinetuneRun


def gradients(run: FinetuneRun, step: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Gradient of each parameter and the losses after one step, nothing moved."""
    _, batch = run.ahead(step, last=True)
    losses = run.objective.step(batch, step, along=0.5, scale=1.0)
    named = [(n, p) for n, p in run.learner.model.named_parameters() if p.requires_grad]
    beside = run.objective.parameters()
    run.processes.all_reduce_gradients([*(p for _, p in named), *beside])
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named}
    found |= {f"beside {i}": p.grad for i, p in enumerate(beside) if p.grad is not None}
    return found, losses


def one_step_of_each(options: str, out: str) -> None:
    """A step of each task.

    Args:
        options: JSON object of settings by task.
        out: directory for `TASK.pt`.
    """
    runs = []
    for task, given in json.loads(options).items():
        run = FinetuneRun(configure(Task(task), **given), Path(out) / task, Silent(), "tensorboard")
        found, losses = gradients(run)
        if run.processes.is_first:
            torch.save({"gradients": found, "losses": losses}, Path(out) / f"{task}.pt")
        run.processes.barrier()
        run.ahead.close()
        runs.append(run)
    runs[-1].close()
