"""Runs run_mlm.py several times, one after the other, in the processes of one launch: to start them takes longest.

    ACCELERATE_USE_CPU=true accelerate launch --config_file ... tests/several_runs.py runs.json

runs.json is a list of [environment, command line]. Accelerate 1.15 leaves FSDP2 out, silently, where processes have no
GPU: with ACCELERATE_USE_FSDP these pretend to. All that follows is real: fully_shard, and gloo between the processes.
"""

import json
import os
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import run_mlm
from dnabert2.errors import run_script


os.environ["FORK_LAUNCHED"] = "1"  # for Accelerate: the process group is not a run's own to destroy
for environment, command in json.loads(Path(sys.argv[1]).read_text()):
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.update(environment)
    if os.environ["ACCELERATE_USE_FSDP"] == "true":
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    sys.argv[1:] = command
    run_script(run_mlm.main)
