# Two commands do everything, from a bare machine with Python >= 3.12:
#   make quickstart   train a small Llama 2 on embedded stories and let it speak
#   make test         run the tests
# A third one goes on: `make chat` makes a chat model, from nothing to a report.
# Each makes .venv and installs the locked dependencies first. Name another Python with PYTHON=...

BIN := .venv/bin
RUN := runs/quickstart

.PHONY: help quickstart chat test test-slow docs notebooks lint types check locks clean

help:
	@echo "make quickstart   train a small Llama 2 (a few minutes on two cores) and sample from it"
	@echo "make chat         from nothing to a chat model: SFT, rewards, rejection sampling, PPO, report"
	@echo "make test         fast tests            make test-slow   kills, signals, long runs"
	@echo "make test PART=ops                      the tests of one folder"
	@echo "make check        lint + types + test   make docs        the documentation site"
	@echo "make locks        resolve the dependencies anew"
	@echo "make notebooks    run the notebooks and keep their outputs"
	@echo "make clean        remove .venv; runs/ is yours and stays"

quickstart: .venv/cpu.stamp
	@$(BIN)/llama-jax train experiments/quickstart.py --workdir $(RUN)
	@$(BIN)/llama-jax report $(RUN)

chat: .venv/cpu.stamp
	@$(BIN)/python experiments/chat/run.py

# PART=ops, PART=train/test_loop.py: the tests of one folder or file.
test: .venv/dev.stamp
	$(BIN)/python -m pytest -n auto -m "not slow" $(PART:%=tests/%)

test-slow: .venv/dev.stamp
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m slow $(PART:%=tests/%)

docs: .venv/docs.stamp
	$(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html opens in a browser; for its search: $(BIN)/python -m http.server -d site"

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev.stamp
	$(BIN)/pyrefly check

check: lint types test

notebooks: .venv/dev.stamp
	$(BIN)/python notebooks/build.py --execute

.venv/python.stamp:
	@sh requirements/make_venv.sh "$(PYTHON)"
	@touch $@

# The project itself is installed in place; its requirements come from the lock alone.
.venv/%.stamp: requirements/%.txt setup.cfg | .venv/python.stamp
	@echo "installing requirements/$*.txt into .venv (a minute or two the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/$*.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# litert-converter caps typing-extensions below what tyro needs, for a part of it that is not used
# here: it cannot be in one resolution with the rest, and works beside it.
.venv/dev.stamp: .venv/litert.stamp
.venv/litert.stamp: requirements/litert.txt | .venv/python.stamp
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	@touch $@

# One resolution for all: the other locks are constrained to the versions of dev.txt.
UV := $(BIN)/uv pip compile --quiet --universal --python-version 3.12 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make locks" --no-annotate
locks: .venv/python.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) setup.cfg --upgrade --extra dev --output-file requirements/dev.txt
	$(UV) requirements/litert.in --upgrade --no-deps --output-file requirements/litert.txt
	$(UV) setup.cfg --constraint requirements/dev.txt --extra build --extra serve --extra export --output-file requirements/cpu.txt
	$(UV) setup.cfg --constraint requirements/dev.txt --extra build --extra serve --extra export --extra tpu --output-file requirements/tpu.txt
	$(UV) setup.cfg --constraint requirements/dev.txt --extra build --extra serve --extra export --extra cuda --output-file requirements/cuda.txt
	$(UV) setup.cfg --constraint requirements/dev.txt --extra build --extra docs --output-file requirements/docs.txt

clean:
	rm -rf .venv
