"""What keep_freed_memory changes, counted in page faults of a process of its own; and errors of no memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline.system.memory import is_out_of_memory

PROGRAM = """
import resource

import torch

from pipeline.system.memory import keep_freed_memory

def faults_of_a_tensor():
    for _ in range(11):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensor = torch.ones(25 << 20)  # 100 MiB
        del tensor
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return faults

print(faults_of_a_tensor())
keep_freed_memory()
print(faults_of_a_tensor())
"""


@pytest.mark.slow
def test_a_freed_tensor_s_pages_are_used_again():
    output = subprocess.check_output([sys.executable, "-c", PROGRAM], text=True)
    returned, kept = map(int, output.split())
    assert kept < 10
    assert returned > 1000  # else the test shows nothing


def test_an_allocation_that_fails_is_out_of_memory_whoever_tried_it():
    with pytest.raises(RuntimeError) as torch_s:
        torch.empty(1 << 50, dtype=torch.uint8)
    with pytest.raises(MemoryError) as numpy_s:
        np.empty(1 << 60, dtype=np.uint8)
    assert not isinstance(torch_s.value, torch.OutOfMemoryError)  # else the test shows nothing
    errors = [
        torch_s.value,
        numpy_s.value,
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    ]
    assert all(map(is_out_of_memory, errors))
    with pytest.raises(RuntimeError) as other:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert not is_out_of_memory(other.value)
    assert not is_out_of_memory(OSError("out of memory"))
