"""What lies in a run directory, by its names, beside a model's `config.json` and `tokenizer/`."""

RUN_FILE = "run.json"  # what the run is, and its sessions
SETTINGS_FILE = "settings.yaml"
SAMPLES_FILE = "samples.json"  # which examples were drawn
METRICS_FILE = "metrics.jsonl"
BAD_BATCHES_FILE = "bad_batches.jsonl"  # the batches of skipped updates, one JSON object each
MLFLOW_FILE = "mlflow.json"  # what MLflow has of it
NEEDED_FILE = "needed_steps.json"  # steps that other runs rest on
CHECKPOINTS_FOLDER = "checkpoints"
CHECKSUMS_FILE = "checksums.json"  # in a step: size and SHA-256 of its files
