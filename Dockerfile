# This program in an official image of CANN. docs/container.md says how to build and start it.
ARG IMAGE=ascendai/cann:8.5.2-310p-ubuntu22.04-py3.11
FROM $IMAGE

# The images of CANN 8.3 and older have no git, which applies TResNet.patch.
RUN command -v git || (apt-get update && apt-get install -y --no-install-recommends git)

COPY . /opt/tresnet
# The environment, timm's source and the C libraries; packages/ is a folder of setup_env.py --download, if there is one.
RUN cd /opt/tresnet && if [ -d packages ]; then set -- --offline packages; fi \
    && python3 scripts/setup_env.py "$@" && python3 scripts/timm_source.py "$@" && rm -rf packages ~/.cache
# wheels/ holds aclruntime-*.whl and ais_bench-*.whl for this image's Python.
RUN cd /opt/tresnet && if ls wheels/*.whl; then pip3 install --no-cache-dir wheels/*.whl; fi

WORKDIR /data
CMD ["bash", "/opt/tresnet/scripts/pipeline.sh", "--check"]
