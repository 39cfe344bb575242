#!/bin/sh
# Used by the Dockerfile: install-packages.sh EXTRA... puts what clipserve needs, with these extras, into
# /opt/clipserve.
set -eu
venv=/opt/clipserve

"$venv/bin/python" - "$@" > requirements.txt <<'PYTHON'
import sys, tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *(one for extra in sys.argv[1:] for one in extras[extra]), sep="\n")
PYTHON
/opt/pip/bin/pip --python "$venv/bin/python" install --no-compile \
    --constraint constraints.txt --requirement requirements.txt

# What nothing here runs: tests, sources, NumPy's builders of Fortran extensions, the tools that ONNX Runtime brings
# for making models and its library for programs in C (Python's own has all of it inside), grammars that Pygments
# would colour source code by, the two largest parts of Arrow that writing Parquet files does not touch, and all of
# OpenVINO but ONNX graphs on the CPU.
cd "$venv"/lib/python3*/site-packages
find . -depth -type d -name tests -exec rm -rf {} +
find . -type f \( -name '*.pyi' -o -name '*.px[di]' -o -name '*.pyx' -o -name '*.[ch]' \) -delete
find pygments/lexers -name '[!_]*.py' ! -name special.py ! -name python.py -delete
rm -rf numpy/f2py numpy/distutils
rm -rf onnxruntime/transformers onnxruntime/tools onnxruntime/quantization onnxruntime/datasets
readelf --dynamic onnxruntime/capi/*.so | grep --quiet 'NEEDED.*\[libonnxruntime\.so' \
    || rm -f onnxruntime/capi/libonnxruntime.so*
rm -rf pyarrow/include pyarrow/src pyarrow/libarrow_python.so pyarrow/libarrow_python.so.*.*.* \
    pyarrow/*arrow_flight* pyarrow/*arrow_python_flight* pyarrow/_flight* pyarrow/*arrow_s3* pyarrow/_s3fs*
rm -rf openvino/include openvino/torch openvino/libs/cache.json openvino/libs/*_[gn]pu_plugin* \
    openvino/tools openvino/libs/*_auto_plugin* openvino/libs/*_auto_batch_plugin* openvino/libs/*_hetero_plugin*
find . -path './openvino/libs/*_frontend.so*' ! -name '*_onnx_*' ! -name '*_ir_*' -delete
find . -path './openvino/frontend/*/*' ! -path './openvino/frontend/onnx/*' -delete

# Symbols are a sixth of the image. Libraries that auditwheel has patched (*.libs) may not survive this, and
# NVIDIA's have none.
find . -type f -name '*.so*' ! -path './*.libs/*' ! -path './nvidia/*' -exec strip --strip-unneeded {} +

# Byte code goes into the image, since who runs it cannot write it; by hash, since layers may lose file times.
"$venv/bin/python" -m compileall -q --invalidation-mode unchecked-hash .
