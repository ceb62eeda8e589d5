# One image a room: docker build --target edge|gateway|stage|cloud .
# Each installs what its room needs and nothing else (the extras in pyproject.toml), and runs as an ordinary user.

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# /data belongs to that user; a named volume that is mounted there for the first time takes this over.
RUN useradd --uid 10001 --create-home sluice && install -d -o sluice -g sluice -m 700 /data
WORKDIR /data
ENTRYPOINT ["sluice"]

FROM base AS build
WORKDIR /source
COPY pyproject.toml README.md ./
COPY sluice sluice
COPY edge_agent edge_agent
COPY gateway gateway
COPY partitioner partitioner
COPY cloud cloud
RUN --mount=type=cache,target=/root/.cache/pip pip wheel --no-deps --wheel-dir /wheel .

# The agent on a device. The same on a Raspberry Pi (64 bit): nothing here names a processor.
FROM base AS edge
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=build,source=/wheel,target=/wheel \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --constraint /constraints.txt "$(echo /wheel/*.whl)[edge]"
USER sluice
CMD ["edge-agent"]

FROM base AS gateway
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=build,source=/wheel,target=/wheel \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --constraint /constraints.txt "$(echo /wheel/*.whl)[gateway]"
USER sluice
CMD ["gateway"]

# The fog and the cloud stage; which of them it is says STAGE_TIER.
FROM base AS stage
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=build,source=/wheel,target=/wheel \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --constraint /constraints.txt "$(echo /wheel/*.whl)[stage]"
USER sluice
CMD ["stage"]

# The control plane, the results writer, and the jobs that the control plane starts as processes of its own: trainings
# and the partitioner. These need TensorFlow, which makes this image by far the largest.
FROM base AS cloud
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=build,source=/wheel,target=/wheel \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --constraint /constraints.txt "$(echo /wheel/*.whl)[cloud,training]"
USER sluice
CMD ["cloud"]
