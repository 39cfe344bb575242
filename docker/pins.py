"""Prints the report of ``pip install --report`` as constraints: see ``make lock``."""

import json
import sys

found = [one["metadata"] for one in json.load(sys.stdin)["install"]]
pins = [f"{one['name']}=={one['version']}" for one in found if one["name"] != "clipserve"]
print(*sorted(pins, key=str.lower), sep="\n")
