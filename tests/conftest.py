"""What every test needs: the pack under a name of its own, and the host on the path."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMFYUI = Path(os.environ.get("TRAINTRAIN_COMFYUI", ROOT / ".host" / "ComfyUI"))

# The pack's own `nodes` folder would shadow the host's nodes.py, so the pack's root stays off sys.path, and its modules
# are imported as `pack.trainer...` without running its __init__.py.
_spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
sys.modules["pack"] = importlib.util.module_from_spec(_spec)
sys.path.insert(0, str(COMFYUI))
