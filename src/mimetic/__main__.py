"""python -m mimetic"""

import importlib.util
import sys

if importlib.util.find_spec("tyro") is None:
    # a bare GPU machine: images, the queue, what it runs and the measurements of speed need torch, torchvision, timm
    # and NumPy only
    if sys.argv[1:2] == ["queue"]:
        from mimetic.experiments.queue import main

        sys.exit(main(sys.argv[2:]))
    if sys.argv[1:3] == ["data", "fetch"]:
        from mimetic.data.images import main

        sys.exit(main(sys.argv[3:]))
    if sys.argv[1:2] == ["bench"]:
        from mimetic.bench.commands import main

        sys.exit(main(sys.argv[2:]))
    print("error: without tyro there are queue, bench and data fetch; for the rest, pip install tyro", file=sys.stderr)
    sys.exit(2)

from mimetic.cli import main

sys.exit(main())
