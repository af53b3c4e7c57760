"""The pipeline's definition, its command line, and SageMaker on this machine."""
