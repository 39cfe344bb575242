# clipserve on any Debian-like base: see docs/docker.md.
#   docker build --tag clipserve .                     the CPU image
#   docker build --tag clipserve:gpu --target gpu .    the GPU image
ARG BASE=python:3.11-slim
# bulk writes Parquet files: clipserve embed in a container needs it, serving does not. About 80 MB.
ARG EXTRAS="redis otel"


FROM ${BASE} AS python
# The official Python images bring all of it; a bare Debian or Ubuntu has neither Python nor CA certificates.
RUN if ! command -v python3 || ! test -e /etc/ssl/certs/ca-certificates.crt; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends python3 ca-certificates \
        && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/*.log /var/log/apt; \
    fi


# pip lives in an environment of its own, so that the one that is served from never holds it.
FROM python AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update \
    && apt-get install --yes --no-install-recommends binutils \
    && { python3 -c 'import ensurepip' || apt-get install --yes --no-install-recommends python3-venv; } \
    && python3 -m venv /opt/pip \
    && python3 -m venv --without-pip /opt/clipserve
WORKDIR /src
COPY pyproject.toml constraints.txt docker/install-packages.sh ./


FROM builder AS cpu-packages
ARG EXTRAS
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    sh install-packages.sh cpu ${EXTRAS}


FROM builder AS gpu-packages
ARG EXTRAS
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    sh install-packages.sh gpu ${EXTRAS}


# A layer of its own: a change of clipserve moves a few megabytes, not all it depends on.
FROM builder AS application
COPY README.md LICENSE ./
COPY models models
COPY prompts prompts
COPY service service
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    /opt/pip/bin/pip --python /opt/clipserve/bin/python install --no-deps --no-compile --prefix /opt/application . \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/application
COPY docker/healthcheck.py /opt/application/bin/


FROM python AS runtime
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="clipserve" \
      org.opencontainers.image.description="Zero-shot image classification server" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN useradd --uid 10001 --user-group --no-log-init --no-create-home --home-dir /var/lib/clipserve --shell /usr/sbin/nologin clipserve \
    && install --directory --owner=clipserve --group=clipserve /var/lib/clipserve
# ONNX Runtime's builds report what they run to its maker, and keep a device identifier, unless told not to.
ENV ORT_DISABLE_TELEMETRY=1
ENV PATH=/opt/clipserve/bin:${PATH} \
    CLIPSERVE_HOST=0.0.0.0 \
    CLIPSERVE_PORT=8000 \
    CLIPSERVE_HOME=/var/lib/clipserve
VOLUME /var/lib/clipserve
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python3", "-I", "/opt/clipserve/bin/healthcheck.py"]
ENTRYPOINT ["clipserve"]
CMD ["serve"]


FROM runtime AS gpu
COPY --from=gpu-packages /opt/clipserve /opt/clipserve
# ONNX Runtime leaves it to the loader to find CUDA's wheels. What the loader cannot find fails here and not at
# the first start, but for the driver's own library, which the container runtime brings.
RUN printf '%s\n' /opt/clipserve/lib/python3*/site-packages/nvidia/*/lib > /etc/ld.so.conf.d/clipserve-cuda.conf \
    && ldconfig \
    && ldconfig -p | grep libcudnn.so \
    && ldd /opt/clipserve/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so > /tmp/needed \
    && ! grep 'not found' /tmp/needed | grep -v libcuda.so.1 \
    && rm /tmp/needed
COPY --from=application /opt/application /opt/clipserve
ENV CLIPSERVE_PROVIDER=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001


# Last, and so what is built unless --target names another.
FROM runtime AS cpu
COPY --from=cpu-packages /opt/clipserve /opt/clipserve
COPY --from=application /opt/application /opt/clipserve
USER 10001:10001
