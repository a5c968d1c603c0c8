# One image for the SuperLink, the clients and the command that submits a run.

ARG PYTHON_TAG=3.11-slim-bookworm

# Everything that FLSimulation imports. This layer is made anew only when a version changes.
FROM python:${PYTHON_TAG} AS dependencies
ARG TORCH_INDEX=
RUN python3 -m venv /opt/venv
WORKDIR /build
COPY constraints.txt pyproject.toml ./
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/venv/bin/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); print(*p["build-system"]["requires"], *p["project"]["dependencies"], sep="\n")' > requirements.txt \
 && /opt/venv/bin/pip install --disable-pip-version-check --constraint constraints.txt \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --requirement requirements.txt

# The package itself, apart, so that a change of code costs seconds.
FROM dependencies AS package
COPY LICENSE README.md ./
COPY src src
RUN /opt/venv/bin/pip wheel --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist . \
 && /opt/venv/bin/pip install --disable-pip-version-check --no-deps --no-index --target /opt/flsimulation dist/*.whl

FROM python:${PYTHON_TAG}
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=package /opt/flsimulation /opt/flsimulation
# The folders of certificates and keys are empty here: volumes are mounted on them. Each client writes
# its own key to keys; waiting is for public keys of clients of any user.
RUN useradd --uid 1000 --create-home flsim && install -d -o flsim /work \
 && install -d /flsim/server /flsim/trust && install -d -m 700 /flsim/ca \
 && install -d -m 777 /flsim/waiting && install -d -m 700 -o flsim /flsim/keys
ENV PATH=/opt/flsimulation/bin:/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/flsimulation \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    HOME=/tmp \
    FLSIM_HOME=/flsim \
    NO_PROXY=localhost,127.0.0.1,superlink,control \
    no_proxy=localhost,127.0.0.1,superlink,control \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1
USER flsim
WORKDIR /work
ENTRYPOINT ["flsim"]
