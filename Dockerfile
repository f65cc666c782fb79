# clusterq in a container. docs/install.md says how to build it and how to run it.
#
#   DEVICE=cuda (default)  torch from pip's own index, whose Linux builds bring CUDA's libraries; it runs on CPUs, too
#   DEVICE=cpu             a smaller image; TORCH_INDEX must then name an index with CPU builds of torch
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG DEVICE=cuda
# Address of an index to take torch from; empty: pip's own.
ARG TORCH_INDEX=
# Extras of clusterq, separated by commas.
ARG EXTRAS=onnx
ENV PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/clusterq
ENV PATH=/opt/clusterq/bin:$PATH
WORKDIR /src

# torch first, in a layer that a change of clusterq leaves as it is. The pins have no local tags, so every build of that version fits.
COPY constraints.txt ./
RUN case "$DEVICE" in \
      cuda) ;; \
      cpu) test -n "$TORCH_INDEX" || { echo "DEVICE=cpu: TORCH_INDEX is empty, expected an index with CPU builds of torch" >&2; exit 2; } ;; \
      *) echo "DEVICE: found '$DEVICE', expected cpu or cuda" >&2; exit 2 ;; \
    esac \
    && if [ -n "$TORCH_INDEX" ]; then \
      pip install --constraint constraints.txt --no-deps --index-url "$TORCH_INDEX" torch; \
    fi \
    && pip install --constraint constraints.txt torch \
    && python -c "import sys, torch; built = 'cuda' if torch.version.cuda else 'cpu'; \
sys.exit(None if built == sys.argv[1] else f'DEVICE={sys.argv[1]}: torch {torch.__version__} is a build for {built}; change TORCH_INDEX')" "$DEVICE"

COPY pyproject.toml README.md LICENSE ./
COPY common common
COPY gen gen
COPY finetune finetune
RUN pip install --constraint constraints.txt ".[$EXTRAS]"

FROM ${PYTHON_IMAGE} AS run
RUN useradd --uid 10001 --create-home clusterq \
    && install --directory --owner clusterq --group clusterq /data
COPY --from=build /opt/clusterq /opt/clusterq
# USER: torch asks for a user's name, which a container started under another number has not.
ENV PATH=/opt/clusterq/bin:$PATH PYTHONUNBUFFERED=1 USER=clusterq
USER 10001
WORKDIR /data
CMD ["clusterq-gen", "--help"]
