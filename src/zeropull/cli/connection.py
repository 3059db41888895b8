"""The lines that a user of boto3 pastes."""

from __future__ import annotations

import configparser

from zeropull.resources.settings import Settings

# One variable per service, never AWS_ENDPOINT_URL: that one would hijack S3 and all the others.
SERVICES = ("SAGEMAKER", "SAGEMAKER_RUNTIME", "APPLICATION_AUTO_SCALING", "CLOUDWATCH")


def connection_lines(settings: Settings, address: str) -> list[str]:
    """Shell lines for `address` ("host:port") with the default key of S/credentials."""
    credentials = configparser.ConfigParser(interpolation=None)
    credentials.read(settings.state_dir / "credentials")
    key = credentials["default"]
    return [
        f"zeropull serves on http://{address}; for boto3 and the AWS CLI, paste:",
        f"export AWS_ACCESS_KEY_ID={key['aws_access_key_id']}",
        f"export AWS_SECRET_ACCESS_KEY={key['aws_secret_access_key']}",
        f"export AWS_DEFAULT_REGION={settings.serve.region}",
        *(f"export AWS_ENDPOINT_URL_{service}=http://{address}" for service in SERVICES),
    ]
