"""What keep_freed_memory changes, counted in page faults of a process of its own."""

import subprocess
import sys

PROGRAM = """
import resource
import sys

import torch

from pipeline.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(11):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensor = torch.ones(25 << 20)  # 100 MiB
    del tensor
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def faults_of_a_tensor(how: str) -> int:
    return int(subprocess.check_output([sys.executable, "-c", PROGRAM, how], text=True))


def test_a_freed_tensor_s_pages_are_used_again():
    assert faults_of_a_tensor("keep") < 10
    assert faults_of_a_tensor("return") > 1000  # else the test shows nothing
