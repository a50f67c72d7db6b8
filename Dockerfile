# SPDX-License-Identifier: Apache-2.0
#
#   docker build -t bmex_bids .                                  for CPUs
#   docker build -t bmex_bids:cuda --build-arg TORCH=cuda .      for NVIDIA GPUs (several GB more)
#   docker run --rm --user "$(id -u):$(id -g)" --network none --read-only --tmpfs /tmp \
#       -v DATA:/bids:ro -v OUT:/out bmex_bids /bids /out participant --participant-label 0001

FROM python:3.11-slim-bookworm AS build
ARG TORCH=cpu
ARG TORCH_CPU_INDEX=
WORKDIR /build
# Locked dependencies first: this layer is made again only when one of these three files changes.
COPY containers/install.sh constraints.txt setup.cfg /build/
RUN TORCH="$TORCH" TORCH_CPU_INDEX="$TORCH_CPU_INDEX" sh install.sh dependencies
COPY pyproject.toml README.md LICENSE /build/
COPY boilerplate /build/boilerplate
COPY bmex_bids /build/bmex_bids
RUN sh install.sh package

FROM python:3.11-slim-bookworm
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="bmex_bids" \
      org.opencontainers.image.description="Enhancement of structural brain MRI across the lifespan, as a BIDS App" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
COPY --from=build /opt/bmex /opt/bmex
# Whoever runs this, root file system writable or not: everything that programs like to write goes
# to /tmp, and nothing asks the network.
ENV PATH=/opt/bmex/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    LANG=C.UTF-8 \
    MPLBACKEND=Agg \
    MPLCONFIGDIR=/tmp/matplotlib \
    NO_ET=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    PYTHONUNBUFFERED=1 \
    TEMPLATEFLOW_AUTOUPDATE=false \
    TEMPLATEFLOW_HOME=/opt/bmex/share/templateflow \
    BMEX_CONTAINER_TYPE=docker \
    BMEX_CONTAINER_TAG="bmex_bids:$VERSION" \
    BMEX_CONTAINER_REVISION="$REVISION"
WORKDIR /tmp
HEALTHCHECK --interval=5m --timeout=60s CMD ["bmex", "--version"]
ENTRYPOINT ["bmex"]
CMD ["--help"]
