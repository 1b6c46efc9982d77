# docker build --tag onnxprune .
# docker run --rm --read-only --tmpfs /tmp --network none --user "$(id -u):$(id -g)" --volume "$PWD:/work" \
#     onnxprune compress recipe.toml

FROM python:3.12-slim AS build
RUN python -m venv /opt/onnxprune
COPY pyproject.toml README.md LICENSE /source/
COPY cli /source/cli
COPY onnxprune /source/onnxprune
RUN /opt/onnxprune/bin/pip install --no-cache-dir --disable-pip-version-check /source

FROM python:3.12-slim
COPY --from=build /opt/onnxprune /opt/onnxprune
# Nothing is written but what a command is asked to write: no bytecode, no telemetry of ONNX Runtime.
ENV PATH=/opt/onnxprune/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1
# Any user will do; --user makes the files in /work yours.
USER 10001:10001
VOLUME /work
WORKDIR /work
ENTRYPOINT ["onnxprune"]
CMD ["--help"]
