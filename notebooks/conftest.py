"""When the notebooks are tested their charts need no pictures: drawing them would start a browser."""

import os

os.environ.setdefault("DGEMMA_STATIC", "0")
