"""Names that the pipeline definition and the scripts in the jobs must agree on.

The scripts import this module; `pipelines/contract.py` loads the same file, so that no channel, metric or path is
spelt in two places. Standard library only: it is read where nothing else is installed.
"""

SIDES = ("train", "valid", "test")

# Input channels of the training jobs (SM_CHANNEL_<NAME>); photos of a side travel under the side's own name.
CHANNEL_FEATURES = "features"
CHANNEL_TRAIN = "train"
CHANNEL_VALID = "valid"
CHANNEL_WEIGHTS = "weights"

# Metrics are lines in the log. SageMaker finds them with these expressions and keeps the last value it saw.
METRIC_VALID_LOSS = "average validation loss"
METRIC_TEST_LOSS = "average test loss"
METRIC_ACCURACY = "accuracy"
_NUMBER = r"([0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?)"
METRIC_REGEX = {name: f"{name}: {_NUMBER}" for name in (METRIC_VALID_LOSS, METRIC_TEST_LOSS, METRIC_ACCURACY)}

# Files one step writes and another, or the gate, reads.
SPLIT_REPORT = "split.json"
CLASSES_FILE = "classes.json"
FEATURES_FILE = "features.json"
RANDOM_WEIGHTS_FILE = "random.json"
MODEL_ARCHIVE = "model.tar.gz"
EVALUATION_FILE = "evaluation.json"
TEST_LOSS_PATH = "multiclass_classification_metrics.test_loss.value"
ACCURACY_PATH = "multiclass_classification_metrics.accuracy.value"

# Where features of a side lie below the features channel.
FEATURES_ARRAY = "features.npy"
LABELS_ARRAY = "labels.npy"
PHOTOS_FILE = "photos.json"

# What the model archive holds beside model.pt and model.onnx.
MODEL_FILE = "model.json"
PREDICTIONS_FILE = "predictions.jsonl"
