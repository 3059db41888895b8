"""The lines that a user of boto3 pastes."""

from __future__ import annotations

import configparser
import shlex

from zeropull.resources.settings import Settings

# One variable per service, never AWS_ENDPOINT_URL: that one would hijack S3 and all the others.
SERVICES = ("SAGEMAKER", "SAGEMAKER_RUNTIME", "APPLICATION_AUTO_SCALING", "CLOUDWATCH")


def connection_lines(settings: Settings, address: str, *, is_private: bool) -> list[str]:
    """Shell lines for `address` ("host:port") with the default key of S/credentials.

    The key itself is in them only when the output `is_private`, such as a terminal: a log would
    keep it for everybody who reads logs. Otherwise the lines name the file, which only root reads.
    """
    path = settings.state_dir / "credentials"
    credentials = configparser.ConfigParser(interpolation=None)
    try:
        credentials.read_string(path.read_text(encoding="utf-8"))
        key = credentials["default"]
        identifier, secret = key["aws_access_key_id"], key["aws_secret_access_key"]
    # The error is told by its kind only: a parser's message quotes lines of the file.
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError) as error:
        return [
            f"zeropull serves on http://{address}, but the key in {path} cannot be read "
            f"({type(error).__name__}): make room on the disk and start `zeropull serve` again, "
            "which writes it"
        ]
    if is_private:
        keys = [
            f"export AWS_ACCESS_KEY_ID={identifier}",
            f"export AWS_SECRET_ACCESS_KEY={secret}",
        ]
    else:
        keys = [f"export AWS_SHARED_CREDENTIALS_FILE={shlex.quote(str(path))}"]
    return [
        f"zeropull serves on http://{address}; for boto3 and the AWS CLI, paste:",
        *keys,
        f"export AWS_DEFAULT_REGION={settings.serve.region}",
        f"export AWS_REGION={settings.serve.region}",  # all that the JavaScript SDK reads
        *(f"export AWS_ENDPOINT_URL_{service}=http://{address}" for service in SERVICES),
    ]
