"""Kills the store 50 times a case and way, and records the result: `python -m tests.stress`."""

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from datetime import date
from pathlib import Path

from benchmarks.report import machine

RESULT = Path("benchmarks/results/stress.md")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-n", "auto", "-k", "test_a_kill_", "--kills", "50"]
        status = subprocess.run([*command, f"--junitxml={report}", "tests/store/test_safety.py"]).returncode
        tests = list(ElementTree.parse(report).iter("testcase"))
    rows = [_row(test) for test in sorted(tests, key=lambda test: test.attrib["name"], reverse=True)]
    host = ", ".join(f"{key} {value}" for key, value in machine().items() if value)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(
        f"# Kills\n\n`make stress` on {date.today().isoformat()}: {host}.\n\n"
        "Each kill is a SIGKILL, after which nothing that was committed may be missing or wrong, and a rerun"
        " must end as if nothing had happened.\n\n"
        "| work that is killed | where | kills | result |\n|---|---|---|---|\n" + "".join(rows)
    )
    print(f"Recorded in {RESULT}.")
    sys.exit(status)


def _row(test: ElementTree.Element) -> str:
    match = re.fullmatch(r"test_a_kill_(.*)_loses_nothing\[(.*)\]", test.attrib["name"])
    assert match
    where, case = match[1].replace("_", " "), match[2].replace("-", ", ")
    kills = next((each.attrib["value"] for each in test.iter("property")), "")
    failed = any(test.find(name) is not None for name in ("failure", "error"))
    return f"| {case} | {where} | {kills} | {'failed' if failed else 'nothing lost'} |\n"


if __name__ == "__main__":
    main()
