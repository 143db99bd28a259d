"""Runs scripts one after the other in one process: the Hub's clients read where it is at import, which takes longest.

    python tests/hub_runs.py calls.json

calls.json is a list of {"script": module, "arguments": [...]}, with "token" for HF_TOKEN, "endpoint" for another Hub.
Nothing sleeps: what was to be waited for is told. Prints a list of {"status", "output", "errors", "waits"}, the last
line of all.
"""

import importlib
import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from accelerate.state import AcceleratorState
from huggingface_hub import constants


ROOT = Path(__file__).resolve().parent.parent


def run(script: str, arguments: list[str], token: str | None = None, endpoint: str | None = None) -> dict:
    sys.argv[:] = [script, *arguments]
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({"ACCELERATE_USE_CPU": "true"} | ({"HF_TOKEN": token} if token else {}))
    AcceleratorState._reset_state(reset_partial_state=True)
    module = importlib.import_module(script)
    output, errors, status = io.StringIO(), io.StringIO(), 0
    with (
        redirect_stdout(output),
        redirect_stderr(errors),
        mock.patch("time.sleep") as sleep,
        mock.patch.object(constants, "ENDPOINT", endpoint or constants.ENDPOINT),
    ):
        try:
            module.run_script(module.main)
        except SystemExit as error:  # with a message, as Python tells it at its end
            errors.write(f"{error.code}\n")
            status = 1
    waits = [call.args[0] for call in sleep.call_args_list]
    return {"status": status, "output": output.getvalue(), "errors": errors.getvalue(), "waits": waits}


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]
    results = [run(**call) for call in json.loads(Path(sys.argv[1]).read_text())]
    print(json.dumps(results))
