"""The packages, and what they need. `scripts/install` installs all of it in place (`pip install --no-deps -e .`).

In place, because this is a project to work in rather than a library: code/, configs/ and sample/ are read from the
repository's root. The versions to install stand in requirements.lock.
"""

from setuptools import find_packages, setup

setup(
    name="dogbreed-pipeline",
    version="0.1.0",
    description="An image classifier on SageMaker Pipelines; the same definition runs on AWS and on a laptop",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["pipelines", "pipelines.*", "steps", "steps.*"]),
    # Enough to build the definition and to run it on AWS.
    install_requires=[
        "boto3>=1.43",
        "pydantic>=2.14",
        "pyyaml>=6",
        "rich>=14",
        "sagemaker>=3.27,<4",
    ],
    extras_require={
        # Running it on this machine: the service, what code/ imports in its jobs, and the sample data.
        "local": [
            "numpy>=2",
            "onnx>=1.20",
            "onnxruntime>=1.24",
            "optuna>=5",
            "pillow>=12",
            "psutil>=7",
            "scikit-learn>=1.8",
            "starlette>=1.10",
            "torch>=2.12",
            "torchvision>=0.27",
            "uvicorn>=0.54",
            # What smdebug imports. It is none itself: the versions it names would take everything back years.
            "packaging>=23",
            "pandas>=2.2",
            "protobuf>=5.29",
            "pyinstrument>=5.1",
            "requests>=2.31",
        ],
        "test": [
            "boto3-stubs[s3,sagemaker]>=1.43",
            # What moto's server needs for these services; its extra for all of them brings fifteen more.
            "flask>=3",
            "flask-cors>=6",
            "hypothesis>=6.170",
            "moto[iam,s3,sagemaker,sts]>=5.2",
            "mypy>=2.4",
            "pytest>=9.2",
            "pytest-timeout>=2.4",
            "pytest-xdist>=3.8",
            "ruff>=0.17",
            "types-PyYAML",
            "types-requests",
        ],
    },
)
