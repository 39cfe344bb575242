"""The image's health check: exits with 0 if the server of this container says that it is ready.

``http.client``, because ``urllib`` would ask a proxy that the environment names, even for this address.
"""

import http.client
import os
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["CLIPSERVE_PORT"]), timeout=4)
try:
    connection.request("GET", "/health/ready")
    response = connection.getresponse()
except OSError as error:
    sys.exit(f"no answer: {error}")
sys.exit(0 if response.status == 200 else response.read().decode())
