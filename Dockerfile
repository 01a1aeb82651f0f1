# One image for every service; the command names the service (`trainer` runs `train`, see docker-compose.yml).
ARG BASE_IMAGE=python:3.11-slim-bookworm

# Dependencies have a layer of their own, so that a changed source does not copy their 2 GB again.
FROM ${BASE_IMAGE} AS tools
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --quiet --no-cache-dir uv
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# Where the plain torch wheel would bring CUDA along, the CPU build is taken. TORCH_BACKEND=cu130 for a GPU.
ARG TORCH_BACKEND=cpu
RUN --mount=type=cache,target=/root/.cache/uv \
    set -e; uv=/opt/venv/bin/uv; \
    set -- --python /opt/venv/bin/python --constraint constraints.txt --requirements pyproject.toml --extra ml --extra plots; \
    if [ "$TORCH_BACKEND" != default ] && "$uv" pip install --dry-run "$@" 2>&1 | grep -qE '^ \+ (nvidia-|triton)'; then \
      set -- "$@" --torch-backend="$TORCH_BACKEND"; \
    fi; \
    "$uv" pip install "$@"

FROM tools AS package
COPY README.md ./
COPY shared shared
COPY services services
COPY benchmarks benchmarks
COPY studies studies
COPY cli cli
RUN --mount=type=cache,target=/root/.cache/uv \
    /opt/venv/bin/uv pip install --python /opt/venv/bin/python --target /opt/app --no-deps .

FROM tools AS dependencies
RUN /opt/venv/bin/uv pip uninstall --python /opt/venv/bin/python uv pip setuptools

FROM ${BASE_IMAGE}
RUN useradd --system --uid 10001 --home-dir /var/lib/micro-muzero micromuzero \
    && cd /var/lib && mkdir -p micro-muzero && cd micro-muzero \
    && mkdir checkpoints unsent journal record validations trader broker data numba \
    && chown -R micromuzero: /var/lib/micro-muzero
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=package /opt/app /opt/app
COPY config /etc/micro-muzero
# Numba compiles at first use and keeps the result in a volume: the root file system is read-only.
ENV PATH=/opt/app/bin:/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/var/lib/micro-muzero/numba \
    OMP_NUM_THREADS=1 \
    MM_HOME=/var/lib/micro-muzero \
    MM_DATASET=/var/lib/micro-muzero/data/dataset.duckdb \
    MM_ALIVE_FILE=/tmp/alive
USER micromuzero
WORKDIR /var/lib/micro-muzero
# New volumes begin with what the image holds here; a processor of another kind compiles its own.
RUN micro-muzero compile
ENTRYPOINT ["micro-muzero"]
CMD ["--help"]
