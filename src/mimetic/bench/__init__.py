"""How fast it is, measured on the machine it runs on: the initializer, a training
step, and where a training step's time goes.
"""

from mimetic.bench.init import bench_init
from mimetic.bench.profile import bench_profile
from mimetic.bench.records import load_bench, store_bench
from mimetic.bench.train import bench_train

__all__ = ["bench_init", "bench_profile", "bench_train", "load_bench", "store_bench"]
