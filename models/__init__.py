"""What a model is and how it runs. Knows nothing of HTTP, requests or prompts."""

import os

# ONNX Runtime reports its use to its makers unless told not to before it is imported. A server that
# people run behind their own doors reports to nobody.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
