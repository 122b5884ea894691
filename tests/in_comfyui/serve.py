"""Run ComfyUI's main.py as ``python main.py ...`` does, and end when the standard input ends.

    python serve.py /path/to/main.py --port 8188 ...

The tests hold the other end of that input: however they end, even killed, no server is left behind.
"""

import os
import runpy
import sys
import threading


def end_with_input() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


threading.Thread(target=end_with_input, daemon=True).start()
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
