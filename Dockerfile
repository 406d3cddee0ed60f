# The labelers' site, data tools and reports; EXTRAS=train adds PyTorch, for training and serving models.
#   docker build -t instructgpt .
#   docker build -t instructgpt:train --build-arg EXTRAS=train .
#   docker run --rm -p 127.0.0.1:8000:8000 -v instructgpt-site:/data instructgpt
FROM python:3.13-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN python -m venv /venv \
    && PIP_BUILD_CONSTRAINT=constraints.txt pip wheel --no-cache-dir --no-deps --constraint constraints.txt --wheel-dir /wheels .

ARG EXTRAS=""
# The index of PyTorch's CPU builds. Empty: PyPI's, which on Linux brings CUDA, 3 GB.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH=2.13.0
RUN if [ "$EXTRAS" = train ]; then \
        /venv/bin/pip install --no-cache-dir "torch==$TORCH" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}; \
    fi \
    && wheel="$(echo /wheels/*.whl)" \
    && /venv/bin/pip install --no-cache-dir --constraint constraints.txt "$wheel${EXTRAS:+[$EXTRAS]}"

FROM python:3.13-slim-bookworm
COPY --from=build /venv /venv
RUN useradd --create-home --uid 10001 instructgpt \
    && install --directory --owner instructgpt --group instructgpt /data
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
ENTRYPOINT ["instructgpt"]
CMD ["label", "serve", "--site", "/data/site", "--host", "0.0.0.0"]
