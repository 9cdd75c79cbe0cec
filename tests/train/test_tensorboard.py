"""TensorBoard's files are written without torch, which tensorboardX imports where it is there."""

import os
import subprocess
import sys


def test_an_installed_torch_is_not_imported_and_can_be_later(tmp_path):
    (tmp_path / "torch.py").write_text("print('imported')")
    code = (
        "from llama_jax.train.metrics import _summary_writer\n"
        "assert _summary_writer().__name__ == 'SummaryWriter'\n"
        "print('then')\n"
        "import torch"
    )
    env = dict(os.environ, PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["then", "imported"], done.stderr
