# rcg with its tools, for one machine with or without a GPU.
#
#   docker build --tag rcg .
#   docker run --rm rcg --help
#   docker run --rm --gpus all --shm-size 8g --volume "$PWD:/work" rcg train-encoder /work/my.yaml
#
# Runs are written below /work, the folder of the host; caches and downloaded weights below /work/.cache.
FROM python:3.11-slim

COPY . /src
RUN pip install --no-cache-dir /src && rm -rf /src

ENV XDG_CACHE_HOME=/work/.cache HF_HOME=/work/.cache/huggingface
WORKDIR /work
ENTRYPOINT ["rcg"]
CMD ["--help"]
