# Two stages: build with the toolchain, run with nothing but the binary and the C library.
FROM rust:1-slim-bookworm AS build
# git: the build script of glommio calls it before it builds liburing, which comes with the crate.
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential git \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin chargegate && mkdir -p /out/data && cp target/release/chargegate /out/

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin chargegate
COPY --from=build /out/chargegate /usr/local/bin/chargegate
# The volume takes its owner from here, so that the unprivileged user can write to it.
COPY --from=build --chown=chargegate:chargegate /out/data /data
USER chargegate
# Docker's default seccomp profile refuses io_uring, so engine "glommio" does not start here; "auto" uses epoll.
ENV CHARGEGATE_DATA_DIR=/data \
    CHARGEGATE_HTTP_LISTEN=0.0.0.0:7055
VOLUME /data
EXPOSE 6000 7055
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/chargegate", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/chargegate"]
CMD ["serve"]
