FROM python:3.13-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.13-slim AS environment
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
RUN python -m venv /venv
COPY requirements/app.txt requirements/app.txt
RUN /venv/bin/pip install --require-hashes -r requirements/app.txt
COPY --from=wheel /wheels /wheels
RUN /venv/bin/pip install --no-deps /wheels/*.whl && /venv/bin/pip check

FROM python:3.13-slim
# No bytecode: root owns the code, and compose.yaml has it read-only.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
COPY --from=environment /venv /venv
COPY alembic.ini alembic.ini
COPY migrations migrations
COPY db db
COPY broker broker
COPY tasks tasks
COPY api api
# By number: Kubernetes cannot tell from a name that it is not root.
USER 10001:10001
EXPOSE 8000
CMD ["uvicorn", "api.main:app", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "5"]
