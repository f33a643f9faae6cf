"""One thread a process: pytest runs one process a core."""

import torch

torch.set_num_threads(1)
