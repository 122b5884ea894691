"""Reads one mutant again and shows what it raises: ``python -m mutants NAME SEED``."""

import sys
import tempfile
from pathlib import Path

from mutants import mutant, parsers

name, seed = sys.argv[1], int(sys.argv[2])
parser = parsers()[name]
path = parser.make(Path(tempfile.mkdtemp(prefix="mutant-")))
path.write_bytes(mutant(name, parser, seed, path.read_bytes()))
print(path, flush=True)
print(parser.read(path))
