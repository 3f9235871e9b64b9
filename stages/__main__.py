"""Lists the stages: `python -m stages`."""

import ast
from pathlib import Path

_NOT_STAGES = {
    "__init__",
    "__main__",
    "console",
    "params",
    "adoption",
    "dvc_cache",
    "extraction",
    "git_history",
    "extract_job",
    "extract_plan",
    "manifest_options",
    "manifest_probe",
}


def main() -> None:
    print("Stages, run by `dvc repro` or as `python -m stages.<name>` (--help explains each):\n")
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in _NOT_STAGES:
            summary = (ast.get_docstring(ast.parse(path.read_bytes())) or "").splitlines()[0]
            print(f"  {path.stem:10} {summary}")


main()
