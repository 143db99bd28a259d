# make setup     a .venv with everything
# make pretrain  the main job on the embedded default: a tiny model on a synthetic corpus, one to two minutes on two cores
# make test      lint and tests, on the newest and on the oldest transformers that setup.cfg admits

PYTHON ?= python3
# A pip outside the .venv fills it: where Debian splits ensurepip off, a .venv has none of its own.
PIP_INSTALL = $(PYTHON) -m pip --python .venv/bin/python --disable-pip-version-check install --quiet
OLDEST = .venv/oldest-transformers

.PHONY: setup pretrain lint test test-newest test-oldest

setup: .venv/installed

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv --without-pip .venv
	$(PIP_INSTALL) --constraint constraints.txt pip torch  # torch first and alone, at the pinned version
	$(PIP_INSTALL) --constraint constraints.txt --editable ".[test]"
	touch $@

pretrain: setup
	.venv/bin/python -m dnabert2.demo

lint: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .

test: lint test-newest test-oldest

test-newest: setup
	.venv/bin/python -m pytest

# What touches transformers' own interfaces; the rest does not change with its version.
test-oldest: $(OLDEST)/installed
	PYTHONPATH=$(OLDEST) .venv/bin/python -m pytest tests/test_modeling_*.py tests/test_configuration_dnabert2.py \
	    tests/test_remote_code.py tests/test_default_checkpoint.py tests/test_tokenizer.py tests/test_loading.py \
	    tests/test_handler.py

$(OLDEST)/installed: .venv/installed constraints-oldest.txt
	rm -rf $(OLDEST)
	$(PIP_INSTALL) --target $(OLDEST) --constraint constraints-oldest.txt transformers
	touch $@
