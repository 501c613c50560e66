"""Every call into minillm checks its shapes while the tests run; one thread, since the tests' tensors are tiny."""

import torch
from jaxtyping import install_import_hook


install_import_hook("minillm", "beartype.beartype")
torch.set_num_threads(1)
