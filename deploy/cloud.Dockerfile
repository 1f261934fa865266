# The cloud with ONNX Runtime on the CPU, 328 MB over its base. EXTRA=cloud brings torch and its CUDA wheels, several GB.
# To pin the base: docs/how-to/quickstart-docker.md#4-pin-the-base-image
#   docker build -f deploy/cloud.Dockerfile -t aeic-cloud .
#   docker build -f deploy/cloud.Dockerfile --build-arg EXTRA=cloud -t aeic-cloud-gpu .
#   docker build -f deploy/cloud.Dockerfile --build-arg EXTRA=cloud-cpu,fleet-ray -t aeic-cloud-fleet .   docs/how-to/fleet.md
# The base is slim in all cases, because torch's wheels bring their own CUDA libraries. With torch, gcc is installed as
# well, because Triton needs it at run time.
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
ARG EXTRA=cloud-cpu
RUN python3 -m venv --without-pip /opt/aeic && IFS=, && for extra in $EXTRA; do \
      /opt/build/bin/pip --python /opt/aeic install --no-cache-dir --require-hashes -r "requirements/$extra.txt" \
        || exit 1; \
    done
COPY --from=wheel /dist /dist
RUN /opt/build/bin/pip --python /opt/aeic install --no-cache-dir --no-deps --no-index /dist/*.whl

FROM ${BASE}
ARG EXTRA=cloud-cpu
# hadolint ignore=DL3008
RUN case ",$EXTRA," in *,cloud,*) \
      apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*;; \
    esac
RUN useradd --uid 10001 --create-home aeic && install -d -o aeic /var/lib/aeic
COPY --from=build /opt/aeic /opt/aeic
USER 10001
ENV PATH=/opt/aeic/bin:$PATH PYTHONUNBUFFERED=1 MALLOC_ARENA_MAX=2 ORT_DISABLE_TELEMETRY=1 \
    AEIC_CLOUD_HOST=0.0.0.0 AEIC_CLOUD_PORT=8081 AEIC_CLOUD_GRPC_PORT=9090 AEIC_CLOUD_DATA_DIR=/var/lib/aeic \
    HF_HUB_OFFLINE=1
VOLUME /var/lib/aeic
EXPOSE 8081 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8081/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["python", "-m", "cloud_decoder"]
