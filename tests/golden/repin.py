"""Pin the golden numbers anew: `python tests/golden/repin.py "why they moved"`. The reason goes into repins.log.

Look at the differences first, account for each, and commit the numbers together with what moved them.
"""

import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))


def main() -> None:
    from test_golden import thirty_steps

    reason = " ".join(sys.argv[1:]).strip()
    if len(reason) < 15:
        sys.exit('say why, in a sentence: python tests/golden/repin.py "the projector starts at zero now"')
    path = HERE / "steps.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    after = thirty_steps()
    for name, values in after.items():
        print(f"{name}: {[round(v, 5) for v in before.get(name, [])[-3:]]} -> {[round(v, 5) for v in values[-3:]]}")
    path.write_text(json.dumps(after, indent=1) + "\n")
    with (HERE / "repins.log").open("a") as file:
        file.write(f"{time.strftime('%Y-%m-%d')}  {reason}\n")


if __name__ == "__main__":
    main()
