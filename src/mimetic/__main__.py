"""python -m mimetic"""

import importlib.util
import sys

if importlib.util.find_spec("tyro") is None:  # a bare GPU machine
    from mimetic.commands import main
else:
    from mimetic.cli import main

sys.exit(main())
