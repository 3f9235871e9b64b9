"""Lists the stages: `python -m stages`."""

import ast
from pathlib import Path

_END_OF_A_STAGE = "    console.run(main)\n"


def main() -> None:
    """Print each stage's name and the first line of its docstring."""
    print("Stages, run by `dvc repro` or as `python -m stages.<name>` (--help explains each):\n")
    for path in sorted(Path(__file__).parent.glob("*.py")):
        text = path.read_text()
        if text.endswith(_END_OF_A_STAGE):
            summary = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
            print(f"  {path.stem:10} {summary}")


main()
