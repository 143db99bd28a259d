"""The launch files of configs/accelerate/ are what this version of Accelerate understands.

pytest tests/test_accelerate_configs.py
"""

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from dnabert2.loading import ROOT


FILES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_launch_file_has_keys_and_values_that_accelerate_knows(path):
    config = load_config_from_file(str(path))  # raises for an unknown key at the top
    options = vars(launch_command_parser().parse_args(["run_mlm.py"]))
    for section in ("dynamo_config", "fsdp_config"):
        assert set(getattr(config, section)) <= options.keys()  # there the launcher would drop it in silence
    assert str(config.mixed_precision) in ("no", "bf16")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_launch_file_begins_with_its_command(path):
    text = path.read_text()
    assert f"accelerate launch --config_file configs/accelerate/{path.name} " in text.split("compute_environment")[0]
