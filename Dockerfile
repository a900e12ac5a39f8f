# The attention server, CPU backend. Built and tried by tests/container/run.sh.
#
#   docker build -t attention-server .
#   docker run --rm --read-only --cap-drop=all -p 127.0.0.1:7070:7070 \
#     -e ATTENTION_TRUST_TENANT_NAMES_FROM_NETWORK=true attention-server

FROM debian:bookworm-slim AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# Before the sources, so that a change of code does not install the packages again.
WORKDIR /source
COPY deploy/lib.sh deploy/packages-build.txt deploy/
RUN source deploy/lib.sh && ensure_packages deploy/packages-build.txt

COPY CMakeLists.txt CMakePresets.json ./
COPY cmake cmake
COPY proto proto
COPY kernels kernels
COPY server server
ARG REVISION=unknown
RUN cmake --preset release -DATTENTION_COMMIT="${REVISION}" -DATTENTION_BUILD_CLIENT=OFF -DATTENTION_BUILD_TESTS=OFF \
    && cmake --build --preset release --target attention-server

COPY deploy/runtime-packages.sh deploy/
RUN mkdir /image \
    && cp build/release/bin/attention-server /image/ \
    && strip /image/attention-server \
    && deploy/runtime-packages.sh /image/attention-server >/image/packages.txt


FROM debian:bookworm-slim
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# Copied, not mounted: podman takes a step from its cache whatever a mount holds, and a server with a
# new library would start without it.
COPY --from=build /image/packages.txt /usr/local/share/attention-server/packages.txt
RUN apt-get update \
    && xargs -a /usr/local/share/attention-server/packages.txt apt-get install -y --no-install-recommends \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb
COPY --from=build /image/attention-server /usr/local/bin/attention-server
COPY deploy/healthcheck.sh /usr/local/bin/attention-healthcheck

ARG REVISION=unknown
LABEL org.opencontainers.image.title="attention-server" \
      org.opencontainers.image.description="Attention, and the key/value cache it needs, over gRPC" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"

# Inside a container loopback reaches nobody; who may reach the published port is decided where it is
# published. Any other key is set the same way: -e ATTENTION_SESSION_TTL=1h.
ENV ATTENTION_LISTEN=0.0.0.0:7070 \
    ATTENTION_ADMIN_LISTEN=0.0.0.0:7071
EXPOSE 7070 7071

# A number, so that Kubernetes can see without a passwd file that it is not root. Nothing is written:
# the root may be read-only.
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/attention-healthcheck"]
ENTRYPOINT ["/usr/local/bin/attention-server"]
