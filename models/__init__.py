"""What a model is and how it runs. Knows nothing of HTTP, requests or prompts."""

import os

# ONNX Runtime reports its use to its makers unless told not to before it is imported. A server that
# people run behind their own doors reports to nobody.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# NumPy's matrix product starts a thread a core, and those go on spinning for a while: a thousand cosines,
# which take one core a tenth of a millisecond, would slow down every encoder beside them. Read by NumPy
# when it is imported, which is after this.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
