# The image for GKE, which launch/gke.sh builds:
#   docker build --build-arg=EXTRAS=tpu,gs,demo,eval --tag=IMAGE .
# demo and eval are for configs/digits.py; demo brings eSpeak NG, which is GPL-3.0.
FROM python:3.12-slim
ARG EXTRAS=tpu,gs
WORKDIR /app
# The dependencies have a layer of their own, which changes of the code do not touch.
COPY pyproject.toml setup.py README.md LICENSE ./
RUN mkdir omni_jax configs && pip install --no-cache-dir ".[$EXTRAS]"
COPY omni_jax omni_jax
COPY configs configs
RUN pip install --no-cache-dir --no-deps --force-reinstall . \
  && useradd --create-home omni
USER omni
ENV PYTHONUNBUFFERED=1
CMD ["omni-jax", "--help"]
