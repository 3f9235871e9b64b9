"""Lists the stages: `python -m stages`."""

import ast
from pathlib import Path


def main() -> None:
    print("Stages, run by `dvc repro` or as `python -m stages.<name>` (--help explains each):\n")
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_text()
        if f'prog="python -m stages.{path.stem}"' in source:  # the others are no commands
            summary = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
            print(f"  {path.stem:12} {summary}")


main()
