"""zeropull serves models behind the SageMaker inference API and starts new instances image first."""

__version__ = "0.1.0"
