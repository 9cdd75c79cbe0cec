# llama_jax in a container, for CPUs or for TPU VMs.
#
#   docker build -t llama-jax .                               for CPUs
#   docker build -t llama-jax:tpu --build-arg LOCK=tpu .      for TPU VMs: libtpu and buckets, too
#
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" llama-jax train quickstart
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" llama-jax \
#       generate runs/quickstart --prompt "One day"
#   docker run --rm --privileged --net=host -v "$PWD:/work" llama-jax:tpu \
#       train tpu/llama2_7b --workdir gs://BUCKET/llama2-7b
#
# /work is the folder on your machine, and the container's home: runs, prepared data and compiled
# programs (.cache/llama_jax) stay there for the next command. --user makes them yours, not root's.
# --privileged and --net=host give a TPU VM's chips and the network between its hosts to the
# container; run the same command on every host.
FROM python:3.12-slim AS base
ARG LOCK=cpu
COPY requirements/${LOCK}.txt /requirements.txt
RUN pip install --no-cache-dir --require-hashes -r /requirements.txt

FROM base AS build
COPY . /source
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels /source

FROM base
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-deps --no-index /wheels/*.whl
WORKDIR /work
ENV HOME=/work
ENTRYPOINT ["llama-jax"]
CMD ["--help"]
