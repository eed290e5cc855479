# docker build -t vlre .                                      answers on a CPU
# docker build -t vlre --build-arg EXTRA=gpu .                searches and encodes on CUDA
# torch brings CUDA along on Linux. For a smaller image, give the index of its CPU builds, which
# pytorch.org names under "Get started": --build-arg TORCH_INDEX=…
FROM python:3.11-slim
ARG EXTRA=cpu
ARG TORCH_INDEX=
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY retrieval_engine retrieval_engine
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
      ".[$EXTRA,serve,mcp]" \
 && useradd --create-home vlre && mkdir /data && chown vlre /data
USER vlre
# The store is /data/embeddings, the index /data/indices/built/default.
WORKDIR /data
ENV OMP_WAIT_POLICY=PASSIVE
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz')"]
ENTRYPOINT ["vlre"]
CMD ["serve", "--host", "0.0.0.0"]
