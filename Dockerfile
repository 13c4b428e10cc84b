# Weighted Shards as a job: mount inputs and outputs, pass the flags of pipeline.build.
#   docker build -t weighted-shards .
#   docker run --rm -v "$PWD/data:/data" weighted-shards \
#       --rules ignore_empty_think --input /data/train.jsonl --tokenizer /data/model --output /data/shards
# The mounted folder must be writable for user 10001; or run it as yours, and keep the cache:
#   docker run --rm --user "$(id -u):$(id -g)" -e XDG_CACHE_HOME=/data/.cache -v ...
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /app
COPY requirements.lock ./
RUN pip install -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY pipeline ./pipeline
RUN pip install --no-deps . && rm -r pipeline

RUN useradd --create-home --uid 10001 shards && mkdir /data && chown shards /data
USER shards
WORKDIR /data
# The list form: Python is process 1 itself, and gets the SIGTERM of `docker stop`.
ENTRYPOINT ["python", "-m", "pipeline.build"]
