# The edge with ONNX Runtime on the CPU and without torch, 297 MB over its base.
# To pin the base: docs/how-to/quickstart-docker.md#4-pin-the-base-image
#   docker build -f deploy/edge.Dockerfile -t aeic-edge .
# RUNTIME=edge-gpu installs onnxruntime-gpu with CUDA and cuDNN from wheels instead (x86-64, 2.5 GB; the host has the
# driver and the NVIDIA container toolkit).
# Not pinned by digest: a fixed one would exclude security updates of the base image.
ARG BASE=python:3.12-slim
# The build tools and the packages of the image are installed by hash. The stages `tools` and `wheel` are the same for
# both images, so that the second build takes them from the cache.
FROM ${BASE} AS tools
WORKDIR /src
COPY requirements requirements
RUN python3 -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt

FROM tools AS wheel
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY aeic aeic
COPY edge_encoder edge_encoder
COPY cloud_decoder cloud_decoder
COPY aeic_service aeic_service
COPY aeic_nets aeic_nets
COPY aeic_train aeic_train
COPY aeic_client aeic_client
COPY aeic_tools aeic_tools
COPY models models
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation -w /dist .

FROM tools AS build
ARG RUNTIME=edge-cpu
RUN python3 -m venv --without-pip /opt/aeic && \
    /opt/build/bin/pip --python /opt/aeic install --no-cache-dir --require-hashes -r "requirements/$RUNTIME.txt"
COPY --from=wheel /dist /dist
RUN /opt/build/bin/pip --python /opt/aeic install --no-cache-dir --no-deps --no-index /dist/*.whl

FROM ${BASE}
RUN useradd --uid 10001 --create-home aeic && install -d -o aeic /var/lib/aeic
COPY --from=build /opt/aeic /opt/aeic
USER 10001
ENV PATH=/opt/aeic/bin:$PATH PYTHONUNBUFFERED=1 MALLOC_ARENA_MAX=2 ORT_DISABLE_TELEMETRY=1 \
    AEIC_EDGE_HOST=0.0.0.0 AEIC_EDGE_PORT=8080 AEIC_EDGE_DATA_DIR=/var/lib/aeic
VOLUME /var/lib/aeic
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["python", "-m", "edge_encoder"]
