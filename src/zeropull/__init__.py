"""zeropull serves models behind the SageMaker API and starts new instances image first."""

__version__ = "0.1.0"
