"""What SECURITY.md says of the sources: no text evaluated, nothing unpickled, no shell, and no code but the model's.

pytest tests/test_security.py
"""

import ast
import sys

import pytest
from models import CODE_FILES, ROOT


SOURCES = sorted([*ROOT.glob("*.py"), *ROOT.glob("dnabert2/**/*.py"), *ROOT.glob("benchmarks/*.py")])
EVALUATING = {"eval", "exec", "compile", "__import__"}
UNPICKLING = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "dill.load",
    "joblib.load",
    "yaml.load",
    "marshal.load",
}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}


def calls(source: str) -> list[tuple[str, dict]]:
    """Name and keywords, as they are written, of all calls."""
    return [
        (ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords})
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
    ]


def findings(source: str) -> list[str]:
    found = [name for name, _ in calls(source) if name in EVALUATING | UNPICKLING | SHELLS]
    found += [name for name, keywords in calls(source) if keywords.get("shell", "False") != "False"]
    found += [name for name, keywords in calls(source) if keywords.get("allow_pickle", "False") != "False"]
    unsafe = [
        name for name, keywords in calls(source) if name == "torch.load" and keywords.get("weights_only") != "True"
    ]
    return found + unsafe


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_is_evaluated_unpickled_or_given_to_a_shell(path):
    assert findings(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)",
        "pickle.loads(data)",
        "run(command, shell=True)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "os.system(command)",
    ],
)
def test_what_is_looked_for_is_found(line):
    assert len(findings(line)) == 1
    assert findings("torch.load(path, weights_only=True); run(command); model.eval(); re.compile(text)") == []


@pytest.mark.parametrize("name", CODE_FILES)
def test_the_code_that_travels_opens_no_file_and_imports_no_more_than_it_says(name):
    source = (ROOT / name).read_text()
    assert not [call for call, _ in calls(source) if call in ("open", "Path", "urlopen") or ".read_text" in call]
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names <= {"torch", "transformers", "flash_attn", "triton"}
    assert not imported & {"os", "subprocess", "socket", "pathlib", "shutil", "urllib", "ctypes", "pickle"}
