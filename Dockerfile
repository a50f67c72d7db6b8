# SPDX-License-Identifier: Apache-2.0
#
#   make image                        builds it, and says in it what was built from what
#   make image TORCH=cuda             for NVIDIA GPUs (several GB more)
#
#   docker run --rm --user "$(id -u):$(id -g)" --network none --read-only --tmpfs /tmp \
#       -v DATA:/data:ro -v OUT:/out -v WORK:/work \
#       bmex_bids:0.1.0 /data /out participant -w /work
#
# docs/containers.md has the rest; bmex-docker writes that line for you.

# Pin the base by its digest for a release: --build-arg PYTHON_IMAGE=python@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# The list of requirements, apart, so that nothing else in setup.cfg touches the next stage.
FROM ${PYTHON_IMAGE} AS requirements
COPY containers/requirements.py setup.cfg /build/
RUN python3 /build/requirements.py /build/setup.cfg > /requirements.txt

# Everything but bmex_bids: made again only when the requirements or the pins change.
FROM ${PYTHON_IMAGE} AS dependencies
ARG TORCH=cpu
ARG TORCH_INDEX=
WORKDIR /build
COPY --from=requirements /requirements.txt /build/
COPY containers/dependencies.sh containers/torch_build.py constraints.txt /build/
RUN TORCH="$TORCH" TORCH_INDEX="$TORCH_INDEX" sh dependencies.sh

FROM dependencies AS package
COPY containers/package.sh pyproject.toml setup.cfg README.md LICENSE /build/
COPY boilerplate /build/boilerplate
COPY bmex_bids /build/bmex_bids
ARG TEMPLATES=MNI152NLin2009cAsym,MNIInfant
RUN TEMPLATES="$TEMPLATES" PREFIX=/opt/package sh package.sh

FROM ${PYTHON_IMAGE}
COPY --from=dependencies /opt/bmex /opt/bmex
COPY --from=package /opt/package /opt/bmex
# Whoever runs this, root file system writable or not: what programs like to write goes to /tmp,
# and nothing asks the network.
ENV PATH=/opt/bmex/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    LANG=C.UTF-8 \
    MPLBACKEND=Agg \
    MPLCONFIGDIR=/tmp/matplotlib \
    NIPYPE_CONFIG_DIR=/tmp/nipype \
    NIPYPE_NO_ET=1 \
    NO_ET=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    PYTHONUNBUFFERED=1 \
    TEMPLATEFLOW_AUTOUPDATE=false \
    TEMPLATEFLOW_HOME=/opt/bmex/share/templateflow \
    XDG_CACHE_HOME=/tmp/cache
WORKDIR /tmp
HEALTHCHECK --interval=30m --timeout=2m --retries=1 CMD ["bmex-health"]
ENTRYPOINT ["bmex"]
CMD ["--help"]
# Last, since they change with every commit: what this image is, for people and for bmex itself,
# which repeats it in --version and in what it writes.
ARG VERSION=0.1.0
ARG REVISION=
ARG CREATED=
ARG IMAGE=bmex_bids
ENV BMEX_CONTAINER_TYPE=docker \
    BMEX_CONTAINER_TAG="$IMAGE:$VERSION" \
    BMEX_CONTAINER_REVISION="$REVISION" \
    BMEX_CONTAINER_CREATED="$CREATED"
LABEL org.opencontainers.image.title="bmex_bids" \
      org.opencontainers.image.description="Enhancement of structural brain MRI from the fetus to the adult, as a BIDS App" \
      org.opencontainers.image.source="https://github.com/bmex-bids/bmex_bids" \
      org.opencontainers.image.documentation="https://github.com/bmex-bids/bmex_bids/blob/main/docs/containers.md" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
