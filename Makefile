# make setup     a .venv with everything
# make pretrain  the main job on the embedded default: a tiny model on a synthetic corpus, one to two minutes on two cores
# make test      lint and tests; the core of these also on the oldest versions that setup.cfg admits

PYTHON ?= python3
# A pip outside the .venv fills it: where Debian splits ensurepip off, a .venv has none of its own.
PIP_INSTALL = $(PYTHON) -m pip --python .venv/bin/python --disable-pip-version-check install --quiet
OLDEST = .venv/oldest
# Two files of tests at a time, a thread each: most tests are subprocesses that keep one core busy.
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses 2 --dist loadfile

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
	$(PYTEST)

# What touches the interfaces of other packages; the rest does not change with their versions.
test-oldest: $(OLDEST)/installed
	PYTHONPATH=$(CURDIR)/$(OLDEST) .venv/bin/python -m pip check
	PYTHONPATH=$(CURDIR)/$(OLDEST) $(PYTEST) tests/test_modeling_*.py tests/test_configuration_dnabert2.py \
	    tests/test_remote_code.py tests/test_default_checkpoint.py tests/test_tokenizer.py tests/test_loading.py \
	    tests/test_handler.py tests/test_sequences.py tests/test_tables.py tests/test_sources.py tests/test_metrics.py \
	    tests/test_classifiers.py tests/test_run_mlm.py::test_the_loss_falls \
	    tests/test_run_gue.py::test_a_task_that_can_be_learned_is_learned_and_predictions_give_its_scores \
	    tests/test_run_gue.py::test_a_dataset_with_the_same_columns

# Without what they depend on: that is the .venv's, or listed as well.
$(OLDEST)/installed: .venv/installed constraints-oldest.txt
	rm -rf $(OLDEST)
	$(PIP_INSTALL) --target $(OLDEST) --no-deps --requirement constraints-oldest.txt
	touch $@
