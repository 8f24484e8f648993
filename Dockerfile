# syntax=docker/dockerfile:1
# A server for one or more databases of facts. With an NVIDIA GPU: --build-arg ACCELERATOR=gpu
FROM python:3.12-slim

ARG ACCELERATOR=cpu
# Where PyTorch comes from: its CPU build has no CUDA libraries, which take gigabytes.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /app
COPY constraints.txt pyproject.toml README.md ./
COPY neuraldb_faiss ./neuraldb_faiss
RUN if [ "$ACCELERATOR" = cpu ]; then pip install -c constraints.txt --index-url "$TORCH_INDEX" torch; fi \
    && pip install -c constraints.txt ".[${ACCELERATOR},serve]" \
    && useradd --create-home --uid 1000 neuraldb \
    && mkdir /data \
    && chown neuraldb /data

USER 1000
WORKDIR /data
VOLUME /data
EXPOSE 8000
ENV NEURALDB_SERVE_HOST=0.0.0.0 HF_HOME=/data/models
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["neuraldb"]
CMD ["serve"]
