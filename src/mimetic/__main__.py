"""python -m mimetic"""

import importlib.util
import sys

if importlib.util.find_spec("tyro") is None and sys.argv[1:2] == ["queue"]:
    # a bare GPU machine: the queue, and what it runs, need torch, torchvision and NumPy only
    from mimetic.experiments.queue import main

    sys.exit(main(sys.argv[2:]))

from mimetic.cli import main

sys.exit(main())
